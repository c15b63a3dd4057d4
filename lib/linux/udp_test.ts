import "./preload.ts";
import { strict as assert } from "node:assert";
import { setImmediate } from "node:timers";
import fc from "fast-check";
import { systemClock } from "../clock.ts";
import { createLogger, memorySink, nullLogger } from "../log.ts";
import type { IpPort, UdpSocket } from "../net.ts";
import { EpollLoop } from "./loop.ts";
import { getSockaddr, putSockaddr, SOCKADDR_MAX } from "./sockaddr.ts";
import { inNamespace, mayMakeNamespaces, run } from "./testing.ts";
import type { LoopUdpSocket } from "./udp.ts";
import { addressFor, AddressTable, SocketAddress } from "./address.ts";

const LOCAL: IpPort = { ip: "127.0.0.1", port: 0 };
const turn = () => new Promise<void>((resolve) => void setImmediate(resolve));
const ignore = !mayMakeNamespaces("lib/linux/udp_test.ts");

function openLoop(): EpollLoop {
  return EpollLoop.open({ clock: systemClock, log: nullLogger });
}

const ipv4 = fc.ipV4();
const ipv6 = fc.array(fc.integer({ min: 0, max: 0xffff }), { minLength: 8, maxLength: 8 })
  .map((groups) => groups.map((g) => g.toString(16)).join(":"));
const address = fc.record({ ip: fc.oneof(ipv4, ipv6), port: fc.integer({ min: 0, max: 65535 }) });

Deno.test("any address survives the way through sockaddr, and the table gives one object per address", () => {
  const table = new AddressTable();
  const words = new Uint32Array(16);
  const bytes = new Uint8Array(words.buffer);
  fc.assert(fc.property(address, fc.uint8Array({ minLength: 64, maxLength: 64 }), (at, noise) => {
    bytes.set(noise);
    putSockaddr(bytes, 32, at);
    const read = getSockaddr(bytes, 32);
    assert.equal(read.port, at.port);
    const found = table.find(words, 8);
    assert.deepEqual({ ip: found.ip, port: found.port }, read);
    // What lies behind an IPv4 address in the buffer is left from other datagrams: it must not matter.
    if (!at.ip.includes(":")) bytes.fill(0xee, 48, 64);
    assert.equal(table.find(words, 8), found);
    const again = new Uint8Array(SOCKADDR_MAX);
    putSockaddr(again, 0, at);
    const put = new Uint32Array(SOCKADDR_MAX >>> 2).fill(0xeeeeeeee);
    found.put(put, 0);
    assert.deepEqual(new Uint8Array(put.buffer), again);
    assert.equal(found.length, at.ip.includes(":") ? 28 : 16);
  }));
});

Deno.test("a flood of senders does not grow the table without end, and each still gets its own address", () => {
  const table = new AddressTable();
  const words = new Uint32Array(8);
  const bytes = new Uint8Array(words.buffer);
  const find = (i: number) => {
    putSockaddr(bytes, 0, { ip: `10.${i >> 16}.${(i >> 8) & 255}.${i & 255}`, port: i & 65535 });
    return table.find(words, 0);
  };
  const objects = new Set<SocketAddress>();
  for (let i = 0; i < 20_000; i++) {
    const found = find(i);
    assert.equal(found.port, i & 65535);
    objects.add(found);
  }
  assert.equal(objects.size, 20_000);
  assert(table.size <= 4096, `${table.size} are remembered`);
});

Deno.test("remembered addresses are forgotten when the loop is trimmed; who holds one still reaches it", async () => {
  await using loop = openLoop();
  const froms: IpPort[] = [];
  const echoed = [0, 1, 2].map(() => Promise.withResolvers<void>());
  const server = loop.bindUdp(LOCAL, (bytes, length, from) => {
    froms.push(from);
    server.send(bytes, length, froms[0]!);
  });
  const client = loop.bindUdp(LOCAL, (bytes) => echoed[bytes[0]!]!.resolve());
  for (const i of [0, 1, 2]) {
    if (i === 2) loop.trim();
    client.send(Uint8Array.of(i), 1, server.local);
    await echoed[i]!.promise;
  }
  assert.equal(froms[1], froms[0], "one object per address");
  assert.notEqual(froms[2], froms[0], "found anew");
  assert.deepEqual({ ip: froms[2]!.ip, port: froms[2]!.port }, client.local);
});

Deno.test("a remembered address takes no memory of the C library", () => {
  const words = new Uint32Array(8);
  const bytes = new Uint8Array(words.buffer);
  const tables: AddressTable[] = [];
  const grown = Array.from({ length: 5 }, () => {
    const table = new AddressTable();
    tables.push(table);
    const before = Deno.memoryUsage().external;
    for (let i = 0; i < 4000; i++) {
      putSockaddr(bytes, 0, { ip: i % 2 === 0 ? "10.1.2.3" : "fd00::1", port: i + 1 });
      table.find(words, 0);
    }
    assert.equal(table.size, 4000);
    return Deno.memoryUsage().external - before;
  });
  // What the tables take they take every time; what the engine books in between (a compiled function) it books once.
  assert(Math.min(...grown) < 16_000, `${grown} bytes for 4000 addresses each`);
});

Deno.test("a caller's own address object is translated once", () => {
  const at = { ip: "fd00::1", port: 53 };
  assert.equal(addressFor(at), addressFor(at));
  const ours = SocketAddress.of(at);
  assert.equal(addressFor(ours), ours);
});

Deno.test("small and large datagrams sent in one callback arrive in the order they were sent", async () => {
  await using loop = openLoop();
  const sizes: number[] = [];
  const sent = [100, 3000, 200, 5000, 60_000, 1, 2048, 2049, 7];
  const done = Promise.withResolvers<void>();
  const receiver = loop.bindUdp(LOCAL, (_, length) => {
    sizes.push(length);
    if (sizes.length === sent.length) done.resolve();
  });
  const sender = loop.bindUdp(LOCAL, () => {
    for (const size of sent) assert(sender.send(new Uint8Array(65_507), size, receiver.local));
  });
  receiver.send(new Uint8Array(1), 1, sender.local);
  await done.promise;
  assert.deepEqual(sizes, sent);
});

Deno.test("senders of both families are told apart on one loop", async () => {
  await using loop = openLoop();
  for (const ip of ["127.0.0.1", "::1", "127.0.0.1", "::1"]) {
    const from = Promise.withResolvers<IpPort>();
    const server = loop.bindUdp({ ip, port: 0 }, (_bytes, _length, sender) => from.resolve(sender));
    const client = loop.bindUdp({ ip, port: 0 }, () => {});
    client.send(new Uint8Array(1), 1, server.local);
    const { ip: seen, port } = await from.promise;
    assert.deepEqual({ ip: seen, port }, client.local);
  }
});

Deno.test("two hundred answers of one callback leave, in batches; those of a socket that closes leave before it", async () => {
  await using loop = openLoop();
  let got = 0;
  const client = loop.bindUdp(LOCAL, () => void got++);
  const server: UdpSocket = loop.bindUdp(LOCAL, (bytes, length, from) => {
    for (let i = 0; i < 200; i++) server.send(bytes, length, from);
    server.close();
    assert.equal(server.send(bytes, length, from), false);
  });
  client.send(new Uint8Array(10), 10, server.local);
  while (got < 200) await turn();
  assert.equal(loop.size, 1);
});

Deno.test("an owner that throws loses that datagram only", async () => {
  const sink = memorySink();
  await using loop = EpollLoop.open({ clock: systemClock, log: createLogger(sink) });
  const got: number[] = [];
  const server = loop.bindUdp(LOCAL, (bytes) => {
    if (bytes[0] === 1) throw new Error("bug of the owner");
    got.push(bytes[0]!);
  });
  const client = loop.bindUdp(LOCAL, () => {});
  for (const i of [0, 1, 2]) client.send(Uint8Array.of(i), 1, server.local);
  while (got.length < 2) await turn();
  assert.deepEqual(got, [0, 2]);
  assert.match(sink.lines[0]!, /bug of the owner/);
});

Deno.test("sockets ask for large buffers, so that bursts are not lost", async () => {
  await using loop = openLoop();
  let got = 0;
  const server = loop.bindUdp(LOCAL, () => void got++);
  const client = loop.bindUdp(LOCAL, () => {});
  const burst = Deno.uid() === 0 ? 2000 : 90;
  for (let i = 0; i < burst; i++) assert(client.send(new Uint8Array(200), 200, server.local));
  for (let i = 0; i < 500 && got < burst; i++) await turn();
  assert.equal(got, burst);
});

Deno.test({
  name: "a full socket refuses until the kernel has room again; one refused destination does not stop the others",
  ignore,
  fn: () =>
    inNamespace(async () => {
      run("nft", "add table ip t");
      run("nft", "add chain ip t out { type filter hook output priority 0; }");
      run("nft", "add rule ip t out udp dport 9 drop");
      await using loop = openLoop();
      let got = 0;
      const server = loop.bindUdp(LOCAL, () => void got++);
      const nowhere = { ip: "127.0.0.1", port: 9 };
      const start = Promise.withResolvers<void>();
      const client = loop.bindUdp(LOCAL, () => {
        for (let i = 0; i < 10; i++) {
          client.send(new Uint8Array(10), 10, nowhere);
          client.send(new Uint8Array(10), 10, server.local);
        }
        start.resolve();
      }) as LoopUdpSocket;
      server.send(new Uint8Array(1), 1, client.local);
      await start.promise;
      while (got < 10) await turn();
      assert.equal(client.dropped, 10);
      // A slow link whose queue holds more than the socket's buffer.
      run("tc", "qdisc", "replace", "dev", "lo", "root", "tbf", "rate", "400mbit", "burst", "100kb", "limit", "100mb");
      const big = new Uint8Array(60_000);
      let accepted = 0;
      while (client.send(big, big.length, server.local)) accepted++;
      assert(accepted > 10 && accepted < 1000, `${accepted} were taken`);
      assert.equal(client.send(big, 10, server.local), false);
      got = 0;
      while (!client.send(big, 10, server.local)) await turn();
      while (got <= accepted) await turn();
      assert.equal(got, accepted + 1);
    }),
});
