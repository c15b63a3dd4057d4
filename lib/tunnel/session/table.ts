/** The streams and flows of a session by id: who may open what, and what each frame does in each state. */
import { type ReasonCode, reasonCode, reasonNumber } from "../../errors.ts";
import type { FlowHandler, ServiceTarget, StreamHandler } from "../../net.ts";
import type { SessionLimits } from "../constants.ts";
import { Flow, type FlowHost } from "./flow.ts";
import {
  decodeOpen,
  encodeOpen,
  get16,
  get64,
  OFFSET_SIZE,
  type Open,
  openSize,
  put16,
  REASON_SIZE,
  TYPE,
} from "../frame.ts";
import type { Violation } from "./receiver.ts";
import type { Opened } from "./send_log.ts";
import { Stream, type StreamHost } from "./stream.ts";

export interface TableHost extends StreamHost, FlowHost {
  readonly limits: SessionLimits;
  /** Why nothing new may be opened now; undefined = it may. */
  noOpen(): ReasonCode | undefined;
  /** The name OPENs of the peer mean by "here". */
  readonly node: string | undefined;
  /** We told the peer to open nothing more. */
  draining(): boolean;
  onStream(target: ServiceTarget, stream: Stream, sendLimit: number): void;
  onFlow(target: ServiceTarget, flow: Flow): void;
}

export class Table {
  readonly #host: TableHost;
  readonly #firstId: number;
  readonly #streams = new Map<number, Stream>();
  readonly #flows = new Map<number, Flow>();
  #nextMine: number;
  /** Last id the peer used; ids rise, in the sense of serial numbers (RFC 1982), so that they may wrap around. */
  #lastTheirs: number | undefined;
  /** What the peer allows us, by its HELLO; before that we assume our own limits. */
  #maxStreams: number;
  #maxFlows: number;
  // Streams live until their owner is done with them, which may be after they left the table.
  #mine = 0;
  #theirs = 0;
  #pending = 0;
  #myFlows = 0;
  #theirFlows = 0;

  constructor(host: TableHost, initiator: boolean) {
    this.#host = host;
    this.#firstId = initiator ? 1 : 2;
    this.#nextMine = this.#firstId;
    this.#maxStreams = host.limits.maxStreams;
    this.#maxFlows = host.limits.maxFlows;
  }

  /** Streams that hold anything, flows, and entries in the table: leak tests compare them. */
  get counts(): { readonly streams: number; readonly flows: number; readonly entries: number } {
    return {
      streams: this.#mine + this.#theirs,
      flows: this.#flows.size,
      entries: this.#streams.size + this.#flows.size,
    };
  }

  /** Open flows, of either side. */
  get flows(): number {
    return this.#flows.size;
  }

  get unread(): number {
    let sum = 0;
    for (const stream of this.#streams.values()) sum += stream.unread;
    return sum;
  }

  peerLimits(maxStreams: number, maxFlows: number): void {
    this.#maxStreams = maxStreams;
    this.#maxFlows = maxFlows;
  }

  openStream(target: ServiceTarget, first: Uint8Array | undefined, handler: StreamHandler): Stream {
    const size = target.protocol === "TCP" ? openSize(target) : undefined;
    const no = this.#mayOpen(size, this.#mine, this.#maxStreams);
    const stream = new Stream(this.#host, no === undefined ? this.#takeId() : 0, handler);
    if (no !== undefined || size === undefined) {
      stream.fail(no ?? "INTERNAL");
      return stream;
    }
    stream.counted = true;
    this.#mine++;
    this.#streams.set(stream.id, stream);
    stream.openedAt = this.#host.sender.log.tx;
    this.#sendOpen(stream.id, size, { flow: false, target, window: stream.startWindow() });
    if (first !== undefined && first.length > 0) stream.first(first);
    return stream;
  }

  openFlow(target: ServiceTarget, handler: FlowHandler): Flow {
    const size = target.protocol === "UDP" ? openSize(target) : undefined;
    const no = this.#mayOpen(size, this.#myFlows, this.#maxFlows);
    const flow = new Flow(this.#host, no === undefined ? this.#takeId() : 0, handler);
    if (no !== undefined || size === undefined) {
      flow.fail(no ?? "INTERNAL");
      return flow;
    }
    this.#myFlows++;
    this.#flows.set(flow.id, flow);
    flow.openedAt = this.#host.sender.log.tx;
    this.#sendOpen(flow.id, size, { flow: true, target, window: 0 });
    return flow;
  }

  // ── what streams and flows tell ──

  ended(stream: Stream): void {
    this.#streams.delete(stream.id);
  }

  /** An offered stream was taken or refused. */
  settled(stream: Stream): void {
    if (!stream.pending) return;
    stream.pending = false;
    this.#pending--;
  }

  released(stream: Stream): void {
    this.settled(stream);
    if (!stream.counted) return;
    stream.counted = false;
    if (stream.mine) this.#mine--;
    else this.#theirs--;
  }

  flowEnded(flow: Flow): void {
    if (!this.#flows.delete(flow.id)) return;
    if (flow.mine) this.#myFlows--;
    else this.#theirFlows--;
  }

  flow(id: number): Flow | undefined {
    return this.#flows.get(id);
  }

  isStream(id: number): boolean {
    return this.#streams.has(id);
  }

  /** Ends everything. */
  failAll(reason: ReasonCode): void {
    this.#fail(reason, () => true);
  }

  /**
   * The peer lost its state. What was opened at offset `sent` or later never reached it and can go on with the new
   * one; the rest ends. Returns what goes on.
   */
  restart(sent: number): ReadonlyMap<number, Opened> {
    this.#fail("PEER_GONE", (entry) => !entry.mine || entry.openedAt < sent);
    this.#lastTheirs = undefined;
    return new Map<number, Opened>([...this.#streams, ...this.#flows]);
  }

  #fail(reason: ReasonCode, which: (entry: Stream | Flow) => boolean): void {
    for (const stream of [...this.#streams.values()].filter(which)) {
      this.#streams.delete(stream.id);
      stream.fail(reason);
    }
    for (const flow of [...this.#flows.values()].filter(which)) {
      this.#host.flowEnded(flow);
      flow.fail(reason);
    }
  }

  // ── frames ──

  /** Lets a counted frame act. Every (state, frame) pair has its row in PROTOCOL.md §4. */
  frame(type: number, id: number, batch: Uint8Array, at: number, length: number): Violation {
    if (type === TYPE.DATA) {
      const stream = this.#streams.get(id);
      if (stream === undefined) return this.#unknown(id);
      if (stream.state === "opening") return "DATA before OPEN_OK";
      return stream.data(at, length) ? undefined : "DATA beyond its credit, after FIN, or empty";
    }
    if (type === TYPE.OPEN) return this.#opened(id, batch.subarray(at, at + length));
    if (type === TYPE.FLOW_CLOSE) return this.#flowClosed(id, batch, at, length);
    const stream = this.#streams.get(id);
    if (stream === undefined) return this.#unknown(id);
    switch (type) {
      case TYPE.OPEN_OK: {
        const limit = length === OFFSET_SIZE ? get64(batch, at) : -1;
        if (limit < 0) return "OPEN_OK of a forbidden form";
        if (stream.state !== "opening") return "OPEN_OK for a stream that is not opening";
        stream.opened(limit);
        return undefined;
      }
      case TYPE.CREDIT: {
        const limit = length === OFFSET_SIZE ? get64(batch, at) : -1;
        if (limit < 0) return "CREDIT of a forbidden form";
        if (stream.state !== "open") return "CREDIT for a stream that is not open";
        stream.credit(limit);
        return undefined;
      }
      case TYPE.FIN:
        if (length !== 0) return "FIN with a payload";
        if (stream.state === "opening") return "FIN before OPEN_OK";
        return stream.fin() ? undefined : "second FIN";
      case TYPE.RST:
        if (length !== REASON_SIZE) return "RST of a forbidden form";
        this.#streams.delete(id);
        stream.fail(reasonCode(get16(batch, at)));
        return undefined;
      default:
        return "frame type without a rule";
    }
  }

  #opened(id: number, payload: Uint8Array): Violation {
    if (id === 0 || (id & 1) === (this.#firstId & 1)) return "OPEN with an id of the other side";
    if (this.#theyUsed(id) || this.#streams.has(id) || this.#flows.has(id)) {
      return "OPEN with a used id";
    }
    const open = decodeOpen(payload, this.#host.node);
    if (open === undefined) return "OPEN of a forbidden form";
    this.#lastTheirs = id;
    const { limits } = this.#host;
    if (open.flow) {
      if (this.#host.draining()) return this.#refuse(TYPE.FLOW_CLOSE, id, "SHUTDOWN");
      if (this.#theirFlows >= limits.maxFlows) return this.#refuse(TYPE.FLOW_CLOSE, id, "LIMIT");
      this.#theirFlows++;
      const flow = new Flow(this.#host, id, undefined);
      this.#flows.set(id, flow);
      this.#host.onFlow(open.target, flow);
      return undefined;
    }
    if (this.#host.draining()) return this.#refuse(TYPE.RST, id, "SHUTDOWN");
    if (this.#theirs >= limits.maxStreams || this.#pending >= limits.maxPending) {
      return this.#refuse(TYPE.RST, id, "LIMIT");
    }
    const stream = new Stream(this.#host, id, undefined);
    stream.counted = stream.pending = true;
    this.#theirs++;
    this.#pending++;
    this.#streams.set(id, stream);
    this.#host.onStream(open.target, stream, open.window);
    return undefined;
  }

  #flowClosed(id: number, batch: Uint8Array, at: number, length: number): Violation {
    if (length !== REASON_SIZE) return "FLOW_CLOSE of a forbidden form";
    const flow = this.#flows.get(id);
    if (flow === undefined) return this.#streams.has(id) ? "FLOW_CLOSE for a stream" : this.#unknown(id);
    this.#host.flowEnded(flow);
    flow.fail(reasonCode(get16(batch, at)));
    return undefined;
  }

  /** A frame for an id that is not in the table: late if the id was used once, else a violation. */
  #unknown(id: number): Violation {
    if (this.#flows.has(id)) return "stream frame for a flow";
    const mine = (id & 1) === (this.#firstId & 1);
    const used = mine ? ((id - this.#nextMine) | 0) < 0 : this.#theyUsed(id);
    return id !== 0 && used ? undefined : "frame for an id that was never opened";
  }

  #theyUsed(id: number): boolean {
    return this.#lastTheirs !== undefined && ((id - this.#lastTheirs) | 0) <= 0;
  }

  #refuse(type: number, id: number, code: ReasonCode): undefined {
    const { sender } = this.#host;
    const at = sender.frame(type, id, REASON_SIZE);
    put16(sender.log.bytes, at, reasonNumber(code));
    return undefined;
  }

  #mayOpen(size: number | undefined, open: number, allowed: number): ReasonCode | undefined {
    const no = this.#host.noOpen();
    if (no !== undefined) return no;
    if (size === undefined) return "INTERNAL";
    return open >= allowed || this.#host.sender.log.room < size ? "LIMIT" : undefined;
  }

  #takeId(): number {
    let id = this.#nextMine;
    while (id === 0 || this.#streams.has(id) || this.#flows.has(id)) id = (id + 2) >>> 0;
    this.#nextMine = (id + 2) >>> 0;
    return id;
  }

  #sendOpen(id: number, size: number, open: Open): void {
    const { sender } = this.#host;
    const at = sender.frame(TYPE.OPEN, id, size);
    encodeOpen(sender.log.bytes, at, open);
  }
}
