/** Streams and flows that other nodes open through the tunnel: authorised, dialled here, joined. */
import { hostPort } from "../addr.ts";
import type { Clock } from "../clock.ts";
import type { ReasonCode } from "../errors.ts";
import type { Logger } from "../log.ts";
import type { MetaReader } from "../meta/model.ts";
import type {
  DatagramFlow,
  Dialer,
  FlowHandler,
  IpPort,
  MeshStream,
  ServiceTarget,
  StreamHandler,
  UdpSocket,
} from "../net.ts";
import type { Connections, SeenConnection, Tracked } from "./connections.ts";
import { count, type Counters } from "./counters.ts";
import { authorize, type InboundPolicy } from "./inbound.ts";
import { join, type Joined, type SocketLoop } from "./join.ts";
import type { PipeKit, PipeOwner } from "./pipe.ts";

/** Who opened it, as proven by mutual TLS. */
export interface Peer {
  readonly node: string;
  readonly keyHash: string;
}

/** What the tunnel hands over for a stream that another node opened. Exactly one of `accept` and `refuse` is called. */
export interface IncomingStream {
  readonly target: ServiceTarget;
  readonly from: Peer;
  accept(handler: StreamHandler): MeshStream;
  refuse(code: ReasonCode): void;
}

/** The same for a datagram flow. */
export interface IncomingFlow {
  readonly target: ServiceTarget;
  readonly from: Peer;
  accept(handler: FlowHandler): DatagramFlow;
  refuse(code: ReasonCode): void;
}

export interface IncomingDeps {
  readonly clock: Clock;
  readonly log: Logger;
  readonly loop: SocketLoop;
  readonly counters: Counters;
  readonly connections: Connections;
  readonly kit: PipeKit;
  readonly local: Dialer;
  /** Undefined before the first snapshot. */
  readonly meta: () => MetaReader | undefined;
  readonly policy: () => InboundPolicy;
  readonly udpIdleMs: number;
}

/** Decides and dials; the same reason code goes to the peer, into the counters and into the log. */
export class Incoming {
  readonly #deps: IncomingDeps;
  readonly #flows = new Set<InboundFlow>();

  constructor(deps: IncomingDeps) {
    this.#deps = deps;
  }

  stream(incoming: IncomingStream): void {
    const dial = this.#admit(incoming);
    if (dial) new InboundStream(this.#deps, incoming, dial).start();
  }

  flow(incoming: IncomingFlow): void {
    const dial = this.#admit(incoming);
    if (!dial) return;
    try {
      this.#flows.add(new InboundFlow(this.#deps, incoming, dial, (flow) => this.#flows.delete(flow)));
    } catch (error) {
      this.#deps.log.warn("A flow from another node cannot have a socket", { error: String(error) });
      incoming.refuse("LIMIT");
    }
  }

  /** Metadata or facts changed: flows whose endpoint is no longer served end. Connections drain instead. */
  update(): void {
    for (const flow of this.#flows) {
      const answer = authorize(flow.target, this.#deps.meta(), this.#deps.policy());
      if (!answer.ok) flow.reset(answer.refused);
    }
  }

  #admit(incoming: IncomingStream | IncomingFlow): IpPort | undefined {
    const { counters, connections, log } = this.#deps;
    const answer = connections.full
      ? { ok: false, refused: "LIMIT", why: "this node carries as many connections as it may" } as const
      : authorize(incoming.target, this.#deps.meta(), this.#deps.policy());
    if (answer.ok) return answer.dial;
    count(counters.inboundRefused, answer.refused);
    log.info("Refused what another node asked for", {
      node: incoming.from.node,
      service: `${incoming.target.namespace}/${incoming.target.service}`,
      endpoint: hostPort(incoming.target.endpoint),
      reason: answer.refused,
      why: answer.why,
    });
    incoming.refuse(answer.refused);
    return undefined;
  }
}

class InboundStream implements Tracked, PipeOwner {
  readonly #deps: IncomingDeps;
  readonly #incoming: IncomingStream;
  readonly #dial: IpPort;
  readonly #started: number;
  #dialled: MeshStream | undefined;
  #pipe: Joined | undefined;
  #over = false;

  constructor(deps: IncomingDeps, incoming: IncomingStream, dial: IpPort) {
    this.#deps = deps;
    this.#incoming = incoming;
    this.#dial = dial;
    this.#started = deps.clock.now();
  }

  get bytes(): number {
    return this.#pipe ? this.#pipe.aToB + this.#pipe.bToA : 0;
  }

  get halfClosed(): boolean {
    return this.#pipe?.halfClosed ?? false;
  }

  seen(): SeenConnection | undefined {
    if (!this.#pipe) return undefined;
    const { target, from } = this.#incoming;
    return {
      client: `node ${from.node}`,
      service: `${target.namespace}/${target.service}:${target.port}`,
      protocol: "TCP",
      endpoint: hostPort(this.#dial),
      way: "inbound",
      ageSeconds: Math.floor((this.#deps.clock.now() - this.#started) / 1000),
      bytesOut: this.#pipe.aToB,
      bytesIn: this.#pipe.bToA,
    };
  }

  start(): void {
    this.#deps.connections.add(this);
    const handler: StreamHandler = {
      onOpen: () => this.#join(),
      onReadable: () => {},
      onWritable: () => {},
      onClose: (reason) => this.#refuse(reason ?? "PEER_GONE"),
    };
    // The checked address, not the one the peer sent: they are equal now, and stay so if checks ever rewrite.
    const target = { ...this.#incoming.target, endpoint: this.#dial };
    this.#dialled = this.#deps.local.dial(target, undefined, handler);
  }

  reset(code: ReasonCode): void {
    if (this.#over) return;
    if (this.#pipe) {
      this.#pipe.reset(code);
      return this.onEnd();
    }
    this.#dialled?.reset(code);
    this.#refuse(code);
  }

  /** Both streams are over. */
  onEnd(): void {
    if (this.#over) return;
    this.#over = true;
    this.#deps.connections.delete(this);
    if (!this.#pipe) return;
    const { inbound } = this.#deps.counters;
    inbound.active--;
    inbound.bytesOut += this.#pipe.aToB;
    inbound.bytesIn += this.#pipe.bToA;
  }

  #refuse(code: ReasonCode): void {
    if (this.#over) return;
    this.#deps.counters.inbound.dialFailures++;
    this.#incoming.refuse(code);
    this.onEnd();
  }

  /** Accepted only now: the other side's `onOpen` then means that the endpoint has answered. */
  #join(): void {
    const stream = this.#incoming.accept(idle);
    this.#deps.counters.inbound.opened++;
    this.#deps.counters.inbound.active++;
    this.#pipe = join(this.#deps, [stream, this.#dialled!], this);
  }
}

const idle: StreamHandler = { onOpen() {}, onReadable() {}, onWritable() {}, onClose() {} };

/** A flow from another node: one socket of our own per flow, so that answers find their way back. */
class InboundFlow implements Tracked {
  #bytesOut = 0;
  #bytesIn = 0;
  readonly halfClosed = false;
  readonly idleMs: number;
  readonly target: ServiceTarget;
  readonly #from: string;
  readonly #started: number;
  readonly #deps: IncomingDeps;
  readonly #flow: DatagramFlow;
  readonly #socket: UdpSocket;
  readonly #to: IpPort;
  readonly #onEnd: (flow: InboundFlow) => void;
  #over = false;

  /** Throws MeshError KERNEL when no socket can be had. */
  constructor(deps: IncomingDeps, incoming: IncomingFlow, dial: IpPort, onEnd: (flow: InboundFlow) => void) {
    this.#deps = deps;
    this.#to = dial;
    this.#onEnd = onEnd;
    this.target = incoming.target;
    this.#from = incoming.from.node;
    this.#started = deps.clock.now();
    this.idleMs = deps.udpIdleMs;
    const wildcard = dial.ip.includes(":") ? "::" : "0.0.0.0";
    this.#socket = deps.loop.bindUdp(
      { ip: wildcard, port: 0 },
      (bytes, length, from) => this.#answer(bytes, length, from),
    );
    this.#flow = incoming.accept({
      onDatagram: (bytes, length) => this.#ask(bytes, length),
      onClose: () => this.#end(),
    });
    deps.counters.inbound.opened++;
    deps.counters.inbound.active++;
    deps.connections.add(this);
  }

  get bytes(): number {
    return this.#bytesOut + this.#bytesIn;
  }

  seen(): SeenConnection {
    const { namespace, service, port } = this.target;
    return {
      client: `node ${this.#from}`,
      service: `${namespace}/${service}:${port}`,
      protocol: "UDP",
      endpoint: hostPort(this.#to),
      way: "inbound",
      ageSeconds: Math.floor((this.#deps.clock.now() - this.#started) / 1000),
      bytesOut: this.#bytesOut,
      bytesIn: this.#bytesIn,
    };
  }

  reset(code: ReasonCode): void {
    if (this.#over) return;
    this.#flow.close(code);
    this.#end();
  }

  #ask(bytes: Uint8Array, length: number): void {
    this.#bytesOut += length;
    this.#deps.counters.inbound.bytesOut += length;
    this.#socket.send(bytes, length, this.#to);
  }

  #answer(bytes: Uint8Array, length: number, from: IpPort): void {
    // An unconnected socket hears anybody; only the endpoint is answered for.
    if (from.ip !== this.#to.ip || from.port !== this.#to.port) return;
    this.#bytesIn += length;
    this.#deps.counters.inbound.bytesIn += length;
    this.#flow.send(bytes, length);
  }

  #end(): void {
    if (this.#over) return;
    this.#over = true;
    this.#socket.close();
    this.#deps.connections.delete(this);
    this.#deps.counters.inbound.active--;
    this.#onEnd(this);
  }
}
