/**
 * The relay's heart: channels between two agents' control connections, switched blind. Channel frames in (by
 * connection), channel frames out (by connection); no sockets, no timers, no look at the payload, no copy of it while
 * the way is free. Sockets live in control/server.ts.
 *
 * What bounds memory: the receiving *agent* grants credit, so what the server may ever hold for a channel is what was
 * granted and not delivered yet (its *exposure*). The server only checks: per channel ({@link MAX_WINDOW}), per
 * connection and in total. Who sends beyond its credit loses the channel.
 *
 * What keeps it fair: while a connection is congested, frames wait per channel and leave round robin by bytes, so a
 * bulk transfer delays another channel's frame by one quantum per busy channel and not by its whole window.
 */
import { MeshError, type ReasonCode } from "../../errors.ts";
import {
  CHANNEL,
  CHANNEL_HEADER,
  channelOf,
  checkFrame,
  closedWith,
  creditOf,
  encodeClose,
  encodeCredit,
  encodeOpen,
  INITIAL_WINDOW,
  MAX_WINDOW,
  openedNode,
  setChannel,
} from "./frames.ts";
import { Half, Line, type LineStats } from "./line.ts";

/** The number a shell gives a connection; never reused within a process. */
export type LineId = number;

export interface RelayLimits {
  /** Channels one agent may have open: one per relayed peer, with room for those being replaced. */
  readonly channels: number;
  /** Channels one agent may open per second, in the long run; ten seconds' worth may come at once. */
  readonly opensPerSecond: number;
  /** Bytes the server may have to hold for one connection (granted and not delivered). */
  readonly lineWindow: number;
  /** Bytes held for all connections; beyond, the channel with the longest queue on the full connection is closed. */
  readonly memory: number;
}

export const DEFAULT_RELAY_LIMITS: RelayLimits = {
  channels: 256,
  opensPerSecond: 20,
  lineWindow: 64 * 1024 * 1024,
  memory: 256 * 1024 * 1024,
};

export interface RelayOptions {
  /** Sends a frame on a connection. False: it was taken, but no more until {@link RelaySwitch.drained}. */
  emit(line: LineId, frame: Uint8Array): boolean;
  /** Why `from` may not open a channel to `to`, or undefined. UNKNOWN_NODE for names that were never enrolled. */
  refusal?(from: string, to: string): ReasonCode | undefined;
  readonly limits?: Partial<RelayLimits>;
  /** Sees every channel frame that reaches the server, before anything else does: for tests of blindness. */
  tap?(from: string, frame: Uint8Array): void;
}

export interface RelayStats {
  readonly lines: readonly LineStats[];
  readonly queuedBytes: number;
  readonly opened: number;
  readonly refused: Readonly<Partial<Record<ReasonCode, number>>>;
  readonly relayedBytes: number;
  readonly relayedMessages: number;
}

export class RelaySwitch {
  readonly #options: RelayOptions;
  readonly #limits: RelayLimits;
  readonly #lines = new Map<LineId, Line>();
  readonly #byNode = new Map<string, Line>();
  readonly #refused: Partial<Record<ReasonCode, number>> = {};
  #queued = 0;
  #opened = 0;
  #bytes = 0;
  #messages = 0;

  constructor(options: RelayOptions) {
    this.#options = options;
    this.#limits = { ...DEFAULT_RELAY_LIMITS, ...options.limits };
  }

  /** An agent's connection is up. From now on channels to its node go there, also when an older one still exists. */
  connect(id: LineId, node: string): void {
    const line = new Line(id, node, this.#limits.opensPerSecond * 10);
    this.#lines.set(id, line);
    this.#byNode.set(node, line);
  }

  /** A connection is gone: its channels end at their other side. */
  disconnect(id: LineId): void {
    const line = this.#lines.get(id);
    if (!line) return;
    this.#lines.delete(id);
    if (this.#byNode.get(line.node) === line) this.#byNode.delete(line.node);
    for (const half of line.halves.values()) {
      this.#queued -= half.queuedBytes;
      this.#leave(half, "PEER_GONE");
    }
    line.halves.clear();
  }

  /** Whether channels to a node can be opened now. */
  online(node: string): boolean {
    return this.#byNode.has(node);
  }

  /**
   * One channel frame from a connection; the switch owns its bytes from now on. `now` is monotonic milliseconds.
   * Throws MeshError PROTOCOL when the agent breaks the protocol in a way that ends its whole connection.
   */
  receive(id: LineId, frame: Uint8Array, now: number): void {
    const line = this.#lines.get(id);
    if (!line) return;
    this.#options.tap?.(line.node, frame);
    checkFrame(frame);
    const channel = channelOf(frame);
    if (frame[0] === CHANNEL.OPEN) return this.#open(line, channel, openedNode(frame), now);
    const half = line.halves.get(channel);
    if (!half) {
      // Frames that were on their way while the channel ended are no fault; numbers that never were, are.
      if (!line.existed(channel)) {
        throw new MeshError("PROTOCOL", `Relay got a frame for channel ${channel} never opened`);
      }
      return;
    }
    switch (frame[0]) {
      case CHANNEL.DATA:
        return this.#data(half, frame);
      case CHANNEL.CREDIT:
        return this.#credit(half, creditOf(frame));
      default:
        return this.#closed(half, closedWith(frame));
    }
  }

  /** A connection that was congested can take frames again. */
  drained(id: LineId): void {
    const line = this.#lines.get(id);
    if (!line) return;
    line.congested = false;
    for (let half = line.takeCredit(); half; half = line.takeCredit()) {
      const bytes = half.owedCredit;
      half.owedCredit = 0;
      if (line.halves.get(half.channel) === half) this.#emit(line, encodeCredit(half.channel, bytes));
      if (line.congested) return;
    }
    for (let half = line.next(); half; half = line.next()) {
      this.#serve(half);
      if (half.waiting) line.ready.push(half);
      if (line.congested) return;
    }
  }

  stats(): RelayStats {
    return {
      lines: [...this.#lines.values()].map((line) => line.stats()),
      queuedBytes: this.#queued,
      opened: this.#opened,
      refused: { ...this.#refused },
      relayedBytes: this.#bytes,
      relayedMessages: this.#messages,
    };
  }

  #open(line: Line, channel: number, node: string, now: number): void {
    if (channel % 2 !== 1 || line.existed(channel)) {
      throw new MeshError(
        "PROTOCOL",
        `Relay was asked to open channel ${channel}, which is not the agent's next number`,
      );
    }
    line.lastOpened = channel;
    const target = this.#byNode.get(node);
    const refusal = this.#refusal(line, target, node, now);
    if (refusal !== undefined || target === undefined) {
      const code = refusal ?? "PEER_OFFLINE";
      this.#refused[code] = (this.#refused[code] ?? 0) + 1;
      this.#emit(line, encodeClose(channel, code));
      return;
    }
    const [a, b] = Half.pair(line, channel, target, target.announce());
    for (const half of [a, b]) {
      half.line.halves.set(half.channel, half);
      half.line.exposure += INITIAL_WINDOW;
    }
    this.#opened++;
    this.#emit(target, encodeOpen(b.channel, line.node));
  }

  #refusal(line: Line, target: Line | undefined, node: string, now: number): ReasonCode | undefined {
    const { channels, opensPerSecond } = this.#limits;
    if (!line.mayOpen(now, opensPerSecond)) return "LIMIT";
    if (node === line.node) return "NOT_ALLOWED";
    const refusal = this.#options.refusal?.(line.node, node);
    if (refusal !== undefined || target === undefined) return refusal;
    return line.halves.size >= channels || target.halves.size >= channels ? "LIMIT" : undefined;
  }

  #data(from: Half, frame: Uint8Array): void {
    const length = frame.length - CHANNEL_HEADER;
    from.credit -= length;
    if (from.credit < 0) return this.#cut(from, "PROTOCOL");
    const to = from.other;
    if (to === undefined) return; // The other side closed; ours is on its way out.
    from.bytesIn += length;
    from.messagesIn++;
    from.line.bytesIn += length;
    this.#bytes += length;
    this.#messages++;
    setChannel(frame, to.channel);
    if (!to.line.congested && !to.waiting) return this.#deliver(to, frame, length);
    to.enqueue(frame);
    this.#queued += length;
    if (this.#queued > this.#limits.memory) this.#cut(to.line.longest() ?? to, "LIMIT");
  }

  #deliver(to: Half, frame: Uint8Array, length: number): void {
    to.exposure -= length;
    to.line.exposure -= length;
    to.line.bytesOut += length;
    this.#emit(to.line, frame);
  }

  /** Sends what one channel may send in its turn. */
  #serve(half: Half): void {
    half.refill();
    for (let frame = half.take(); frame; frame = half.take()) {
      const length = frame.length - CHANNEL_HEADER;
      this.#queued -= length;
      this.#deliver(half, frame, length);
      if (half.line.congested) return;
    }
    if (half.closing && !half.waiting) this.#finish(half);
  }

  #credit(from: Half, bytes: number): void {
    const to = from.other;
    if (bytes === 0) return this.#cut(from, "PROTOCOL");
    if (to === undefined) return;
    if (from.exposure + bytes > MAX_WINDOW) return this.#cut(from, "PROTOCOL");
    if (from.line.exposure + bytes > this.#limits.lineWindow) return this.#cut(from, "LIMIT");
    from.exposure += bytes;
    from.line.exposure += bytes;
    to.credit += bytes;
    if (to.line.congested) to.line.oweCredit(to, bytes);
    else this.#emit(to.line, encodeCredit(to.channel, bytes));
  }

  /** The agent at `half` ended the channel. */
  #closed(half: Half, reason: ReasonCode | undefined): void {
    this.#remove(half);
    this.#leave(half, reason);
  }

  /** Ends a channel because its agent broke a rule or a limit was reached; both sides are told. */
  #cut(half: Half, code: ReasonCode): void {
    this.#remove(half);
    this.#emit(half.line, encodeClose(half.channel, code));
    this.#leave(half, code === "PROTOCOL" ? "PEER_GONE" : code);
  }

  /** Tells the other side of a half that is gone, after what it still has to receive. */
  #leave(half: Half, reason: ReasonCode | undefined): void {
    const other = half.other;
    half.other = undefined;
    if (!other) return;
    other.other = undefined;
    other.closing = { reason };
    if (!other.waiting) this.#finish(other);
  }

  #finish(half: Half): void {
    this.#remove(half);
    this.#emit(half.line, encodeClose(half.channel, half.closing?.reason));
  }

  #remove(half: Half): void {
    half.line.halves.delete(half.channel);
    half.line.exposure -= half.exposure;
    half.exposure = 0;
    this.#queued -= half.queuedBytes;
    if (half.waiting) half.line.forget(half);
    half.clear();
  }

  #emit(line: Line, frame: Uint8Array): void {
    if (!this.#lines.has(line.id)) return;
    if (!this.#options.emit(line.id, frame)) line.congested = true;
  }
}
