/**
 * `edgemesh agent`: the composition root of a node. Order of start: identity, snapshot from disk, mesh link, forwarding,
 * tunnel, DNS, all else: what a crash left refused is healed first, and what has to wait for a far answer asks early.
 */
import { systemClock } from "../lib/clock.ts";
import type { AgentConfig } from "../lib/config.ts";
import { Forwarder } from "../lib/forward/forwarder.ts";
import type { AgentIdentity } from "../lib/identity/agent.ts";
import { keepMemoryLow } from "../lib/linux/idle_memory.ts";
import { notifyStopping } from "../lib/linux/process.ts";
import type { Logger, LogLevel } from "../lib/log.ts";
import { DiskSnapshot } from "../lib/meta/disk/disk.ts";
import { openSnapshotFiles } from "../lib/meta/disk/disk_files.ts";
import { Guard } from "../lib/meta/guard.ts";
import { ServerSource } from "../lib/meta/fanout/source_server.ts";
import { MetaStore } from "../lib/meta/store/store.ts";
import { Readiness } from "../lib/readiness.ts";
import { startAdmin } from "./daemon/admin_server.ts";
import {
  allowedConnections,
  forwardConfig,
  guardPolicy,
  nodeFacts,
  sameFacts,
  serviceCidrs,
  vitalAddresses,
} from "./agent/facts.ts";
import { LanNodes } from "./agent/lan_nodes.ts";
import type { RunningAgent } from "./agent/running.ts";
import { ensureIdentity } from "./agent/join.ts";
import { openMeshLink, watchHost } from "./agent/link.ts";
import { engineChoice } from "./agent/engine.ts";
import { DnsModule } from "./agent/dns.ts";
import { collectAgentMetrics } from "./agent/metrics.ts";
import { agentRoutes } from "./agent/routes.ts";
import { agentPaths, pathSockets } from "./agent/paths.ts";
import { addAgentChecks } from "./agent/ready.ts";
import { applySocketChoice, openSockets } from "./agent/sockets.ts";
import { openRules } from "./agent/rules.ts";
import { spareBuffers } from "../lib/tunnel/spare_buffers.ts";
import { makeTunnel, serversOf, type TunnelHandle } from "./agent/tunnel.ts";
import {
  announceReady,
  type DaemonFlags,
  openLog,
  ownedBy,
  prepareProcess,
  readConfig,
  startWatchdog,
  untilStopped,
} from "./daemon/daemon.ts";
import { reloadOnHangup } from "./daemon/reload.ts";
import { filesSource, isNamed, namedSource } from "./daemon/meta_sources.ts";
import { startMetrics } from "./daemon/metrics_server.ts";
import { noteResolver, rootHelps } from "./root_helps.ts";
import { watchNativeProxy } from "./agent/native_proxy.ts";
import { openStateDir, type StateDir } from "./daemon/state_dir.ts";

/** A host that starts without its server says it is ready after this long: what works offline must not wait for it. */
const FIRST_CONNECTION_MS = 2_000;

export async function agentCommand(flags: DaemonFlags): Promise<number> {
  const config = await readConfig("agent", flags);
  applySocketChoice(config);
  const { log, sink } = openLog(config.log);
  const stopped = untilStopped();
  prepareProcess(log);
  await using state = await openStateDir(config.stateDir, "agent");
  const identity = await ensureIdentity(config, state.files, log);
  if (rootHelps()) await noteResolver(config);
  await using agent = await startAgent({ config, log, state, identity, setLogLevel: (level) => sink.level = level });
  const apply = (next: AgentConfig) => agent.reconfigure(next);
  reloadOnHangup({ role: "agent", flags, sink, log, config: () => agent.config, apply });
  const { node } = identity;
  announceReady(agent.readiness, { log, name: "agent", status: `node ${node}`, fields: { node } });
  const signal = await stopped;
  log.info("agent stops", { signal });
  notifyStopping();
  return 0;
}

export interface AgentParts {
  readonly config: AgentConfig;
  readonly log: Logger;
  readonly state: StateDir;
  readonly identity: AgentIdentity;
  setLogLevel(level: LogLevel): void;
}

/** Starts everything; disposing of the result stops it in reverse order and leaves the host as it was. */
export async function startAgent(parts: AgentParts): Promise<RunningAgent> {
  const { config, log, state, identity } = parts;
  const clock = systemClock;
  const startedAt = clock.now();
  const readiness = new Readiness(clock);
  await using stack = new AsyncDisposableStack();
  stack.defer(() => readiness.close());

  let servers = serversOf(config, identity);
  await identity.retainRevocations(servers);
  const sockets = openSockets(config, log);
  const { loop, epoll } = sockets;
  stack.use(loop);
  stack.defer(() => identity.close());

  const cidrs = serviceCidrs(config, identity.state.mesh.serviceCidrs);
  const store = new MetaStore({
    clock,
    log: log.child("meta"),
    layers: config.manifests ? ["local", "base"] : ["base"],
  });
  const guard = new Guard(guardPolicy(config, cidrs, vitalAddresses(servers)));
  const disk = new DiskSnapshot({
    files: openSnapshotFiles(state.path),
    layer: store.layer("base"),
    clock,
    log: log.child("meta"),
    guard,
  });
  await disk.load();
  stack.defer(() => disk.stop());
  const source = new ServerSource({ layer: store.layer("base"), guard, clock, log: log.child("meta") });
  const local = config.manifests === undefined
    ? undefined
    : filesSource(config.manifests, store.layer("local"), cidrs, { log });
  // A source that is named wins over the joined server; nothing is followed because it merely answers (design: source order).
  const startNamed = async () => {
    const named = await namedSource(config, { layer: store.layer("base"), log, guard, node: identity.node });
    await named?.start();
    return named;
  };
  let explicit = config.metadata.enabled ? await startNamed() : undefined;
  stack.defer(() => explicit?.stop());
  if (local) {
    await local.start();
    stack.defer(() => local.stop());
  }

  const link = openMeshLink(config, cidrs, log.child("link"));
  stack.use(link);

  const lan = new LanNodes(() => refresh());
  const factsNow = () => nodeFacts({ config, meta: store.snapshot, node: identity.node, lan: lan.names });
  let facts = factsNow();
  let live = config;
  const startDns = () =>
    DnsModule.start({
      config: live,
      loop,
      log,
      store,
      cidrs,
      facts: () => facts,
      mesh: link.addresses,
      ...(link.problem ? { noMesh: link.problem } : {}),
      stateDir: state.path,
    });
  let dns: DnsModule | undefined;
  stack.defer(() => dns?.close());

  // Forwarding needs the tunnel and the tunnel needs forwarding: each reaches the other through these names.
  let forwarder: Forwarder | undefined;
  const serverTried = config.tunnel.enabled ? readiness.task("a server") : () => {};
  const fast = engineChoice({ config, identity, loop: epoll, log: log.child("tunnel") });
  const makePaths = () =>
    agentPaths({
      config,
      identity,
      loop: epoll,
      log,
      fast,
      virtual: () => [...cidrs, ...facts.podCidrs],
      onReached: (node, path) => lan.reached(node, path),
    });
  let paths = makePaths();
  const makeTunnelHere = (): TunnelHandle =>
    makeTunnel({
      paths: paths.options,
      fast,
      legs: epoll && pathSockets({ loop: epoll, fast }),
      later: epoll ? (task) => epoll.soon(task) : queueMicrotask,
      config,
      identity,
      servers,
      log,
      source,
      follows: () => live.metadata.enabled && !isNamed(config),
      onStream: (incoming) => forwarder ? forwarder.onTunnelStream(incoming) : incoming.refuse("NOT_ALLOWED"),
      onFlow: (incoming) => forwarder ? forwarder.onTunnelFlow(incoming) : incoming.refuse("NOT_ALLOWED"),
      onServers: (connected) => {
        if (connected > 0) serverTried();
        if ((connected > 0) !== online) {
          online = connected > 0;
          running.modeSince = clock.wall();
        }
      },
    });
  let tunnel = makeTunnelHere();
  let online = false;
  const native = await watchNativeProxy(log.child("forward"), () => {
    void forwarder?.setConfig(forwardConfig(live, cidrs, native.works));
  });
  stack.defer(() => native.close());
  const maxConnections = allowedConnections(config, log);
  const startForwarding = () =>
    new Forwarder({
      loop,
      clock,
      log,
      // The tunnel may be another one by then.
      tunnel: {
        dial: (target, first, handler) => tunnel.tunnel.manager.dial(target, first, handler),
        openFlow: (target, handler) => tunnel.tunnel.manager.openFlow(target, handler),
      },
      rules: openRules(config.forward.backend, log),
      facts,
      config: forwardConfig(live, cidrs, native.works),
      options: {
        connectTimeoutMs: config.forward.connectTimeoutMs,
        udpIdleMs: config.forward.udpIdleMs,
        maxConnections,
        accessLog: live.forward.accessLog,
        listenPerPort: epoll === undefined,
      },
      defer: (task) => void setImmediate(task),
    });
  if (config.forward.enabled) forwarder = startForwarding();
  stack.defer(() => forwarder?.close({ keepKernelRules: false }));

  const running: RunningAgent = {
    get config() {
      return live;
    },
    identity,
    store,
    source,
    local,
    get explicit() {
      return explicit;
    },
    guard,
    disk,
    get dns() {
      return dns;
    },
    get forwarder() {
      return forwarder;
    },
    get tunnel() {
      return tunnel.tunnel;
    },
    readiness,
    sockets,
    link,
    startedAt,
    modeSince: clock.wall(),
    facts,
    async reconfigure(next) {
      const before = live;
      live = next;
      await useServers();
      revise();
      if (live.metadata.enabled !== before.metadata.enabled) await switchMetadata();
      if (live.tunnel.enabled !== before.tunnel.enabled) await switchTunnel();
      if (live.forward.enabled !== before.forward.enabled) await switchForwarding();
      forwarder?.setAccessLog(live.forward.accessLog);
      await forwarder?.setConfig(forwardConfig(live, cidrs, native.works));
      if (!live.dns.enabled) {
        await dns?.close();
        dns = undefined;
      } else if (dns) await dns.reload(live);
      else dns = await startDns();
    },
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };

  addAgentChecks(running);
  // While metadata is switched off nobody keeps the layer: whoever follows it next begins with the policy of then.
  const revise = () => {
    guard.policy = guardPolicy(live, cidrs, vitalAddresses(servers));
    (isNamed(config) ? explicit : source)?.revise?.();
  };
  const refresh = () => {
    const next = factsNow();
    if (!sameFacts(facts, next)) {
      running.facts = facts = next;
      revise();
      void forwarder?.setFacts(facts);
    }
    void forwarder?.update(store.snapshot).then(() => readiness.look());
  };
  stack.defer(store.subscribe(() => {
    disk.changed((explicit ?? source).status().from);
    refresh();
  }));
  refresh();
  stack.defer(watchHost(epoll, () => {
    dns?.networkChanged();
    refresh();
    const addresses = paths.refresh();
    if (!addresses) return;
    lan.clear();
    tunnel.tunnel.networkChanged(addresses);
  }));

  let endTunnel = () => {};
  const startTunnel = () => {
    tunnel.tunnel.start();
    const tried = clock.timer(FIRST_CONNECTION_MS, serverTried);
    const unwatch = identity.watch(
      (body) => tunnel.tunnel.servers.renew(body),
      () => void useServers(),
    );
    endTunnel = () => {
      tried();
      unwatch();
    };
  };
  if (config.tunnel.enabled) startTunnel();
  stack.defer(() => tunnel.close());
  stack.defer(() => endTunnel());
  // While the first packet to the servers travels and the rules, which were left to heal, are written.
  if (config.dns.enabled) dns = await startDns();

  // Each module goes and comes without the others: what they share (link, loop, snapshot) stays.
  async function useServers(): Promise<void> {
    servers = serversOf(live, identity);
    await identity.retainRevocations(servers);
    tunnel.use(servers);
  }
  async function switchMetadata(): Promise<void> {
    if (live.metadata.enabled) explicit ??= await startNamed();
    else {
      await explicit?.stop();
      explicit = undefined;
    }
    tunnel.follow();
  }
  async function switchForwarding(): Promise<void> {
    const leaving = forwarder;
    forwarder = live.forward.enabled ? startForwarding() : undefined;
    await leaving?.close({ keepKernelRules: false });
    await forwarder?.update(store.snapshot);
  }
  async function switchTunnel(): Promise<void> {
    if (live.tunnel.enabled) return startTunnel();
    endTunnel();
    await tunnel.close();
    lan.clear();
    // What is over cannot start again: a new one stands ready for when it is switched on.
    paths = makePaths();
    tunnel = makeTunnelHere();
    if (online) {
      online = false;
      running.modeSince = clock.wall();
    }
  }
  stack.use(
    await startAdmin({ runDir: config.runDir, role: "agent", routes: agentRoutes(running, parts.setLogLevel), log }),
  );
  stack.use(
    startMetrics({ listen: config.metricsListen, readiness, log, collect: () => collectAgentMetrics(running) }),
  );
  stack.defer(startWatchdog());
  stack.defer(keepMemoryLow(clock, () => [spareBuffers, forwarder, epoll]));

  return ownedBy(running, stack, log);
}
