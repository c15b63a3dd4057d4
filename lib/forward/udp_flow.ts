/** The datagrams between one client and one endpoint of a Service. */
import { hostPort } from "../addr.ts";
import type { Clock } from "../clock.ts";
import type { ReasonCode } from "../errors.ts";
import type { Logger } from "../log.ts";
import type { DatagramDialer, DatagramFlow, IpPort, Loop, UdpSocket } from "../net.ts";
import type { Connections, SeenConnection, Tracked } from "./connections.ts";
import type { Counters, WayCounters } from "./counters.ts";
import type { NodeFacts } from "./facts.ts";
import type { Picker } from "./picker.ts";
import type { PlannedPort, Slot } from "./plan_model.ts";

export interface UdpDeps {
  readonly clock: Clock;
  readonly log: Logger;
  readonly loop: Loop;
  readonly picker: Picker;
  readonly counters: Counters;
  readonly connections: Connections;
  readonly tunnel: DatagramDialer;
  readonly facts: () => NodeFacts;
  /** A flow without a datagram for so long ends. */
  readonly idleMs: number;
}

export interface FlowOf {
  readonly port: PlannedPort;
  readonly slot: Slot;
  readonly client: IpPort;
  /** The listener's socket: answers leave through it. */
  readonly socket: UdpSocket;
}

export class UdpFlow implements Tracked {
  #bytesOut = 0;
  #bytesIn = 0;
  readonly halfClosed = false;
  readonly idleMs: number;
  readonly slot: Slot;
  readonly #deps: UdpDeps;
  readonly #of: FlowOf;
  readonly #way: WayCounters;
  readonly #onEnd: () => void;
  readonly #started: number;
  readonly #out: DatagramFlow;
  #over = false;
  #answered = false;

  /** Throws MeshError KERNEL when no socket can be had. */
  constructor(deps: UdpDeps, of: FlowOf, onEnd: () => void) {
    this.#deps = deps;
    this.#of = of;
    this.slot = of.slot;
    this.idleMs = deps.idleMs;
    this.#onEnd = onEnd;
    this.#started = deps.clock.now();
    this.#way = deps.counters.of(of.port.id).ways[of.slot.way === "tunnel" ? "tunnel" : "proxy"];
    this.#out = of.slot.way === "tunnel" ? this.#throughTunnel() : this.#fromHere();
    this.#way.opened++;
    this.#way.active++;
    deps.connections.add(this);
  }

  get bytes(): number {
    return this.#bytesOut + this.#bytesIn;
  }

  seen(): SeenConnection {
    const { port, client, slot } = this.#of;
    return {
      client: hostPort(client),
      service: `${port.namespace}/${port.service}:${port.port}`,
      protocol: "UDP",
      endpoint: hostPort(slot.endpoint),
      ...(slot.node === undefined ? {} : { node: slot.node }),
      way: slot.way,
      ageSeconds: Math.floor((this.#deps.clock.now() - this.#started) / 1000),
      bytesOut: this.#bytesOut,
      bytesIn: this.#bytesIn,
    };
  }

  send(bytes: Uint8Array, length: number): void {
    if (this.#over) return;
    this.#bytesOut += length;
    this.#way.bytesOut += length;
    this.#out.send(bytes, length);
  }

  reset(code: ReasonCode): void {
    if (this.#over) return;
    this.#out.close(code);
    this.#end();
  }

  #throughTunnel(): DatagramFlow {
    const { port, slot } = this.#of;
    return this.#deps.tunnel.openFlow({
      namespace: port.namespace,
      service: port.service,
      protocol: "UDP",
      port: port.port,
      node: slot.node,
      endpoint: slot.endpoint,
    }, {
      onDatagram: (bytes, length) => this.#answer(bytes, length),
      onClose: (reason) => {
        if (reason !== undefined && !this.#answered) this.#way.dialFailures++;
        this.#end();
      },
    });
  }

  /** A socket of its own: two clients of one endpoint must be two sources to it. */
  #fromHere(): DatagramFlow {
    const to = this.#of.slot.endpoint;
    const wildcard = to.ip.includes(":") ? "::" : "0.0.0.0";
    const socket = this.#deps.loop.bindUdp({ ip: wildcard, port: 0 }, (bytes, length, from) => {
      // An unconnected socket hears anybody; only the endpoint may answer.
      if (from.ip === to.ip && from.port === to.port) this.#answer(bytes, length);
    });
    return {
      send: (bytes, length) => socket.send(bytes, length, to),
      close: () => socket.close(),
    };
  }

  #answer(bytes: Uint8Array, length: number): void {
    if (this.#over) return;
    this.#answered = true;
    this.#bytesIn += length;
    this.#way.bytesIn += length;
    this.#of.socket.send(bytes, length, this.#of.client);
  }

  #end(): void {
    if (this.#over) return;
    this.#over = true;
    this.#way.active--;
    this.#deps.connections.delete(this);
    this.#onEnd();
  }
}
