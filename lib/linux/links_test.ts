import "./preload.ts";
import { strict as assert } from "node:assert";
import { type Cidr, parseCidr } from "../addr.ts";
import { systemClock } from "../clock.ts";
import { createLogger, memorySink, nullLogger } from "../log.ts";
import { LinkProgram } from "./link_program.ts";
import type { LinkTable } from "./link_table.ts";
import { Links, OUR_MARK, watchNetwork } from "./links.ts";
import { EpollLoop } from "./loop.ts";
import { memoryHeld } from "./memory.ts";
import { ensureMeshLink, removeMeshLink, routeServices } from "./mesh_link.ts";
import type { NetworkChange } from "./rtnetlink.ts";
import { inNamespace, mayMakeNamespaces, run } from "./testing.ts";

const NAME = "edgemesh0";
const V4 = cidr("169.254.96.16/32");
const V6 = cidr("fd00:96::16/128");
const ADDRESSES = [V4, V6];

const ignore = !mayMakeNamespaces("lib/linux/links_test.ts");

/** A test of both ways to the kernel. */
function test(name: string, body: (links: LinkTable) => Promise<void> | void): void {
  testOne(name, () => new Links(), body);
  testOne(`with the ip program: ${name}`, () => new LinkProgram(), body);
}

/** A test in a namespace of its own; fails if it leaves descriptors or kernel memory behind. */
function testOne<T extends LinkTable>(name: string, open: () => T, body: (links: T) => Promise<void> | void): void {
  Deno.test({
    name,
    ignore,
    fn: () =>
      inNamespace(async () => {
        const held = memoryHeld();
        const links = open();
        try {
          await body(links);
        } finally {
          links.close();
        }
        assert.equal(memoryHeld(), held);
      }),
  });
}

function cidr(text: string): Cidr {
  return parseCidr(text)!;
}

function meshLink(links: LinkTable, addresses = ADDRESSES) {
  return ensureMeshLink(links, { name: NAME, addresses, log: nullLogger });
}

test("the mesh link is made with its addresses, and a second start changes nothing", (links) => {
  const first = meshLink(links);
  assert.equal(first.link.name, NAME);
  assert.equal(first.link.group, OUR_MARK);
  assert(first.link.up);
  assert(first.link.kind === "dummy" || first.link.kind === "bridge");
  assert.deepEqual(first.addresses, ADDRESSES);
  assert.match(run("ip", "-d", "link", "show", NAME), /state (UP|UNKNOWN|DOWN)[\s\S]*alias edgemesh/);
  assert.match(run("ip", "-4", "addr", "show", NAME), /inet 169\.254\.96\.16\/32/);
  assert.match(run("ip", "-6", "addr", "show", NAME), /inet6 fd00:96::16\/128/);
  const second = meshLink(links);
  assert.deepEqual(second.link, first.link);
  assert.equal(links.addresses(first.link.index).filter((a) => !a.ip.startsWith("fe80")).length, 2);
});

test("both addresses can be bound at once, also on a bridge without ports", async (links) => {
  meshLink(links);
  await using loop = EpollLoop.open({ clock: systemClock, log: nullLogger });
  for (const { ip } of ADDRESSES) assert.equal(loop.bindUdp({ ip, port: 53 }, () => {}).local.ip, ip);
});

// The ip program of older releases cannot mark an address.
testOne("addresses of an earlier configuration go, those of others stay", () => new Links(), (links) => {
  const { link } = meshLink(links, [cidr("169.254.96.17/32"), V6]);
  run("ip", "addr", "add", "10.9.9.9/32", "dev", NAME);
  meshLink(links);
  const ips = links.addresses(link.index).map((a) => a.ip).filter((ip) => !ip.startsWith("fe80"));
  assert.deepEqual(ips.sort(), ["10.9.9.9", "169.254.96.16", "fd00:96::16"]);
});

test("service networks lead to the mesh link with its address as source, without any default route", (links) => {
  const mesh = meshLink(links);
  const result = routeServices(links, mesh, [cidr("10.96.0.0/12"), cidr("fd00:10:96::/112")]);
  assert.equal(result.routed.length, 2);
  assert.match(run("ip", "route", "get", "10.96.0.10"), new RegExp(`10.96.0.10 dev ${NAME} src 169.254.96.16`));
  assert.match(run("ip", "-6", "route", "get", "fd00:10:96::a"), new RegExp(`dev ${NAME}.* src fd00:96::16`));
  assert.match(run("ip", "route", "show"), /10\.96\.0\.0\/12 dev edgemesh0 proto 96 scope link src 169\.254\.96\.16/);
  assert.deepEqual(routeServices(links, mesh, [cidr("10.96.0.0/12"), cidr("fd00:10:96::/112")]), result);
  const changed = routeServices(links, mesh, [cidr("10.43.0.0/16")]);
  assert.deepEqual(changed.routed, [cidr("10.43.0.0/16")]);
  assert.deepEqual(links.ourRoutes().map((r) => r.to), [cidr("10.43.0.0/16")]);
});

test("a route of somebody else to the same network is reported and left alone", (links) => {
  const mesh = meshLink(links);
  run("ip", "link", "add", "cni0", "type", "bridge");
  run("ip", "link", "set", "cni0", "up");
  run("ip", "route", "add", "10.96.0.0/12", "dev", "cni0", "proto", "static");
  const { routed, foreign } = routeServices(links, mesh, [cidr("10.96.0.0/12")]);
  assert.deepEqual(routed, []);
  assert.equal(foreign.length, 1);
  assert.equal(foreign[0]!.index, links.find("cni0")!.index);
  routeServices(links, mesh, []);
  assert.match(run("ip", "route", "show", "10.96.0.0/12"), /dev cni0/);
});

test("a route of ours with an old source is corrected", (links) => {
  const old = meshLink(links, [cidr("169.254.96.17/32")]);
  routeServices(links, old, [cidr("10.96.0.0/12")]);
  const mesh = meshLink(links);
  routeServices(links, mesh, [cidr("10.96.0.0/12")]);
  assert.deepEqual(links.ourRoutes().map((r) => r.source), ["169.254.96.16"]);
});

test("clean-up finds everything after a crash, and does nothing the second time", (links) => {
  routeServices(links, meshLink(links), [cidr("10.96.0.0/12")]);
  // A new process knows only the names: as after a crash.
  removeMeshLink(links, NAME, ADDRESSES);
  assert.equal(links.find(NAME), undefined);
  assert.deepEqual(links.ourRoutes(), []);
  removeMeshLink(links, NAME, ADDRESSES);
});

test("a link that somebody else made is used, and keeps existing", (links) => {
  run("ip", "link", "add", NAME, "type", "bridge");
  run("ip", "addr", "add", "10.9.9.9/32", "dev", NAME);
  const { link } = meshLink(links);
  assert.equal(link.group, 0);
  removeMeshLink(links, NAME, ADDRESSES);
  assert.deepEqual(links.addresses(links.find(NAME)!.index).map((a) => a.ip).filter((ip) => !ip.startsWith("fe80")), [
    "10.9.9.9",
  ]);
});

test("a kernel without dummy links and bridges gets its addresses on loopback", (links) => {
  const sink = memorySink();
  const mesh = ensureMeshLink(links, { name: NAME, addresses: ADDRESSES, log: createLogger(sink), kinds: [] });
  assert.equal(mesh.link.name, "lo");
  assert.match(sink.lines.join(), /loopback/);
  routeServices(links, mesh, [cidr("10.96.0.0/12")]);
  assert.match(run("ip", "route", "get", "10.96.0.10"), /dev lo .*src 169.254.96.16/);
  removeMeshLink(links, NAME, ADDRESSES);
  assert.deepEqual(links.addresses(1).map((a) => a.ip).sort(), ["127.0.0.1", "::1"]);
});

testOne("the kernel's own words are in the error", () => new Links(), (links) => {
  const { link } = meshLink(links);
  assert.throws(
    () => links.addRoute({ to: cidr("10.96.0.0/12"), index: link.index, source: "192.0.2.1" }),
    /Cannot add route 10\.96\.0\.0\/12: invalid argument \(EINVAL\), Invalid prefsrc address/,
  );
});

test("a refusal says what the kernel said", (links) => {
  const { link } = meshLink(links);
  assert.throws(
    () => links.addRoute({ to: cidr("10.96.0.0/12"), index: link.index, source: "192.0.2.1" }),
    /Cannot add route 10\.96\.0\.0\/12: .*Invalid prefsrc address/,
  );
  assert.throws(() => links.create("a-name-that-is-too-long", ["bridge"]), /Cannot create link/);
});

testOne("changes of links, addresses and routes are told", () => new Links(), async (links) => {
  await using loop = EpollLoop.open({ clock: systemClock, log: nullLogger });
  const changes: NetworkChange[] = [];
  let wake = () => {};
  const watch = watchNetwork(loop, (change) => {
    changes.push(change);
    wake();
  });
  const seen = async (what: (c: NetworkChange) => boolean) => {
    while (!changes.some(what)) {
      await new Promise<void>((resolve, reject) => {
        const late = systemClock.timer(5000, () => reject(new Error("a change was not told")));
        wake = () => {
          late();
          resolve();
        };
      });
    }
  };
  const { link } = meshLink(links);
  await seen((c) => c.kind === "link" && !c.gone && c.link.name === NAME && c.link.up);
  await seen((c) => c.kind === "address" && !c.gone && c.address.ip === V6.ip && c.address.index === link.index);
  routeServices(links, { link, addresses: ADDRESSES }, [cidr("10.96.0.0/12")]);
  await seen((c) => c.kind === "route" && !c.gone && c.route.to.ip === "10.96.0.0" && c.route.protocol === OUR_MARK);
  removeMeshLink(links, NAME, ADDRESSES);
  await seen((c) => c.kind === "link" && c.gone && c.link.name === NAME);
  await seen((c) => c.kind === "route" && c.gone && c.route.to.ip === "10.96.0.0");
  watch.close();
  assert.equal(loop.size, 0);
});

testOne("a table of two thousand routes is read whole", () => new Links(), (links) => {
  const { link } = meshLink(links);
  for (let i = 0; i < 2000; i++) {
    links.addRoute({ to: cidr(`10.${100 + (i >> 8)}.${i & 255}.0/24`), index: link.index, source: V4.ip });
  }
  assert.equal(links.ourRoutes().length, 2000);
});
