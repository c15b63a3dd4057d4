/**
 * The server's side of all control connections: who is connected, what each is told, and the relay between them.
 * Policy comes in as functions (who may connect, see whom, join, renew); this is the shell around
 * relay/switch.ts and control/message.ts.
 */
import type { WebSocket } from "ws";
import type { CancelTimer, Clock } from "../../clock.ts";
import { describe, MeshError, type ReasonCode } from "../../errors.ts";
import type { Logger } from "../../log.ts";
import type { IpPort } from "../../net.ts";
import type { PeerIdentity } from "../carrier.ts";
import type { CoordinatorStats } from "../path/coordinator.ts";
import type { TlsCredentials } from "../carriers/engine.ts";
import { LegRelay, type LegRelayOptions, type LegRelayStats } from "../relay/leg_relay.ts";
import { type RelayLimits, type RelayOptions, type RelayStats, RelaySwitch } from "../relay/switch.ts";
import { AgentLink, type AgentStats } from "./agent_link.ts";
import { type DoorLimits, type DoorPost, FrontDoor, type JoinAnswer } from "./front_door.ts";
import type { EntranceSockets } from "./entrance.ts";
import { AUTHORITIES_FEATURE, type AuthoritiesMessage } from "./authority_message.ts";
import { LEGS_FEATURE } from "./leg_message.ts";
import { CONTROL_VERSION, type ControlMessage, encodeControl, MAX_PEERS } from "./message.ts";
import { PATHS_FEATURE } from "./path_message.ts";
import { type ReplaceGuard, replaceGuard } from "./replace_guard.ts";
import { ServerPaths, type ServerPathsOptions } from "./server_paths.ts";

/** Presence changes within this time are told together: a restart of the server brings everybody at once. */
const PRESENCE_MS = 50;
/** How often silent connections are looked for. */
const SWEEP_MS = 5_000;
/** An agent pings every 15 s; one that was silent for three of them is gone. */
const SILENT_MS = 45_000;
/** Agents one server takes; a connection costs about 60 KB. */
const MAX_AGENTS = 4096;

export interface ControlServerOptions<P extends PeerIdentity> {
  readonly clock: Clock;
  readonly log: Logger;
  /** This server's own name and the product's version. */
  readonly name: string;
  readonly version: string;
  credentials(): TlsCredentials;
  /** A certificate chain in DER → the node it proves. Throws MeshError. */
  verify(chain: readonly Uint8Array[]): P;
  /** Whether a verified node may use this server. Rejects with MeshError; the agent is told. */
  admit?(peer: P): Promise<void>;
  /** Answers `POST /v1/join`; see DoorOptions.join. */
  join(body: string, source: string): Promise<JoinAnswer>;
  /** What else is posted to the door; see DoorOptions.posts. */
  readonly posts?: ReadonlyMap<string, DoorPost> | undefined;
  /** Answers a renewal over the agent's connection; the text is the identity module's. Must not reject. */
  renew(peer: P, body: string): Promise<string>;
  /** Which authorities this server trusts, and where certificates of nodes come from; without it nobody is told. */
  authorities?(): Omit<AuthoritiesMessage, "type">;
  /** The same of an agent. */
  onAuthorities?(node: string, told: AuthoritiesMessage): void;
  /** The current revocation list, as JSON value. */
  revocations(): unknown;
  /** Whether a node was ever enrolled: decides between PEER_OFFLINE and UNKNOWN_NODE. */
  isKnown?(node: string): boolean;
  /** Whether a node may see and reach another one; default: all may. */
  maySee?(viewer: string, node: string): boolean;
  /** What WELCOME carries as `config`. */
  config?(node: string): Readonly<Record<string, unknown>>;
  /** An agent is ready (after its HELLO), also when it replaced an older connection of the same node. */
  onAgent?(node: string): void;
  onAgentGone?(node: string, reason: ReasonCode): void;
  /** One metadata message from an agent. */
  onMeta?(node: string, message: Uint8Array): void;
  /** The agent's metadata queue is empty again. */
  onMetaDrain?(node: string): void;
  /** Help with direct paths between agents; without it everything is relayed. */
  readonly paths?: ServerPathsOptions;
  /** Sockets for relay legs; without them all that is relayed goes through channels. */
  readonly legs?: ServerLegs;
  readonly limits?: {
    readonly agents?: number;
    readonly door?: Partial<DoorLimits>;
    readonly relay?: Partial<RelayLimits>;
  };
  /** See RelayOptions.tap. */
  readonly tap?: RelayOptions["tap"];
}

/** What relay legs need of the kernel. */
export interface ServerLegs {
  readonly sockets: EntranceSockets;
  readonly join: LegRelayOptions["join"];
}

export interface ControlServerStats {
  readonly agents: readonly AgentStats[];
  readonly pending: number;
  readonly turnedAway: number;
  readonly relay: RelayStats;
  readonly legs: LegRelayStats | undefined;
  readonly paths: CoordinatorStats | undefined;
}

export class ControlServer<P extends PeerIdentity = PeerIdentity> {
  readonly #options: ControlServerOptions<P>;
  readonly #door: FrontDoor<P>;
  readonly #relay: RelaySwitch;
  readonly #links = new Map<number, AgentLink>();
  readonly #ready = new Map<string, AgentLink>();
  readonly #guard: ReplaceGuard;
  readonly #paths: ServerPaths | undefined;
  readonly #legs: LegRelay | undefined;
  #nextId = 1;
  #changed = new Set<string>();
  #cancelPresence: CancelTimer | undefined;
  #cancelSweep: CancelTimer | undefined;
  #closing = false;

  constructor(options: ControlServerOptions<P>) {
    this.#options = options;
    this.#guard = replaceGuard(options.clock);
    this.#paths = options.paths && new ServerPaths({
      clock: options.clock,
      log: options.log,
      send: (node, message) => this.#ready.get(node)?.tell(message),
      refusal: (from, to) => this.#refusal(from, to),
    }, options.paths);
    const legs = this.#legs = options.legs && new LegRelay({
      clock: options.clock,
      log: options.log,
      send: (node, message) => this.#ready.get(node)?.tell(message),
      online: (node) => this.#ready.has(node),
      refusal: (from, to) => this.#legRefusal(from, to),
      join: options.legs.join,
    });
    this.#door = new FrontDoor({
      clock: options.clock,
      log: options.log,
      credentials: options.credentials,
      verify: options.verify,
      join: options.join,
      posts: options.posts,
      admit: (peer) => this.#admit(peer),
      onAgent: (ws, peer, observed) => this.#arrived(ws, peer, observed),
      ...(options.legs && legs
        ? { legs: { sockets: options.legs.sockets, onLeg: (stream, done) => legs.arrived(stream, done) } }
        : {}),
      ...(options.limits?.door ? { limits: options.limits.door } : {}),
    });
    this.#relay = new RelaySwitch({
      emit: (line, frame) => this.#links.get(line)?.send(frame) ?? true,
      refusal: (from, to) => this.#relayRefusal(from, to),
      ...(options.limits?.relay ? { limits: options.limits.relay } : {}),
      ...(options.tap ? { tap: options.tap } : {}),
    });
  }

  /** Binds the port; agents can connect from then on. Rejects with MeshError KERNEL. */
  async listen(at: IpPort): Promise<IpPort> {
    await this.#paths?.listen();
    const bound = await this.#door.listen(at);
    this.#sweepLater();
    return bound;
  }

  /** Tells every agent to go, and closes. */
  async close(): Promise<void> {
    this.#closing = true;
    this.#cancelSweep?.();
    this.#cancelPresence?.();
    for (const link of [...this.#links.values()]) link.goAway("SHUTDOWN", `server ${this.#options.name} stops`);
    this.#legs?.close();
    await this.#paths?.close();
    await this.#door.close();
  }

  /** Queues a metadata message. False: not connected, or wait for `onMetaDrain`. Throws MeshError LIMIT; see MetaSender. */
  sendMeta(node: string, message: Uint8Array): boolean {
    return this.#ready.get(node)?.sendMeta(message) ?? false;
  }

  /** Sends the current revocation list to everybody, and ends connections whose node `revoked` names. */
  pushRevocations(revoked: (peer: PeerIdentity) => boolean): void {
    const list = this.#options.revocations();
    for (const link of [...this.#links.values()]) {
      if (revoked(link.peer)) {
        link.goAway("REVOKED", `node ${link.peer.node} was revoked`);
        this.#legs?.cut(link.peer.node);
      } else if (link.ready) link.tell({ type: "revocations", list });
    }
  }

  /** Tells everybody which authorities there are now. */
  pushAuthorities(): void {
    for (const link of this.#ready.values()) this.#tellAuthorities(link);
  }

  #tellAuthorities(link: AgentLink): void {
    const told = this.#options.authorities?.();
    if (told && link.tellsAuthorities) link.tell({ type: "authorities", ...told });
  }

  /** Bytes over the relay legs of a node since it connected. */
  legBytes(node: string): number {
    return this.#legs?.bytesOf(node) ?? 0;
  }

  /** Ends the relay legs of a node, as a network that breaks would; its sessions find another way. */
  cutLegs(node: string): void {
    this.#legs?.cut(node);
  }

  /** Whether an agent is connected and ready. */
  online(node: string): boolean {
    return this.#ready.has(node);
  }

  stats(): ControlServerStats {
    return {
      agents: [...this.#ready.values()].map((link) => link.stats()),
      pending: this.#door.pending,
      turnedAway: this.#door.turnedAway,
      relay: this.#relay.stats(),
      legs: this.#legs?.stats(),
      paths: this.#paths?.stats(),
    };
  }

  async #admit(peer: P): Promise<void> {
    if (this.#closing) throw new MeshError("SHUTDOWN", "This server is stopping");
    if (this.#links.size >= (this.#options.limits?.agents ?? MAX_AGENTS)) {
      throw new MeshError("LIMIT", `This server has its ${this.#links.size} agents already`);
    }
    if (this.#ready.has(peer.node) && this.#guard.waitMs(peer.node) > 0) {
      throw new MeshError("LIMIT", `Node ${peer.node} connects again and again; two machines may have the same name`);
    }
    await this.#options.admit?.(peer);
  }

  #relayRefusal(from: string, to: string): ReasonCode | undefined {
    if (this.#options.maySee && !this.#options.maySee(from, to)) return "UNKNOWN_NODE";
    if (this.#relay.online(to)) return undefined;
    return this.#options.isKnown && !this.#options.isKnown(to) ? "UNKNOWN_NODE" : undefined;
  }

  /** Why one agent may not know another's addresses. */
  #refusal(from: string, to: string): ReasonCode | undefined {
    return this.#relayRefusal(from, to) ?? (this.#ready.has(to) ? undefined : "PEER_OFFLINE");
  }

  /** The same for relay legs: both must be connected, and speak of them. */
  #legRefusal(from: string, to: string): ReasonCode | undefined {
    const refusal = this.#refusal(from, to);
    if (refusal !== undefined) return refusal;
    return [from, to].every((node) => this.#ready.get(node)?.takesLegs) ? undefined : "UNSUPPORTED";
  }

  #arrived(ws: WebSocket, peer: P, observed: IpPort): void {
    const id = this.#nextId++;
    const { clock, log } = this.#options;
    const link: AgentLink = new AgentLink({
      clock,
      ws,
      peer,
      observed,
      onHello: (hello) => this.#hello(id, link, hello.protocol),
      onChannel: (frame) => this.#relay.receive(id, frame, clock.now()),
      onRenew: (body) => this.#options.renew(peer, body),
      onPath: (message) => this.#ready.get(peer.node) === link && this.#paths?.message(peer.node, message),
      onLegAsk: (to) => void (this.#ready.get(peer.node) === link && this.#legs?.ask(peer.node, to)),
      onAuthorities: (told) => this.#options.onAuthorities?.(peer.node, told),
      onMeta: (message) => this.#options.onMeta?.(peer.node, message),
      onMetaDrain: () => this.#options.onMetaDrain?.(peer.node),
      onRelayDrain: () => this.#relay.drained(id),
      onClose: (reason, error) => this.#gone(id, link, reason, error),
    });
    this.#links.set(id, link);
    log.debug("agent connected", { node: peer.node, from: observed.ip });
  }

  #hello(id: number, link: AgentLink, protocol: number): void {
    const { peer } = link;
    if (protocol !== CONTROL_VERSION) {
      return link.goAway("VERSION", `server speaks control version ${CONTROL_VERSION}, not ${protocol}`);
    }
    const older = this.#ready.get(peer.node);
    this.#ready.set(peer.node, link);
    this.#relay.connect(id, peer.node);
    link.tell({
      type: "welcome",
      protocol: CONTROL_VERSION,
      server: this.#options.name,
      version: this.#options.version,
      time: Math.floor(this.#options.clock.wall()),
      observed: link.observed,
      config: this.#options.config?.(peer.node) ?? {},
      features: [
        ...(this.#paths ? [PATHS_FEATURE] : []),
        ...(this.#legs ? [LEGS_FEATURE] : []),
        ...(this.#options.authorities ? [AUTHORITIES_FEATURE] : []),
      ],
    });
    this.#tellAuthorities(link);
    link.tell({ type: "revocations", list: this.#options.revocations() });
    for (const message of this.#everybody(peer.node)) link.tell(message);
    if (older) {
      this.#guard.replaced(peer.node);
      this.#options.log.info("agent connected anew, older connection closed", { node: peer.node });
      older.goAway("REPLACED", `node ${peer.node} connected again from ${link.observed.ip}`);
    } else {
      this.#options.log.info("agent online", { node: peer.node, from: link.observed.ip });
      this.#tellSoon(peer.node);
    }
    if (link.findsPaths) this.#paths?.connected(peer.node, link.observed);
    else this.#paths?.gone(peer.node);
    this.#options.onAgent?.(peer.node);
  }

  #gone(id: number, link: AgentLink, reason: ReasonCode, error: unknown): void {
    this.#links.delete(id);
    this.#relay.disconnect(id);
    const { node } = link.peer;
    if (error !== undefined) this.#options.log.warn("agent cut off", { node, reason, error: describe(error) });
    if (this.#ready.get(node) !== link) return;
    this.#ready.delete(node);
    this.#paths?.gone(node);
    this.#legs?.gone(node);
    this.#options.log.info("agent offline", { node, reason });
    if (!this.#closing) this.#tellSoon(node);
    this.#options.onAgentGone?.(node, reason);
  }

  /** The whole presence as one viewer may see it, in messages of allowed size. */
  *#everybody(viewer: string): Iterable<ControlMessage> {
    const online = [...this.#ready.keys()].filter((node) => this.#sees(viewer, node));
    yield { type: "peers", full: true, online: online.slice(0, MAX_PEERS), offline: [] };
    for (let i = MAX_PEERS; i < online.length; i += MAX_PEERS) {
      yield { type: "peers", full: false, online: online.slice(i, i + MAX_PEERS), offline: [] };
    }
  }

  #sees(viewer: string, node: string): boolean {
    return viewer !== node && (this.#options.maySee?.(viewer, node) ?? true);
  }

  #tellSoon(node: string): void {
    this.#changed.add(node);
    this.#cancelPresence ??= this.#options.clock.timer(PRESENCE_MS, () => {
      this.#cancelPresence = undefined;
      this.#tellChanges();
    });
  }

  #tellChanges(): void {
    const changed = [...this.#changed].slice(0, MAX_PEERS);
    for (const node of changed) this.#changed.delete(node);
    // Without scoping everybody is told the same (their own name included, which they skip): encoded once.
    const all = this.#options.maySee ? undefined : encodeControl(this.#change(changed));
    for (const link of this.#ready.values()) {
      const { node } = link.peer;
      if (all) link.send(all);
      else {
        const seen = changed.filter((other) => this.#sees(node, other));
        if (seen.length > 0) link.tell(this.#change(seen));
      }
    }
    if (this.#changed.size > 0) this.#tellSoon(this.#changed.values().next().value!);
  }

  #change(nodes: readonly string[]): ControlMessage {
    const online = nodes.filter((node) => this.#ready.has(node));
    return { type: "peers", full: false, online, offline: nodes.filter((node) => !this.#ready.has(node)) };
  }

  #sweepLater(): void {
    this.#cancelSweep = this.#options.clock.timer(SWEEP_MS, () => {
      const now = this.#options.clock.now();
      for (const link of [...this.#links.values()]) link.checkSilence(now, SILENT_MS);
      this.#sweepLater();
    });
  }
}
