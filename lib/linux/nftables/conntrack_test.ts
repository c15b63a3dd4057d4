import "../preload.ts";
import assert from "node:assert/strict";
import { systemClock } from "../../clock.ts";
import { nullLogger } from "../../log.ts";
import { ConntrackTable } from "./conntrack.ts";
import { EpollLoop } from "../loop.ts";
import { inNamespace, mayMakeNamespaces, run } from "../testing.ts";

const ignore = !mayMakeNamespaces("lib/linux/nftables/conntrack_test.ts");

/** Two servers behind one rewritten address per family, and the rule that says which one. */
function redirectTo(four: string, six: string): void {
  run("nft", "add table inet t; delete table inet t");
  run(
    "nft",
    `add table inet t
     add chain inet t out { type nat hook output priority -100 ; }
     add rule inet t out ip daddr 10.9.9.9 udp dport 53 dnat ip to ${four}:5353
     add rule inet t out ip6 daddr fd00:9::9 udp dport 53 dnat ip6 to [${six}]:5353`,
  );
}

Deno.test({
  name: "conntrack: a flow keeps its target until its entry is forgotten; other flows are not touched",
  ignore,
  fn: () =>
    inNamespace(async () => {
      for (const ip of ["10.1.1.1/32", "10.1.1.2/32", "fd00:1::1/128", "fd00:1::2/128"]) {
        run("ip", "addr", "add", ip, "dev", "lo", ...(ip.includes(":") ? ["nodad"] : []));
      }
      run("ip", "route", "add", "10.9.9.9/32", "dev", "lo");
      run("ip", "-6", "route", "add", "fd00:9::9/128", "dev", "lo");
      await using loop = EpollLoop.open({ clock: systemClock, log: nullLogger });
      const table = new ConntrackTable();
      const heard: string[] = [];
      let wake = () => {};
      for (const ip of ["10.1.1.1", "10.1.1.2", "fd00:1::1", "fd00:1::2"]) {
        loop.bindUdp({ ip, port: 5353 }, () => {
          heard.push(ip);
          wake();
        });
      }
      const next = () => new Promise<void>((resolve) => wake = resolve);
      for (
        const [vip, first, second] of [["10.9.9.9", "10.1.1.1", "10.1.1.2"], ["fd00:9::9", "fd00:1::1", "fd00:1::2"]]
      ) {
        const family = vip!.includes(":") ? 6 : 4;
        const socket = loop.bindUdp({ ip: family === 4 ? "10.1.1.1" : "fd00:1::1", port: 0 }, () => {});
        const ask = async () => {
          const came = next();
          socket.send(new Uint8Array(1), 1, { ip: vip!, port: 53 });
          await came;
          return heard.at(-1);
        };
        redirectTo("10.1.1.1", "fd00:1::1");
        assert.equal(await ask(), first);
        redirectTo("10.1.1.2", "fd00:1::2");
        assert.equal(await ask(), first, "the entry still decides");
        const scope = { family, ip: vip!, port: 53 } as const;
        assert.deepEqual(table.udpFlows(scope).map((f) => [f.to.ip, f.target]), [[vip, { ip: first, port: 5353 }]]);
        assert.deepEqual(table.udpFlows({ ...scope, port: 54 }), []);
        assert.equal(table.forgetUdp(scope, (f) => f.target.ip === "10.1.1.99"), 0);
        assert.equal(table.forgetUdp(scope, (f) => f.target.ip === first), 1);
        assert.equal(await ask(), second);
        assert.equal(table.udpFlows({ family, port: 53 }).length, 1);
        socket.close();
      }
      table.close();
    }),
});
