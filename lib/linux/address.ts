/** Addresses: the objects callers see and the kernel's bytes for them, each made once per address. */
import type { IpPort } from "../net.ts";
import { getSockaddr, putSockaddr, SOCKADDR_MAX } from "./sockaddr.ts";
import { AF_INET, STRUCT } from "./structs.ts";

/** 32-bit words an address takes. */
export const ADDRESS_WORDS = SOCKADDR_MAX >>> 2;
/** Words of an IPv4 address that say something: family with port, and address. The rest is padding. */
const V4_WORDS = 2;

/** Addresses remembered per table; beyond it the table starts anew. A spoofed flood must not grow it for ever. */
const ADDRESS_CAP = 4096;

/** Where bytes become words and back. Shared: it never outlives a call. */
const words = new Uint32Array(ADDRESS_WORDS);
const bytes = new Uint8Array(words.buffer);

/**
 * An address together with its `struct sockaddr`. Thousands are remembered at a time, so it is kept small: integers
 * instead of a typed array take 100 bytes instead of 500, and none of the C library's.
 */
export class SocketAddress implements IpPort {
  readonly ip: string;
  readonly port: number;
  /** Bytes of the structure. */
  readonly length: number;
  // Signed: V8 keeps what is beyond 2^31 in an object of its own.
  readonly #first: number;
  readonly #second: number;
  /** Words 2 to 6 of an IPv6 address. */
  readonly #more: readonly number[] | undefined;

  private constructor(at: IpPort, from: Uint32Array, offset: number) {
    this.ip = at.ip;
    this.port = at.port;
    this.#first = from[offset]! | 0;
    this.#second = from[offset + 1]! | 0;
    const v4 = isV4(from, offset);
    this.length = v4 ? STRUCT.sockaddr_in.size : STRUCT.sockaddr_in6.size;
    this.#more = v4
      ? undefined
      : Array.from(from.subarray(offset + V4_WORDS, offset + ADDRESS_WORDS), (word) => word | 0);
  }

  static of(at: IpPort): SocketAddress {
    putSockaddr(bytes, 0, at);
    return new SocketAddress(at, words, 0);
  }

  /** The address at word `at` of the kernel's structure. */
  static fromWords(from: Uint32Array, at: number): SocketAddress {
    for (let i = 0; i < ADDRESS_WORDS; i++) words[i] = from[at + i]!;
    return new SocketAddress(getSockaddr(bytes), words, 0);
  }

  /** Writes the structure; {@link length} bytes of it count. */
  put(into: Uint32Array, at: number): void {
    into[at] = this.#first;
    into[at + 1] = this.#second;
    const more = this.#more;
    for (let i = V4_WORDS; i < ADDRESS_WORDS; i++) into[at + i] = more === undefined ? 0 : more[i - V4_WORDS]!;
  }

  /** Whether it is the one at word `at`. */
  is(from: Uint32Array, at: number): boolean {
    // The first word holds the family: what is equal there is of one length.
    if ((from[at]! | 0) !== this.#first || (from[at + 1]! | 0) !== this.#second) return false;
    const more = this.#more;
    if (more === undefined) return true;
    for (let i = 0; i < more.length; i++) if (more[i] !== (from[at + V4_WORDS + i]! | 0)) return false;
    return true;
  }
}

const given = new WeakMap<IpPort, SocketAddress>();

/** The address a caller names: its own object of ours, or one that is remembered with the caller's object. */
export function addressFor(to: IpPort): SocketAddress {
  if (to instanceof SocketAddress) return to;
  let known = given.get(to);
  if (known === undefined) given.set(to, known = SocketAddress.of(to));
  return known;
}

/** Finds the object of an address in the kernel's bytes without allocating; an open-addressed hash table. */
export class AddressTable {
  readonly #cap: number;
  readonly #slots: (SocketAddress | undefined)[];
  #used = 0;

  /** `cap`: a power of two. */
  constructor(cap = ADDRESS_CAP) {
    this.#cap = cap;
    this.#slots = new Array(cap * 2).fill(undefined);
  }

  /** Addresses that are remembered now. */
  get size(): number {
    return this.#used;
  }

  /** The address at word `at` of `from`. */
  find(from: Uint32Array, at: number): SocketAddress {
    const count = isV4(from, at) ? V4_WORDS : ADDRESS_WORDS;
    let hash = 0;
    for (let i = 0; i < count; i++) hash = Math.imul(hash ^ from[at + i]!, 0x9e3779b1) ^ (hash >>> 15);
    const mask = this.#slots.length - 1;
    let slot = (hash ^ (hash >>> 16)) & mask;
    for (let known = this.#slots[slot]; known !== undefined; known = this.#slots[slot]) {
      if (known.is(from, at)) return known;
      slot = (slot + 1) & mask;
    }
    if (this.#used === this.#cap) this.forget();
    this.#used++;
    return this.#slots[slot] = SocketAddress.fromWords(from, at);
  }

  /** Starts anew. Addresses that somebody holds stay as they are; they are only not the ones found from now on. */
  forget(): void {
    this.#slots.fill(undefined);
    this.#used = 0;
  }
}

function isV4(from: Uint32Array, at: number): boolean {
  return (from[at]! & 0xffff) === AF_INET;
}
