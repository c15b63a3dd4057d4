/**
 * `edgemesh server`: the composition root of the cloud side. Authority and join, control connections and relay,
 * metadata fan-out, admin socket. Everything real (sockets, clock, disk) is made here and handed in.
 */
import { cidrText, isPrivate, isUnicastEndpoint, parseCidr, parseHostPort, parseIp } from "../lib/addr.ts";
import { systemClock } from "../lib/clock.ts";
import type { ServerConfig } from "../lib/config.ts";
import { MeshError } from "../lib/errors.ts";
import { IdentityServer } from "../lib/identity/server.ts";
import { MAX_REQUEST_BYTES } from "../lib/identity/messages.ts";
import { MAX_SERVER_BYTES, SERVER_JOIN_PATH, SERVER_SYNC_PATH } from "../lib/identity/server_messages.ts";
import { type VerifiedPeer, verifyPeer } from "../lib/identity/trust.ts";
import { keepMemoryLow } from "../lib/linux/idle_memory.ts";
import { EpollLoop } from "../lib/linux/loop.ts";
import { notifyStopping } from "../lib/linux/process.ts";
import type { Logger, LogLevel } from "../lib/log.ts";
import { FanoutServer } from "../lib/meta/fanout/fanout_server.ts";
import type { AgentConnection } from "../lib/meta/fanout/fanout_server.ts";
import type { MetaSource } from "../lib/meta/source.ts";
import { scopeFor, scopeLabels } from "../lib/meta/fanout/scope.ts";
import { MetaStore } from "../lib/meta/store/store.ts";
import { Readiness } from "../lib/readiness.ts";
import { legOfFd } from "../lib/tunnel/carriers/tcp_leg.ts";
import { MAX_OBSERVERS } from "../lib/tunnel/control/path_message.ts";
import { ControlServer } from "../lib/tunnel/control/server.ts";
import { VERSION } from "../lib/version.ts";
import { startAdmin } from "./daemon/admin_server.ts";
import {
  announceReady,
  bootId,
  type DaemonFlags,
  openLog,
  ownedBy,
  prepareProcess,
  readConfig,
  startWatchdog,
  untilStopped,
} from "./daemon/daemon.ts";
import { reloadOnHangup } from "./daemon/reload.ts";
import { filesSource, kubeSource } from "./daemon/meta_sources.ts";
import { startMetrics } from "./daemon/metrics_server.ts";
import { collectServerMetrics } from "./server/metrics.ts";
import { publishRevocations } from "./server/nodes.ts";
import { serverRoutes } from "./server/routes.ts";
import type { RunningServer } from "./server/running.ts";
import { openStateDir, type StateDir } from "./daemon/state_dir.ts";

export async function serverCommand(flags: DaemonFlags): Promise<number> {
  const config = await readConfig("server", flags);
  const { log, sink } = openLog(config.log);
  const stopped = untilStopped();
  prepareProcess(log);
  await using state = await openStateDir(config.stateDir, "server");
  await using server = await startServer({ config, log, state, setLogLevel: (level) => sink.level = level });
  reloadOnHangup({ role: "server", flags, sink, log, config: () => server.config, apply: () => Promise.resolve() });
  const { url, pin } = server;
  announceReady(server.readiness, { log, name: "server", status: `serving ${url}`, fields: { url, pin } });
  const signal = await stopped;
  log.info("server stops", { signal });
  notifyStopping();
  return 0;
}

export interface ServerParts {
  readonly config: ServerConfig;
  readonly log: Logger;
  readonly state: StateDir;
  setLogLevel(level: LogLevel): void;
}

/** Starts everything; disposing of the result stops it in reverse order. */
export async function startServer(parts: ServerParts): Promise<RunningServer> {
  const { config, log, state } = parts;
  const clock = systemClock;
  await using stack = new AsyncDisposableStack();
  const readiness = new Readiness(clock);
  stack.defer(() => readiness.close());
  const url = config.url ?? await defaultUrl(config.listen);

  const identity = await IdentityServer.open({
    files: state.files,
    clock,
    log: log.child("identity"),
    name: config.name,
    url,
    trustDomain: config.trustDomain,
    onRevocations: () => publishRevocations(identity, control),
    onAuthority: () => control.pushAuthorities(),
    mesh: { serviceCidrs: config.serviceCIDRs.map((c) => cidrText(parseCidr(c)!)), zone: config.zone, servers: [url] },
    lifetimeMs: config.certificateHours * 3_600_000,
  });

  const store = new MetaStore({ clock, log: log.child("meta"), layers: ["base"] });
  const fanout = new FanoutServer({ clock, source: `server:${config.name}`, epoch: bootId() });
  stack.defer(fanout.follow(store));
  stack.defer(() => fanout.stop());

  const loop = EpollLoop.open({ clock, log: log.child("loop"), alone: true });
  stack.use(loop);
  const agents = new Map<string, AgentConnection>();
  const control: ControlServer<VerifiedPeer> = new ControlServer<VerifiedPeer>({
    clock,
    log: log.child("control"),
    name: config.name,
    version: VERSION,
    credentials: () => ({ cert: identity.tls().certPem, key: identity.tls().keyPem, ca: identity.authority.bundlePem }),
    verify: (chainDer) =>
      verifyPeer({ chainDer, expected: { role: "node" }, trust: identity.trust, now: identity.now() }),
    admit: (peer) => identity.admit(peer),
    join: (body, source) => identity.handleJoin(body, source),
    posts: new Map([
      [SERVER_JOIN_PATH, {
        maxBytes: MAX_REQUEST_BYTES,
        admit: () => (body: string, source: string) => identity.handleServerJoin(body, source),
      }],
      [SERVER_SYNC_PATH, {
        maxBytes: MAX_SERVER_BYTES,
        admit(chain: readonly Uint8Array[]) {
          const member = identity.group.admit(chain);
          return (body: string) => identity.handleServerSync(body, member);
        },
      }],
    ]),
    renew: async (peer, body) => (await identity.handleRenew(body, peer)).body,
    revocations: () => identity.revocationList,
    authorities: () => identity.keeper.told,
    onAuthorities: (node, told) => identity.keeper.heard(node, told),
    isKnown: (node) => identity.enrolments.get(node) !== undefined,
    onAgent(node) {
      agents.get(node)?.close();
      const scope = scopeFor(node, config.metadata.scopes);
      agents.set(node, fanout.connect({ node, scope, send: (message) => control.sendMeta(node, message) }));
    },
    onAgentGone(node) {
      agents.get(node)?.close();
      agents.delete(node);
    },
    onMeta: (node, message) => agents.get(node)?.receive(message),
    onMetaDrain: (node) => agents.get(node)?.writable(),
    paths: {
      observe: config.observeListen === "off" ? undefined : parseHostPort(config.observeListen)!,
      servers: publicAddresses(),
    },
    legs: {
      sockets: {
        loop,
        peek: (stream, into) => loop.peek(stream, into),
        socket: (stream) => legOfFd(loop.takeFd(stream)),
      },
      join: (a, b, onEnd) => {
        const splice = loop.splice(a, b, { onEnd: (_reason, aToB, bToA) => onEnd(aToB + bToA) })!;
        return {
          get bytes() {
            return splice.aToB + splice.bToA;
          },
          reset: () => splice.reset("SHUTDOWN"),
        };
      },
    },
    ...(config.relayTap === undefined ? {} : { tap: openTap(config.relayTap, stack) }),
  });
  stack.defer(identity.watch(() => log.info("server certificate renewed")));

  const sources = await openSources(config, store, log);
  for (const source of sources) {
    await source.start();
    stack.defer(() => source.stop());
    // What was read once is served on while its source is away; with nothing at all agents would learn of no Service.
    readiness.check("metadata", () => {
      const { state, from, lastError } = source.status();
      return state === "starting" ? lastError ?? `${from} is being read for the first time` : undefined;
    });
  }
  if (sources.length === 0) {
    log.warn("no source of metadata is configured: agents will know no Services", {
      hint: "--manifests DIR, or --set kubeconfig=in-cluster",
    });
  }

  stack.defer(() => control.close());
  await control.listen(parseHostPort(config.listen)!);

  const running: RunningServer = {
    config,
    url,
    get pin() {
      return identity.authority.pin;
    },
    identity,
    control,
    store,
    sources,
    readiness,
    startedAt: clock.now(),
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };
  stack.use(
    await startAdmin({ runDir: config.runDir, role: "server", routes: serverRoutes(running, parts.setLogLevel), log }),
  );
  stack.use(
    startMetrics({ listen: config.metricsListen, readiness, log, collect: () => collectServerMetrics(running) }),
  );
  stack.defer(startWatchdog());
  stack.defer(keepMemoryLow(clock, () => [loop]));
  return ownedBy(running, stack, log);
}

/** Records channel frames for whoever wants to look at what a relay sees. */
function openTap(path: string, stack: AsyncDisposableStack): (from: string, frame: Uint8Array) => void {
  const file = Deno.openSync(path, { append: true, create: true, mode: 0o600 });
  stack.defer(() => file.close());
  return (_from, frame) => {
    for (let at = 0; at < frame.length;) at += file.writeSync(frame.subarray(at));
  };
}

/** One source at a time: an API that is named wins over a folder, because both would write the same layer. */
async function openSources(config: ServerConfig, store: MetaStore, log: Logger): Promise<MetaSource[]> {
  const layer = store.layer("base");
  if (config.kubeconfig !== undefined && config.manifests !== undefined) {
    throw new MeshError("CONFIG_INVALID", "Both manifests and kubeconfig are given; a server follows one source", {
      hint: "drop one of the two",
    });
  }
  const { scopes, ...reading } = config.metadata;
  const extraLabels = scopeLabels(scopes);
  if (config.kubeconfig !== undefined) {
    return [await kubeSource(config.kubeconfig, { layer, log, pods: "all", ...reading, extraLabels })];
  }
  if (config.manifests === undefined) return [];
  const cidrs = config.serviceCIDRs.map((c) => parseCidr(c)!);
  return [filesSource(config.manifests, layer, cidrs, { log, extraLabels })];
}

/** `wss://` and this host's first address that others can reach, unless the listener names one. */
async function defaultUrl(listen: string): Promise<string> {
  const { ip, port } = parseHostPort(listen)!;
  const any = ip === "0.0.0.0" || ip === "::";
  const own = any ? await Promise.resolve(Deno.networkInterfaces()).then((list) => list.find(usable)?.address) : ip;
  const host = own ?? "127.0.0.1";
  return `wss://${host.includes(":") ? `[${host}]` : host}${port === 443 ? "" : `:${port}`}`;
}

function usable(i: Deno.NetworkInterfaceInfo): boolean {
  return i.family === "IPv4" && !i.address.startsWith("127.") && !i.address.startsWith("169.254.");
}

/** This host's addresses that agents anywhere can reach: where the observation port may be found. */
function publicAddresses(): string[] {
  return Deno.networkInterfaces().map((i) => parseIp(i.address.replace(/%.*$/, "")))
    .filter((ip) => ip !== undefined)
    .filter((ip) => isUnicastEndpoint(ip) && !isPrivate(ip))
    .slice(0, MAX_OBSERVERS);
}
