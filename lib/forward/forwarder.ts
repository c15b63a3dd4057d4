/**
 * Brings Service traffic of this node to its endpoints: keeps the kernel's rules at the newest snapshot, and carries
 * what the kernel cannot. The only class that whoever composes the agent needs.
 */
import { hostPort } from "../addr.ts";
import type { CancelTimer, Clock } from "../clock.ts";
import { describe, MeshError } from "../errors.ts";
import type { Logger } from "../log.ts";
import type { MetaReader } from "../meta/model.ts";
import type { DatagramDialer, Dialer, IpPort, Listener, Loop } from "../net.ts";
import { Admission } from "./admission.ts";
import { Connections, DEFAULT_IDLE, type IdlePolicy, type SeenConnection } from "./connections.ts";
import { Counters } from "./counters.ts";
import type { ForwardConfig, NodeFacts } from "./facts.ts";
import { FrontendIndex } from "./frontends.ts";
import { Incoming, type IncomingFlow, type IncomingStream } from "./incoming.ts";
import type { SocketLoop } from "./join.ts";
import { LocalDialer } from "./local_dialer.ts";
import { Picker } from "./picker.ts";
import { PipeKit } from "./pipe.ts";
import { emptyPlan, planForwarding } from "./plan.ts";
import type { Plan } from "./plan_model.ts";
import { PortListeners } from "./port_listeners.ts";
import { type AgentListeners, compileRules } from "./rules/compile.ts";
import type { Ruleset } from "./rules/ruleset.ts";
import type { RuleWriter } from "./rules/writer.ts";
import { type ForwardStatus, forwardStatus } from "./status.ts";
import { TcpForwarder } from "./tcp.ts";
import { UdpForwarder } from "./udp.ts";
import { Upkeep } from "./upkeep.ts";

/** Ports of the mesh address tried for the TCP listener, in order; below the punch range, off NodePorts. */
export const TCP_PORTS = { first: 19001, count: 16 } as const;
/** After the kernel refused a change, it is tried again so much later. */
const RETRY_MS = 1_000;
/** How often the kernel is asked whether our tables still are what we wrote: foreign flushes are undone within this. */
const REPAIR_MS = 1_500;
/**
 * Looking takes at most one part in so many of our time. Over netlink we are told of changes and looking is free; the
 * nft program has to list everything, which with thousands of Services is not done every second.
 */
const REPAIR_SHARE = 50;

export interface ForwarderOptions {
  /** Milliseconds for connecting to one endpoint. */
  readonly connectTimeoutMs: number;
  readonly udpIdleMs: number;
  /** Connections and flows at a time, both directions together. */
  readonly maxConnections: number;
  readonly accessLog: boolean;
  readonly idle?: IdlePolicy;
  /** The loop's connections do not tell their original destination: each Service port has a listener of its own. */
  readonly listenPerPort?: boolean;
}

export interface ForwarderDeps {
  /** Connections between its own sockets are spliced inside the kernel where it can. */
  readonly loop: SocketLoop;
  readonly clock: Clock;
  readonly log: Logger;
  readonly tunnel: Dialer & DatagramDialer;
  readonly rules: RuleWriter;
  readonly facts: NodeFacts;
  readonly config: ForwardConfig;
  readonly options: ForwarderOptions;
  /** Runs a task after other sockets had their turn (fairness of very fast pairs). */
  readonly defer?: (task: () => void) => void;
}

export class Forwarder {
  readonly #deps: ForwarderDeps;
  readonly #counters = new Counters();
  readonly #picker = new Picker();
  readonly #index = new FrontendIndex();
  readonly #connections: Connections;
  readonly #admission: Admission;
  readonly #tcp: TcpForwarder;
  readonly #udp: UdpForwarder;
  readonly #incoming: Incoming;
  readonly #upkeep: Upkeep;
  readonly #listeners: Listener[] = [];
  readonly #perPort: PortListeners | undefined;
  #facts: NodeFacts;
  #config: ForwardConfig;
  #meta: MetaReader | undefined;
  #plan: Plan;
  #applied: Ruleset | undefined;
  #dirty = false;
  #repairDue = false;
  #busy: Promise<void> | undefined;
  #problem: string | undefined;
  #repairs = 0;
  readonly #sync = { done: 0, failed: 0, seconds: 0, lastSeconds: 0 };
  readonly #kit: PipeKit;
  #lookMs = 0;
  #accessLog: boolean;
  #timer: CancelTimer | undefined;
  #closed = false;

  constructor(deps: ForwarderDeps) {
    const { loop, clock, options, tunnel } = deps;
    const log = deps.log.child("forward");
    this.#deps = { ...deps, log };
    this.#facts = deps.facts;
    this.#config = deps.config;
    this.#plan = emptyPlan(deps.facts, deps.config);
    this.#connections = new Connections(clock, options.maxConnections, options.idle ?? DEFAULT_IDLE);
    this.#connections.watcher = this.#admission = new Admission({
      clock,
      log,
      waitMs: options.connectTimeoutMs,
      max: options.maxConnections,
      listeners: () => [...this.#listeners, ...this.#perPort?.listeners ?? []],
    });
    const local = new LocalDialer({ loop, timeoutMs: options.connectTimeoutMs });
    this.#kit = new PipeKit(deps.defer);
    const shared = {
      clock,
      log,
      loop,
      local,
      tunnel,
      index: this.#index,
      picker: this.#picker,
      counters: this.#counters,
      connections: this.#connections,
      kit: this.#kit,
      facts: () => this.#facts,
    };
    this.#accessLog = options.accessLog;
    const accessLog = () => this.#accessLog;
    this.#tcp = new TcpForwarder({
      ...shared,
      connectTimeoutMs: options.connectTimeoutMs,
      get accessLog() {
        return accessLog();
      },
    });
    this.#perPort = options.listenPerPort
      ? new PortListeners({ loop, log, facts: shared.facts, accept: (accepted) => this.#tcp.accept(accepted) })
      : undefined;
    this.#udp = new UdpForwarder({ ...shared, idleMs: options.udpIdleMs });
    this.#upkeep = new Upkeep({ rules: deps.rules, conntrack: deps.rules.conntrack, log });
    this.#incoming = new Incoming({
      ...shared,
      meta: () => this.#meta,
      policy: () => ({ facts: this.#facts, config: this.#config }),
      udpIdleMs: options.udpIdleMs,
    });
  }

  /**
   * Takes a new snapshot. Resolves when the kernel holds rules of this snapshot or of a later one; never rejects: what
   * goes wrong is logged, shown in status and tried again. Before the first synced snapshot nothing is touched, so
   * that rules of an earlier run go on serving.
   */
  update(meta: MetaReader): Promise<void> {
    this.#meta = meta;
    return this.#wanted();
  }

  /** The node changed: addresses, pod networks, routable subnets. */
  setFacts(facts: NodeFacts): Promise<void> {
    this.#facts = facts;
    return this.#wanted();
  }

  setConfig(config: ForwardConfig): Promise<void> {
    this.#config = config;
    return this.#wanted();
  }

  /** Switches the line per finished connection on or off; connections that began without one have none. */
  setAccessLog(on: boolean): void {
    this.#accessLog = on;
  }

  /** A stream that another node opened through the tunnel. */
  onTunnelStream(incoming: IncomingStream): void {
    if (this.#closed) incoming.refuse("SHUTDOWN");
    else this.#incoming.stream(incoming);
  }

  onTunnelFlow(incoming: IncomingFlow): void {
    if (this.#closed) incoming.refuse("SHUTDOWN");
    else this.#incoming.flow(incoming);
  }

  /** Open connections, the oldest first: what `edgemesh connections` lists. */
  connections(max: number): SeenConnection[] {
    return this.#connections.seen(max);
  }

  /** The plan in force: what `resolve` explains. */
  get plan(): Plan {
    return this.#plan;
  }

  status(): ForwardStatus {
    return forwardStatus({
      meta: this.#meta,
      plan: this.#plan,
      counters: this.#counters,
      connections: this.#connections.size,
      rules: this.#deps.rules,
      synced: this.#meta?.synced ?? false,
      repairs: this.#repairs,
      problem: this.#problem,
      sync: { ...this.#sync },
    });
  }

  /** Gives memory back that is kept for the next busy time. */
  trim(): void {
    this.#kit.trim();
  }

  /** Ends all connections. `keepKernelRules`: kernel-way Services go on being served without the agent. */
  async close(options: { readonly keepKernelRules: boolean }): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#timer?.();
    await this.#busy;
    try {
      // Rules that point at the listeners go before the listeners do.
      if (options.keepKernelRules) await this.#upkeep.stopping(this.#agentListeners());
      await this.#deps.rules.remove(options.keepKernelRules ? "agent" : "all");
    } catch (error) {
      this.#deps.log.warn("Rules could not be removed", { error: describe(error) });
    }
    for (const listener of this.#listeners) listener.close();
    this.#perPort?.close();
    this.#udp.close();
    this.#connections.close("SHUTDOWN");
    this.#admission.close();
    this.#deps.rules.close();
  }

  #wanted(): Promise<void> {
    if (this.#closed || !this.#meta?.synced) return Promise.resolve();
    this.#dirty = true;
    return this.#wake();
  }

  #wake(): Promise<void> {
    return this.#busy ??= this.#work().finally(() => this.#busy = undefined);
  }

  /** The only one who talks to the kernel. Snapshots that came while it was busy are skipped but for the newest. */
  async #work(): Promise<void> {
    // Several updates in one turn are one.
    await Promise.resolve();
    while (!this.#closed && (this.#dirty || this.#repairDue)) {
      try {
        if (this.#dirty) await this.#program();
        else await this.#repair();
      } catch (error) {
        if (this.#problem === undefined) {
          this.#deps.log.error("Kernel rules could not be written", { error: describe(error) });
        }
        this.#problem = describe(error);
        break;
      }
    }
    if (!this.#closed) this.#arm();
  }

  async #program(): Promise<void> {
    this.#dirty = false;
    const plan = planForwarding(this.#meta!, this.#facts, this.#config, this.#plan);
    this.#use(plan);
    const started = this.#deps.clock.now();
    try {
      await this.#apply(plan);
      this.#sync.done++;
    } catch (error) {
      this.#sync.failed++;
      throw error;
    } finally {
      this.#sync.lastSeconds = (this.#deps.clock.now() - started) / 1000;
      this.#sync.seconds += this.#sync.lastSeconds;
    }
    if (this.#problem !== undefined) this.#deps.log.info("Kernel rules are in place again");
    this.#problem = undefined;
  }

  async #repair(): Promise<void> {
    this.#repairDue = false;
    const started = this.#deps.clock.now();
    const { operations } = await this.#deps.rules.repair();
    this.#lookMs = this.#deps.clock.now() - started;
    if (operations === 0) return;
    this.#repairs++;
    this.#deps.log.warn("Kernel rules were changed by somebody else and are repaired", { operations });
  }

  /** Later: try again what failed, or look whether somebody else changed our tables. */
  #arm(): void {
    this.#timer?.();
    const failed = this.#problem !== undefined;
    const pause = failed ? RETRY_MS : Math.max(REPAIR_MS, this.#lookMs * REPAIR_SHARE);
    this.#timer = this.#deps.clock.timer(pause, () => {
      if (failed) this.#dirty = true;
      else this.#repairDue = true;
      void this.#wake();
    });
  }

  /** What the agent itself decides follows the plan at once. */
  #use(plan: Plan): void {
    this.#plan = plan;
    this.#index.update(plan);
    this.#incoming.update();
    this.#perPort?.prepare(plan);
    this.#udp.prepare(plan);
    const ids = new Set<string>();
    for (const service of plan.services.values()) for (const port of service.ports) ids.add(port.id);
    this.#counters.keep(ids);
    this.#picker.keep(ids);
  }

  async #apply(plan: Plan): Promise<void> {
    if (!this.#perPort) this.#listen();
    const listeners = this.#agentListeners();
    const options = { previous: this.#applied, grammar: this.#deps.rules.grammar };
    const ruleset = compileRules(plan, listeners, options);
    await this.#deps.rules.apply(ruleset);
    this.#applied = ruleset;
    await this.#upkeep.after(plan, listeners);
    this.#perPort?.retire(plan);
    this.#udp.retire(plan);
  }

  #agentListeners(): AgentListeners {
    if (this.#perPort) return { tcp: this.#perPort.addresses, udp: this.#udp.addresses };
    const find = (ip: string | undefined): IpPort | undefined => this.#listeners.find((l) => l.local.ip === ip)?.local;
    const tcp4 = find(this.#facts.mesh4);
    const tcp6 = find(this.#facts.mesh6);
    return { ...(tcp4 ? { tcp4 } : {}), ...(tcp6 ? { tcp6 } : {}), udp: this.#udp.addresses };
  }

  /** A listener per mesh address, before any rule points at it. */
  #listen(): void {
    for (const ip of [this.#facts.mesh4, this.#facts.mesh6]) {
      if (ip === undefined || this.#listeners.some((l) => l.local.ip === ip)) continue;
      this.#listeners.push(listenNear(this.#deps.loop, ip, (accepted) => this.#tcp.accept(accepted)));
    }
  }
}

function listenNear(loop: Loop, ip: string, onAccept: Parameters<Loop["listenTcp"]>[1]): Listener {
  let last: unknown;
  for (let port = TCP_PORTS.first; port < TCP_PORTS.first + TCP_PORTS.count; port++) {
    try {
      return loop.listenTcp({ ip, port }, onAccept, { freeBind: true });
    } catch (error) {
      last = error;
    }
  }
  throw new MeshError("KERNEL", `No port for the forwarding listener near ${hostPort({ ip, port: TCP_PORTS.first })}`, {
    cause: last,
  });
}
