/**
 * The agent's side of the relay: all channels on one control connection. Channel frames in and out, streams of bytes
 * to whoever runs TLS on them. Sends round robin in small quanta, so that no channel waits for another's window.
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
  MAX_CHANNEL_DATA,
  MAX_WINDOW,
  openedNode,
  setChannel,
} from "../relay/frames.ts";
import { ChannelDuplex, type ChannelPort } from "./channel_duplex.ts";

/** Channels an agent accepts from one server; the server's own limit is the same. */
const MAX_CHANNELS = 256;
/** Bytes a channel sends in its turn while others wait: one TLS record. */
const QUANTUM = 16_384;
/** Sum of the windows granted on one connection: beyond it no window grows. The server allows twice as much. */
const MAX_WINDOWS = 32 * 1024 * 1024;
/**
 * A window that is granted anew more often than this may be what limits its channel: one or two grants go out per round
 * trip, so windows grow on ways of a second and somewhat more. Datagrams have no other window: the longer this is, the
 * more of them can wait on a way that is slower than they are sent.
 */
const STARVED_MS = 1_200;
/** On longer ways: round trips to the server, of which the peer has about one more, and a quarter for who is late. */
const STARVED_RTTS = 2.5;
/** Both ends over two satellites. */
const STARVED_MAX_MS = 5_000;

export interface ChannelTableOptions {
  /** Puts a frame on the connection, which owns it from now on; false = congested until {@link ChannelTable.drained}. */
  send(frame: Uint8Array): boolean;
  /** Another agent opened a channel to us. */
  onChannel(leg: ChannelDuplex): void;
  /** Monotonic milliseconds. */
  now(): number;
  /** Round trip to the server without queues, in milliseconds; 0: not known yet. */
  rttMs(): number;
}

export class ChannelTable {
  readonly #options: ChannelTableOptions;
  readonly #channels = new Map<number, Channel>();
  /** Channels with bytes to send and credit to do so, in the order of their turns. */
  readonly #ready: Channel[] = [];
  #lastOpened = -1;
  #lastSeen = 0;
  #windows = 0;
  #congested = false;
  #over = false;

  constructor(options: ChannelTableOptions) {
    this.#options = options;
  }

  get size(): number {
    return this.#channels.size;
  }

  /** Sum of what the other sides may have on the way to us. */
  get windows(): number {
    return this.#windows;
  }

  /** Opens a channel to a node. What is written to it follows at once; a refusal arrives as the duplex's error. */
  open(node: string): ChannelDuplex {
    this.#lastOpened += 2;
    const channel = this.#add(this.#lastOpened, node);
    if (this.#over) channel.duplex.ended("SERVER_UNREACHABLE");
    else this.#send(encodeOpen(channel.id, node));
    return channel.duplex;
  }

  /** One channel frame from the server. Throws MeshError PROTOCOL when the server breaks the protocol. */
  receive(frame: Uint8Array): void {
    checkFrame(frame);
    const id = channelOf(frame);
    if (frame[0] === CHANNEL.OPEN) return this.#opened(id, openedNode(frame));
    const channel = this.#channels.get(id);
    if (!channel) {
      const existed = id % 2 === 1 ? id <= this.#lastOpened : id <= this.#lastSeen;
      if (!existed) throw new MeshError("PROTOCOL", `The server used channel ${id}, which was never opened`);
      return;
    }
    switch (frame[0]) {
      case CHANNEL.DATA:
        channel.outstanding -= frame.length - CHANNEL_HEADER;
        if (channel.outstanding < 0) {
          throw new MeshError("PROTOCOL", `The server sent beyond the credit of channel ${id}`);
        }
        return channel.duplex.deliver(frame.subarray(CHANNEL_HEADER));
      case CHANNEL.CREDIT:
        channel.credit += creditOf(frame);
        return this.#queue(channel);
      default:
        this.#remove(channel);
        return channel.duplex.ended(closedWith(frame));
    }
  }

  /** The connection has room again. */
  drained(): void {
    this.#congested = false;
    this.#pump();
  }

  /** The connection is gone: every channel ends with `reason`. */
  close(reason: ReasonCode): void {
    this.#over = true;
    for (const channel of [...this.#channels.values()]) {
      this.#remove(channel);
      channel.duplex.ended(reason);
    }
  }

  #opened(id: number, node: string): void {
    if (id % 2 !== 0 || id <= this.#lastSeen) {
      throw new MeshError("PROTOCOL", `The server announced channel ${id}, which is not its next number`);
    }
    this.#lastSeen = id;
    if (this.#channels.size >= MAX_CHANNELS) return this.#send(encodeClose(id, "LIMIT"));
    this.#options.onChannel(this.#add(id, node).duplex);
  }

  #add(id: number, node: string): Channel {
    const port: ChannelPort = {
      write: (chunk, done) => {
        channel.pending = chunk;
        channel.at = 0;
        channel.done = done;
        this.#queue(channel);
      },
      consumed: (bytes) => this.#consumed(channel, bytes),
      close: (reason) => {
        if (!this.#channels.has(id)) return;
        this.#remove(channel);
        this.#send(encodeClose(id, reason));
      },
    };
    const channel = new Channel(id, new ChannelDuplex(node, port), this.#options.now());
    // Whoever takes the leg listens for errors; one that nobody took yet must not end the process.
    channel.duplex.on("error", () => {});
    this.#channels.set(id, channel);
    this.#windows += channel.window;
    return channel;
  }

  #remove(channel: Channel): void {
    if (!this.#channels.delete(channel.id)) return;
    this.#windows -= channel.window;
    channel.pending = undefined;
    const at = this.#ready.indexOf(channel);
    if (at >= 0) this.#ready.splice(at, 1);
  }

  #queue(channel: Channel): void {
    if (channel.pending === undefined || channel.credit <= 0 || this.#ready.includes(channel)) return;
    this.#ready.push(channel);
    this.#pump();
  }

  #pump(): void {
    while (!this.#congested) {
      const channel = this.#ready.shift();
      if (!channel) return;
      this.#turn(channel, this.#ready.length > 0 ? QUANTUM : MAX_CHANNEL_DATA);
    }
  }

  #turn(channel: Channel, most: number): void {
    const chunk = channel.pending!;
    const n = Math.min(most, channel.credit, chunk.length - channel.at);
    const frame = new Uint8Array(CHANNEL_HEADER + n);
    frame[0] = CHANNEL.DATA;
    setChannel(frame, channel.id);
    frame.set(chunk.subarray(channel.at, channel.at + n), CHANNEL_HEADER);
    channel.at += n;
    channel.credit -= n;
    this.#send(frame);
    if (channel.at < chunk.length) {
      if (channel.credit > 0) this.#ready.push(channel);
      return;
    }
    channel.pending = undefined;
    channel.done();
  }

  #consumed(channel: Channel, bytes: number): void {
    if (!this.#channels.has(channel.id)) return;
    channel.owed += bytes;
    if (channel.owed < channel.window / 2) return;
    // Only permission grows here, and never holds a session back: what is on the way at once is for the session's own
    // windows to say, which know the round trip.
    const now = this.#options.now();
    const busy = now - channel.grantedAt < this.#starvedMs;
    if (busy && channel.window < MAX_WINDOW && this.#windows + channel.window <= MAX_WINDOWS) {
      this.#windows += channel.window;
      channel.owed += channel.window;
      channel.window *= 2;
    }
    channel.grantedAt = now;
    channel.outstanding += channel.owed;
    this.#send(encodeCredit(channel.id, channel.owed));
    channel.owed = 0;
  }

  get #starvedMs(): number {
    return Math.max(STARVED_MS, Math.min(STARVED_MAX_MS, STARVED_RTTS * this.#options.rttMs()));
  }

  #send(frame: Uint8Array): void {
    if (!this.#over && !this.#options.send(frame)) this.#congested = true;
  }
}

class Channel {
  /** Bytes we may still send. */
  credit = INITIAL_WINDOW;
  /** Bytes the other side may still send. */
  outstanding = INITIAL_WINDOW;
  /** What we let the other side have on the way. */
  window = INITIAL_WINDOW;
  /** Read and not granted again yet. */
  owed = 0;
  pending: Uint8Array | undefined;
  at = 0;
  done: () => void = () => {};

  constructor(readonly id: number, readonly duplex: ChannelDuplex, public grantedAt: number) {}
}
