/** Randomness of the fuzz tests: the same for the same seed, everywhere. */

/** A number from 0 to below. */
export type Random = (below: number) => number;

/** mulberry32: small, fast, the same everywhere. */
export function generator(seed: number): Random {
  let state = Math.imul(seed, 0x9e3779b1) >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return Math.floor(((t ^ (t >>> 14)) >>> 0) / 0x1_0000_0000 * below);
  };
}

/** Changes, cuts, repeats or inserts a few bytes; leaves one input in eight as it is. */
export function mutated(random: Random, bytes: Uint8Array): Uint8Array {
  let out = bytes;
  for (let i = random(8); i > 0; i--) {
    const at = random(out.length + 1);
    switch (random(5)) {
      case 0:
        if (at < out.length) out[at] = random(256);
        break;
      case 1:
        if (at < out.length) out[at]! ^= 1 << random(8);
        break;
      case 2:
        out = out.slice(0, at);
        break;
      case 3:
        out = joined(out.subarray(0, at), Uint8Array.from({ length: random(9) }, () => random(256)), out.subarray(at));
        break;
      default:
        out = joined(out, out.subarray(at, at + random(40)));
    }
  }
  return out;
}

export function joined(...parts: readonly Uint8Array[]): Uint8Array {
  const all = new Uint8Array(parts.reduce((n, part) => n + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
