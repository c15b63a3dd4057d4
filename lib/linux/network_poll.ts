/** Notices changes of this host's network by looking, where netlink over FFI is refused. */
import type { Clock } from "../clock.ts";

/** Between two looks: a cable that is pulled should not go unnoticed for long. */
const LOOK_MS = 2_000;
/** The routes of both families (proc(5)). */
const ROUTES = ["/proc/thread-self/net/route", "/proc/thread-self/net/ipv6_route"];

/** Calls `changed` after links, addresses or routes are not what they were; the result ends that. */
export function pollNetwork(clock: Clock, changed: () => void, look: () => string = lookAtHost): () => void {
  let seen = look();
  let cancel = () => {};
  const again = () => {
    cancel = clock.timer(LOOK_MS, () => {
      const now = look();
      again();
      if (now === seen) return;
      seen = now;
      changed();
    });
  };
  again();
  return () => cancel();
}

function lookAtHost(): string {
  return JSON.stringify([Deno.networkInterfaces(), ROUTES.map(readRoutes)]);
}

/** Without counters of use (columns 5 to 7 of one, 7 and 8 of the other), which change with traffic. */
function readRoutes(path: string): string {
  const keep = path.includes("ipv6") ? [0, 1, 4, 9] : [0, 1, 2, 7];
  try {
    return Deno.readTextFileSync(path).split("\n").map((line) => {
      const fields = line.trim().split(/\s+/);
      return keep.map((i) => fields[i]).join(" ");
    }).sort().join("\n");
  } catch {
    return "";
  }
}
