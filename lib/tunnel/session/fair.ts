/** First in, first out without allocation: who waits for room is served in turn, a quantum each. */
export class Fifo<T> {
  #slots: (T | undefined)[] = [];
  #head = 0;
  #count = 0;

  get size(): number {
    return this.#count;
  }

  push(item: T): void {
    if (this.#count === this.#slots.length) this.#enlarge();
    this.#slots[(this.#head + this.#count) & (this.#slots.length - 1)] = item;
    this.#count++;
  }

  peek(): T | undefined {
    return this.#count === 0 ? undefined : this.#slots[this.#head];
  }

  shift(): T | undefined {
    if (this.#count === 0) return undefined;
    const item = this.#slots[this.#head];
    this.#slots[this.#head] = undefined;
    this.#head = (this.#head + 1) & (this.#slots.length - 1);
    this.#count--;
    return item;
  }

  clear(): void {
    this.#slots = [];
    this.#head = this.#count = 0;
  }

  #enlarge(): void {
    const size = Math.max(16, this.#slots.length * 2);
    const slots: (T | undefined)[] = new Array(size).fill(undefined);
    for (let i = 0; i < this.#count; i++) slots[i] = this.#slots[(this.#head + i) & (this.#slots.length - 1)];
    this.#slots = slots;
    this.#head = 0;
  }
}
