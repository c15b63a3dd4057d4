/**
 * The carriers of a session: at most one is active, a few may be waiting for the peer's HELLO. The initiator numbers
 * them; the highest number whose HELLO came both ways wins, on both sides, however the messages cross. The old carrier
 * stays in use until then, so a better path costs no pause; after it, it is retired: read for a moment, because
 * datagrams on their way there are not sent again.
 */
import type { ReasonCode } from "../../errors.ts";
import type { Carrier } from "../carrier.ts";
import {
  HELLO_TIMEOUT_MS,
  MAX_CANDIDATES,
  MAX_RETIRED,
  RETIRED_MS,
  type SessionLimits,
  VERSION_MAX,
  VERSION_MIN,
} from "../constants.ts";
import { encodeHello, frameBytes, type Hello, helloSize, TYPE } from "../frame.ts";
import { Link } from "./link.ts";
import type { Receiver } from "./receiver.ts";
import { commonVersion, decideResume } from "./resume.ts";
import type { Sender } from "./sender.ts";

/** Closes a carrier that was left, without last words that a dead way would hold: nobody listens for them there. */
const CUT: ReasonCode = "PEER_GONE";

export interface LinksHost {
  readonly initiator: boolean;
  /** Random number of this session object, not 0. */
  readonly instance: number;
  readonly build: string;
  readonly limits: SessionLimits;
  /** We take no new streams. */
  draining(): boolean;
  readonly sender: Sender;
  readonly receiver: Receiver;
  now(): number;
  /** The peer has no memory of us any more: streams and flows end, counting starts at 0. */
  restarted(): void;
  /** `link` is the active one from now on. */
  activated(link: Link, hello: Hello): void;
  /** `link` was the active one, and is read for what is not sent again from now on. */
  retired(link: Link): void;
  /** A carrier went away without our doing. */
  lost(carrier: Carrier, reason: ReasonCode | undefined): void;
  /** No carrier is active now. */
  inactive(): void;
  /** No carrier is left, active or waiting. */
  down(reason: ReasonCode): void;
}

/** Why a HELLO ended the session. */
export interface Refusal {
  readonly reason: ReasonCode;
  readonly detail: string;
}

export class Links {
  readonly #host: LinksHost;
  #links: Link[] = [];
  /** Oldest first. */
  readonly #retired: Link[] = [];
  #active: Link | undefined;
  /** The link that carries bytes before the peer's first HELLO (0-RTT); at most one in a session's life. */
  #early: Link | undefined;
  #unsure = false;
  /** The peer's instance; 0 = never heard. */
  #peer = 0;
  #attached = 0;
  /** Generation of the newest link that was active. */
  #newest = 0;
  #switches = 0;

  constructor(host: LinksHost) {
    this.#host = host;
  }

  get active(): Link | undefined {
    return this.#active;
  }

  get generation(): number {
    return this.#newest;
  }

  /** How often a carrier became active. */
  get switches(): number {
    return this.#switches;
  }

  get size(): number {
    return this.#links.length;
  }

  /** When the next waiting or retired carrier runs out of time. */
  get deadline(): number {
    let at = this.#retired[0]?.deadline ?? Infinity;
    for (const link of this.#links) if (!link.greeted) at = Math.min(at, link.deadline);
    return at;
  }

  /** Says HELLO on a new carrier; on the very first one, bytes follow at once. */
  attach(carrier: Carrier): Link {
    const host = this.#host;
    const waiting = this.#links.filter((link) => !link.greeted);
    if (waiting.length >= MAX_CANDIDATES) this.drop(waiting[0]!, "LIMIT");
    const order = ++this.#attached;
    const generation = host.initiator ? order : 0;
    const link = new Link(carrier, { order, generation, deadline: host.now() + HELLO_TIMEOUT_MS });
    this.#links.push(link);
    const hello: Hello = {
      versionMin: VERSION_MIN,
      versionMax: VERSION_MAX,
      initiator: host.initiator,
      draining: host.draining(),
      generation: link.generation,
      instance: host.instance,
      peerInstance: this.#peer,
      received: host.receiver.received,
      maxStreams: host.limits.maxStreams,
      maxFlows: host.limits.maxFlows,
      retention: host.limits.retention,
      build: host.build,
    };
    const payload = new Uint8Array(helloSize(hello));
    encodeHello(payload, 0, hello);
    link.give(frameBytes(TYPE.HELLO, 0, payload));
    if (this.#peer === 0 && this.#early === undefined) {
      this.#early = link;
      host.sender.use(link);
    }
    return link;
  }

  /** The peer's HELLO on `link`. */
  greeted(link: Link, hello: Hello): Refusal | undefined {
    if (link.retired) return this.#lateHello(link, hello);
    const { sender, receiver, initiator, instance } = this.#host;
    if (commonVersion(hello) === undefined) {
      return { reason: "VERSION", detail: `peer speaks versions ${hello.versionMin} to ${hello.versionMax}` };
    }
    if (hello.initiator === initiator) return { reason: "PROTOCOL", detail: "both sides claim the same role" };
    link.greeted = true;
    if (!initiator) link.generation = hello.generation;
    if (this.#isOld(link, hello)) {
      this.#retire(link);
      return this.#lateHello(link, hello);
    }
    const { log } = sender;
    const decision = decideResume({
      instance,
      peer: this.#peer,
      acked: log.acked,
      sent: log.sent,
      received: receiver.received,
      unsure: this.#unsure,
    }, hello);
    if (decision.kind === "refuse") return decision;
    if (decision.kind === "restart") {
      for (const old of [...this.#retired]) this.drop(old, CUT);
      this.#host.restarted();
      sender.use(link);
    } else if (sender.link !== link) {
      if (!log.rewind(decision.from)) return { reason: "PROTOCOL", detail: "HELLO names an offset inside a frame" };
      log.ack(decision.from);
      sender.use(link);
    }
    this.#peer = hello.instance;
    this.#unsure = false;
    this.#newest = link.generation;
    this.#switches++;
    const before = this.#active;
    this.#active = link;
    for (const other of [...this.#links]) {
      if (other === link || !(other.greeted || (initiator && other.generation < link.generation))) continue;
      // Ids on it mean streams and flows that are over.
      if (decision.kind === "restart") this.drop(other, "SHUTDOWN");
      else this.#retire(other);
    }
    if (before?.retired) this.#host.retired(before);
    this.#host.activated(link, hello);
    return undefined;
  }

  /** Closes a carrier ourselves. */
  drop(link: Link, reason: ReasonCode): void {
    if (link.gone) return;
    this.#forget(link);
    link.carrier.close(reason);
  }

  /** A carrier closed, or must be taken for dead. */
  lost(link: Link, reason: ReasonCode | undefined): void {
    if (link.gone) return;
    this.#forget(link);
    if (link.retired) return;
    this.#host.lost(link.carrier, reason);
    if (this.#active === undefined && this.#links.length === 0) this.#host.down(reason ?? "PEER_GONE");
  }

  /** Closes carriers that did not say HELLO in time, and those that were retired long enough. */
  expire(now: number): void {
    for (const link of [...this.#retired]) if (now >= link.deadline) this.drop(link, CUT);
    for (const link of [...this.#links]) {
      if (link.greeted || now < link.deadline) continue;
      link.carrier.close("TIMEOUT");
      this.lost(link, "TIMEOUT");
    }
  }

  closeAll(reason: ReasonCode): void {
    for (const link of [...this.#retired]) this.drop(link, CUT);
    for (const link of [...this.#links]) this.drop(link, reason);
  }

  /** Nothing is sent on it any more; what the peer sent before it moved on, too, may still come. */
  #retire(link: Link): void {
    if (this.#retired.length >= MAX_RETIRED) this.drop(this.#retired[0]!, CUT);
    this.#links = this.#links.filter((other) => other !== link);
    link.retired = true;
    link.deadline = this.#host.now() + RETIRED_MS;
    this.#retired.push(link);
  }

  /** The HELLO of a carrier that lost its race comes from the process we talk to, or nothing on it is for us. */
  #lateHello(link: Link, hello: Hello): undefined {
    link.greeted = true;
    if (hello.instance !== this.#peer) this.drop(link, "SHUTDOWN");
  }

  #forget(link: Link): void {
    link.gone = true;
    link.pieces?.trim();
    if (link.retired) return void this.#retired.splice(this.#retired.indexOf(link), 1);
    this.#links = this.#links.filter((other) => other !== link);
    const { sender } = this.#host;
    if (sender.link === link) sender.pause();
    if (link === this.#early && !link.greeted) this.#unsure = sender.log.sent > 0;
    if (link !== this.#active) return;
    this.#active = undefined;
    this.#host.inactive();
  }

  /** A HELLO that was overtaken by that of a newer carrier, or comes from a process that was replaced since. */
  #isOld(link: Link, hello: Hello): boolean {
    if (this.#peer === 0) return false;
    if (this.#host.initiator || hello.instance === this.#peer) return link.generation <= this.#newest;
    return this.#active !== undefined && link.order < this.#active.order;
  }
}
