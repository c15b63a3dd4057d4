/** Networks in interval sets: how the kernel holds them, and how a listing is read back. Pure. */
import { type Cidr, familyOf, ipBytes, ipFromBytes, parseCidr } from "../../addr.ts";
import type { SetElement } from "../../linux/nftables/batch.ts";

/** An interval set holds the first address of a network and, marked as an end, the first one behind it. */
export function* intervalElements(cidr: Cidr): Generator<SetElement> {
  const first = ipBytes(cidr.ip);
  yield { key: first };
  const behind = addBit(first, cidr.bits);
  // Nothing lies behind a network that ends with the last address.
  if (behind) yield { key: behind, intervalEnd: true };
}

function addBit(ip: Uint8Array, bits: number): Uint8Array | undefined {
  const out = ip.slice();
  if (bits === 0) return undefined;
  let carry = 1 << (7 - (bits - 1) % 8);
  for (let i = (bits - 1) >> 3; i >= 0 && carry > 0; i--) {
    const sum = out[i]! + carry;
    out[i] = sum & 0xff;
    carry = sum >> 8;
  }
  return carry > 0 ? undefined : out;
}

/** Pairs starts and ends of an interval set; an interval that is no network shows as `first-end`. */
export function networksOf(listed: readonly { readonly key: Uint8Array; readonly intervalEnd: boolean }[]): string[] {
  const compare = (a: Uint8Array, b: Uint8Array) => {
    for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return a[i]! - b[i]!;
    return 0;
  };
  const ends = listed.filter((e) => e.intervalEnd).map((e) => e.key).sort(compare);
  return listed.filter((e) => !e.intervalEnd).map(({ key }) => {
    const end = ends.find((e) => compare(e, key) > 0);
    const ip = ipFromBytes(key);
    for (let bits = familyOf(ip) === 4 ? 32 : 128; bits >= 0; bits--) {
      const behind = addBit(key, bits);
      const fits = behind === undefined ? end === undefined : end !== undefined && compare(behind, end) === 0;
      if (fits && parseCidr(`${ip}/${bits}`)) return `${ip}/${bits}`;
    }
    return `${ip}-${end ? ipFromBytes(end) : "last"}`;
  });
}
