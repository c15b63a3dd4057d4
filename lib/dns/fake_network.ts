/** A {@link Loop} without a kernel, for tests: datagrams and streams between programs of one test. */
import { hostPort } from "../addr.ts";
import { MeshError } from "../errors.ts";
import { memoryPair, MemoryScheduler, type MemoryStream } from "../net_memory.ts";
import type {
  Accepted,
  DialOptions,
  IpPort,
  Listener,
  Loop,
  MeshStream,
  OnDatagram,
  StreamHandler,
  UdpSocket,
} from "../net.ts";

/** A program at an address: gets datagrams and may answer. */
export type UdpProgram = (bytes: Uint8Array, from: IpPort, reply: (bytes: Uint8Array, as?: IpPort) => void) => void;

export class FakeNetwork implements Loop {
  readonly scheduler = new MemoryScheduler();
  readonly #bound = new Map<string, { readonly socket: FakeUdp; readonly onDatagram: OnDatagram }>();
  readonly #programs = new Map<string, UdpProgram>();
  readonly #listeners = new Map<string, (accepted: Accepted) => void>();
  #nextPort = 40000;
  /** Every datagram that was sent to a program, in order. */
  readonly sent: { readonly from: IpPort; readonly to: IpPort; readonly bytes: Uint8Array }[] = [];
  /** Addresses that cannot be reached: sending fails at once. */
  readonly unreachable = new Set<string>();
  dials = 0;

  /** Puts a program at an address; `undefined` is a black hole. */
  at(address: IpPort, program: UdpProgram | undefined): void {
    if (program) this.#programs.set(hostPort(address), program);
    else this.#programs.delete(hostPort(address));
  }

  /** Delivers a datagram to whoever is bound there. */
  deliver(bytes: Uint8Array, from: IpPort, to: IpPort): void {
    this.#bound.get(hostPort(to))?.onDatagram(bytes, bytes.length, from);
  }

  get size(): number {
    return this.#bound.size + this.#listeners.size;
  }

  bindUdp(at: IpPort, onDatagram: OnDatagram): UdpSocket {
    const local = { ip: at.ip === "0.0.0.0" ? "192.0.2.1" : at.ip, port: at.port === 0 ? this.#nextPort++ : at.port };
    const socket = new FakeUdp(local, {
      send: (bytes, to) => this.#send(bytes, local, to),
      close: () => void this.#bound.delete(hostPort(local)),
    });
    this.#bound.set(hostPort(local), { socket, onDatagram });
    return socket;
  }

  listenTcp(at: IpPort, onAccept: (accepted: Accepted) => void): Listener {
    const local = { ip: at.ip, port: at.port === 0 ? this.#nextPort++ : at.port };
    if (this.#listeners.has(hostPort(local))) throw new MeshError("KERNEL", `${hostPort(local)} is in use`);
    this.#listeners.set(hostPort(local), onAccept);
    const close = () => void this.#listeners.delete(hostPort(local));
    const never = () => {
      throw new MeshError("INTERNAL", "DNS does not pause its listeners");
    };
    return { local, close, pause: never, resume: never };
  }

  dialTcp(to: IpPort, handler: StreamHandler, _options: DialOptions): MeshStream {
    this.dials++;
    const [near, far] = memoryPair(this.scheduler);
    near.handler = handler;
    const accept = this.#listeners.get(hostPort(to));
    if (accept) accept({ stream: far, remote: { ip: "192.0.2.1", port: this.#nextPort++ }, local: to, original: to });
    else far.reset("DIAL_REFUSED");
    return near;
  }

  /** A client's end of a connection to a listener, from `ip`; set its handler, then run the scheduler. */
  connect(to: IpPort, ip: string): MemoryStream {
    const [near, far] = memoryPair(this.scheduler);
    const accept = this.#listeners.get(hostPort(to));
    if (!accept) throw new MeshError("DIAL_REFUSED", `Nobody listens at ${hostPort(to)}`);
    accept({ stream: far, remote: { ip, port: this.#nextPort++ }, local: to, original: to });
    return near;
  }

  close(): void {
    this.#bound.clear();
    this.#listeners.clear();
  }

  #send(bytes: Uint8Array, from: IpPort, to: IpPort): boolean {
    if (this.unreachable.has(hostPort(to))) return false;
    this.sent.push({ from, to, bytes });
    // Answers come later, never from inside the call that sends.
    this.scheduler.later(() => {
      this.#programs.get(hostPort(to))?.(bytes, from, (answer, as) => this.deliver(answer, as ?? to, from));
    });
    return true;
  }
}

class FakeUdp implements UdpSocket {
  readonly local: IpPort;
  readonly #on: { send(bytes: Uint8Array, to: IpPort): boolean; close(): void };

  constructor(local: IpPort, on: { send(bytes: Uint8Array, to: IpPort): boolean; close(): void }) {
    this.local = local;
    this.#on = on;
  }

  send(bytes: Uint8Array, length: number, to: IpPort): boolean {
    return this.#on.send(bytes.slice(0, length), to);
  }

  close(): void {
    this.#on.close();
  }
}
