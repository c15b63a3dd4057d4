/**
 * A persistent map with string keys: a compressed hash trie (CHAMP: Steindorfer and Vinju, "Optimizing Hash-Array
 * Mapped Tries", OOPSLA 2015). A changed map shares all untouched nodes with the one it was made from, which is what
 * makes a snapshot of 5 000 Services and 50 000 endpoints cheap to keep immutable: one change copies about four small
 * arrays, and old snapshots (a slow agent's, a consumer's) cost only their differences.
 */

/** Bits of the hash consumed per level: 32-way nodes. */
const BITS = 5;
const MASK = 31;
/** Depth at which the 32 hash bits are used up and keys with equal hashes lie side by side. */
const COLLISION_SHIFT = 35;

/** Marks the nodes one editor made and may therefore still change in place. */
interface Owner {
  done: boolean;
}

interface TrieNode {
  /** Positions that hold a key and its value. */
  data: number;
  /** Positions that hold a child. */
  kids: number;
  /** Key, value, key, value, … then the children in reverse order of position. */
  slots: unknown[];
  owner: Owner | undefined;
}

const EMPTY_NODE: TrieNode = { data: 0, kids: 0, slots: [], owner: undefined };

// Set by PMap's static block: they let the editor reach the root without making it public.
let makeMap: <V>(root: TrieNode, size: number) => PMap<V>;
let rootOf: (map: PMap<unknown>) => TrieNode;

/** An immutable map from text to values; `V` must not be `undefined`. Iterates in an order that depends on keys only. */
export class PMap<V> {
  readonly size: number;
  readonly #root: TrieNode;

  private constructor(root: TrieNode, size: number) {
    this.#root = root;
    this.size = size;
  }

  static readonly #empty = new PMap<unknown>(EMPTY_NODE, 0);

  static {
    makeMap = <V>(root: TrieNode, size: number) => new PMap<V>(root, size);
    rootOf = (map) => map.#root;
  }

  static empty<V>(): PMap<V> {
    return PMap.#empty as PMap<V>;
  }

  get(key: string): V | undefined {
    const hash = hashText(key);
    let node = this.#root;
    for (let shift = 0; shift < COLLISION_SHIFT; shift += BITS) {
      const bit = 1 << ((hash >>> shift) & MASK);
      if (node.data & bit) {
        const at = 2 * popcount(node.data & (bit - 1));
        return node.slots[at] === key ? node.slots[at + 1] as V : undefined;
      }
      if (!(node.kids & bit)) return undefined;
      node = node.slots[kidIndex(node, bit)] as TrieNode;
    }
    for (let at = 0; at < node.slots.length; at += 2) if (node.slots[at] === key) return node.slots[at + 1] as V;
    return undefined;
  }

  has(key: string): boolean {
    return this.get(key) !== undefined;
  }

  /** A map that differs in one key. Several changes: {@link edit}. */
  set(key: string, value: V): PMap<V> {
    return this.edit().set(key, value).done();
  }

  delete(key: string): PMap<V> {
    return this.edit().delete(key).done();
  }

  /** Starts a batch of changes; this map stays as it is. */
  edit(): PMapEditor<V> {
    return new PMapEditor<V>(this);
  }

  *entries(): IterableIterator<[string, V]> {
    for (const node of nodes(this.#root)) {
      const end = dataEnd(node);
      for (let at = 0; at < end; at += 2) yield [node.slots[at] as string, node.slots[at + 1] as V];
    }
  }

  *keys(): IterableIterator<string> {
    for (const node of nodes(this.#root)) {
      const end = dataEnd(node);
      for (let at = 0; at < end; at += 2) yield node.slots[at] as string;
    }
  }

  *values(): IterableIterator<V> {
    for (const node of nodes(this.#root)) {
      const end = dataEnd(node);
      for (let at = 0; at < end; at += 2) yield node.slots[at + 1] as V;
    }
  }
}

/** A batch of changes to a {@link PMap}: nodes made by this batch are changed in place. Single use. */
export class PMapEditor<V> {
  readonly #before: PMap<V>;
  readonly #owner: Owner = { done: false };
  #root: TrieNode;
  #size: number;

  constructor(before: PMap<V>) {
    this.#before = before;
    this.#root = rootOf(before as PMap<unknown>);
    this.#size = before.size;
  }

  /** The value as of now, changes of this batch included. */
  get(key: string): V | undefined {
    return makeMap<V>(this.#root, this.#size).get(key);
  }

  set(key: string, value: V): this {
    this.#root = this.#set(this.#root, key, value, hashText(key), 0);
    return this;
  }

  delete(key: string): this {
    const next = this.#delete(this.#root, key, hashText(key), 0);
    if (next !== undefined) this.#root = next;
    return this;
  }

  /** The map with all changes; the same object as before if there was none. */
  done(): PMap<V> {
    this.#owner.done = true;
    if (this.#root === rootOf(this.#before as PMap<unknown>)) return this.#before;
    return this.#size === 0 ? PMap.empty<V>() : makeMap<V>(this.#root, this.#size);
  }

  #own(node: TrieNode): TrieNode {
    if (node.owner === this.#owner) return node;
    return { data: node.data, kids: node.kids, slots: node.slots.slice(), owner: this.#owner };
  }

  #set(node: TrieNode, key: string, value: V, hash: number, shift: number): TrieNode {
    if (shift >= COLLISION_SHIFT) return this.#setColliding(node, key, value);
    const bit = 1 << ((hash >>> shift) & MASK);
    if (node.kids & bit) {
      const at = kidIndex(node, bit);
      const before = node.slots[at] as TrieNode;
      const after = this.#set(before, key, value, hash, shift + BITS);
      if (after === before) return node;
      const mine = this.#own(node);
      mine.slots[at] = after;
      return mine;
    }
    const at = 2 * popcount(node.data & (bit - 1));
    if (!(node.data & bit)) {
      this.#size++;
      const mine = this.#own(node);
      mine.slots.splice(at, 0, key, value);
      mine.data |= bit;
      return mine;
    }
    const otherKey = node.slots[at] as string;
    if (otherKey === key) {
      if (node.slots[at + 1] === value) return node;
      const mine = this.#own(node);
      mine.slots[at + 1] = value;
      return mine;
    }
    this.#size++;
    const otherValue = node.slots[at + 1] as V;
    const mine = this.#own(node);
    mine.slots.splice(at, 2);
    mine.data &= ~bit;
    mine.kids |= bit;
    const child = this.#pair(otherKey, otherValue, hashText(otherKey), key, value, hash, shift + BITS);
    mine.slots.splice(mine.slots.length - popcount(mine.kids & (bit - 1)), 0, child);
    return mine;
  }

  #setColliding(node: TrieNode, key: string, value: V): TrieNode {
    for (let at = 0; at < node.slots.length; at += 2) {
      if (node.slots[at] !== key) continue;
      if (node.slots[at + 1] === value) return node;
      const mine = this.#own(node);
      mine.slots[at + 1] = value;
      return mine;
    }
    this.#size++;
    const mine = this.#own(node);
    mine.slots.push(key, value);
    return mine;
  }

  /** The smallest subtree that holds two keys whose hashes agree above `shift`. */
  #pair(keyA: string, a: V, hashA: number, keyB: string, b: V, hashB: number, shift: number): TrieNode {
    if (shift >= COLLISION_SHIFT) return { data: 0, kids: 0, slots: [keyA, a, keyB, b], owner: this.#owner };
    const at = (hashA >>> shift) & MASK;
    const bt = (hashB >>> shift) & MASK;
    if (at === bt) {
      const child = this.#pair(keyA, a, hashA, keyB, b, hashB, shift + BITS);
      return { data: 0, kids: 1 << at, slots: [child], owner: this.#owner };
    }
    const slots = at < bt ? [keyA, a, keyB, b] : [keyB, b, keyA, a];
    return { data: (1 << at) | (1 << bt), kids: 0, slots, owner: this.#owner };
  }

  /** The node without the key; undefined if it was not there. */
  #delete(node: TrieNode, key: string, hash: number, shift: number): TrieNode | undefined {
    if (shift >= COLLISION_SHIFT) {
      for (let at = 0; at < node.slots.length; at += 2) {
        if (node.slots[at] === key) return this.#without(node, at, 0);
      }
      return undefined;
    }
    const bit = 1 << ((hash >>> shift) & MASK);
    if (node.data & bit) {
      const at = 2 * popcount(node.data & (bit - 1));
      return node.slots[at] === key ? this.#without(node, at, bit) : undefined;
    }
    if (!(node.kids & bit)) return undefined;
    const at = kidIndex(node, bit);
    const child = this.#delete(node.slots[at] as TrieNode, key, hash, shift + BITS);
    if (child === undefined) return undefined;
    const mine = this.#own(node);
    if (child.kids === 0 && child.slots.length <= 2) {
      // A child with one key (or none) moves up, so that equal maps have equal shapes however they came about.
      mine.slots.splice(at, 1);
      mine.kids &= ~bit;
      if (child.slots.length === 2) {
        mine.data |= bit;
        mine.slots.splice(2 * popcount(mine.data & (bit - 1)), 0, child.slots[0], child.slots[1]);
      }
    } else {
      mine.slots[at] = child;
    }
    return mine;
  }

  #without(node: TrieNode, at: number, bit: number): TrieNode {
    this.#size--;
    const mine = this.#own(node);
    mine.slots.splice(at, 2);
    mine.data &= ~bit;
    return mine;
  }
}

/** 32-bit FNV-1a over UTF-16 units with a final mix: the lowest five bits choose the first branch. */
export function hashText(text: string): number {
  let h = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) h = Math.imul(h ^ text.charCodeAt(i), 0x01000193);
  h ^= h >>> 15;
  h = Math.imul(h, 0x2c1b3c6d);
  return (h ^ (h >>> 13)) >>> 0;
}

function popcount(n: number): number {
  n -= (n >>> 1) & 0x55555555;
  n = (n & 0x33333333) + ((n >>> 2) & 0x33333333);
  return Math.imul((n + (n >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}

function kidIndex(node: TrieNode, bit: number): number {
  return node.slots.length - 1 - popcount(node.kids & (bit - 1));
}

function dataEnd(node: TrieNode): number {
  return node.slots.length - popcount(node.kids);
}

function* nodes(root: TrieNode): IterableIterator<TrieNode> {
  const stack = [root];
  for (let node = stack.pop(); node; node = stack.pop()) {
    yield node;
    for (let at = dataEnd(node); at < node.slots.length; at++) stack.push(node.slots[at] as TrieNode);
  }
}
