/** What passed, per Service port and way. Plain numbers, read by status and metrics. */
import type { ReasonCode } from "../errors.ts";
import type { Way } from "./plan_model.ts";

/** Traffic of one way (`proxy` or `tunnel`; the kernel counts its own). */
export interface WayCounters {
  opened: number;
  active: number;
  /** Attempts that failed before a byte reached an endpoint. */
  dialFailures: number;
  bytesOut: number;
  bytesIn: number;
  /** Time from accept to an open endpoint: opened connections per {@link CONNECT_SECONDS}, and the sum in seconds. */
  readonly connectBuckets: number[];
  connectSeconds: number;
}

/** Upper bounds in seconds: a LAN answers in the first ones, a relay over a satellite in the last. */
export const CONNECT_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5] as const;

/** Notes how long one connection took to open. */
export function countConnect(way: WayCounters, ms: number): void {
  const seconds = ms / 1000;
  const bucket = CONNECT_SECONDS.findIndex((bound) => seconds <= bound);
  way.connectBuckets[bucket < 0 ? CONNECT_SECONDS.length : bucket]!++;
  way.connectSeconds += seconds;
}

export interface PortCounters {
  readonly ways: Record<Exclude<Way, "kernel">, WayCounters>;
  /** Connections given up after all attempts, by the last reason. */
  readonly failed: Map<ReasonCode, number>;
}

/** Ports whose counters are kept; the agent forgets those of Services that are gone. */
export class Counters {
  readonly ports = new Map<string, PortCounters>();
  /** Connections that were refused before they belonged to a Service, by reason. */
  readonly refused = new Map<ReasonCode, number>();
  /** Tunnel streams and flows from other nodes. */
  readonly inbound: WayCounters = zero();
  readonly inboundRefused = new Map<ReasonCode, number>();

  of(id: string): PortCounters {
    let counters = this.ports.get(id);
    if (!counters) {
      counters = { ways: { proxy: zero(), tunnel: zero() }, failed: new Map() };
      this.ports.set(id, counters);
    }
    return counters;
  }

  keep(ids: ReadonlySet<string>): void {
    for (const [id, counters] of this.ports) {
      const active = counters.ways.proxy.active + counters.ways.tunnel.active;
      if (active === 0 && !ids.has(id)) this.ports.delete(id);
    }
  }
}

export function count(map: Map<ReasonCode, number>, code: ReasonCode): void {
  map.set(code, (map.get(code) ?? 0) + 1);
}

function zero(): WayCounters {
  return {
    opened: 0,
    active: 0,
    dialFailures: 0,
    bytesOut: 0,
    bytesIn: 0,
    connectBuckets: Array.from({ length: CONNECT_SECONDS.length + 1 }, () => 0),
    connectSeconds: 0,
  };
}
