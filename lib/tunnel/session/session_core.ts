/**
 * A session without its surroundings: carriers hand it batches, owners of streams and flows call it, the clock wakes
 * it, and it answers with batches and callbacks. Nothing in it waits, sleeps or knows a socket.
 */
import { MeshError, type ReasonCode, reasonCode } from "../../errors.ts";
import type { DatagramFlow, FlowHandler, MeshStream, ServiceTarget, StreamHandler } from "../../net.ts";
import type { Carrier } from "../carrier.ts";
import { ACK_DELAY_MS, DATAGRAM_STALE_MS } from "../constants.ts";
import { DatagramReceiver } from "./datagram_receiver.ts";
import { DatagramSender } from "./datagrams.ts";
import { decodeHello, get16, get64, GOAWAY_SIZE, type Hello, PING_SIZE, TYPE } from "../frame.ts";
import { Incoming } from "./incoming.ts";
import type { Link } from "./link.ts";
import { Links, type LinksHost } from "./links.ts";
import { Liveness } from "./liveness.ts";
import { Offers } from "./offers.ts";
import { Pings } from "./pings.ts";
import { Receiver, type Violation } from "./receiver.ts";
import { SendLog } from "./send_log.ts";
import { Sender } from "./sender.ts";
import type { CoreOptions, PingDone, SessionEvents, SessionState, SessionStats } from "./session_types.ts";
import { Table, type TableHost } from "./table.ts";
import { Turn } from "./turn.ts";
import { WindowPool } from "./window.ts";

export class SessionCore {
  readonly #options: CoreOptions;
  readonly #events: SessionEvents;
  readonly #turn: Turn;
  readonly #sender: Sender;
  readonly #receiver: Receiver;
  readonly #incoming = new Incoming();
  readonly #windows: WindowPool;
  readonly #table: Table;
  readonly #links: Links;
  readonly #live = new Liveness();
  readonly #pings: Pings;
  readonly #datagrams: DatagramReceiver;
  #state: SessionState = "new";
  #closedBy: ReasonCode = "SHUTDOWN";
  #draining = false;
  #peerDraining = false;
  #peerBuild: string | undefined;
  /** Since when no carrier is active. */
  #downAt: number;
  #ackAt = Infinity;

  constructor(options: CoreOptions) {
    const { limits, events } = options;
    this.#options = options;
    this.#events = events;
    this.#downAt = options.now();
    this.#windows = new WindowPool(limits);
    this.#turn = new Turn({
      serve: () => this.#sender.serve(),
      settle: () => this.#settle(),
      later: options.later,
      onFault: events.onFault?.bind(events),
    });
    this.#pings = new Pings((news) => this.#turn.tell(news));
    this.#receiver = new Receiver({
      counted: (type, id, batch, at, length) => this.#table.frame(type, id, batch, at, length),
      uncounted: (link, type, id, batch, at, length) => this.#uncounted(link, type, id, batch, at, length),
    });
    this.#sender = new Sender(
      {
        received: () => this.#receiver.received,
        wake: () => this.#turn.wake(),
        fault: (error) => this.#turn.fault(error),
      },
      new SendLog(limits.retention),
      new DatagramSender(limits.flowQueueSum),
    );
    this.#table = new Table(this.#tableHost(), options.initiator);
    this.#datagrams = new DatagramReceiver({
      flow: (id) => this.#table.flow(id),
      isStream: (id) => this.#table.isStream(id),
      moved: () => this.#live.moved(options.now()),
      fault: (error) => this.#turn.fault(error),
    });
    this.#links = new Links(this.#linksHost());
  }

  get state(): SessionState {
    return this.#state;
  }

  get active(): Carrier | undefined {
    return this.#links.active?.carrier;
  }

  /** When {@link tick} must be called; Infinity = not needed. */
  get deadline(): number {
    if (this.#state === "closed") return Infinity;
    const hold = this.#links.active === undefined ? this.#downAt + this.#options.limits.holdMs : Infinity;
    return Math.min(hold, this.#links.deadline, this.#live.nextAt, this.#ackAt);
  }

  // ── events from outside ──

  /** Takes a carrier; its batches go to {@link read} with the link returned. After the session's end: closes it. */
  attach(carrier: Carrier): Link | undefined {
    if (this.#state === "closed") {
      carrier.close(this.#closedBy);
      return undefined;
    }
    const link = this.#links.attach(carrier);
    this.#turn.wake();
    return link;
  }

  /** One batch; `batch` is not used after the call. */
  read(link: Link, batch: Uint8Array): void {
    if (link.gone) return;
    if (!this.#turn.begin()) throw new MeshError("INTERNAL", "A carrier delivered a batch from inside a call");
    try {
      const before = this.#receiver.received;
      this.#incoming.begin(batch);
      const violation = this.#receiver.read(link, batch);
      if (violation !== undefined) this.#violated(link, violation);
      else if (link === this.#links.active) this.#heard(this.#receiver.received !== before);
    } finally {
      this.#turn.end();
    }
  }

  /** The carrier takes batches again. */
  drained(link: Link): void {
    link.busy = false;
    if (link === this.#sender.link) this.flush();
  }

  /** The carrier closed by itself or by the peer. */
  ended(link: Link, reason: ReasonCode | undefined): void {
    this.#turn.run(() => this.#links.lost(link, reason));
  }

  /** Does what has become due. */
  tick(): void {
    this.#turn.run(() => this.#tick(this.#options.now()));
  }

  /** Sends and tells what calls have left behind. */
  flush(): void {
    this.#turn.run(() => {});
  }

  // ── calls of owners ──

  openStream(target: ServiceTarget, first: Uint8Array | undefined, handler: StreamHandler): MeshStream {
    return this.#table.openStream(target, first, handler);
  }

  openFlow(target: ServiceTarget, handler: FlowHandler): DatagramFlow {
    return this.#table.openFlow(target, handler);
  }

  ping(done: PingDone): void {
    if (this.#links.active === undefined || this.#pings.full) return this.#turn.tell(() => done(undefined));
    const token = this.#live.ask(this.#options.now());
    this.#pings.add(token, done);
    this.#sender.ping(token);
  }

  /** Opens nothing more in either direction; what is open goes on. */
  drain(reason: ReasonCode): void {
    if (this.#draining || this.#state === "closed") return;
    this.#draining = true;
    this.#sender.goaway(reason, false);
  }

  /** Ends the session: streams and flows close with `reason`, and the peer is told. */
  close(reason: ReasonCode, detail?: string): void {
    if (this.#state === "closed") return;
    this.#state = "closed";
    this.#closedBy = reason;
    this.#sender.lastWord(reason, this.#options.now());
    this.#links.closeAll(reason);
    this.#live.stop();
    this.#table.failAll(reason);
    this.#sender.clear();
    this.#datagrams.trim();
    this.#pings.fail();
    this.#turn.tell(() => this.#events.onClosed(reason, detail));
  }

  stats(): SessionStats {
    const log = this.#sender.log;
    const { datagrams } = this.#sender;
    return {
      state: this.#state,
      path: this.active?.path,
      generation: this.#links.generation,
      switches: this.#links.switches,
      rttMs: this.#live.rttMs,
      peerBuild: this.#peerBuild,
      ...this.#table.counts,
      waiting: this.#sender.inLine,
      written: log.tx,
      acked: log.acked,
      received: this.#receiver.received,
      repeated: this.#receiver.repeated,
      batches: this.#sender.batches,
      bytes: this.#sender.bytes,
      retained: log.held,
      unread: this.#table.unread,
      windowFree: this.#windows.free,
      datagramsSent: datagrams.sent,
      datagramsDropped: datagrams.dropped + this.#datagrams.dropped,
    };
  }

  // ── inside ──

  #heard(counted: boolean): void {
    const now = this.#options.now();
    this.#live.heard(now);
    if (!counted) return;
    this.#live.moved(now);
    if (this.#ackAt === Infinity) this.#ackAt = now + ACK_DELAY_MS;
  }

  #tick(now: number): void {
    this.#links.expire(now);
    const active = this.#links.active;
    const action = this.#live.tick(now);
    if (action === "ping") this.#sender.ping(this.#live.token);
    else if (action === "doubt") this.#turn.tell(() => this.#events.onSilent?.(() => this.#live.silent));
    else if (action === "dead" && active !== undefined) {
      active.carrier.close("PEER_GONE");
      this.#links.lost(active, "PEER_GONE");
    }
    if (now >= this.#ackAt) {
      this.#ackAt = Infinity;
      this.#sender.ackSoon();
    }
    if (this.#links.active === undefined && now >= this.#downAt + this.#options.limits.holdMs) {
      this.close(this.#links.switches === 0 ? "TIMEOUT" : "PEER_GONE", "no carrier in time");
    }
  }

  /** The end of each event: unread bytes leave the batch, written ones leave the log. */
  #settle(): void {
    this.#incoming.end();
    const sender = this.#sender;
    if (sender.link !== undefined) {
      const now = this.#options.now();
      if (sender.log.unsent || sender.datagrams.pending) this.#live.moved(now);
      sender.flush(now);
    }
    if (this.#receiver.received === sender.ackSent) this.#ackAt = Infinity;
    if (sender.log.held === 0) sender.trim();
  }

  #violated(link: Link, violation: string): void {
    // Before its HELLO a carrier says nothing about the session: only the carrier goes.
    if (!link.greeted) {
      link.carrier.close("PROTOCOL");
      this.#links.lost(link, "PROTOCOL");
    } else this.close("PROTOCOL", violation);
  }

  #uncounted(link: Link, type: number, id: number, batch: Uint8Array, at: number, length: number): Violation {
    if (type === TYPE.DGRAM) return this.#datagrams.read(link, id, batch, at, length);
    if (id !== 0) return "session frame with a stream id";
    // What else was said on a carrier that was left behind was about that carrier, or is said again on the new one.
    if (link.retired && type !== TYPE.HELLO && type !== TYPE.GOAWAY) return undefined;
    const now = this.#options.now();
    switch (type) {
      case TYPE.HELLO: {
        const hello = link.greeted ? undefined : decodeHello(batch.subarray(at, at + length));
        if (hello === undefined) return "HELLO of a forbidden form, or a second one";
        const refusal = this.#links.greeted(link, hello);
        if (refusal === undefined) return undefined;
        // The last word goes where it can be read: to the process that said this HELLO.
        this.#sender.use(link);
        this.close(refusal.reason, refusal.detail);
        return undefined;
      }
      case TYPE.RESUME:
        return this.#receiver.resumed(link, batch, at, length);
      case TYPE.ACK:
        return this.#sender.acknowledged(batch, at, length);
      case TYPE.PING:
        return this.#sender.pinged(batch, at, length);
      case TYPE.PONG:
        if (length !== PING_SIZE) return "PONG of a forbidden form";
        this.#answered(get64(batch, at), get64(batch, at + 8) / 1000, now);
        return undefined;
      case TYPE.GOAWAY:
        if (length !== GOAWAY_SIZE) return "GOAWAY of a forbidden form";
        this.#goaway(reasonCode(get16(batch, at)), (batch[at + 2]! & 1) !== 0);
        return undefined;
      default:
        return "frame type without a rule";
    }
  }

  #answered(token: number, sentAt: number, now: number): void {
    if (!this.#live.answered(token, sentAt, now)) return;
    this.#live.settle(now);
    this.#pings.answered(token, now - sentAt);
  }

  #goaway(reason: ReasonCode, final: boolean): void {
    if (!final) return this.#peerDrains(reason);
    const link = this.#links.active;
    // The peer has forgotten us already: it needs no last word.
    if (link !== undefined) this.#links.drop(link, reason);
    this.close(reason, "closed by the peer");
  }

  #peerDrains(reason: ReasonCode): void {
    if (this.#peerDraining) return;
    this.#peerDraining = true;
    this.#turn.tell(() => this.#events.onDraining?.(reason));
  }

  #activated(link: Link, hello: Hello): void {
    const now = this.#options.now();
    this.#state = "up";
    this.#peerBuild = hello.build;
    this.#table.peerLimits(hello.maxStreams, hello.maxFlows);
    this.#sender.limitAck(hello.retention);
    if (now - this.#downAt > DATAGRAM_STALE_MS) this.#sender.datagrams.clear();
    this.#downAt = Infinity;
    this.#pings.fail();
    this.#sender.ping(this.#live.start(now));
    this.#turn.tell(() => this.#events.onUp(link.carrier));
    if (hello.draining) this.#peerDrains("SHUTDOWN");
  }

  #linksHost(): LinksHost {
    const { initiator, instance, build, limits, now } = this.#options;
    return {
      initiator,
      instance,
      build,
      limits,
      draining: () => this.#draining,
      sender: this.#sender,
      receiver: this.#receiver,
      now,
      restarted: () => {
        this.#sender.restart(this.#table.restart(this.#sender.log.sent));
        this.#receiver.restart();
        this.#datagrams.reset();
        this.#peerDraining = false;
      },
      activated: (link, hello) => this.#activated(link, hello),
      retired: (link) => this.#datagrams.retired(link),
      lost: (carrier, reason) => this.#turn.tell(() => this.#events.onCarrierLost?.(carrier, reason)),
      inactive: () => {
        this.#downAt = now();
        this.#live.stop();
        this.#pings.fail();
      },
      down: (reason) => {
        if (this.#state === "up") this.#state = "down";
        this.#turn.tell(() => this.#events.onDown(reason));
      },
    };
  }

  #tableHost(): TableHost {
    const { limits, node, now, peer } = this.#options;
    const offers = new Offers(this.#events, peer, this.#turn);
    return {
      limits,
      node,
      noOpen: () =>
        this.#state === "closed" ? this.#closedBy : this.#draining || this.#peerDraining ? "SHUTDOWN" : undefined,
      draining: () => this.#draining,
      sender: this.#sender,
      incoming: this.#incoming,
      windows: this.#windows,
      now,
      rttMs: () => this.#live.leastRttMs ?? 0,
      notify: (teller) => this.#turn.notify(teller),
      streamAccepted: (stream) => this.#table.settled(stream),
      streamEnded: (stream) => this.#table.ended(stream),
      streamReleased: (stream) => this.#table.released(stream),
      flowEnded: (flow) => {
        this.#sender.datagrams.forget(flow);
        this.#table.flowEnded(flow);
        if (this.#table.flows === 0) this.#datagrams.trim();
      },
      onStream: (target, stream, sendLimit) => offers.stream(target, stream, sendLimit),
      onFlow: (target, flow) => offers.flow(target, flow),
    };
  }
}
