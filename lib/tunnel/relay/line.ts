/** What the switch remembers: a line per connection, and a half per channel and connection. */
import type { ReasonCode } from "../../errors.ts";
import { CHANNEL_HEADER, INITIAL_WINDOW, MAX_CHANNEL_FRAME } from "./frames.ts";

/** Bytes a channel may send in its turn: a quarter of the largest frame, so that small frames pass bulk quickly. */
const QUANTUM = MAX_CHANNEL_FRAME / 4;
/** A waiting frame may keep at most this much of the buffer it came in alive beyond its own bytes. */
const MAX_SLACK = 1024;

/** One agent's side of a channel. */
export interface ChannelStats {
  /** The node at the other side. */
  readonly peer: string;
  /** Payload and frames from this agent. */
  readonly bytesIn: number;
  readonly messagesIn: number;
  /** Payload that waits for this agent. */
  readonly queuedBytes: number;
}

export interface LineStats {
  readonly node: string;
  readonly channels: number;
  readonly perChannel: readonly ChannelStats[];
  /** Payload from and to the agent since it connected. */
  readonly bytesIn: number;
  readonly bytesOut: number;
  readonly queuedBytes: number;
}

/** One agent's connection. */
export class Line {
  readonly halves = new Map<number, Half>();
  /** Halves with frames or a close waiting, in the order of their turns. */
  readonly ready: Half[] = [];
  readonly #credits: Half[] = [];
  congested = false;
  /** Sum of its halves' exposures. */
  exposure = 0;
  lastOpened = 0;
  bytesIn = 0;
  bytesOut = 0;
  #lastAnnounced = 0;
  #openTokens: number;
  #openAt = -Infinity;

  constructor(readonly id: number, readonly node: string, readonly openBurst: number) {
    this.#openTokens = openBurst;
  }

  /** Whether a channel of this number was ever opened here. */
  existed(channel: number): boolean {
    return channel !== 0 && channel <= (channel % 2 === 1 ? this.lastOpened : this.#lastAnnounced);
  }

  /** The number of the next channel we announce to the agent. */
  announce(): number {
    return this.#lastAnnounced += 2;
  }

  /** Takes a token for opening a channel; false when the agent opens too fast. */
  mayOpen(now: number, perSecond: number): boolean {
    if (this.#openAt === -Infinity) this.#openAt = now;
    this.#openTokens = Math.min(this.openBurst, this.#openTokens + (now - this.#openAt) / 1000 * perSecond);
    this.#openAt = now;
    if (this.#openTokens < 1) return false;
    this.#openTokens--;
    return true;
  }

  /** The half whose turn it is, taken from the queue. */
  next(): Half | undefined {
    return this.ready.shift();
  }

  forget(half: Half): void {
    const at = this.ready.indexOf(half);
    if (at >= 0) this.ready.splice(at, 1);
  }

  /** Remembers a grant for an agent whose connection is congested; grants of one channel add up. */
  oweCredit(half: Half, bytes: number): void {
    if (half.owedCredit === 0) this.#credits.push(half);
    half.owedCredit += bytes;
  }

  takeCredit(): Half | undefined {
    return this.#credits.shift();
  }

  /** The half that makes us hold most. */
  longest(): Half | undefined {
    let longest: Half | undefined;
    for (const half of this.halves.values()) {
      if (half.queuedBytes > (longest?.queuedBytes ?? 0)) longest = half;
    }
    return longest;
  }

  stats(): LineStats {
    const perChannel = [...this.halves.values()].map((half) => ({
      peer: half.peer,
      bytesIn: half.bytesIn,
      messagesIn: half.messagesIn,
      queuedBytes: half.queuedBytes,
    }));
    return {
      node: this.node,
      channels: perChannel.length,
      perChannel,
      bytesIn: this.bytesIn,
      bytesOut: this.bytesOut,
      queuedBytes: perChannel.reduce((sum, channel) => sum + channel.queuedBytes, 0),
    };
  }
}

/** One side of a channel. */
export class Half {
  /** The other side; undefined once that is gone. */
  other: Half | undefined;
  /** Bytes the agent here may still send. */
  credit = INITIAL_WINDOW;
  /** Bytes we may have to hold for the agent here: granted to the other side and not delivered yet. */
  exposure = INITIAL_WINDOW;
  /** Grants to pass to the agent here when its connection has room. */
  owedCredit = 0;
  /** The other side ended: to be told after the queue. */
  closing: { readonly reason: ReasonCode | undefined } | undefined;
  queuedBytes = 0;
  /** Payload and frames from the agent here. */
  bytesIn = 0;
  messagesIn = 0;
  #queue: Uint8Array[] = [];
  #deficit = 0;

  private constructor(readonly line: Line, readonly channel: number, readonly peer: string) {}

  static pair(a: Line, channelA: number, b: Line, channelB: number): readonly [Half, Half] {
    const left = new Half(a, channelA, b.node);
    const right = new Half(b, channelB, a.node);
    left.other = right;
    right.other = left;
    return [left, right];
  }

  /** Whether frames wait here: a new one must not overtake them. */
  get waiting(): boolean {
    return this.#queue.length > 0;
  }

  /** Keeps a frame for later. */
  enqueue(frame: Uint8Array): void {
    if (this.#queue.length === 0) this.line.ready.push(this);
    // A view of a large read buffer would keep all of that alive: then a copy is the cheaper thing to hold.
    const slack = frame.buffer.byteLength - frame.length;
    this.#queue.push(slack > frame.length + MAX_SLACK ? frame.slice() : frame);
    this.queuedBytes += frame.length - CHANNEL_HEADER;
  }

  /** Begins a turn. */
  refill(): void {
    this.#deficit = Math.min(this.#deficit + QUANTUM, MAX_CHANNEL_FRAME + QUANTUM);
  }

  /** The next frame that fits into this turn. */
  take(): Uint8Array | undefined {
    const frame = this.#queue[0];
    if (frame === undefined) {
      this.#deficit = 0;
      return undefined;
    }
    if (frame.length > this.#deficit) return undefined;
    this.#deficit -= frame.length;
    this.#queue.shift();
    this.queuedBytes -= frame.length - CHANNEL_HEADER;
    return frame;
  }

  /** Drops what waits. */
  clear(): void {
    this.#queue = [];
    this.queuedBytes = 0;
    this.#deficit = 0;
  }
}
