/** Relay legs over real sockets: a busy channel moves to connections that the kernel joins, and back when they end. */
import "../../lib/linux/preload.ts";
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import net from "node:net";
import { systemClock } from "../../lib/clock.ts";
import { EpollLoop } from "../../lib/linux/loop.ts";
import { openTlsLibrary } from "../../lib/linux/openssl.ts";
import { nullLogger } from "../../lib/log.ts";
import type { MeshStream } from "../../lib/net.ts";
import { StreamLeg } from "../../lib/tunnel/carriers/stream_leg.ts";
import { legOfFd } from "../../lib/tunnel/carriers/tcp_leg.ts";
import type { ServerLegs } from "../../lib/tunnel/control/server.ts";
import { type AgentParts, type TestAgent, type TestServer, TunnelRig } from "./tunnel_rig.ts";

const BYTES = 4_000_000;
/** Agents that look for better paths, where no server introduces them. */
const RELAY_ONLY = {
  eager: false,
  keys: () => [new Uint8Array(32)],
  host: () => [],
  listen: undefined,
  advertise: [],
  allowed: [],
  punchPorts: [21_000, 21_999],
  openLan: undefined,
} as const;

interface Parts {
  readonly rig: TunnelRig;
  readonly server: TestServer;
  readonly a: TestAgent;
  readonly b: TestAgent;
}

/** A server and two agents, both of the engine given, whose sockets are those of one loop. */
function test(name: string, engines: readonly ("fast" | "portable")[], run: (parts: Parts) => Promise<void>): void {
  Deno.test(name, async () => {
    const loop = EpollLoop.open({ clock: systemClock, log: nullLogger });
    const tls = openTlsLibrary();
    try {
      await TunnelRig.run(async (rig) => {
        const server = await rig.server({ legs: serverLegs(loop) });
        const agents = [];
        for (const [i, engine] of engines.entries()) {
          const parts: AgentParts = engine === "fast"
            ? {
              fast: () => ({ tls, defer: (work) => loop.defer(work) }),
              legs: { loop, leg: (stream) => new StreamLeg(stream, loop.localOf(stream).ip) },
            }
            : { legs: { loop, leg: (stream) => legOfFd(loop.takeFd(stream)) } };
          agents.push(await rig.agent(`edge-${"ab"[i]}`, server.url, parts));
        }
        await run({ rig, server, a: agents[0]!, b: agents[1]! });
      });
      await free(() => tls.live === 0);
    } finally {
      loop.close();
      await loop.finished;
      tls.close();
    }
  });
}

function serverLegs(loop: EpollLoop): ServerLegs {
  return {
    sockets: {
      loop,
      peek: (stream, into) => loop.peek(stream, into),
      socket: (stream) => legOfFd(loop.takeFd(stream)),
    },
    join: (a, b, onEnd) => {
      const splice = loop.splice(a, b, { onEnd: (_reason, there, back) => onEnd(there + back) })!;
      return {
        get bytes() {
          return splice.aToB + splice.bToA;
        },
        reset: () => splice.reset("SHUTDOWN"),
      };
    },
  };
}

/** Sends a lot from a to b and back, and compares. */
async function echoed(from: TestAgent, to: string): Promise<void> {
  const client = from.dial(to);
  const [sent, received] = [createHash("sha256"), createHash("sha256")];
  client.onBytes = (bytes) => received.update(bytes);
  const block = crypto.getRandomValues(new Uint8Array(50_000));
  for (let at = 0; at < BYTES; at += block.length) {
    sent.update(block);
    await client.write(block);
  }
  client.stream.closeWrite();
  await client.until(() => client.ended || client.over);
  assert.equal(client.received, BYTES);
  assert.equal(received.digest("hex"), sent.digest("hex"));
}

async function free(done: () => boolean): Promise<void> {
  for (let i = 0; i < 400 && !done(); i++) await new Promise((resolve) => setTimeout(resolve, 5));
  assert.ok(done());
}

for (
  const engines of [["fast", "fast"], ["fast", "portable"], ["portable", "fast"], ["portable", "portable"]] as const
) {
  test(`a busy channel moves to legs in the middle of a stream (${engines.join(", ")})`, engines, async (parts) => {
    const { server, a, b } = parts;
    const quiet = a.dial("edge-b", "hello");
    await quiet.until(() => quiet.received === 5);
    assert.equal(server.server.stats().legs!.joined, 0, "a few bytes are no reason");
    await echoed(a, "edge-b");
    await b.until(() => server.server.stats().legs!.joined === 1);
    await echoed(b, "edge-a");
    const legs = server.server.stats().legs!;
    assert.ok(legs.bytes > 2 * BYTES, `${legs.bytes} bytes went over the legs`);
    await a.until(() => a.tunnel.servers.channels === 0);
    assert.equal(quiet.over, false, "streams go on");
    assert.equal(a.tunnel.manager.pathTo("edge-b"), "relay");
  });
}

test("legs that break cost no byte: a channel is there again, and later new legs", ["fast", "fast"], async (parts) => {
  const { server, a } = parts;
  await echoed(a, "edge-b");
  await a.until(() => server.server.stats().legs!.joined === 1);
  const client = a.dial("edge-b", "before");
  await client.until(() => client.received === 6);
  server.server.cutLegs("edge-b");
  await client.write(" and after");
  await client.until(() => client.received === 16);
  assert.equal(client.text, "before and after");
  await echoed(a, "edge-b");
  await a.until(() => server.server.stats().legs!.joined === 1);
});

/** Sooner than a session gives up a way that says nothing by itself (6 s, PROTOCOL.md §6). */
const MOVED_MS = 5_000;

Deno.test("T17: legs through a server that falls silent are left for the other server", async () => {
  const loop = EpollLoop.open({ clock: systemClock, log: nullLogger });
  const sockets = { loop, leg: (stream: MeshStream) => legOfFd(loop.takeFd(stream)) };
  try {
    await TunnelRig.run(async (rig) => {
      const servers = [await rig.server({ legs: serverLegs(loop) }), await rig.server({ legs: serverLegs(loop) })];
      const mute = [false, false];
      const urls = await Promise.all(servers.map(({ at }, i) => rig.delayed(at, 0, () => mute[i]!)));
      const [a, b] = await Promise.all(
        ["edge-a", "edge-b"].map((node) => rig.agent(node, urls, { legs: sockets, paths: { ...RELAY_ONLY, sockets } })),
      ) as [TestAgent, TestAgent];
      await Promise.all([a, b].map((agent) => agent.until(() => agent.up === 2)));
      await echoed(a, "edge-b");
      const joined = () => servers.findIndex(({ server }) => server.stats().legs!.joined === 1);
      await a.until(() => joined() >= 0);
      const client = a.dial("edge-b", "before");
      await client.until(() => client.received === 6);
      mute[joined()] = true;
      const began = systemClock.now();
      await client.write(" and after");
      await client.until(() => client.received === 16 || client.over);
      assert.equal(client.text, "before and after");
      const ms = systemClock.now() - began;
      assert.ok(ms < MOVED_MS, `the stream was silent for ${ms} ms`);
    });
  } finally {
    loop.close();
    await loop.finished;
  }
});

test("what is no leg and no TLS, and a ticket that nobody gave, get nothing", ["fast"], async ({ server }) => {
  const { ip, port } = server.at;
  const cases = [
    new TextEncoder().encode("EMR1" + "x".repeat(32)),
    new TextEncoder().encode("EMR2" + "x".repeat(32)),
    new TextEncoder().encode("GET / HTTP/1.1\r\n\r\n"),
  ];
  for (const bytes of cases) {
    const socket = net.connect({ host: ip, port });
    const received: Uint8Array[] = [];
    socket.on("data", (chunk: Uint8Array) => received.push(chunk));
    socket.on("error", () => {});
    const closed = new Promise((resolve) => socket.once("close", resolve));
    socket.write(bytes);
    await closed;
    // TLS may answer nonsense with an alert; nothing else.
    assert.ok(received.every((chunk) => chunk[0] === 21), String(received));
  }
  assert.equal(server.server.stats().legs!.refused, 1);
  await free(() => server.server.stats().pending === 0);
});
