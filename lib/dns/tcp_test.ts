import assert from "node:assert/strict";
import { idleHandler, type MemoryStream } from "../net_memory.ts";
import { decode, type Decoded, encodeQuery, TestServer, upstreamProgram } from "./testing.ts";
import { MAX_TCP_PER_SOURCE, TCP_IDLE_MS } from "./tcp.ts";
import { endpoint, MemoryMeta, service, slice } from "./testing_meta.ts";

const UP = { ip: "192.0.2.53", port: 53 };
const NAME = "web.shop.svc.cluster.local";
const POD = "10.1.2.3";

function start(): TestServer {
  const meta = new MemoryMeta({
    services: [service("shop", "web", { clusterIPs: ["10.96.0.7"] }), service("shop", "big", { headless: true })],
    slices: [
      slice({ namespace: "shop", service: "big" }, Array.from({ length: 200 }, (_, i) => endpoint(`10.2.0.${i + 1}`))),
    ],
  });
  return new TestServer({ meta, config: { upstreams: [{ at: UP }] } });
}

/** A client's connection. */
class Client {
  readonly stream: MemoryStream;
  readonly #server: TestServer;
  #bytes = new Uint8Array(0);
  ended = false;
  closed: string | undefined;

  constructor(server: TestServer, ip = POD) {
    this.#server = server;
    this.stream = server.network.connect(server.address, ip);
    this.stream.handler = { ...idleHandler, onClose: (reason) => void (this.closed = reason ?? "clean") };
    server.network.scheduler.run();
  }

  write(bytes: Uint8Array): void {
    this.stream.write(bytes, 0, bytes.length);
    this.#server.network.scheduler.run();
  }

  /** Complete messages that have come. */
  read(): Decoded[] {
    this.#server.network.scheduler.run();
    const chunk = new Uint8Array(65536);
    for (;;) {
      const n = this.stream.read(chunk);
      if (n === 0) this.ended = true;
      if (n <= 0) break;
      const all = new Uint8Array(this.#bytes.length + n);
      all.set(this.#bytes);
      all.set(chunk.subarray(0, n), this.#bytes.length);
      this.#bytes = all;
      this.#server.network.scheduler.run();
    }
    const messages: Decoded[] = [];
    while (this.#bytes.length >= 2) {
      const size = (this.#bytes[0]! << 8) | this.#bytes[1]!;
      if (this.#bytes.length < 2 + size) break;
      messages.push(decode(this.#bytes.slice(2, 2 + size)));
      this.#bytes = this.#bytes.slice(2 + size);
    }
    return messages;
  }
}

function framed(name: string, id = 1): Uint8Array {
  const query = encodeQuery(name, "A");
  query[0] = id >> 8;
  query[1] = id & 0xff;
  return Uint8Array.from([query.length >> 8, query.length & 0xff, ...query]);
}

function join(parts: readonly Uint8Array[]): Uint8Array {
  return Uint8Array.from(parts.flatMap((p) => [...p]));
}

Deno.test("tcp: 100 pipelined queries get 100 answers", async () => {
  const server = start();
  const client = new Client(server);
  client.write(join(Array.from({ length: 100 }, (_, i) => framed(NAME, i))));
  assert.deepEqual(client.read().map((m) => m.id), Array.from({ length: 100 }, (_, i) => i));
  await server.close();
});

Deno.test("tcp: a query that comes byte by byte", async () => {
  const server = start();
  const client = new Client(server);
  for (const byte of framed(NAME)) {
    assert.deepEqual(client.read(), []);
    client.write(Uint8Array.of(byte));
  }
  assert.equal(client.read()[0]!.answers!.length, 1);
  await server.close();
});

Deno.test("tcp: an answer at hand overtakes one that has to be asked for", async () => {
  const server = start();
  const client = new Client(server);
  client.write(join([framed("slow.test", 1), framed(NAME, 2)]));
  assert.deepEqual(client.read().map((m) => m.id), [2]);
  server.network.at(
    UP,
    upstreamProgram({ "slow.test/A": [{ name: "slow.test", type: "A", ttl: 9, data: "192.0.2.1" }] }),
  );
  for (let i = 0; i < 100; i++) {
    server.clock.advance(10);
    await server.settle();
  }
  assert.deepEqual(client.read().map((m) => [m.id, m.answers!.length]), [[1, 1]]);
  await server.close();
});

Deno.test("tcp: what is truncated over UDP comes whole", async () => {
  const server = start();
  const client = new Client(server);
  client.write(framed("big.shop.svc.cluster.local"));
  const [answer] = client.read();
  assert.deepEqual([answer!.answers!.length, answer!.flag_tc], [200, false]);
  await server.close();
});

Deno.test("tcp: idle connections are closed after 10 s; a question starts the time anew", async () => {
  const server = start();
  const client = new Client(server);
  server.clock.advance(TCP_IDLE_MS - 1);
  client.write(framed(NAME));
  assert.equal(client.read().length, 1);
  server.clock.advance(TCP_IDLE_MS - 1);
  server.network.scheduler.run();
  assert.equal(client.closed, undefined);
  server.clock.advance(TCP_IDLE_MS / 10 + 1);
  server.network.scheduler.run();
  assert.equal(client.closed, "SHUTDOWN");
  await server.close();
});

for (
  const [what, bytes] of [
    ["a length of 0", Uint8Array.of(0, 0, 1, 2)],
    ["a length beyond any query", Uint8Array.of(0xff, 0xff, 1, 2)],
  ] as const
) {
  Deno.test(`tcp: ${what} ends the connection`, async () => {
    const server = start();
    const client = new Client(server);
    client.write(bytes);
    assert.equal(client.closed, "SHUTDOWN");
    await server.close();
  });
}

Deno.test("tcp: garbage of the right length is dropped or refused, the connection goes on", async () => {
  const server = start();
  const client = new Client(server);
  client.write(Uint8Array.from([0, 5, 1, 2, 3, 4, 5, ...framed(NAME)]));
  assert.equal(client.read().at(-1)!.answers!.length, 1);
  await server.close();
});

Deno.test("tcp: a client that closes its side still gets its answers, then our end", async () => {
  const server = start();
  const client = new Client(server);
  client.write(framed(NAME));
  client.stream.closeWrite();
  assert.equal(client.read().length, 1);
  client.read();
  assert.equal(client.ended, true);
  server.network.scheduler.run();
  assert.equal(server.server.stats().tcpConnections, 0);
  await server.close();
});

Deno.test("tcp: a client that does not read holds nothing but its own buffer", async () => {
  const server = start();
  const client = new Client(server);
  for (let i = 0; i < 400 && client.closed === undefined; i++) client.write(framed("big.shop.svc.cluster.local", i));
  assert.equal(client.closed, undefined, "it is held back, not cut");
  let answers = 0;
  for (let more = client.read(); more.length > 0; more = client.read()) answers += more.length;
  assert.ok(answers >= 100, `${answers} answers after it began to read`);
  await server.close();
});

Deno.test("tcp: connections per source are limited; sources that may not ask have none", async () => {
  const server = start();
  const clients = Array.from({ length: MAX_TCP_PER_SOURCE + 1 }, () => new Client(server));
  assert.equal(clients.at(-1)!.closed, "LIMIT");
  assert.equal(clients[0]!.closed, undefined);
  assert.equal(new Client(server, "10.1.2.4").closed, undefined);
  assert.equal(new Client(server, "203.0.113.1").closed, "LIMIT");
  clients[0]!.stream.reset("RESET");
  server.network.scheduler.run();
  assert.equal(new Client(server).closed, undefined);
  await server.close();
});

Deno.test("tcp: closing the server ends every connection and every timer", async () => {
  const server = start();
  const client = new Client(server);
  client.write(framed("slow.test"));
  await server.close();
  server.network.scheduler.run();
  assert.equal(client.closed, "SHUTDOWN");
  assert.equal(server.clock.pending, 0);
});
