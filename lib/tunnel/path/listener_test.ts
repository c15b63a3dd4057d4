import "../../linux/preload.ts";
import assert from "node:assert/strict";
import type { Duplex } from "node:stream";
import net from "node:net";
import { pause, systemClock } from "../../clock.ts";
import { MeshError } from "../../errors.ts";
import { EpollLoop } from "../../linux/loop.ts";
import { nullLogger } from "../../log.ts";
import type { IpPort } from "../../net.ts";
import { TestPki } from "../../../tests/contract/tunnel_pki.ts";
import type { Carrier } from "../carrier.ts";
import { legOfFd } from "../carriers/tcp_leg.ts";
import { PortableEngine } from "../carriers/tls.ts";
import { makeKnock } from "./knock.ts";
import { dialLeg, type PathSockets } from "./legs.ts";
import { AgentListener, type ListenerLimits } from "./listener.ts";

const KEY = new Uint8Array(32).fill(1);

interface Rig {
  readonly at: IpPort;
  readonly listener: AgentListener;
  readonly carriers: Carrier[];
  dial(options?: { key?: Uint8Array; node?: string; as?: string }): Promise<Carrier>;
}

async function withListener(limits: Partial<ListenerLimits>, test: (rig: Rig) => Promise<void>): Promise<void> {
  const pki = await TestPki.create();
  const loop = EpollLoop.open({ clock: systemClock, log: nullLogger });
  const sockets: PathSockets = { loop, leg: (stream) => legOfFd(loop.takeFd(stream)) };
  const engine = async (name: string) => {
    const credentials = await pki.issue(name);
    return new PortableEngine({ clock: systemClock, credentials: () => credentials, verify: pki.verifyNode });
  };
  const carriers: Carrier[] = [];
  const made: Carrier[] = [];
  const listener = new AgentListener({
    sockets,
    engine: await engine("edge-1"),
    clock: systemClock,
    log: nullLogger,
    node: "edge-1",
    keys: () => [KEY],
    pathFrom: () => "lan",
    onCarrier: (carrier) => carriers.push(carrier),
    limits,
  });
  listener.listen({ ip: "127.0.0.1", port: 0 });
  const at = { ip: "127.0.0.1", port: listener.port };
  const dial: Rig["dial"] = ({ key = KEY, node = "edge-1", as = "edge-2" } = {}) =>
    new Promise((resolve, reject) => {
      dialLeg(sockets, { to: at, node, key, timeoutMs: 3000 }, (leg) => {
        if (leg instanceof MeshError) return reject(leg);
        engine(as).then((e) => e.connect(leg as Duplex, { peer: node, path: "lan" })).then((carrier) => {
          made.push(carrier);
          resolve(carrier);
        }, reject);
      });
    });
  try {
    await test({ at, listener, carriers, dial });
  } finally {
    for (const carrier of [...made, ...carriers]) carrier.close("PEER_GONE");
    listener.close();
    await pause(20);
    loop.close();
    await loop.finished;
  }
}

async function until(done: () => boolean): Promise<void> {
  for (let i = 0; !done(); i++) {
    assert.ok(i < 2000, "the condition did not come true in 4 s");
    await pause(2);
  }
}

/** Connects, says something and tells what came back until the end. */
function stranger(at: IpPort, say: Uint8Array | undefined): Promise<{ readonly got: number; readonly end: string }> {
  return new Promise((resolve) => {
    const socket = net.connect({ host: at.ip, port: at.port });
    let got = 0;
    socket.on("data", (d) => got += d.length);
    socket.on("error", (e) => resolve({ got, end: (e as { code?: string }).code ?? "error" }));
    socket.on("close", () => resolve({ got, end: "closed" }));
    if (say) socket.write(say);
  });
}

Deno.test("an agent with the knock and a certificate gets a carrier, named by the path it came on", async () => {
  await withListener({}, async ({ dial, carriers, listener }) => {
    const mine = await dial();
    await until(() => carriers.length === 1);
    assert.equal(mine.peer.node, "edge-1");
    assert.equal(carriers[0]!.peer.node, "edge-2");
    assert.equal(carriers[0]!.path, "lan");
    const got: string[] = [];
    carriers[0]!.handler = {
      onBatch: (b) => got.push(new TextDecoder().decode(b)),
      onDrain() {},
      onClose: (reason) => got.push(`close ${reason}`),
    };
    mine.send(new TextEncoder().encode("batch"));
    await until(() => got.length === 1);
    mine.close("SHUTDOWN");
    await until(() => got.length === 2);
    assert.deepEqual(got, ["batch", "close undefined"]);
    assert.deepEqual(listener.stats(), { pending: 0, accepted: 1, refused: 0, turnedAway: 0 });
  });
});

Deno.test("T01: strangers get no byte: neither TLS clients, nor web clients, nor the knock for another node or mesh", async () => {
  await withListener({ knockMs: 200 }, async ({ at, listener }) => {
    const hello = Uint8Array.of(0x16, 3, 1, 0, 60, ...new Array(60).fill(1));
    const http = new TextEncoder().encode("GET / HTTP/1.1\r\nHost: edge-1\r\n\r\n");
    const says = [hello, http, makeKnock(KEY, "edge-9"), makeKnock(new Uint8Array(32), "edge-1"), undefined];
    for (const say of says) {
      const { got } = await stranger(at, say);
      assert.equal(got, 0);
    }
    assert.equal(listener.stats().refused, says.length);
    assert.equal(listener.stats().pending, 0);
  });
});

Deno.test("half a knock is waited for until the deadline and no longer", async () => {
  await withListener({ knockMs: 100 }, async ({ at }) => {
    const start = systemClock.now();
    const { got, end } = await stranger(at, makeKnock(KEY, "edge-1").subarray(0, 20));
    assert.deepEqual([got, end], [0, "ECONNRESET"]);
    assert.ok(systemClock.now() - start >= 90);
  });
});

Deno.test("connections without TLS are capped per source; agents get in when the strangers are gone", async () => {
  await withListener({ perSource: 2, knockMs: 300 }, async ({ at, listener, dial }) => {
    const waiting = [stranger(at, undefined), stranger(at, undefined)];
    await until(() => listener.stats().pending === 2);
    assert.equal((await stranger(at, undefined)).end, "ECONNRESET");
    assert.equal(listener.stats().turnedAway, 1);
    await Promise.all(waiting);
    await dial();
  });
});

Deno.test("the cap of all sources together holds, too", async () => {
  await withListener({ pending: 1, knockMs: 200 }, async ({ at, listener }) => {
    const waiting = stranger(at, undefined);
    await until(() => listener.stats().pending === 1);
    assert.equal((await stranger(at, undefined)).end, "ECONNRESET");
    await waiting;
  });
});

Deno.test("the right knock and a certificate of nobody is refused by TLS and leaves nothing", async () => {
  const foreign = await TestPki.create();
  const credentials = await foreign.issue("edge-2");
  await withListener({}, async ({ at, listener, carriers }) => {
    const engine = new PortableEngine({
      clock: systemClock,
      credentials: () => credentials,
      verify: () => ({ node: "edge-1", keyHash: "x" }),
    });
    const socket = net.connect({ host: at.ip, port: at.port });
    await new Promise((resolve) => socket.once("connect", resolve));
    socket.write(makeKnock(KEY, "edge-1"));
    await engine.connect(socket, { peer: "edge-1", path: "lan" }).then((c) => c.close("PEER_GONE"), () => {});
    await until(() => listener.stats().refused === 1 && listener.stats().pending === 0);
    assert.equal(carriers.length, 0);
    socket.destroy();
  });
});

Deno.test("closing the listener cuts who is not in yet", async () => {
  await withListener({}, async ({ at, listener }) => {
    const waiting = stranger(at, undefined);
    await until(() => listener.stats().pending === 1);
    listener.close();
    assert.equal((await waiting).got, 0);
    assert.equal(listener.port, 0);
    await assert.rejects(new Promise((_resolve, reject) => net.connect(at.port, at.ip).once("error", reject)));
  });
});

Deno.test("a refused or silent dial says why", async () => {
  await withListener({}, async ({ listener, dial }) => {
    listener.close();
    await assert.rejects(dial(), { code: "DIAL_REFUSED" });
  });
});
