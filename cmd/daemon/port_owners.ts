/** Whose a TCP port of this host is: user ids from the kernel's socket tables (proc(5)). */
import { familyOf } from "../../lib/addr.ts";
import type { IpPort } from "../../lib/net.ts";
import { ipFromHex } from "../check/sockets.ts";

const LISTEN = "0A";

/** Users of every socket at an address of this host: who listens, and who has accepted. Empty: nobody listens. */
export async function portOwners(at: IpPort): Promise<readonly number[]> {
  const read = (name: string) => Deno.readTextFile(`/proc/net/${name}`).catch(() => "");
  return ownersIn(await Promise.all([read("tcp"), read("tcp6")]), at);
}

/** The same for tables as texts. Pure. */
export function ownersIn(tables: readonly string[], { ip, port }: IpPort): readonly number[] {
  const sockets = tables.flatMap((text) => socketsAt(text, port));
  // The most specific listener is the one that is reached, and two of one family cannot be there at a time.
  const places = [ip, ...(familyOf(ip) === 4 ? ["0.0.0.0", "::"] : ["::"])];
  const reached = places.map((place) => sockets.filter((s) => s.state === LISTEN && s.ip === place))
    .find((found) => found.length > 0);
  if (!reached) return [];
  return [...reached, ...sockets.filter((s) => s.state !== LISTEN && s.ip === ip)].map((s) => s.uid);
}

/** Sockets of one table whose own port this is. Busy hosts have tables of megabytes: only these lines are taken apart. */
function socketsAt(text: string, port: number) {
  const hex = port.toString(16).toUpperCase().padStart(4, "0");
  const line = new RegExp(
    `^ *\\d+: ([0-9A-F]+):${hex} [0-9A-F]+:[0-9A-F]+ ([0-9A-F]{2}) [0-9A-F:]+ [0-9A-F:]+ [0-9A-F]+ +(\\d+) `,
    "gm",
  );
  return [...text.matchAll(line)].map(([, ip, state, uid]) => ({ ip: ipFromHex(ip!), state, uid: Number(uid) }));
}
