/** Addresses of datagrams: the objects callers see and the kernel's bytes for them, each made once per address. */
import type { IpPort } from "../net.ts";
import { getSockaddr, putSockaddr, SOCKADDR_MAX } from "./sockaddr.ts";
import { AF_INET, STRUCT } from "./structs.ts";

/** 32-bit words an address takes. */
export const ADDRESS_WORDS = SOCKADDR_MAX >>> 2;
const V4_WORDS = STRUCT.sockaddr_in.size >>> 2;

/** Addresses remembered per table; beyond it the table starts anew. A spoofed flood must not grow it for ever. */
const ADDRESS_CAP = 4096;

/** An address together with its `struct sockaddr`. */
export class UdpAddress implements IpPort {
  readonly ip: string;
  readonly port: number;
  readonly words: Uint32Array<ArrayBuffer>;
  /** Bytes of the structure. */
  readonly length: number;

  private constructor(at: IpPort, words: Uint32Array<ArrayBuffer>) {
    this.ip = at.ip;
    this.port = at.port;
    this.words = words;
    this.length = (words[0]! & 0xffff) === AF_INET ? STRUCT.sockaddr_in.size : STRUCT.sockaddr_in6.size;
  }

  static of(at: IpPort): UdpAddress {
    const bytes = new Uint8Array(new ArrayBuffer(SOCKADDR_MAX));
    putSockaddr(bytes, 0, at);
    return new UdpAddress(at, new Uint32Array(bytes.buffer));
  }

  static fromWords(words: Uint32Array): UdpAddress {
    const copy = new Uint32Array(words);
    return new UdpAddress(getSockaddr(new Uint8Array(copy.buffer)), copy);
  }
}

/** Finds the object of an address in the kernel's bytes without allocating; an open-addressed hash table. */
export class UdpAddressTable {
  readonly #slots: (UdpAddress | undefined)[] = new Array(ADDRESS_CAP * 2).fill(undefined);
  readonly #given = new WeakMap<IpPort, UdpAddress>();
  #used = 0;

  /** Addresses that are remembered now. */
  get size(): number {
    return this.#used;
  }

  /** The address at word `at` of `words`. */
  find(words: Uint32Array, at: number): UdpAddress {
    const count = (words[at]! & 0xffff) === AF_INET ? 2 : ADDRESS_WORDS;
    let hash = 0;
    for (let i = 0; i < count; i++) hash = Math.imul(hash ^ words[at + i]!, 0x9e3779b1) ^ (hash >>> 15);
    const mask = this.#slots.length - 1;
    let slot = (hash ^ (hash >>> 16)) & mask;
    for (let known = this.#slots[slot]; known !== undefined; known = this.#slots[slot]) {
      if (equal(known.words, words, at, count)) return known;
      slot = (slot + 1) & mask;
    }
    if (this.#used === ADDRESS_CAP) {
      this.#slots.fill(undefined);
      this.#used = 0;
    }
    this.#used++;
    const size = count === 2 ? V4_WORDS : ADDRESS_WORDS;
    return this.#slots[slot] = UdpAddress.fromWords(padded(words, at, size));
  }

  /** The address a caller names: its own object of ours, or one that is remembered with the caller's object. */
  resolve(to: IpPort): UdpAddress {
    if (to instanceof UdpAddress) return to;
    let known = this.#given.get(to);
    if (known === undefined) this.#given.set(to, known = UdpAddress.of(to));
    return known;
  }
}

function padded(words: Uint32Array, at: number, count: number): Uint32Array {
  const out = new Uint32Array(ADDRESS_WORDS);
  out.set(words.subarray(at, at + count));
  return out;
}

function equal(known: Uint32Array, words: Uint32Array, at: number, count: number): boolean {
  for (let i = 0; i < count; i++) if (known[i] !== words[at + i]) return false;
  return true;
}
