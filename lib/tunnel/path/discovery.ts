/**
 * Finds agents of the same LAN by multicast, with no server: who starts or changes networks says where it listens, who
 * looks for a node asks, and the node that is meant answers. What is heard is a candidate and nothing more.
 */
import type { CancelTimer, Clock, MonoMs } from "../../clock.ts";
import { hostPort } from "../../addr.ts";
import type { IpPort } from "../../net.ts";
import { type HostAddress, onLink } from "./candidates.ts";
import { decodeLan, encodeLan, MAX_SOUGHT, tagOf } from "./lan_message.ts";
import { TokenBucket } from "./token_bucket.ts";

/** When a question or a greeting is said again: multicast is lost now and then, on Wi-Fi more often. */
const REPEAT_MS = [0, 150, 600] as const;
/** Joined groups are joined anew so often: switches that prune without a querier forget us after 260 s (RFC 3376 §8.4). */
const REJOIN_MS = 120_000;
/** Answers go at most this often: one multicast serves everybody who asked. */
const ANSWER_EVERY_MS = 250;
/** Datagrams read per second; a LAN of a thousand agents that starts at once stays below. */
const READ_BURST = 2_000;
const READ_PER_SECOND = 500;
/** Senders remembered, and for how long. */
const MAX_HEARD = 1_024;
const HEARD_MS = 600_000;

/** The multicast group as the kernel offers it. */
export interface LanSocket {
  /** Joins on exactly these links, anew where they were joined. */
  join(links: readonly number[]): void;
  send(bytes: Uint8Array, link: number): boolean;
  close(): void;
}

export interface DiscoveryOptions {
  readonly node: string;
  readonly clock: Clock;
  keys(): readonly Uint8Array[];
  host(): readonly HostAddress[];
  /** The listener's port, 0 for none. */
  port(): number;
  /** Where a peer that is looked for was heard. */
  onFound(peer: string, at: IpPort): void;
}

interface Heard {
  readonly at: IpPort;
  readonly when: MonoMs;
}

export class Discovery {
  readonly #options: DiscoveryOptions;
  readonly #socket: LanSocket;
  readonly #reads: TokenBucket;
  /** Tag → where its owner was heard, the longest ago first. */
  readonly #heard = new Map<string, Heard>();
  /** Tag → the peer that is looked for. */
  readonly #sought = new Map<string, string>();
  readonly #timers = new Set<CancelTimer>();
  #links: readonly number[] = [];
  #answerAt: MonoMs = -Infinity;
  #closed = false;

  constructor(options: DiscoveryOptions, socket: LanSocket) {
    this.#options = options;
    this.#socket = socket;
    this.#reads = new TokenBucket(READ_BURST, READ_PER_SECOND, options.clock.now());
    this.#rejoinLater();
  }

  /** The host's addresses changed, or it starts: joins its links and says that we are here. */
  hostChanged(): void {
    this.#join();
    for (const ms of REPEAT_MS) this.#after(ms, () => this.#say([]));
  }

  /**
   * Looks for a peer: what was heard of it lately is told soon, and the LAN is asked. False: there is no LAN. The
   * answers go on being told until {@link forget}.
   */
  seek(peer: string): boolean {
    if (this.#closed || this.#links.length === 0) return false;
    const tags = this.#options.keys().map((key) => tagOf(key, peer));
    for (const tag of tags) {
      this.#sought.set(tag, peer);
      const heard = this.#heard.get(tag);
      if (heard && this.#options.clock.now() - heard.when < HEARD_MS) {
        this.#after(0, () => this.#options.onFound(peer, heard.at));
      }
    }
    for (const ms of REPEAT_MS) this.#after(ms, () => this.#say(tags.slice(0, MAX_SOUGHT)));
    return true;
  }

  forget(peer: string): void {
    for (const [tag, sought] of this.#sought) if (sought === peer) this.#sought.delete(tag);
  }

  /** A datagram of the group. */
  received(bytes: Uint8Array, length: number, from: IpPort): void {
    const { clock, host, keys, node } = this.#options;
    const now = clock.now();
    if (this.#closed || !this.#reads.take(now)) return;
    const m = decodeLan(bytes, length);
    // Who is not on a network of ours cannot have sent to a link of ours: somebody claims another's address.
    if (!m || !onLink(host(), from.ip) || host().some((own) => own.ip === from.ip)) return;
    if (m.port !== 0) this.#noticed(m.from, { ip: from.ip, port: m.port }, now);
    if (m.sought.length > 0 && keys().some((key) => m.sought.includes(tagOf(key, node)))) this.#answer(now);
  }

  close(): void {
    this.#closed = true;
    for (const cancel of this.#timers) cancel();
    this.#timers.clear();
    this.#socket.close();
  }

  #noticed(tag: string, at: IpPort, now: MonoMs): void {
    const before = this.#heard.get(tag);
    this.#heard.delete(tag);
    this.#heard.set(tag, { at, when: now });
    if (this.#heard.size > MAX_HEARD) this.#heard.delete(this.#heard.keys().next().value!);
    const peer = this.#sought.get(tag);
    if (peer === undefined) return;
    // Told again after a while only: each time it is a reason to dial.
    const known = before && hostPort(before.at) === hostPort(at) && now - before.when < 1_000;
    if (!known) this.#options.onFound(peer, at);
  }

  #answer(now: MonoMs): void {
    if (this.#options.port() === 0) return;
    const wait = Math.max(0, this.#answerAt + ANSWER_EVERY_MS - now);
    if (this.#answerAt > now) return;
    this.#answerAt = now + wait;
    this.#after(wait, () => this.#say([]));
  }

  /** Says where we are and whom we look for, on every link, under each key of the mesh: some may know but one. */
  #say(sought: readonly string[]): void {
    const { keys, node, port } = this.#options;
    for (const key of keys()) {
      const bytes = encodeLan({ port: port(), from: tagOf(key, node), sought });
      for (const link of this.#links) this.#socket.send(bytes, link);
    }
  }

  #join(): void {
    const links = this.#options.host().filter((own) => !own.ip.includes(":")).map((own) => own.link);
    this.#links = [...new Set(links)];
    this.#socket.join(this.#links);
  }

  #rejoinLater(): void {
    this.#after(REJOIN_MS, () => {
      this.#join();
      this.#rejoinLater();
    });
  }

  #after(ms: number, act: () => void): void {
    const cancel = this.#options.clock.timer(ms, () => {
      this.#timers.delete(cancel);
      act();
    });
    this.#timers.add(cancel);
  }
}
