/**
 * Direct paths with whole tunnels in one process: real sockets and TLS on addresses of a network namespace. What NATs
 * and real distances do is tests/lab's.
 */
import "../../lib/linux/preload.ts";
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { pause, systemClock } from "../../lib/clock.ts";
import { EpollLoop } from "../../lib/linux/loop.ts";
import { inNamespace, mayMakeNamespaces, run } from "../../lib/linux/testing.ts";
import { nullLogger } from "../../lib/log.ts";
import type { OnDatagram } from "../../lib/net.ts";
import type { AgentPathsOptions } from "../../lib/tunnel/agent_tunnel.ts";
import { legOfFd } from "../../lib/tunnel/carriers/tcp_leg.ts";
import type { LanSocket } from "../../lib/tunnel/path/discovery.ts";
import { echo, type TestAgent, TunnelRig } from "./tunnel_rig.ts";

const KEY = new Uint8Array(32).fill(9);
const ignore = !mayMakeNamespaces("tests/contract/paths_test.ts");

/** A LAN of agents: each has an address of 10.9.0.0/24, and hears the others' multicasts. */
class Lan {
  readonly loop = EpollLoop.open({ clock: systemClock, log: nullLogger });
  readonly #members = new Map<string, OnDatagram>();
  /** Nothing said on the LAN arrives. */
  deaf = true;

  paths(ip: string, more: Partial<AgentPathsOptions> = {}): AgentPathsOptions {
    const { loop } = this;
    return {
      eager: false,
      sockets: { loop, leg: (stream) => legOfFd(loop.takeFd(stream)) },
      keys: () => [KEY],
      host: () => [{ ip, bits: 24, link: 1 }],
      listen: { ip, port: 20006 },
      advertise: [],
      allowed: [],
      punchPorts: [21_000, 21_999],
      openLan: (onDatagram) => this.#open(ip, onDatagram),
      ...more,
    };
  }

  #open(ip: string, onDatagram: OnDatagram): LanSocket {
    this.#members.set(ip, onDatagram);
    return {
      join() {},
      send: (bytes) => {
        if (this.deaf) return true;
        for (const [other, hear] of this.#members) {
          if (other !== ip) queueMicrotask(() => hear(bytes, bytes.length, { ip, port: 20006 }));
        }
        return true;
      },
      close: () => void this.#members.delete(ip),
    };
  }
}

interface World {
  readonly rig: TunnelRig;
  readonly lan: Lan;
}

function test(name: string, body: (world: World) => Promise<void>): void {
  Deno.test({
    name,
    ignore,
    fn: () =>
      inNamespace(async () => {
        for (const n of [1, 2, 3]) run("ip", "addr", "add", `10.9.0.${n}/24`, "dev", "lo");
        const lan = new Lan();
        try {
          await TunnelRig.run((rig) => body({ rig, lan }));
        } finally {
          lan.loop.close();
          await lan.loop.finished;
        }
      }),
  });
}

/** Two agents on the LAN and a server that introduces them. */
async function pair({ rig, lan }: World, more: Partial<AgentPathsOptions> = {}) {
  const server = await rig.server({ paths: { observe: { ip: "127.0.0.1", port: 0 }, servers: [] } });
  const a = await rig.agent("edge-a", server.url, { paths: lan.paths("10.9.0.1", more) });
  const b = await rig.agent("edge-b", server.url, { paths: lan.paths("10.9.0.2", more) });
  return { server, a, b };
}

const pathTo = (agent: TestAgent, node: string) => agent.tunnel.status().peers.find((peer) => peer.node === node)?.path;

async function request(from: TestAgent, to: string): Promise<void> {
  const client = from.dial(to, "hello");
  client.stream.closeWrite();
  await client.until(() => client.ended || client.over);
  assert.equal(client.text, "hello", `${client.reason}`);
}

test("the relay answers first, the LAN takes over while bytes flow, and none is lost", async (world) => {
  const { a, b } = await pair(world);
  const client = a.dial("edge-b");
  const [sent, received] = [createHash("sha256"), createHash("sha256")];
  client.onBytes = (bytes) => received.update(bytes);
  const block = crypto.getRandomValues(new Uint8Array(65536));
  for (let i = 0; i < 400 || pathTo(a, "edge-b") !== "lan"; i++) {
    assert.ok(i < 20_000, "the LAN was never used");
    block[0] = i;
    sent.update(block);
    await client.write(block);
  }
  client.stream.closeWrite();
  await client.until(() => client.ended || client.over);
  assert.equal(received.digest("hex"), sent.digest("hex"));
  await b.until(() => pathTo(b, "edge-a") === "lan");
});

test("whichever side begins, the LAN is found, and the relay's channel is given back", async (world) => {
  const { a, b, server } = await pair(world);
  await request(b, "edge-a");
  await a.until(() => pathTo(a, "edge-b") === "lan" && pathTo(b, "edge-a") === "lan");
  await a.until(() => server.server.stats().relay.lines.every((line) => line.channels === 0));
  assert.equal(a.tunnel.status().why.size, 0);
});

test("a LAN path does not need the server: it is made without one, and outlives it", async (world) => {
  const { a, b, server } = await pair(world);
  await server.close();
  await a.until(() => a.downs.length > 0);
  world.lan.deaf = false;
  await request(a, "edge-b");
  assert.equal(pathTo(a, "edge-b"), "lan");
  b.serve = (incoming) => echo(incoming);
  await request(b, "edge-a");
});

test("with no server and a deaf LAN the dial fails within two seconds, and status says why", async (world) => {
  const { a, server } = await pair(world);
  await server.close();
  await a.until(() => a.downs.length > 0);
  const start = systemClock.now();
  const client = a.dial("edge-b");
  assert.notEqual(await client.closed(), undefined);
  assert.ok(systemClock.now() - start < 2_000);
  assert.match(a.tunnel.status().why.get("edge-b")!, /no server is connected/);
});

test("the address of another agent is not mistaken for the peer's", async (world) => {
  const { rig, lan } = world;
  const server = await rig.server({ paths: { observe: undefined, servers: [] } });
  const a = await rig.agent("edge-a", server.url, { paths: lan.paths("10.9.0.1") });
  await rig.agent("edge-c", server.url, { paths: lan.paths("10.9.0.3") });
  // edge-b claims edge-c's address; its own listener is off.
  const claimed = { ip: "10.9.0.3", port: 20006 };
  await rig.agent("edge-b", server.url, { paths: lan.paths("10.9.0.2", { listen: undefined, advertise: [claimed] }) });
  await request(a, "edge-b");
  await a.until(() => /10\.9\.0\.3:20006 \(hangs up\)/.test(a.tunnel.status().why.get("edge-b") ?? ""));
  assert.equal(pathTo(a, "edge-b"), "relay");
});

test("what is said of a peer while an agent goes begins no search for it", async (world) => {
  const { a } = await pair(world);
  await request(a, "edge-b");
  const paths = a.tunnel.paths!;
  const [server] = a.tunnel.servers.clients;
  await a.tunnel.close();
  const [addresses, observed] = [[{ ip: "10.9.0.3", port: 20006 }], ["10.9.0.3"]];
  paths.message(server!, { type: "addresses", peer: "edge-c", addresses, observed });
  const where = { nonce: "0".repeat(32), port: 1, servers: ["10.9.0.3"] };
  paths.message(server!, { type: "punch", step: "prepare", id: 1, peer: "edge-d", ...where });
  paths.onState("edge-e", "connecting", undefined);
  assert.deepEqual(["edge-c", "edge-d", "edge-e"].map((node) => paths.explain(node)), [
    undefined,
    undefined,
    undefined,
  ]);
});

test("an agent with direct paths off is relayed, and the other says so", async (world) => {
  const { rig, lan } = world;
  const server = await rig.server({ paths: { observe: undefined, servers: [] } });
  const a = await rig.agent("edge-a", server.url, { paths: lan.paths("10.9.0.1") });
  const b = await rig.agent("edge-b", server.url);
  await request(a, "edge-b");
  await a.until(() => /does not look for direct paths/.test(a.tunnel.status().why.get("edge-b") ?? ""));
  await request(b, "edge-a");
  assert.deepEqual([pathTo(a, "edge-b"), pathTo(b, "edge-a")], ["relay", "relay"]);
  assert.equal(b.tunnel.status().why.size, 0);
});

test("a server that does not help leaves everything relayed", async (world) => {
  const { rig, lan } = world;
  const server = await rig.server();
  const a = await rig.agent("edge-a", server.url, { paths: lan.paths("10.9.0.1") });
  const b = await rig.agent("edge-b", server.url, { paths: lan.paths("10.9.0.2") });
  await request(a, "edge-b");
  await request(b, "edge-a");
  await a.until(() => /no server is connected|not found on this LAN/.test(a.tunnel.status().why.get("edge-b") ?? ""));
  assert.equal(pathTo(a, "edge-b"), "relay");
});

test("eager: sessions on the LAN before anybody asked", async (world) => {
  const { a, b } = await pair(world, { eager: true });
  await a.until(() => pathTo(a, "edge-b") === "lan" && pathTo(b, "edge-a") === "lan");
});

test("a peer that starts anew is found again by who has streams to it", async (world) => {
  const { rig, lan } = world;
  const { a, b, server } = await pair(world);
  await request(a, "edge-b");
  await a.until(() => pathTo(a, "edge-b") === "lan");
  const client = a.dial("edge-b", "x");
  await client.until(() => client.received === 1);
  await b.tunnel.close();
  await client.closed();
  const again = await rig.agent("edge-b", server.url, { paths: lan.paths("10.9.0.2") });
  await request(a, "edge-b");
  await a.until(() => pathTo(a, "edge-b") === "lan" && pathTo(again, "edge-a") === "lan");
});

/** A stream that is echoed block by block: every byte must come back in order, however the path changes. */
async function steady(from: TestAgent, to: string, change: () => Promise<void>): Promise<number> {
  const client = from.dial(to);
  let longest = 0;
  let last = systemClock.now();
  const hashes = [createHash("sha256"), createHash("sha256")] as const;
  client.onBytes = (bytes) => {
    hashes[1].update(bytes);
    longest = Math.max(longest, systemClock.now() - last);
    last = systemClock.now();
  };
  let going = true;
  const writing = (async () => {
    for (let i = 0; going; i++) {
      const block = new Uint8Array(1000).fill(i);
      hashes[0].update(block);
      await client.write(block);
      await pause(10);
    }
    client.stream.closeWrite();
  })();
  await change();
  going = false;
  await writing;
  await client.until(() => client.ended || client.over);
  assert.equal(client.reason, undefined);
  assert.equal(hashes[1].digest("hex"), hashes[0].digest("hex"));
  return longest;
}

test("a LAN path that swallows everything is doubted, and the relay takes over without losing a byte", async (world) => {
  const { a, b } = await pair(world);
  await request(a, "edge-b");
  await a.until(() => pathTo(a, "edge-b") === "lan" && pathTo(b, "edge-a") === "lan");
  const longest = await steady(a, "edge-b", async () => {
    // Within two seconds of its beginning a LAN path is not given up for the relay.
    await pause(2_200);
    run("nft", "add table inet cut");
    run("nft", "add chain inet cut input { type filter hook input priority 0; }");
    for (const end of ["sport", "dport"]) run("nft", `add rule inet cut input tcp ${end} 20006 drop`);
    await a.until(() => pathTo(a, "edge-b") === "relay" && pathTo(b, "edge-a") === "relay");
  });
  assert.ok(longest < 4_000, `the stream stood still for ${longest} ms`);
  // A carrier that was closed in order waits this long for its goodbye to be read.
  await pause(1_100);
});

test("paths from an address that is gone end at once, and the stream goes on", async (world) => {
  const { a, b } = await pair(world);
  await request(a, "edge-b");
  await a.until(() => pathTo(a, "edge-b") === "lan" && pathTo(b, "edge-a") === "lan");
  const longest = await steady(a, "edge-b", async () => {
    await pause(100);
    a.tunnel.networkChanged(new Set(["127.0.0.1"]));
    await a.until(() => pathTo(a, "edge-b") !== "lan");
    await a.until(() => pathTo(a, "edge-b") === "lan" && pathTo(b, "edge-a") === "lan");
  });
  assert.ok(longest < 1_500, `the stream stood still for ${longest} ms`);
});

test("twenty pairs of dials at the same moment: every stream lives, both settle on the LAN", async (world) => {
  const { a, b } = await pair(world);
  const clients = Array.from({ length: 20 }, (_, i) => [a.dial("edge-b", `a${i}`), b.dial("edge-a", `b${i}`)]).flat();
  for (const [i, client] of clients.entries()) {
    client.stream.closeWrite();
    await client.until(() => client.ended || client.over);
    assert.equal(client.text, `${i % 2 === 0 ? "a" : "b"}${i >> 1}`, `${client.reason}`);
  }
  await a.until(() => pathTo(a, "edge-b") === "lan" && pathTo(b, "edge-a") === "lan");
});
