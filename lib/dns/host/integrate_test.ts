import assert from "node:assert/strict";
import fc from "fast-check";
import { nullLogger } from "../../log.ts";
import { disintegrate, integrate, type IntegrateOptions, type ResolverHost } from "./integrate.ts";
import { hasUs, withoutUs, withUs } from "./resolv_edit.ts";
import { parseResolvConf } from "./resolvconf.ts";
import { judgeUsage } from "./usage.ts";
import { findResolvers, judgeResolvers } from "./usage_gather.ts";

const EDIT = { addresses: ["169.254.96.16"], search: ["svc.cluster.local", "cluster.local"] };
const FILES = [
  "",
  "nameserver 192.0.2.1",
  "nameserver 192.0.2.1\n",
  "# dhcp\nsearch lan corp.example\nnameserver 192.0.2.1\nnameserver 192.0.2.2\noptions ndots:2\n",
  "domain lan\n\n\nnameserver ::1\r\n",
];

Deno.test("resolv.conf: we are first, the others stay, search domains come in front", () => {
  const conf = parseResolvConf(withUs(FILES[3]!, EDIT));
  assert.deepEqual(conf.nameservers.map((n) => n.ip), ["169.254.96.16", "192.0.2.1", "192.0.2.2"]);
  assert.deepEqual(conf.search, ["svc.cluster.local", "cluster.local", "lan", "corp.example"]);
  assert.equal(conf.ndots, 2);
  const plain = parseResolvConf(withUs(FILES[3]!, { ...EDIT, search: [] }));
  assert.deepEqual(plain.search, ["lan", "corp.example"]);
});

for (const text of FILES) {
  Deno.test(`resolv.conf: ${JSON.stringify(text)} comes back byte for byte, and twice is once`, () => {
    const once = withUs(text, EDIT);
    assert.equal(withoutUs(once), text);
    assert.equal(withUs(once, EDIT), once);
    assert.equal(withoutUs(text), text);
    assert.deepEqual([hasUs(once), hasUs(text)], [true, false]);
    const other = { addresses: ["fd96:ed9e::16"], search: [] };
    assert.equal(withUs(once, other), withUs(text, other));
  });
}

Deno.test("property: any resolv.conf comes back byte for byte", () => {
  const line = fc.oneof(
    fc.constantFrom("", "search a b", " domain x", "nameserver 1.2.3.4", "# c", "options ndots:5", "search"),
    fc.string({ maxLength: 20 }).filter((s) => !s.includes("\n")),
  );
  fc.assert(fc.property(fc.array(line, { maxLength: 12 }), (lines) => {
    const text = lines.join("\n");
    assert.equal(withoutUs(withUs(text, EDIT)), text);
  }));
});

Deno.test("resolv.conf: a block somebody cut loses only what is certainly ours", () => {
  const cut = withUs("nameserver 192.0.2.1\n", EDIT).replace("# edgemesh end\n", "");
  const back = withoutUs(cut);
  assert.equal(hasUs(back), false);
  assert.ok(back.includes("nameserver 192.0.2.1"));
});

class FakeHost implements ResolverHost {
  readonly files = new Map<string, string>();
  readonly links = new Set<string>();
  readonly ran: string[] = [];
  resolvectl = true;
  readText = (path: string) => this.files.get(path);
  isSymlink = (path: string) => this.links.has(path);
  writeText = (path: string, text: string) => Promise.resolve(void this.files.set(path, text));
  run = (program: string, args: readonly string[]) => {
    this.ran.push([program, ...args].join(" "));
    return Promise.resolve(this.resolvectl);
  };
}

const OPTIONS: IntegrateOptions = {
  mode: "auto",
  resolvConf: "/etc/resolv.conf",
  link: "edgemesh0",
  edit: EDIT,
  zones: ["cluster.local"],
};

Deno.test("integration: a plain file is edited and restored, after a crash too, and again after DHCP rewrote it", async () => {
  const host = new FakeHost();
  host.files.set("/etc/resolv.conf", FILES[3]!);
  assert.deepEqual(await integrate(host, OPTIONS), { kind: "file", path: "/etc/resolv.conf" });
  assert.ok(hasUs(host.files.get("/etc/resolv.conf")!));
  host.files.set("/etc/resolv.conf", "nameserver 192.0.2.9\n");
  await integrate(host, OPTIONS);
  assert.ok(hasUs(host.files.get("/etc/resolv.conf")!));
  assert.equal(await disintegrate(host, OPTIONS, nullLogger), true);
  assert.equal(host.files.get("/etc/resolv.conf"), "nameserver 192.0.2.9\n");
  assert.equal(await disintegrate(host, OPTIONS, nullLogger), false);
  assert.deepEqual(host.ran, []);
});

Deno.test("integration: systemd-resolved is told about our link and nothing is written", async () => {
  const host = new FakeHost();
  const stub = "nameserver 127.0.0.53\noptions edns0 trust-ad\n";
  host.files.set("/etc/resolv.conf", stub);
  host.links.add("/etc/resolv.conf");
  assert.deepEqual(await integrate(host, OPTIONS), { kind: "resolved", link: "edgemesh0" });
  await disintegrate(host, OPTIONS, nullLogger);
  assert.deepEqual(host.ran, [
    "resolvectl dns edgemesh0 169.254.96.16",
    "resolvectl domain edgemesh0 ~cluster.local svc.cluster.local cluster.local",
    "resolvectl revert edgemesh0",
  ]);
  assert.equal(host.files.get("/etc/resolv.conf"), stub);
  host.resolvectl = false;
  assert.equal((await integrate(host, OPTIONS)).kind, "none");
});

Deno.test("integration: a link to somebody else's file is left alone, a missing file too", async () => {
  const host = new FakeHost();
  assert.equal((await integrate(host, OPTIONS)).kind, "none");
  host.files.set("/etc/resolv.conf", "nameserver 192.0.2.9\n");
  host.links.add("/etc/resolv.conf");
  assert.equal((await integrate(host, OPTIONS)).kind, "none");
  assert.equal(host.files.get("/etc/resolv.conf"), "nameserver 192.0.2.9\n");
});

const FACTS = { ourselves: [{ ip: "169.254.96.16", port: 53 }], clusterDns: ["10.96.0.10"], zone: "cluster.local" };
for (
  const [who, text, uses, hinted] of [
    ["this host", "nameserver 169.254.96.16\nnameserver 192.0.2.1\n", "mesh", false],
    ["this host", "nameserver 192.0.2.1\nnameserver 169.254.96.16\n", "mesh-later", true],
    ["this host", "nameserver 192.0.2.1\n", "other", true],
    ["this host", undefined, "none", true],
    ["pod shop/web-1", "nameserver 10.96.0.10\nsearch shop.svc.cluster.local\noptions ndots:5\n", "cluster-dns", true],
    ["pod shop/web-1", "nameserver 169.254.96.16\nsearch shop.svc.cluster.local svc.cluster.local\n", "mesh", false],
    ["pod shop/old-1", "nameserver 192.168.1.1\n", "other", true],
  ] as const
) {
  Deno.test(`check: ${who} with ${JSON.stringify(text)} uses ${uses}`, () => {
    const usage = judgeUsage(who, text, FACTS);
    assert.equal(usage.uses, uses);
    assert.equal(usage.hint !== undefined, hinted);
    assert.ok(usage.summary.startsWith(who) && !usage.summary.endsWith("."));
    assert.equal(usage.completesNames, text?.includes("svc.cluster.local") ?? false);
  });
}

/** As the kernel prints it. */
const FIB_TRIE = `Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.244.1.0/24 2 0 1
        |-- 10.244.1.2
           /32 host LOCAL
     +-- 127.0.0.0/8 2 0 2
        +-- 127.0.0.0/31 1 0 0
           |-- 127.0.0.0
              /8 host LOCAL
           |-- 127.0.0.1
              /32 host LOCAL
        |-- 127.255.255.255
           /32 link BROADCAST
`;

Deno.test("check: resolvers in use are found by network namespace, and named by the pods' addresses", () => {
  const links: Record<string, string> = {
    "/proc/self/ns/net": "net:[1]",
    "/proc/1/ns/net": "net:[1]",
    "/proc/20/ns/net": "net:[2]",
    "/proc/21/ns/net": "net:[2]",
    "/proc/30/ns/net": "net:[3]",
    "/proc/40/ns/net": "net:[4]",
  };
  const texts: Record<string, string> = {
    "/etc/resolv.conf": "nameserver 192.0.2.1\n",
    "/proc/20/root/etc/resolv.conf": "nameserver 192.168.1.1\n",
    "/proc/20/net/fib_trie": FIB_TRIE,
    "/proc/30/root/etc/resolv.conf": "nameserver 169.254.96.16\n",
    "/proc/30/net/fib_trie": FIB_TRIE.replaceAll("10.244.1.2", "172.17.0.2"),
    "/proc/40/root/etc/resolv.conf": "nameserver 192.0.2.1\n",
    "/proc/40/net/fib_trie": "Main:\n",
  };
  const proc = {
    pids: () => [1, 20, 21, 30, 40, 50],
    link: (path: string) => links[path],
    text: (path: string) => texts[path],
  };
  const found = judgeResolvers(findResolvers(proc), (ip) => ip === "10.244.1.2" ? "shop/old-1" : undefined, FACTS);
  assert.deepEqual(found.map((f) => [f.who, f.uses]), [
    ["this host", "other"],
    ["container at 172.17.0.2", "mesh"],
    ["pod shop/old-1", "other"],
  ]);
  assert.match(found[2]!.hint!, /create the pod anew/);
});
