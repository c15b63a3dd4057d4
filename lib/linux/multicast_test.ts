import "./preload.ts";
import { strict as assert } from "node:assert";
import { pause, systemClock } from "../clock.ts";
import { nullLogger } from "../log.ts";
import type { IpPort } from "../net.ts";
import { Links } from "./links.ts";
import { EpollLoop } from "./loop.ts";
import { memoryHeld } from "./memory.ts";
import { MulticastSocket } from "./multicast.ts";
import { inNamespace, mayMakeNamespaces, run } from "./testing.ts";

const GROUP: IpPort = { ip: "239.255.96.16", port: 20006 };
const ignore = !mayMakeNamespaces("lib/linux/multicast_test.ts");

interface Rig {
  readonly loop: EpollLoop;
  /** Two links whose other ends are in this namespace, too: v0–v1 and w0–w1. */
  readonly v: number;
  readonly w: number;
  open(): { readonly socket: MulticastSocket; readonly got: string[] };
}

function test(name: string, body: (rig: Rig) => Promise<void>): void {
  Deno.test({
    name,
    ignore,
    fn: () =>
      inNamespace(async () => {
        for (const [a, b, net] of [["v0", "v1", 1], ["w0", "w1", 2]] as const) {
          run("ip", "link", "add", a, "type", "veth", "peer", "name", b);
          run("ip", "addr", "add", `10.9.${net}.1/24`, "dev", a);
          for (const link of [a, b]) run("ip", "link", "set", link, "up");
        }
        const links = new Links();
        const [v, w] = ["v0", "w0"].map((name) => links.find(name)!.index) as [number, number];
        links.close();
        const held = memoryHeld();
        const loop = EpollLoop.open({ clock: systemClock, log: nullLogger });
        const sockets: MulticastSocket[] = [];
        const open = () => {
          const got: string[] = [];
          const socket = new MulticastSocket(loop, GROUP, (bytes, n, from) => {
            got.push(`${new TextDecoder().decode(bytes.subarray(0, n))} from ${from.ip}`);
          });
          sockets.push(socket);
          return { socket, got };
        };
        try {
          await body({ loop, v, w, open });
        } finally {
          for (const socket of sockets) socket.close();
          loop.close();
          await loop.finished;
        }
        assert.equal(memoryHeld(), held);
      }),
  });
}

const text = (value: string) => new TextEncoder().encode(value);

async function until(done: () => boolean): Promise<void> {
  for (let i = 0; !done(); i++) {
    assert.ok(i < 1000, "the condition did not come true in 2 s");
    await pause(2);
  }
}

test("a datagram reaches those who joined on the link it was sent on, without any route", async ({ v, w, open }) => {
  const [a, b, c] = [open(), open(), open()];
  a.socket.join([v]);
  b.socket.join([w]);
  c.socket.join([v, w]);
  assert.deepEqual([...c.socket.links], [v, w]);
  assert.ok(a.socket.send(text("one"), v));
  await until(() => a.got.length > 0 && c.got.length > 0);
  assert.ok(a.socket.send(text("two"), w));
  await until(() => b.got.length > 0 && c.got.length > 1);
  assert.deepEqual(a.got, ["one from 10.9.1.1"]);
  assert.deepEqual(b.got, ["two from 10.9.2.1"]);
  assert.deepEqual(c.got, ["one from 10.9.1.1", "two from 10.9.2.1"]);
});

test("leaving and joining anew work, also on links that are gone", async ({ v, w, open }) => {
  const { socket, got } = open();
  socket.join([v, w, v]);
  socket.join([w]);
  socket.send(text("x"), v);
  socket.send(text("y"), w);
  await until(() => got.length > 0);
  assert.deepEqual(got, ["y from 10.9.2.1"]);
  run("ip", "link", "del", "w0");
  socket.join([w, v]);
  assert.deepEqual([...socket.links], [v]);
  assert.equal(socket.send(text("z"), w), false);
});

test("what is sent to an address of the host does not get in", async ({ loop, v, open }) => {
  const { socket, got } = open();
  socket.join([v]);
  const plain = loop.bindUdp({ ip: "10.9.1.1", port: 0 }, () => {});
  plain.send(text("unicast"), 7, { ip: "10.9.1.1", port: GROUP.port });
  await pause(5);
  socket.send(text("group"), v);
  await until(() => got.length > 0);
  assert.deepEqual(got, ["group from 10.9.1.1"]);
  plain.close();
});
