/** docs/grid.md from what a run found. */
import type { Found } from "./probe.ts";
import { KINDS } from "./world.ts";

export interface Circumstances {
  readonly rttMs: number;
  readonly cpus: number;
  readonly kernel: string;
  /** Seconds of the whole run. */
  readonly seconds: number;
}

/** The page, without care for the width of columns: `deno fmt` sees to that. */
export function gridPage(found: readonly Found[], on: Circumstances): string {
  const cells = new Map(found.filter((f) => f.pair.kinds).map((f) => [f.pair.kinds!.join(" "), cell(f)]));
  const rows = KINDS.map((a) => {
    const values = KINDS.map((b) => cells.get(`${a} ${b}`) ?? "");
    return `| **${a}** | ${values.join(" | ")} |`;
  });
  const placed = found.filter((f) => !f.pair.kinds).map((f) => `| ${f.pair.name} | ${cell(f)} |`);
  const count = (path: string) => found.filter((f) => f.path === path).length;
  return `# Which pairs of NATs connect, and how

Made by \`deno task lab:nat\`; do not edit. Each cell is a pair of nodes with the built executable that had never spoken before: a request from a pod on one to a
Service on the other, then one megabyte. **direct** and **lan** say that the megabyte passed between the two nodes, **relay** that it passed the server: counted at the
server's interface and at the node's own, not asked of the agents. The number is the time in milliseconds from the start of the first request to the direct path; the
request itself is answered meanwhile over the relay.

Round trip between any two sites, and to the server: ${on.rttMs} ms. ${found.length} pairs, several at a time, in ${
    Math.round(on.seconds)
  } s on ${on.cpus} processors, kernel ${on.kernel}.
${count("lan") + count("direct")} direct, ${count("relay")} relayed, ${
    count("none") + count("mixed")
  } failed. First answer: median ${Math.round(percentile(found.map((f) => f.firstMs), 50))} ms, 90 % within ${
    Math.round(percentile(found.map((f) => f.firstMs), 90))
  } ms. Direct: median ${Math.round(percentile(directTimes(found), 50))} ms, 90 % within ${
    Math.round(percentile(directTimes(found), 90))
  } ms.

The kinds are explained in \`lib/lab/nat.ts\`. They show what the mechanism does against a NAT of a known kind; they are no forecast for the world's routers.

## Each kind with each

| | ${KINDS.join(" | ")} |
| --- | ${KINDS.map(() => "---").join(" | ")} |
${rows.join("\n")}

## Nodes that share a router or a provider, forwarded ports, IPv6

| pair | path |
| --- | --- |
${placed.join("\n")}
`;
}

function cell({ path, directMs }: Found): string {
  if (path === "relay") return "relay";
  if (path === "none" || path === "mixed") return "**failed**";
  return `${path}${directMs === undefined ? "" : ` ${Math.round(directMs)}`}`;
}

function directTimes(found: readonly Found[]): readonly number[] {
  return found.filter((f) => f.path !== "relay").map((f) => f.directMs).filter((ms) => ms !== undefined);
}

function percentile(values: readonly number[], percent: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * percent / 100))] ?? NaN;
}
