/**
 * One round of TCP hole punching as an agent runs it. Sockets, servers and time are handed in.
 *
 *     preparing ──seen by the observation port──→ ready ──go──→ waiting ──start time──→ punching ──→ over
 *
 * A server that counts the sightings itself is told "ready" at once, with how many there will be: a round trip less.
 *
 * Both agents connect from a fresh port to where the server saw the other's fresh port, at the same moment, and listen
 * on it, too. Rules learned by measuring: a refusal is answered by another try after a random 25–50 ms (equal waits
 * would miss each other for ever behind NATs that answer RST); a pending SYN is left to the kernel; "connected" proves
 * nothing until mutual TLS is done; what is given up is closed with RST, because a FIN would hold the ports.
 */
import { familyOf, hostPort } from "../../addr.ts";
import type { CancelTimer, Clock, MonoMs } from "../../clock.ts";
import { MeshError, type ReasonCode } from "../../errors.ts";
import type { IpPort, MeshStream } from "../../net.ts";
import type { Carrier } from "../carrier.ts";
import type { Mapping, PunchMessage } from "../control/path_message.ts";
import type { Cancel } from "./legs.ts";
import type { PunchResult } from "./pursuit.ts";

/** From start to end of the connecting. */
const PUNCH_MS = 5_000;
/** Preparation, the server's part included. */
const PREPARE_MS = 6_000;
/** Sightings that are missing this long after the first one are not waited for. */
const SIGHTING_SPREAD_MS = 400;
/** Ports tried of a NAT that counts up: somebody else behind it may take a few meanwhile. */
const GUESSES = 8;
/** Bounds of the random wait after a refusal. */
const RETRY_MIN_MS = 25;
const RETRY_SPREAD_MS = 25;
/** A start further away than this is a clock gone wrong. */
const MAX_START_MS = 4_000;
/** Ports tried until one is free. */
const MAX_BINDS = 10;
/** Connections under examination at once: any host can knock at an open port. */
const MAX_SECURING = 8;
/** Server addresses asked per family: two tell a symmetric NAT from others. */
const MAX_ASKED = 2;

export type PunchPrepare = PunchMessage & { readonly step: "prepare" };
type PunchGo = PunchMessage & { readonly step: "go" };

export interface ObserveEvents {
  /** The question is on its way. */
  onAsked(): void;
  /** The end, once. */
  onAnswer(result: IpPort | MeshError): void;
}

/** The sockets of one local port. */
export interface PunchSockets {
  readonly port: number;
  /** Asks an observation port where it sees us; the connection stays open until close. */
  observe(server: IpPort, nonce: string, events: ObserveEvents): void;
  /** Connects from the port. */
  dial(to: IpPort, timeoutMs: number, done: (result: MeshStream | ReasonCode) => void): Cancel;
  /** Closes the listeners and the observed connections. */
  close(): void;
}

export interface PunchHost {
  readonly clock: Clock;
  random(): number;
  /** Listens on the port in both families; undefined: it is taken. */
  open(port: number, onIncoming: (stream: MeshStream, from: IpPort) => void): PunchSockets | undefined;
  /** First and last local port. */
  readonly ports: readonly [number, number];
  /** The server's address that we are connected to: asked first. Behind an HTTP proxy it is not known. */
  readonly server: string | undefined;
  /** Whether this host may connect there. */
  allowed(target: IpPort): boolean;
  /** Round trip to the server, and its wall clock minus ours, in milliseconds. */
  readonly rttMs: number;
  readonly offsetMs: number | undefined;
  send(message: PunchMessage): void;
  /** A moment in which nothing can be done but wait for the server: for what a handshake will need. */
  warm(): void;
  /** Knock and TLS in our role; the peer that is meant is verified. */
  secure(stream: MeshStream, done: (result: Carrier | MeshError) => void): Cancel;
  /** The end; nothing of the round is left open but the carrier. */
  done(result: PunchResult, nats: PunchNats): void;
}

/** How the two NATs map, as far as the round found out. */
export interface PunchNats {
  readonly ours: Mapping;
  readonly theirs: Mapping;
}

export class PunchRound {
  readonly #host: PunchHost;
  readonly #prepare: PunchPrepare;
  #sockets: PunchSockets | undefined;
  #phase: "preparing" | "ready" | "waiting" | "punching" | "over" = "preparing";
  #go: PunchGo | undefined;
  #deadline: MonoMs = Infinity;
  /** Observers that will be asked in all, were asked, and have not answered yet. */
  #observers = 0;
  #asked = 0;
  #silent = 0;
  #seen = 0;
  readonly #timers = new Set<CancelTimer>();
  readonly #work = new Set<Cancel>();
  #securing = 0;
  /** What became of each target, for the sentence at the end. */
  readonly #fates = new Map<string, string>();

  constructor(host: PunchHost, prepare: PunchPrepare) {
    this.#host = host;
    this.#prepare = prepare;
  }

  get peer(): string {
    return this.#prepare.peer;
  }

  /** Takes a port and lets the server see it. */
  start(): void {
    const sockets = this.#sockets = this.#open();
    if (!sockets) return this.#fail("KERNEL", `no local port between ${this.#host.ports.join(" and ")} is free`, false);
    this.#after(PREPARE_MS, () => this.#fail("TIMEOUT", "the server did not give the start", true));
    const { server } = this.#host;
    const servers = [...new Set([...(server === undefined ? [] : [server]), ...this.#prepare.servers])];
    for (const family of [4, 6] as const) {
      for (const ip of servers.filter((ip) => familyOf(ip) === family).slice(0, MAX_ASKED)) {
        this.#observers++;
        this.#silent++;
        sockets.observe({ ip, port: this.#prepare.port }, this.#prepare.nonce, {
          onAsked: () => ++this.#asked === this.#observers && this.#host.warm(),
          onAnswer: (seen) => this.#observed(seen),
        });
      }
    }
    if (this.#observers === 0) this.#fail("UNSUPPORTED", "the server has no observation port", false);
    else if (this.#prepare.counts) this.#ready(this.#observers);
  }

  /** A message of the server about this round. */
  message(m: PunchMessage): void {
    if (this.#phase === "over") return;
    switch (m.step) {
      case "go":
        if (this.#phase === "preparing" || this.#phase === "ready") this.#begin(m);
        return;
      case "stop":
        // The peer is through: so will we be, as soon as TLS has finished here.
        if (m.code !== "SHUTDOWN") this.#end({ kind: "failed", why: m.message, again: m.code === "TIMEOUT" });
        return;
      case "prepare":
      case "ready":
        return;
    }
  }

  /** Nobody wants the path any more. */
  cancel(): void {
    if (this.#phase === "over") return;
    this.#say("SHUTDOWN", "not needed any more");
    this.#clear();
  }

  #open(): PunchSockets | undefined {
    const [first, last] = this.#host.ports;
    for (let i = 0; i < MAX_BINDS; i++) {
      const port = first + Math.floor(this.#host.random() * (last - first + 1));
      const sockets = this.#host.open(port, (stream) => this.#connected(stream, undefined));
      if (sockets) return sockets;
    }
    return undefined;
  }

  #observed(result: IpPort | MeshError): void {
    if (this.#phase !== "preparing" && this.#phase !== "ready") return;
    this.#silent--;
    if (!(result instanceof MeshError) && ++this.#seen === 1 && !this.#prepare.counts) {
      this.#after(SIGHTING_SPREAD_MS, () => this.#ready());
    }
    if (this.#silent > 0) return;
    // A server that counts need not be told that it has seen all.
    if (this.#seen === this.#observers && this.#prepare.counts) return;
    if (this.#seen > 0) return this.#ready();
    const at = hostPort({ ip: this.#host.server ?? this.#prepare.servers[0]!, port: this.#prepare.port });
    this.#fail("UNSUPPORTED", `the server's observation port ${at} does not answer`, true);
  }

  #ready(expect?: number): void {
    if (this.#phase !== "preparing" && !this.#prepare.counts) return;
    this.#phase = "ready";
    const { id } = this.#prepare;
    const rttMs = Math.min(60_000, Math.round(this.#host.rttMs));
    this.#host.send({ type: "punch", step: "ready", id, rttMs, ...(expect === undefined ? {} : { expect }) });
  }

  #begin(go: PunchGo): void {
    const targets = go.targets.filter((target) => this.#host.allowed(target));
    this.#go = { ...go, targets };
    if (targets.length === 0) {
      return this.#fail("NOT_ALLOWED", "the server named no address that may be dialled", false);
    }
    this.#phase = "waiting";
    const { clock, offsetMs } = this.#host;
    const wait = go.at - (clock.wall() + (offsetMs ?? 0));
    this.#after(Math.max(0, Math.min(MAX_START_MS, wait)), () => this.#punch(targets));
  }

  #punch(targets: readonly IpPort[]): void {
    this.#phase = "punching";
    for (const cancel of this.#timers) cancel();
    this.#timers.clear();
    this.#deadline = this.#host.clock.now() + PUNCH_MS;
    this.#after(PUNCH_MS, () => this.#fail("TIMEOUT", this.#verdict(), !this.#hopeless));
    for (const target of targets) for (const guess of guesses(target, this.#go?.stride)) this.#dial(guess);
  }

  #dial(target: IpPort): void {
    const left = this.#deadline - this.#host.clock.now();
    if (left <= 0) return;
    const cancel = this.#sockets!.dial(target, left, (result) => {
      this.#work.delete(cancel);
      if (typeof result !== "string") return this.#connected(result, target);
      this.#fates.set(hostPort(target), result);
      // LIMIT: the four-tuple of the attempt before is still there.
      if (result === "DIAL_REFUSED" || result === "LIMIT") this.#again(target);
    });
    this.#work.add(cancel);
  }

  #again(target: IpPort): void {
    this.#after(RETRY_MIN_MS + RETRY_SPREAD_MS * this.#host.random(), () => this.#dial(target));
  }

  /** TCP is through; now the other end must prove who it is. `target`: where we had dialled. */
  #connected(stream: MeshStream, target: IpPort | undefined): void {
    if (this.#phase === "over" || this.#securing >= MAX_SECURING) return stream.reset("LIMIT");
    this.#securing++;
    const cancel = this.#host.secure(stream, (result) => {
      this.#work.delete(cancel);
      this.#securing--;
      if (this.#phase === "over") return void (result instanceof MeshError || result.close("SHUTDOWN"));
      if (!(result instanceof MeshError)) {
        this.#say("SHUTDOWN", "connected");
        return this.#end({ kind: "carrier", carrier: result });
      }
      if (target === undefined) return;
      this.#fates.set(hostPort(target), result.code);
      this.#again(target);
    });
    this.#work.add(cancel);
  }

  get #hopeless(): boolean {
    return this.#go?.mapping === "varies" || this.#go?.peerMapping === "varies";
  }

  #verdict(): string {
    const { mapping, peerMapping, targets } = this.#go!;
    if (mapping === "varies") return "the NAT of this site gives each destination another port";
    if (mapping === "steps" || peerMapping === "steps") {
      return `the NAT of ${mapping === "steps" ? "this site" : this.peer} gives the next port to each destination, ` +
        "and not those that were foretold";
    }
    if (peerMapping === "varies") return `the NAT of ${this.peer} gives each destination another port`;
    const fates = targets.map(hostPort).map((at) =>
      `${at} ${this.#fates.get(at) === "DIAL_REFUSED" ? "refused" : "did not answer"}`
    );
    return fates.join(", ");
  }

  #fail(code: ReasonCode, why: string, again: boolean): void {
    this.#say(code, why.slice(0, 200));
    this.#end({ kind: "failed", why, again });
  }

  #say(code: ReasonCode, message: string): void {
    this.#host.send({ type: "punch", step: "stop", id: this.#prepare.id, code, message });
  }

  #end(result: PunchResult): void {
    this.#clear();
    this.#host.done(result, { ours: this.#go?.mapping ?? "unknown", theirs: this.#go?.peerMapping ?? "unknown" });
  }

  #clear(): void {
    this.#phase = "over";
    for (const cancel of this.#timers) cancel();
    for (const cancel of this.#work) cancel();
    this.#timers.clear();
    this.#work.clear();
    this.#sockets?.close();
  }

  #after(ms: number, act: () => void): void {
    const cancel = this.#host.clock.timer(ms, () => {
      this.#timers.delete(cancel);
      act();
    });
    this.#timers.add(cancel);
  }
}

/** Where to connect to for a target, in the order in which the NATs of both sides count. */
function guesses(target: IpPort, stride: number | undefined): readonly IpPort[] {
  if (stride === undefined || familyOf(target.ip) === 6) return [target];
  return Array.from({ length: GUESSES }, (_, i) => ({ ip: target.ip, port: target.port + i * stride }))
    .filter(({ port }) => port <= 65_535);
}
