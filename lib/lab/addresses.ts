/** Address arithmetic of the lab's small IPv4 networks. */
import { MeshError } from "../errors.ts";

/** `192.168.7.3` for (`192.168.7.0`, 3). Throws MeshError LIMIT beyond the last byte: 254 is more than any lab has. */
export function nthAddress(base: string, n: number): string {
  const parts = base.split(".").map(Number);
  const last = parts[3]! + n;
  if (last > 254) throw new MeshError("LIMIT", `No address ${n} after ${base} in a lab network`);
  return [...parts.slice(0, 3), last].join(".");
}
