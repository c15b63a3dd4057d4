/**
 * Two ends of a stream in memory: the reference implementation of the contract in net.ts, and what tests of
 * forwarding use in place of sockets. Callbacks are delivered from a queue that the test drains, so an owner is
 * never called from inside its own call.
 */
import { MeshError, type ReasonCode } from "./errors.ts";
import {
  type DatagramFlow,
  type FlowHandler,
  idleHandler,
  type MeshStream,
  type StreamHandler,
  WOULD_BLOCK,
} from "./net.ts";

export { idleHandler };

/** Where callbacks wait until {@link MemoryScheduler.run} delivers them. */
export class MemoryScheduler {
  readonly #queue: (() => void)[] = [];

  later(task: () => void): void {
    this.#queue.push(task);
  }

  /** Delivers callbacks, also those that they cause, until none is left. */
  run(): void {
    for (let i = 0; this.#queue.length > 0; i++) {
      if (i > 1_000_000) throw new Error("Memory streams do not come to rest");
      this.#queue.shift()!();
    }
  }
}

/** Makes a connected pair. Each direction holds at most `capacity` bytes before writes are cut short. */
export function memoryPair(scheduler: MemoryScheduler, capacity = 65536): readonly [MemoryStream, MemoryStream] {
  const a = new MemoryStream(scheduler, capacity);
  const b = new MemoryStream(scheduler, capacity);
  a.connect(b);
  b.connect(a);
  for (const end of [a, b]) scheduler.later(() => end.open());
  return [a, b];
}

/** A stream whose dial fails with `reason`: its handler hears of it when the scheduler runs, and of nothing else. */
export function refusedStream(scheduler: MemoryScheduler, handler: StreamHandler, reason: ReasonCode): MemoryStream {
  const stream = new MemoryStream(scheduler, 1);
  const nobody = new MemoryStream(scheduler, 1);
  stream.handler = handler;
  stream.connect(nobody);
  nobody.connect(stream);
  nobody.reset(reason);
  return stream;
}

export class MemoryStream implements MeshStream {
  handler: StreamHandler = idleHandler;
  readonly #scheduler: MemoryScheduler;
  readonly #buffer: Uint8Array;
  #peer: MemoryStream | undefined;
  #start = 0;
  #used = 0;
  /** The peer closed its direction: after the buffer, reads return 0. */
  #ended = false;
  #wroteEnd = false;
  #sawEnd = false;
  #over = false;
  /** The owner gave the stream up: it hears nothing more, not even the end that was under way. */
  #silent = false;
  #wantRead = true;
  #wantWrite = false;

  constructor(scheduler: MemoryScheduler, capacity: number) {
    this.#scheduler = scheduler;
    this.#buffer = new Uint8Array(capacity);
  }

  connect(peer: MemoryStream): void {
    this.#peer = peer;
  }

  open(): void {
    if (!this.#over) this.handler.onOpen();
  }

  read(into: Uint8Array): number {
    if (into.length === 0) throw new MeshError("INTERNAL", "Cannot read into an empty buffer");
    if (this.#over) return 0;
    if (this.#used === 0) {
      if (this.#ended) {
        this.#sawEnd = true;
        this.#finish();
        return 0;
      }
      this.#wantRead = true;
      return WOULD_BLOCK;
    }
    const n = Math.min(into.length, this.#used);
    const first = Math.min(n, this.#buffer.length - this.#start);
    into.set(this.#buffer.subarray(this.#start, this.#start + first));
    if (n > first) into.set(this.#buffer.subarray(0, n - first), first);
    this.#start = (this.#start + n) % this.#buffer.length;
    this.#used -= n;
    this.#peer!.#room();
    return n;
  }

  write(from: Uint8Array, offset: number, length: number): number {
    if (this.#over || this.#wroteEnd) return 0;
    const taken = this.#peer!.#take(from, offset, length);
    if (taken < length) this.#wantWrite = true;
    return taken;
  }

  closeWrite(): void {
    if (this.#over || this.#wroteEnd) return;
    this.#wroteEnd = true;
    this.#wantWrite = false;
    this.#peer!.#end();
    this.#finish();
  }

  reset(code: ReasonCode): void {
    this.#silent = true;
    if (this.#over) return;
    this.#over = true;
    const peer = this.#peer!;
    this.#scheduler.later(() => peer.#broken(code));
  }

  #take(from: Uint8Array, offset: number, length: number): number {
    if (this.#over) return length;
    const n = Math.min(length, this.#buffer.length - this.#used);
    const at = (this.#start + this.#used) % this.#buffer.length;
    const first = Math.min(n, this.#buffer.length - at);
    this.#buffer.set(from.subarray(offset, offset + first), at);
    if (n > first) this.#buffer.set(from.subarray(offset + first, offset + n), 0);
    this.#used += n;
    if (n > 0) this.#readable();
    return n;
  }

  #end(): void {
    this.#ended = true;
    this.#readable();
  }

  #readable(): void {
    if (!this.#wantRead) return;
    this.#wantRead = false;
    this.#scheduler.later(() => {
      if (!this.#over) this.handler.onReadable();
    });
  }

  #room(): void {
    if (!this.#wantWrite) return;
    this.#wantWrite = false;
    this.#scheduler.later(() => {
      if (!this.#over) this.handler.onWritable();
    });
  }

  #broken(code: ReasonCode): void {
    if (this.#over) return;
    this.#over = true;
    this.handler.onClose(code);
  }

  /** Both directions ended: tell the owner once, from the queue. */
  #finish(): void {
    if (!this.#wroteEnd || !this.#sawEnd || this.#over) return;
    this.#over = true;
    this.#scheduler.later(() => {
      if (!this.#silent) this.handler.onClose(undefined);
    });
  }
}

/** Bytes that wait in one direction of a memory flow; beyond it the oldest datagram is dropped, as in a tunnel. */
const FLOW_QUEUE_BYTES = 256 * 1024;
/** The largest payload of UDP over IPv4. */
const MAX_DATAGRAM = 65_507;

/** Two ends of a datagram flow in memory, with the contract of {@link DatagramFlow}. */
export function memoryFlowPair(
  scheduler: MemoryScheduler,
  near: FlowHandler,
  far: FlowHandler,
): readonly [DatagramFlow, DatagramFlow] {
  const a = new MemoryFlow(scheduler, near);
  const b = new MemoryFlow(scheduler, far);
  a.connect(b);
  b.connect(a);
  return [a, b];
}

class MemoryFlow implements DatagramFlow {
  readonly #scheduler: MemoryScheduler;
  readonly #handler: FlowHandler;
  #peer: MemoryFlow | undefined;
  #queue: Uint8Array[] = [];
  #queued = 0;
  #over = false;

  constructor(scheduler: MemoryScheduler, handler: FlowHandler) {
    this.#scheduler = scheduler;
    this.#handler = handler;
  }

  connect(peer: MemoryFlow): void {
    this.#peer = peer;
  }

  send(bytes: Uint8Array, length: number): boolean {
    if (this.#over || length > MAX_DATAGRAM || length > bytes.length) return false;
    this.#peer!.#arrive(bytes.slice(0, length));
    return true;
  }

  close(code: ReasonCode): void {
    if (this.#over) return;
    this.#over = true;
    const peer = this.#peer!;
    this.#scheduler.later(() => {
      if (peer.#over) return;
      peer.#over = true;
      peer.#handler.onClose(code);
    });
  }

  #arrive(datagram: Uint8Array): void {
    this.#queue.push(datagram);
    this.#queued += cost(datagram);
    while (this.#queued > FLOW_QUEUE_BYTES) this.#queued -= cost(this.#queue.shift()!);
    this.#scheduler.later(() => {
      const next = this.#queue.shift();
      if (next === undefined || this.#over) return;
      this.#queued -= cost(next);
      this.#handler.onDatagram(next, next.length);
    });
  }
}

/** What a waiting datagram counts: empty ones must not wait in any number. */
function cost(datagram: Uint8Array): number {
  return datagram.length + 64;
}
