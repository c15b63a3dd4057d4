/**
 * All ways to other agents as one: the relay at once, and beside it the search for something better (pursuit.ts). The
 * tunnel's {@link PathAgent}. Talks to the servers about addresses, runs the listener, and tells `status` why a peer has
 * no direct path.
 */
import { type Cidr, familyOf, isPrivate, parseIp } from "../../addr.ts";
import type { Clock } from "../../clock.ts";
import { describe, MeshError } from "../../errors.ts";
import type { Logger } from "../../log.ts";
import type { IpPort, MeshStream, OnDatagram } from "../../net.ts";
import type { Carrier, PathKind } from "../carrier.ts";
import type { CarrierEngine } from "../carriers/engine.ts";
import type { ControlClient } from "../control/client.ts";
import { MAX_ADDRESSES, type PathMessage } from "../control/path_message.ts";
import type { PathAgent, PathAttempt, PathSink } from "../legs/path_agent.ts";
import type { PeerStateKind } from "../peer/peer_types.ts";
import { type Dialable, type DialRules, type HostAddress, judge, ownCandidates, pathFrom, RANK } from "./candidates.ts";
import { Discovery, type LanSocket } from "./discovery.ts";
import { abortLeg, type Cancel, dialLeg, type PathLeg, type PathSockets, watchLeg } from "./legs.ts";
import { AgentListener, type ListenerStats } from "./listener.ts";
import { Puncher, type PunchOutcome, type PunchServer } from "./puncher.ts";
import { Pursuit } from "./pursuit.ts";
import { ask } from "./punch_sockets.ts";
import { Race } from "./race.ts";
import { Spare } from "./spare.ts";

/** Peers without a session whose last search is remembered for `status`. */
const MAX_REMEMBERED = 256;
/** Peers searched for at once; beyond, the relay must do. */
const MAX_PURSUITS = 1024;
/** A search that a peer asked for ends when no session follows. */
const UNUSED_MS = 30_000;
/** IPv6 addresses shown to the server; a host has one stable and a few temporary ones. */
const MAX_SHOWN = 2;
const SHOW_MS = 5_000;
/** Deadlines of a connection: a host on the LAN answers in milliseconds, a far one in two round trips. */
const DIAL_MS = { lan: 1_500, direct: 4_000 } as const;

export interface PathsOptions {
  /** Our own node name. */
  readonly node: string;
  readonly clock: Clock;
  readonly log: Logger;
  random(): number;
  readonly relay: PathAgent;
  readonly engine: CarrierEngine<PathLeg>;
  readonly sockets: PathSockets;
  /** Keys of the mesh for the knock (SHA-256 of each authority's public key), the one in use first. */
  keys(): readonly Uint8Array[];
  /** This host's addresses on links that lead to other machines. */
  host(): readonly HostAddress[];
  /** Where the listener is; undefined: none. */
  readonly listen: IpPort | undefined;
  /** Told to peers beside our own addresses. */
  readonly advertise: readonly IpPort[];
  /** Networks in which any address of a peer may be dialled. */
  readonly allowed: readonly Cidr[];
  /** First and last local port for hole punching. */
  readonly punchPorts: readonly [number, number];
  /** Opens the group in which agents of a LAN find each other; undefined: discovery is off. May throw MeshError. */
  readonly openLan: ((onDatagram: OnDatagram) => LanSocket) | undefined;
  /** Connected servers that help, best first for a peer. */
  servers(peer?: string): readonly Pick<ControlClient, "sendPath" | "state" | "probe">[];
  /** A carrier to a peer that nobody is waiting for. */
  onCarrier(carrier: Carrier): void;
  /** For the peer's ring of path events. */
  onNote(peer: string, path: PathKind, text: string): void;
  /** A peer is reached by this path from now on. */
  onReached?(peer: string, path: PathKind): void;
}

interface Known {
  readonly pursuit: Pursuit;
  race: Race | undefined;
  /** The relay getting ready while the path in use is silent. */
  spare: Spare | undefined;
  state: PeerStateKind;
  cancelUnused: (() => void) | undefined;
}

export class Paths implements PathAgent {
  readonly #options: PathsOptions;
  readonly #listener: AgentListener;
  readonly #puncher: Puncher;
  #discovery: Discovery | undefined;
  /** Connections that carry or may carry a path, and the address of ours that each was made from. */
  readonly #legs = new Map<PathLeg, string>();
  readonly #peers = new Map<string, Known>();
  /** Where each server saw us last. */
  readonly #seenAt = new WeakMap<object, string>();
  /** Sentences about peers without a session. */
  readonly #last = new Map<string, string>();
  #closed = false;

  constructor(given: PathsOptions) {
    const { loop } = given.sockets;
    const options = {
      ...given,
      sockets: { loop, leg: (stream: MeshStream) => this.#track(given.sockets.leg(stream)) },
    };
    this.#options = options;
    const { sockets, engine, clock, log, node, keys, host, onCarrier } = options;
    this.#listener = new AgentListener({
      sockets,
      engine,
      clock,
      log: log.child("listener"),
      node,
      keys,
      pathFrom: (ip) => pathFrom(ip, host()),
      onCarrier,
    });
    this.#puncher = new Puncher({
      node,
      clock,
      random: options.random,
      engine,
      sockets,
      ports: options.punchPorts,
      keys,
      // The server vouches for what it saw; what is private still means nothing outside of our own networks.
      allowed: (target) => "path" in judge(target, this.#rules([target.ip])),
      wanted: (peer) => (this.#peers.get(peer)?.pursuit.rank ?? RANK.direct) < RANK.direct,
      onResult: (peer, result) => {
        const known = this.#peers.get(peer);
        if (known) known.pursuit.punched(result);
        else if (result.kind === "carrier") result.carrier.close("SHUTDOWN");
      },
    });
  }

  /** Opens the listener and the LAN's group. What cannot be had is logged: everything else works without. */
  start(): void {
    const { listen, log, openLan } = this.#options;
    try {
      if (listen !== undefined) this.#listener.listen(listen);
    } catch (error) {
      log.warn("other agents cannot connect here", { error: describe(error) });
    }
    try {
      if (openLan !== undefined) this.#discover(openLan);
    } catch (error) {
      log.warn("agents of the same LAN are found through a server only", { error: describe(error) });
    }
  }

  /** Ends all searches. What servers and peers still say while the tunnel says goodbye begins none. */
  close(): void {
    this.#closed = true;
    for (const peer of [...this.#peers.keys()]) this.#forget(peer);
    this.#puncher.close();
    this.#discovery?.close();
    this.#listener.close();
  }

  // ── the tunnel's questions ──

  connect(peer: string, sink: PathSink): PathAttempt {
    const known = this.#pursue(peer);
    if (!known) return this.#options.relay.connect(peer, sink);
    const race = new Race(this.#options.relay, known.pursuit, { peer, sink });
    known.race = race;
    known.pursuit.want();
    race.start();
    return race;
  }

  onState(peer: string, state: PeerStateKind, path: PathKind | undefined): void {
    if (path !== undefined) this.#options.onReached?.(peer, path);
    if (state === "idle") return this.#forget(peer);
    const known = this.#pursue(peer);
    if (!known) return;
    known.state = state;
    known.cancelUnused?.();
    known.pursuit.use(path);
    // A round that began early, or was overtaken: nobody needs its sockets any more.
    if (known.pursuit.rank >= RANK.direct) this.#puncher.forget(peer);
  }

  onSilent(peer: string, path: PathKind, still: () => boolean): void {
    // What took this path away may have taken the servers, too.
    for (const server of this.#options.servers()) server.probe();
    const known = this.#peers.get(peer);
    // A relay, too: legs through a server that says nothing any more do not end with the connection to it.
    if (!known || known.spare) return;
    const { relay, clock, onCarrier, onNote } = this.#options;
    onNote(peer, path, "nothing comes any more; getting the relay ready");
    known.spare = new Spare({
      clock,
      relay,
      peer,
      // Once the path is gone the session's own search goes on, with longer and longer waits.
      wanted: () => still() && known.state === "up" && this.#peers.get(peer) === known,
      onCarrier,
      onNote: (path, text) => onNote(peer, path, text),
      onOver: () => known.spare = undefined,
    });
    known.spare.start();
  }

  /** Why a peer has no direct path, or had none when it was looked for last; undefined when it has one. */
  explain(peer: string): string | undefined {
    const pursuit = this.#peers.get(peer)?.pursuit;
    if (!pursuit) return this.#last.get(peer);
    return pursuit.rank > 0 ? undefined : pursuit.report.text(peer, pursuit.trying, this.#options.clock);
  }

  /** Port, visitors and refusals of the listener. */
  status(): { readonly port: number; readonly listener: ListenerStats; readonly punches: readonly PunchOutcome[] } {
    return { port: this.#listener.port, listener: this.#listener.stats(), punches: this.#puncher.outcomes };
  }

  // ── news ──

  /** A server is connected: it learns where we are. */
  serverUp(server: Pick<ControlClient, "sendPath" | "state">): void {
    this.#announce(server);
    const seen = server.state.phase === "up" ? server.state.welcome.observed.ip : undefined;
    const before = this.#seenAt.get(server);
    if (seen !== undefined) this.#seenAt.set(server, seen);
    // Another public address means another network in between, though this host has not noticed any change.
    const moved = before !== undefined && seen !== undefined && before !== seen;
    for (const { pursuit } of this.#peers.values()) {
      if (moved) pursuit.retryNow();
      else pursuit.serverUp();
    }
  }

  #announce(server: Pick<ControlClient, "sendPath">): void {
    const { host, advertise } = this.#options;
    const { port, families } = this.#listener;
    const addresses = ownCandidates(host(), port === 0 ? undefined : { port, families }, {
      advertise,
      max: MAX_ADDRESSES,
    });
    server.sendPath({ type: "candidates", addresses });
  }

  /** A server is lost: without any, nobody answers what was asked. */
  serverDown(): void {
    if (this.#options.servers().length > 0) return;
    for (const { pursuit } of this.#peers.values()) pursuit.unmet("no server is connected");
  }

  /** Our addresses or routes changed; `addresses` are all that this host has now. */
  networkChanged(addresses: ReadonlySet<string>): void {
    for (const [leg, own] of [...this.#legs]) if (!addresses.has(own)) abortLeg(leg);
    this.#discovery?.hostChanged();
    for (const server of this.#options.servers()) this.#announce(server);
    for (const { pursuit } of this.#peers.values()) pursuit.retryNow();
  }

  /** What a server says about paths. */
  message(server: PunchServer, m: PathMessage): void {
    if (this.#closed) return;
    switch (m.type) {
      case "addresses":
        return this.#pursue(m.peer)?.pursuit.learned("server", m);
      case "unmet":
        return this.#peers.get(m.peer)?.pursuit.unmet(`the server says: ${m.message}`);
      case "punch":
        // The peer may have asked for it: then the search here begins with this.
        if (m.step === "prepare") this.#pursue(m.peer);
        return this.#puncher.message(server, m);
      case "observe":
        return this.#showAddresses(server, m);
      case "candidates":
      case "meet":
        throw new MeshError("PROTOCOL", `${m.type} is for servers only`);
    }
  }

  // ── inside ──

  #pursue(peer: string): Known | undefined {
    const existing = this.#peers.get(peer);
    if (existing) return existing;
    if (this.#closed || this.#peers.size >= MAX_PURSUITS || peer === this.#options.node) return undefined;
    const { clock, random, node } = this.#options;
    const known: Known = {
      pursuit: new Pursuit({
        clock,
        random,
        acceptor: node > peer,
        meet: (punch) => this.#meet(peer, punch, known.pursuit.rank < RANK.direct),
        discover: () => this.#discovery?.seek(peer) ?? false,
        rules: (observed) => this.#rules(observed),
        dial: (target, done) => this.#dial(peer, target, done),
        deliver: (carrier) => known.race?.waiting ? known.race.deliver(carrier) : this.#options.onCarrier(carrier),
        note: (path, text) => this.#options.onNote(peer, path, text),
        onRest: () => known.race?.rested(),
      }),
      race: undefined,
      spare: undefined,
      state: "idle",
      cancelUnused: clock.timer(UNUSED_MS, () => known.state === "idle" && !known.race?.waiting && this.#forget(peer)),
    };
    this.#peers.set(peer, known);
    return known;
  }

  #discover(openLan: NonNullable<PathsOptions["openLan"]>): void {
    const { node, clock, keys, host } = this.#options;
    const socket = openLan((bytes, length, from) => this.#discovery?.received(bytes, length, from));
    this.#discovery = new Discovery({
      node,
      clock,
      keys,
      host,
      port: () => this.#listener.port,
      onFound: (peer, at) => this.#peers.get(peer)?.pursuit.learned("lan", { addresses: [at], observed: [] }),
    }, socket);
    this.#discovery.hostChanged();
  }

  #forget(peer: string): void {
    const known = this.#peers.get(peer);
    if (!known) return;
    this.#remember(peer, known.pursuit);
    this.#peers.delete(peer);
    known.cancelUnused?.();
    known.spare?.cancel();
    known.pursuit.stop();
    this.#puncher.forget(peer);
    this.#discovery?.forget(peer);
  }

  #track(leg: PathLeg): PathLeg {
    const own = parseIp(watchLeg(leg, () => this.#legs.delete(leg)) ?? "");
    if (own !== undefined) this.#legs.set(leg, own);
    return leg;
  }

  #rules(observed: readonly string[]): DialRules {
    const { host, allowed } = this.#options;
    return { host: host(), observed, self: this.#observed(), allowed };
  }

  /** Lets the server see each global IPv6 address of ours: it believes what it saw. */
  #showAddresses(_server: PunchServer, m: PathMessage & { readonly type: "observe" }): void {
    const { sockets, host } = this.#options;
    const to = m.servers.find((ip) => familyOf(ip) === 6);
    if (to === undefined || m.port === 0) return;
    const own = host().filter((a) => familyOf(a.ip) === 6 && !isPrivate(a.ip)).slice(0, MAX_SHOWN);
    for (const { ip } of own) {
      const from = { ip, port: 0 };
      const over = { onAsked() {}, onAnswer: () => stream.reset("SHUTDOWN") };
      const stream = ask(sockets.loop, { ip: to, port: m.port }, { from, timeoutMs: SHOW_MS }, m.nonce, over);
    }
  }

  /** Keeps the sentence of a search that ends with its session, for who asks afterwards. */
  #remember(peer: string, pursuit: Pursuit): void {
    this.#last.delete(peer);
    if (pursuit.best >= RANK.direct) return;
    pursuit.report.nextAt = undefined;
    this.#last.set(peer, pursuit.report.text(peer, false, this.#options.clock));
    if (this.#last.size > MAX_REMEMBERED) this.#last.delete(this.#last.keys().next().value!);
  }

  /** Asks a server for an introduction; `ifApart`: there is no direct path, so a round of punching is welcome at once. */
  #meet(peer: string, punch: boolean, ifApart: boolean): boolean {
    const meet = { type: "meet", peer, punch, ...(ifApart && !punch ? { ifApart } : {}) } as const;
    return this.#options.servers(peer).some((server) => server.sendPath(meet));
  }

  /** Where the servers see us, by IPv4 if at all. */
  #observed(): string | undefined {
    const seen = this.#options.servers().map((s) => s.state.phase === "up" ? s.state.welcome.observed.ip : undefined)
      .filter((ip) => ip !== undefined);
    return seen.find((ip) => familyOf(ip) === 4) ?? seen[0];
  }

  #dial(peer: string, target: Dialable, done: (result: Carrier | MeshError) => void): Cancel {
    const { sockets, keys, engine } = this.#options;
    const key = keys()[0]!;
    let over = false;
    let leg: PathLeg | undefined;
    const cancel = dialLeg(sockets, {
      to: target.at,
      node: peer,
      key,
      timeoutMs: DIAL_MS[target.path],
    }, (result) => {
      if (over) return;
      if (result instanceof MeshError) return done(result);
      leg = result;
      engine.connect(leg, { peer, path: target.path }).then(
        (carrier) => over ? carrier.close("SHUTDOWN") : done(carrier),
        (error) =>
          over || done(error instanceof MeshError ? error : new MeshError("INTERNAL", "TLS failed", { cause: error })),
      );
    });
    return () => {
      over = true;
      if (leg) abortLeg(leg);
      else cancel();
    };
  }
}
