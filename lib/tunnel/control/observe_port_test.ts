import assert from "node:assert/strict";
import net from "node:net";
import { FakeClock, pause } from "../../clock.ts";
import { nullLogger } from "../../log.ts";
import type { IpPort } from "../../net.ts";
import { decodeAnswer, encodeRequest } from "../path/sighting.ts";
import { ObservePort } from "./observe_port.ts";

const NONCE = "00112233445566778899aabbccddeeff";

interface Rig {
  readonly clock: FakeClock;
  readonly port: ObservePort;
  readonly at: IpPort;
  readonly seen: { nonce: string; from: IpPort; at: IpPort }[];
  connect(say?: Uint8Array): Promise<Client>;
}

interface Client {
  readonly socket: net.Socket;
  readonly got: Uint8Array[];
  readonly end: Promise<string>;
}

async function withPort(test: (rig: Rig) => Promise<void>): Promise<void> {
  const clock = new FakeClock();
  const seen: Rig["seen"] = [];
  const port = new ObservePort({
    clock,
    log: nullLogger,
    seen: (nonce, from, at) => {
      seen.push({ nonce, from, at });
      return nonce === NONCE;
    },
  });
  const at = await port.listen({ ip: "127.0.0.1", port: 0 });
  const clients: net.Socket[] = [];
  const connect: Rig["connect"] = (say) =>
    new Promise((resolve, reject) => {
      const socket = net.connect({ host: at.ip, port: at.port });
      clients.push(socket);
      const got: Uint8Array[] = [];
      const end = new Promise<string>((ended) => {
        socket.on("error", (e) => ended((e as { code?: string }).code ?? "error"));
        socket.on("close", () => ended("closed"));
      });
      socket.on("data", (d) => got.push(d as Uint8Array));
      socket.once("error", reject);
      socket.once("connect", () => {
        if (say) socket.write(say);
        resolve({ socket, got, end });
      });
    });
  try {
    await test({ clock, port, at, seen, connect });
  } finally {
    for (const socket of clients) socket.destroy();
    await port.close();
    await pause(10);
  }
}

async function until(done: () => boolean): Promise<void> {
  for (let i = 0; !done(); i++) {
    assert.ok(i < 2000, "the condition did not come true in 4 s");
    await pause(2);
  }
}

Deno.test("T20: who knows a nonce learns where he is seen, and keeps his mapping for a while", async () => {
  await withPort(async ({ clock, port, at, seen, connect }) => {
    const { socket, got, end } = await connect(encodeRequest(NONCE));
    await until(() => got.length > 0);
    const me = { ip: "127.0.0.1", port: socket.localPort! };
    assert.deepEqual(decodeAnswer(NONCE, got[0]!), me);
    assert.deepEqual(seen, [{ nonce: NONCE, from: me, at }]);
    clock.advance(11_000);
    await pause(5);
    assert.equal(port.size, 1);
    clock.advance(2_000);
    assert.equal(await end, "closed");
    await until(() => port.size === 0);
    assert.equal(clock.pending, 0);
  });
});

Deno.test("T20: a request in pieces is read; anything else gets RST and no byte", async () => {
  await withPort(async ({ connect, port }) => {
    const request = encodeRequest(NONCE);
    const client = await connect(request.subarray(0, 7));
    await pause(10);
    client.socket.write(request.subarray(7));
    await until(() => client.got.length > 0);
    const tooMuch = new Uint8Array(21);
    tooMuch.set(request);
    const http = new TextEncoder().encode("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    for (const say of [encodeRequest("f".repeat(32)), tooMuch, http]) {
      const { got, end } = await connect(say);
      assert.equal(await end, "ECONNRESET");
      assert.equal(got.length, 0);
    }
    client.socket.destroy();
    await until(() => port.size === 0);
  });
});

Deno.test("a second request on one connection ends it", async () => {
  await withPort(async ({ connect }) => {
    const { socket, got, end } = await connect(encodeRequest(NONCE));
    await until(() => got.length > 0);
    socket.write(encodeRequest(NONCE));
    assert.equal(await end, "ECONNRESET");
  });
});

Deno.test("who says nothing is cut off, and one source has a limit", async () => {
  await withPort(async ({ clock, port, connect }) => {
    const silent = await Promise.all(Array.from({ length: 64 }, () => connect()));
    await until(() => port.size === 64);
    const refused = await connect().then(({ end }) => end, (error) => (error as { code: string }).code);
    assert.equal(refused, "ECONNRESET");
    clock.advance(5_000);
    for (const { end } of silent) assert.equal(await end, "ECONNRESET");
    await until(() => port.size === 0);
  });
});

Deno.test("a taken port is an error with the address", async () => {
  await withPort(async ({ clock, at }) => {
    const second = new ObservePort({ clock, log: nullLogger, seen: () => false });
    await assert.rejects(second.listen(at), { code: "KERNEL" });
    await second.close();
  });
});
