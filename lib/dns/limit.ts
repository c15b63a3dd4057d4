/** Who may ask, and how much: this host and the pods on it, each within a rate. */
import { type Cidr, cidrContains } from "../addr.ts";

/** Where queries may come from. A new object whenever anything in it changes. */
export interface Sources {
  /** This host's own addresses (loopback is always among them). */
  readonly hostIps: readonly string[];
  readonly networks: readonly Cidr[];
}

/** What is known about one source address. */
export interface Source {
  readonly ip: string;
  readonly allowed: boolean;
  /** A process of this host, as opposed to a pod: short names are for these. */
  readonly isHost: boolean;
  tokens: number;
  refilledAt: number;
  /** Queries that wait for an upstream. */
  pending: number;
  connections: number;
}

/** Sources remembered: more than any node has pods; beyond it all are forgotten, and with them what they saved up. */
const MAX_SOURCES = 4096;
/** A source may save up this many seconds' worth. */
const BURST_SECONDS = 2;

const LOOPBACK: readonly Cidr[] = [{ ip: "127.0.0.0", bits: 8 }, { ip: "::1", bits: 128 }];

export class SourceTable {
  #sources: Sources = { hostIps: [], networks: [] };
  readonly #rate: number;
  readonly #known = new Map<string, Source>();

  /** `rate`: queries per second; 0 = no limit. */
  constructor(rate: number) {
    this.#rate = rate;
  }

  /** Takes over who may ask. Cheap when nothing changed. */
  use(sources: Sources): void {
    if (sources === this.#sources) return;
    this.#sources = sources;
    this.#known.clear();
  }

  get(ip: string): Source {
    const known = this.#known.get(ip);
    if (known !== undefined) return known;
    if (this.#known.size >= MAX_SOURCES) this.#known.clear();
    const isHost = this.#sources.hostIps.includes(ip) || LOOPBACK.some((n) => cidrContains(n, ip));
    const allowed = isHost || this.#sources.networks.some((n) => cidrContains(n, ip));
    const source: Source = {
      ip,
      allowed,
      isHost,
      tokens: this.#rate * BURST_SECONDS,
      refilledAt: -1,
      pending: 0,
      connections: 0,
    };
    this.#known.set(ip, source);
    return source;
  }

  /** Takes one query out of the source's allowance; false when there is none left. */
  take(source: Source, now: number): boolean {
    if (this.#rate === 0) return true;
    if (source.refilledAt < 0) source.refilledAt = now;
    const tokens = source.tokens + (now - source.refilledAt) * this.#rate / 1000;
    source.tokens = Math.min(tokens, this.#rate * BURST_SECONDS);
    source.refilledAt = now;
    if (source.tokens < 1) return false;
    source.tokens--;
    return true;
  }
}
