/**
 * The node's DNS as real clients see it: dig, the C libraries (glibc and musl) with ndots:5, nslookup, busybox; what
 * happens when upstreams fail, when everything outside is gone, and who gets no answer at all.
 */
import assert from "node:assert/strict";
import { disintegrate, integrate, type ResolverHost } from "../../lib/dns/host/integrate.ts";
import { nullLogger } from "../../lib/log.ts";
import { exec, until } from "../../lib/lab/exec.ts";
import type { Host } from "../../lib/lab/host.ts";
import { DnsLab, MESH, MESH6, UPSTREAM_ZONE } from "./dns_fixture.ts";
import { labTest, say } from "./support.ts";

const FQDN = "web.shop.svc.cluster.local";

labTest("A31 dns: dig in a pod gets every kind of record", async () => {
  await using lab = await DnsLab.open();
  await lab.upstream(1);
  await lab.start();
  const short = async (...args: readonly string[]) =>
    (await lab.dig(lab.pod, "+short", ...args)).stdout.trim().split("\n").sort().join(" | ");
  for (
    const [args, want] of [
      [[FQDN, "A"], "10.96.0.7"],
      [[FQDN, "AAAA"], "fd00:96::7"],
      [["+tcp", FQDN, "A"], "10.96.0.7"],
      [["2048.shop.svc.cluster.local", "A"], "10.96.0.8"],
      [["_http._tcp.web.shop.svc.cluster.local", "SRV"], "0 50 80 web.shop.svc.cluster.local."],
      [["db.shop.svc.cluster.local", "A"], "10.244.1.10 | 10.244.2.10"],
      [["db-1.db.shop.svc.cluster.local", "A"], "10.244.2.10"],
      [
        ["_pg._tcp.db.shop.svc.cluster.local", "SRV"],
        "0 50 5432 db-0.db.shop.svc.cluster.local. | 0 50 5432 db-1.db.shop.svc.cluster.local.",
      ],
      [["10-244-1-5.shop.pod.cluster.local", "A"], "10.244.1.5"],
      [["-x", "10.96.0.7"], "web.shop.svc.cluster.local."],
      [["-x", "10.244.2.10"], "db-1.db.shop.svc.cluster.local."],
      [["out.shop.svc.cluster.local", "A"], "192.0.2.80 | www.example.test."],
      [["dns-version.cluster.local", "TXT"], '"1.1.0"'],
      [["www.example.test", "A"], "192.0.2.80"],
    ] as const
  ) assert.equal(await short(...args), want, args.join(" "));
  assert.deepEqual((await lab.lookup(lab.pod, "none.shop.svc.cluster.local")).got, "NXDOMAIN");
  assert.deepEqual((await lab.lookup(lab.pod, "10.96.9.9.in-addr.arpa", "PTR")).got, "NXDOMAIN");
  // 150 addresses do not fit into a datagram: dig notices TC and asks over TCP by itself.
  const many = await lab.dig(lab.pod, "many.shop.svc.cluster.local", "+ignore");
  assert.match(many.stdout, /flags: qr aa tc rd ra/);
  assert.equal((await lab.lookup(lab.pod, "many.shop.svc.cluster.local")).got.split(" ").length, 150);
  const v6 = await lab.node.exec(["dig", "+short", "+tries=1", `@${MESH6}`, FQDN]);
  assert.equal(v6.stdout.trim(), "10.96.0.7");
});

labTest(
  "B06 dns: each pod of a StatefulSet has its own name, on every node; one that is not ready has none",
  async () => {
    await using lab = await DnsLab.open();
    await lab.start();
    for (const [host, want] of [["db-0", "10.244.1.10"], ["db-1", "10.244.2.10"], ["db-2", "NXDOMAIN"]] as const) {
      assert.equal((await lab.lookup(lab.pod, `${host}.db.shop.svc.cluster.local`)).got, want);
    }
    const { stdout } = await lab.pod.execOk(["getent", "ahostsv4", "db-1.db"]);
    assert.match(stdout, /^10\.244\.2\.10 /);
  },
);

/** What the C library makes of names; each with the addresses it found. */
async function getent(host: Host, name: string): Promise<string> {
  const { code, stdout } = await host.exec(["getent", "ahostsv4", name]);
  if (code !== 0) return "not found";
  return [...new Set(stdout.trim().split("\n").map((line) => line.split(/\s+/)[0]!))].sort().join(" ");
}

labTest("dns: glibc with ndots:5 completes names, and no step of its search reaches an upstream", async () => {
  await using lab = await DnsLab.open();
  const upstream = await lab.upstream(1);
  await lab.start();
  for (
    const [name, want] of [
      ["web", "10.96.0.7"],
      ["web.shop", "10.96.0.7"],
      ["api.other", "10.96.0.9"],
      ["api.other.svc", "10.96.0.9"],
      [FQDN, "10.96.0.7"],
      [`${FQDN}.`, "10.96.0.7"],
      ["2048.shop", "10.96.0.8"],
      ["www.example.test", "192.0.2.80"],
      ["api", "not found"],
      ["nope.other", "not found"],
    ] as const
  ) assert.equal(await getent(lab.pod, name), want, name);
  const asked = new Set(
    (await upstream.log()).split("\n").filter((l) => l.startsWith("udp")).map((l) => l.toLowerCase()),
  );
  // Single labels and names with a namespace are tried as they are last: those, and nothing with a search domain.
  assert.deepEqual([...asked].sort(), ["udp api a", "udp nope.other a", "udp www.example.test a"]);
});

labTest("dns: musl asks A and AAAA at once, nslookup and busybox get the same answers", async () => {
  await using lab = await DnsLab.open();
  await lab.upstream(1);
  await lab.start();
  const nslookup = (await lab.pod.execOk(["nslookup", FQDN])).stdout;
  assert.match(nslookup, new RegExp(`Server:\\s+${MESH}`));
  assert.match(nslookup, /Address: 10\.96\.0\.7/);
  assert.match(nslookup, /Address: fd00:96::7/);
  const busybox = await exec(["which", "busybox"]);
  if (busybox.code === 0) {
    const { stdout, code } = await lab.pod.exec(["busybox", "nslookup", FQDN, MESH]);
    assert.equal(code, 0, stdout);
    assert.match(stdout, /Address: 10\.96\.0\.7/);
  } else say("busybox is not installed (apt-get install busybox-static): its nslookup was not tried");
  const source = new URL("./fixtures/musl_lookup.c", import.meta.url).pathname;
  const built = await exec(["musl-gcc", "-static", "-O1", "-o", `${lab.lab.dir}/musl_lookup`, source]).catch(() =>
    undefined
  );
  if (built?.code !== 0) {
    say("musl-gcc is not installed (apt-get install musl-tools): musl's resolver was not tried");
    return;
  }
  const names = ["web", "web.shop", FQDN, "db", "many", "www.example.test", "nope.other"];
  const { stdout } = await lab.pod.execOk([`${lab.lab.dir}/musl_lookup`, ...names]);
  const found = new Map(
    stdout.trim().split("\n").map((line) => {
      const [name, ...rest] = line.split(" ");
      return [name!, rest];
    }),
  );
  const sorted = (name: string) => [...found.get(name)!].sort();
  for (const name of ["web", "web.shop", FQDN]) assert.deepEqual(sorted(name), ["10.96.0.7", "fd00:96::7"], name);
  assert.deepEqual(sorted("db"), ["10.244.1.10", "10.244.2.10"]);
  assert.deepEqual(sorted("www.example.test"), ["192.0.2.80"]);
  assert.equal(found.get("nope.other")![0], "-");
  // musl before 1.2.4 never comes back over TCP: it gets what fits into 512 bytes, which is why TC answers are filled.
  assert.ok(found.get("many")!.length >= 25, `${found.get("many")!.length} addresses`);
});

labTest("dns: the first upstream is black-holed: an answer within 1.5 s, then as fast as ever", async () => {
  await using lab = await DnsLab.open({ resolvConf: "nameserver 198.51.100.1\nnameserver 198.51.100.2\n" });
  await lab.upstream(1);
  await lab.upstream(2);
  await lab.blackhole(1);
  await lab.start();
  const first = await lab.lookup(lab.pod, "www.example.test");
  assert.equal(first.got, "192.0.2.80");
  assert.ok(first.ms <= 1500, `${first.ms} ms`);
  const later: number[] = [];
  for (let i = 0; i < 10; i++) later.push((await lab.lookup(lab.pod, `n${i}.example.test`)).ms);
  assert.ok(Math.max(...later) <= 100, `${later} ms`);
  say(`first upstream black-holed: first answer ${first.ms} ms, the next ten at most ${Math.max(...later)} ms`);
  await lab.blackhole();
  await until("the first upstream to be asked again", async () => {
    lab.server.signal("SIGUSR2");
    const last = (await lab.server.log()).trim().split("\n").findLast((line) => line.includes('"stats"'));
    return last && /"server":"198.51.100.1:53","state":"up"/.test(last) ? true : undefined;
  });
});

labTest(
  "dns: an answer that an upstream truncates is fetched over TCP",
  async () => {
    await using lab = await DnsLab.open();
    const upstream = await lab.upstream(1);
    await lab.start();
    const { got } = await lab.lookup(lab.pod, "big.example.test");
    assert.equal(got.split(" ").length, 120);
    const log = await upstream.log();
    assert.match(log.toLowerCase(), /udp big\.example\.test a\n(.*\n)*tcp big\.example\.test a\n/);
  },
);

labTest("dns: no route outside: SERVFAIL at once, cluster names as ever", async () => {
  await using lab = await DnsLab.open({ resolvConf: "nameserver 203.0.113.53\n" });
  await lab.start();
  const foreign = await lab.lookup(lab.pod, "www.example.test");
  assert.equal(foreign.got, "SERVFAIL");
  assert.ok(foreign.ms <= 100, `${foreign.ms} ms`);
  assert.equal((await lab.lookup(lab.pod, FQDN)).got, "10.96.0.7");
});

labTest(
  "dns: cloud and upstreams cut, then restarted: cluster names, stale foreign names, SERVFAIL for the rest",
  async () => {
    await using lab = await DnsLab.open();
    const upstream = await lab.upstream(1);
    const before = await lab.start();
    assert.equal((await lab.lookup(lab.pod, "www.example.test")).got, "192.0.2.80");
    await upstream.kill();
    await lab.blackhole(1, 2, 3);
    await before.stop();
    const startedAt = performance.now();
    await lab.start();
    const ready = performance.now() - startedAt;
    const cluster = await lab.lookup(lab.pod, FQDN);
    // The kept answer is still fresh (TTL 60); what is stale is shown by the units over 24 h of a fake clock.
    const known = await lab.lookup(lab.pod, "www.example.test");
    const unknown = await lab.lookup(lab.pod, "unknown.example.test");
    const again = await lab.lookup(lab.pod, "other.example.test");
    say(
      `offline restart: listening after ${
        Math.round(ready)
      } ms; cluster name ${cluster.ms} ms, kept name ${known.ms} ms, ` +
        `first unknown name SERVFAIL after ${unknown.ms} ms, the next after ${again.ms} ms`,
    );
    assert.equal(cluster.got, "10.96.0.7");
    assert.equal(known.got, "192.0.2.80");
    assert.deepEqual([unknown.got, again.got], ["SERVFAIL", "SERVFAIL"]);
    assert.ok(unknown.ms <= 4500 && again.ms <= 1700, `${unknown.ms} and ${again.ms} ms`);
  },
);

labTest("dns: a stale answer is served once its TTL is over, and the fresh one when the upstream is back", async () => {
  await using lab = await DnsLab.open({ dns: { maxTtl: 1 } });
  const upstream = await lab.upstream(1);
  await lab.start();
  assert.equal((await lab.lookup(lab.pod, "www.example.test")).got, "192.0.2.80");
  await upstream.kill();
  await lab.blackhole(1);
  const waits: number[] = [];
  const stale = await until("a stale answer", async () => {
    const { stdout } = await lab.dig(lab.pod, "+noall", "+answer", "+stats", "www.example.test");
    waits.push(Number(/Query time: (\d+)/.exec(stdout)?.[1]));
    return /www\.example\.test\.\s+30\s+IN\s+A\s+192\.0\.2\.80/.test(stdout) ? stdout : undefined;
  });
  assert.ok(stale);
  const next = await lab.lookup(lab.pod, "www.example.test");
  say(`stale answer after ${waits.at(-1)} ms, the next after ${next.ms} ms`);
  assert.ok(waits.at(-1)! <= 1500 && next.ms <= 1500);
  await lab.blackhole();
  await lab.upstream(1, { ...UPSTREAM_ZONE, "www.example.test/A": ["192.0.2.81"] });
  await until("the fresh answer", async () => {
    return (await lab.lookup(lab.pod, "www.example.test")).got === "192.0.2.81" ? true : undefined;
  });
});

labTest("dns: nobody but this host and its pods gets an answer, over UDP or TCP", async () => {
  await using lab = await DnsLab.open();
  await lab.start();
  assert.equal((await lab.lookup(lab.node, FQDN)).got, "10.96.0.7");
  assert.equal((await lab.lookup(lab.pod, FQDN)).got, "10.96.0.7");
  const udp = await lab.up.exec(["dig", "+tries=1", "+time=1", `@${MESH}`, FQDN]);
  assert.match(udp.stdout + udp.stderr, /timed out|no servers could be reached/);
  const tcp = await lab.up.exec(["dig", "+tcp", "+tries=1", "+time=1", `@${MESH}`, FQDN]);
  assert.match(tcp.stdout + tcp.stderr, /reset|end of file|no servers could be reached|timed out/);
});

labTest("dns: a resolv.conf that names only ourselves is refused with a line, and nothing dies", async () => {
  await using lab = await DnsLab.open({ resolvConf: `nameserver ${MESH}\n` });
  const server = await lab.start();
  assert.match(await server.log(), /169\.254\.96\.16:53, which is this resolver itself/);
  assert.equal((await lab.lookup(lab.pod, "www.example.test")).got, "SERVFAIL");
  assert.equal((await lab.lookup(lab.pod, FQDN)).got, "10.96.0.7");
  await lab.upstream(1);
  await lab.node.setResolvConf(`nameserver ${MESH}\nnameserver 198.51.100.1\n`);
  server.signal("SIGHUP");
  await until("the new upstream", async () => {
    return (await lab.lookup(lab.pod, "www.example.test")).got === "192.0.2.80" ? true : undefined;
  });
});

labTest("dns: processes of the host use short names where configuration says so; pods do not", async () => {
  await using lab = await DnsLab.open({
    dns: { searchNamespaces: ["shop"] },
    resolvConf: `nameserver ${MESH}\nnameserver 198.51.100.1\n`,
  });
  await lab.upstream(1);
  await lab.start();
  for (const name of ["web", "web.shop", "web.shop.svc"]) assert.equal(await getent(lab.node, name), "10.96.0.7", name);
  assert.equal(await getent(lab.node, "www.example.test"), "192.0.2.80");
  assert.equal(await getent(lab.node, "api.other"), "not found");
  assert.equal((await lab.lookup(lab.pod, "web.shop")).got, "NXDOMAIN");
});

labTest(
  "A30 dns: cacheDNS answers cluster names from the cluster's own DNS, and from memory when that is gone",
  async () => {
    const coredns = "198.51.100.3";
    const { service } = await import("../../lib/dns/testing_meta.ts");
    await using lab = await DnsLab.open({
      dns: { mode: "cache" },
      meta: {
        services: [
          service("kube-system", "kube-dns", { clusterIPs: [coredns], labels: { "k8s-app": "kube-dns" } }),
        ],
      },
    });
    const upstream = await lab.upstream(3, { [`${FQDN}/A`]: ["10.96.0.77"], ...UPSTREAM_ZONE });
    await lab.start();
    assert.equal((await lab.lookup(lab.pod, FQDN)).got, "10.96.0.77");
    assert.equal((await lab.lookup(lab.pod, "www.example.test")).got, "192.0.2.80");
    const { stdout } = await lab.dig(lab.pod, "+noall", "+answer", FQDN);
    assert.ok(Number(/\s(\d+)\s+IN\s+A/.exec(stdout)![1]) <= 30, stdout);
    await upstream.kill();
    assert.equal((await lab.lookup(lab.pod, FQDN)).got, "10.96.0.77");
  },
);

labTest(
  "B10 dns: a pod that was there before the agent resolves names as soon as the agent runs, and after a restart",
  async () => {
    await using lab = await DnsLab.open();
    assert.equal(await getent(lab.pod, "web"), "not found");
    const first = await lab.start();
    assert.equal(await getent(lab.pod, "web"), "10.96.0.7");
    await first.kill();
    assert.equal((await lab.lookup(lab.pod, FQDN)).got, "timeout");
    await lab.start();
    assert.equal(await getent(lab.pod, "web"), "10.96.0.7");
  },
);

labTest("dns: resolv.conf of the host is edited, used by its C library, and restored byte for byte", async () => {
  const original = "# by DHCP\nsearch lan\nnameserver 198.51.100.1\n";
  await using lab = await DnsLab.open({ resolvConf: original });
  await lab.upstream(1);
  await lab.start();
  assert.equal(await getent(lab.node, FQDN), "not found");
  const path = "/etc/resolv.conf";
  const host: ResolverHost = {
    readText: (file) => Deno.readTextFileSync(lab.node.path(file)),
    writeText: (file, text) => Deno.writeTextFile(lab.node.path(file), text),
    isSymlink: (file) => Deno.lstatSync(lab.node.path(file)).isSymlink,
    run: () => Promise.resolve(false),
  };
  const done = await integrate(host, {
    mode: "auto",
    resolvConf: path,
    link: "edgemesh0",
    edit: { addresses: [MESH], search: ["shop.svc.cluster.local", "svc.cluster.local"] },
    zones: ["cluster.local"],
  });
  assert.deepEqual(done, { kind: "file", path });
  for (const name of [FQDN, "web", "web.shop"]) assert.equal(await getent(lab.node, name), "10.96.0.7", name);
  // We are our own upstream's neighbour in that file and still find the other one.
  lab.server.signal("SIGHUP");
  assert.equal(await getent(lab.node, "www.example.test"), "192.0.2.80");
  // The agent stopped: the host's own servers are still there, and its library goes on to them at once.
  await lab.server.stop();
  assert.equal(await getent(lab.node, "www.example.test"), "192.0.2.80");
  assert.equal(await disintegrate(host, { resolvConf: path, link: "edgemesh0" }, nullLogger), true);
  assert.equal(await Deno.readTextFile(lab.node.path(path)), original);
});
