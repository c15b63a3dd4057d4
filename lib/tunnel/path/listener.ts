/**
 * The agent's listener: other agents that can reach this host connect here, on the LAN or from anywhere. Strangers get
 * no byte, no TLS and little memory; caps hold per source and in total until mutual TLS is done.
 */
import { familyOf, hostPort } from "../../addr.ts";
import type { Clock } from "../../clock.ts";
import { codeOf, describe, MeshError } from "../../errors.ts";
import type { Logger } from "../../log.ts";
import type { Accepted, IpPort, Listener } from "../../net.ts";
import type { Carrier, PathKind } from "../carrier.ts";
import type { CarrierEngine } from "../carriers/engine.ts";
import { abortLeg, acceptLeg, type PathLeg, type PathSockets } from "./legs.ts";

export interface ListenerLimits {
  /** Milliseconds from accept to knock: it comes with the first packet. */
  readonly knockMs: number;
  /** Connections without finished TLS, of one source: two agents need one or two, a site behind one NAT a few more. */
  readonly perSource: number;
  /** The same of all sources. */
  readonly pending: number;
}

export const DEFAULT_LISTENER_LIMITS: ListenerLimits = { knockMs: 3_000, perSource: 8, pending: 128 };

export interface AgentListenerOptions {
  readonly sockets: PathSockets;
  readonly engine: CarrierEngine<PathLeg>;
  readonly clock: Clock;
  readonly log: Logger;
  readonly node: string;
  keys(): readonly Uint8Array[];
  /** What a connection from this address is. */
  pathFrom(ip: string): PathKind;
  onCarrier(carrier: Carrier): void;
  readonly limits?: Partial<ListenerLimits>;
}

export interface ListenerStats {
  /** Connections whose TLS is not finished. */
  readonly pending: number;
  readonly accepted: number;
  /** Without a right knock, or refused by TLS. */
  readonly refused: number;
  /** Turned away by a cap. */
  readonly turnedAway: number;
}

export class AgentListener {
  readonly #options: AgentListenerOptions;
  readonly #limits: ListenerLimits;
  readonly #listeners: Listener[] = [];
  readonly #visitors = new Set<Visitor>();
  readonly #perSource = new Map<string, number>();
  #accepted = 0;
  #refused = 0;
  #turnedAway = 0;

  constructor(options: AgentListenerOptions) {
    this.#options = options;
    this.#limits = { ...DEFAULT_LISTENER_LIMITS, ...options.limits };
  }

  /**
   * Listens on an address; `[::]` means both families, and IPv4 alone on hosts without IPv6. Throws MeshError KERNEL
   * when the address cannot be had.
   */
  listen(at: IpPort): void {
    if (at.ip !== "::") return this.#listen(at);
    this.#listen({ ip: "0.0.0.0", port: at.port });
    try {
      this.#listen({ ip: "::", port: this.port });
    } catch (error) {
      this.#options.log.info("the listener has no IPv6", { error: describe(error) });
    }
  }

  /** The port; 0 while not listening. */
  get port(): number {
    return this.#listeners[0]?.local.port ?? 0;
  }

  get families(): readonly (4 | 6)[] {
    return this.#listeners.map((listener) => familyOf(listener.local.ip));
  }

  stats(): ListenerStats {
    return {
      pending: this.#visitors.size,
      accepted: this.#accepted,
      refused: this.#refused,
      turnedAway: this.#turnedAway,
    };
  }

  close(): void {
    for (const listener of this.#listeners.splice(0)) listener.close();
    for (const visitor of [...this.#visitors]) {
      visitor.stop();
      this.#left(visitor);
    }
  }

  #listen(at: IpPort): void {
    this.#listeners.push(this.#options.sockets.loop.listenTcp(at, (accepted) => this.#arrived(accepted)));
  }

  #arrived({ stream, remote }: Accepted): void {
    const { sockets, clock, node, keys } = this.#options;
    const ofSource = this.#perSource.get(remote.ip) ?? 0;
    if (ofSource >= this.#limits.perSource || this.#visitors.size >= this.#limits.pending) {
      this.#turnedAway++;
      return stream.reset("LIMIT");
    }
    const visitor: Visitor = { ip: remote.ip, stop: () => {} };
    this.#visitors.add(visitor);
    this.#perSource.set(remote.ip, ofSource + 1);
    const cancel = acceptLeg(sockets, stream, { node, keys: keys() }, (leg) => {
      cancelTimer();
      if (leg instanceof MeshError) return this.#refuse(visitor);
      visitor.stop = () => abortLeg(leg);
      void this.#secure(leg, remote).finally(() => this.#left(visitor));
    });
    const cancelTimer = clock.timer(this.#limits.knockMs, () => {
      cancel();
      this.#refuse(visitor);
    });
    visitor.stop = () => {
      cancelTimer();
      cancel();
    };
  }

  #refuse(visitor: Visitor): void {
    this.#refused++;
    this.#left(visitor);
  }

  #left(visitor: Visitor): void {
    if (!this.#visitors.delete(visitor)) return;
    const left = this.#perSource.get(visitor.ip)! - 1;
    if (left === 0) this.#perSource.delete(visitor.ip);
    else this.#perSource.set(visitor.ip, left);
  }

  async #secure(leg: PathLeg, remote: IpPort): Promise<void> {
    const { engine, log, pathFrom, onCarrier } = this.#options;
    try {
      const carrier = await engine.accept(leg, { path: pathFrom(remote.ip) });
      this.#accepted++;
      onCarrier(carrier);
    } catch (error) {
      this.#refused++;
      log.debug("visitor refused", { from: hostPort(remote), reason: codeOf(error), error: describe(error) });
    }
  }
}

/** Somebody whose TLS is not finished. */
interface Visitor {
  readonly ip: string;
  stop: () => void;
}
