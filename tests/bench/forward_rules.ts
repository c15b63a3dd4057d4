/** How long the kernel takes for rules: first sync of 5 000 Services, and one changed endpoint. */
import process from "node:process";
import { DEFAULT_FORWARD_CONFIG, type NodeFacts } from "../../lib/forward/facts.ts";
import { parseCidr } from "../../lib/addr.ts";
import { NftablesConnection } from "../../lib/linux/nftables/connection.ts";
import { planForwarding } from "../../lib/forward/plan.ts";
import { compileRules } from "../../lib/forward/rules/compile.ts";
import { NetlinkRules } from "../../lib/forward/rules/netlink.ts";
import { RuleWriter } from "../../lib/forward/rules/writer.ts";
import { inNamespace } from "../../lib/linux/testing.ts";
import { metaOf, service, slice } from "../fixtures/meta_literal.ts";

const SERVICES = 5000;
const CHANGES = 200;

const facts: NodeFacts = {
  node: "n1",
  addresses: ["169.254.96.16"],
  podCidrs: [],
  // Most endpoints are on other nodes of a cluster with a CNI, a few dozen here.
  routable: [{ node: "n2", cidr: parseCidr("10.0.0.0/8")! }],
  mesh4: "169.254.96.16",
  mesh6: undefined,
  hairpinLinks: [],
};
const listeners = { tcp4: { ip: "169.254.96.16", port: 19001 }, udp: new Map() };

/** Prints one line per measurement, in milliseconds of CPU time. */
export async function rulesBench(note: (line: string) => void): Promise<void> {
  const keys = Array.from({ length: SERVICES }, (_, i) => `bench/web-${i}`);
  const services = keys.map((key, i) => service(key, { clusterIPs: [`10.96.${i >> 8}.${i & 255}`] }));
  const slices = keys.map((key, i) => endpointsOf(key, i, 0));
  await inNamespace(async () => {
    const writer = new RuleWriter(NetlinkRules.open());
    const timed = async <T>(name: string, times: Map<string, number[]>, work: () => T | Promise<T>): Promise<T> => {
      // CPU time, not the clock's: the same on a machine that has other work to do.
      const start = process.cpuUsage();
      const result = await work();
      const { user, system } = process.cpuUsage(start);
      times.set(name, [...times.get(name) ?? [], (user + system) / 1000]);
      return result;
    };
    const first = new Map<string, number[]>();
    const meta = metaOf({ services, slices });
    let plan = await timed("plan", first, () => planForwarding(meta, facts, DEFAULT_FORWARD_CONFIG));
    let rules = await timed("compile", first, () => compileRules(plan, listeners));
    // What the kernel itself takes: from handing over the finished batch to its answer.
    const commit = NftablesConnection.prototype.commit;
    NftablesConnection.prototype.commit = function (batch) {
      void timed("of it kernel", first, () => commit.call(this, batch));
    };
    await timed("apply", first, () => writer.apply(rules));
    NftablesConnection.prototype.commit = commit;
    print(note, `first sync of ${SERVICES} Services × 3`, first);

    const change = new Map<string, number[]>();
    for (let i = 0; i < CHANGES; i++) {
      const n = (i * 37) % SERVICES;
      slices[n] = endpointsOf(keys[n]!, n, i + 1);
      const next = metaOf({ services, slices });
      plan = await timed("plan", change, () => planForwarding(next, facts, DEFAULT_FORWARD_CONFIG, plan));
      rules = await timed("compile", change, () => compileRules(plan, listeners, { previous: rules }));
      await timed("apply", change, () => writer.apply(rules));
    }
    print(note, "one changed endpoint", change);
    await writer.remove("all");
    writer.close();
  });
}

function endpointsOf(key: string, i: number, version: number) {
  const ip = (j: number) => `10.${1 + (version % 200)}.${i >> 6 & 255}.${(i & 63) * 4 + j}`;
  const base = (j: number) => `10.1.${i >> 6 & 255}.${(i & 63) * 4 + j}`;
  return slice(
    key,
    [base(0), base(1), version === 0 ? base(2) : ip(3)].map((address) => ({
      ip: address,
      node: i % 50 === 0 ? "n1" : "n2",
    })),
  );
}

function print(note: (line: string) => void, title: string, times: ReadonlyMap<string, number[]>): void {
  const cells = [...times].map(([name, list]) => {
    const sorted = [...list].sort((a, b) => a - b);
    const at = (q: number) => sorted[Math.floor(q * (sorted.length - 1))]!.toFixed(2);
    return sorted.length === 1 ? `${name} ${at(0)} ms` : `${name} p50 ${at(0.5)} p99 ${at(0.99)} ms`;
  });
  note(JSON.stringify({ table: title, times: Object.fromEntries(times) }));
  // deno-lint-ignore no-console
  console.log(`${title}: ${cells.join(", ")}`);
}
