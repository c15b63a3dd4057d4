import assert from "node:assert/strict";
import { once } from "node:events";
import net from "node:net";
import { FakeClock, systemClock } from "../clock.ts";
import { codeOf, MeshError, type ReasonCode } from "../errors.ts";
import { nullLogger } from "../log.ts";
import { AgentIdentity } from "./agent.ts";
import { IDENTITY_FILE, PENDING_FILE } from "./agent_state.ts";
import { joinMesh, type JoinOptions } from "./join_client.ts";
import { connectPinned } from "./join_connection.ts";
import type { MeshInfo } from "./messages.ts";
import { IdentityServer } from "./server.ts";
import { MemoryStateFiles } from "./state_files.ts";
import { TEST_NOW, testMesh } from "./testing.ts";
import { serveIdentity, type TestFrontDoor } from "./testing_server.ts";
import { newToken } from "./token.ts";

const MESH: MeshInfo = { serviceCidrs: ["10.96.0.0/12"], zone: "cluster.local", servers: ["wss://mesh.example.com"] };

interface World {
  readonly identity: IdentityServer;
  readonly door: TestFrontDoor;
  readonly clock: FakeClock;
  /** Options of a machine that has the right pin and a fresh token. */
  machine(parts?: Partial<JoinOptions>): Promise<JoinOptions & { readonly files: MemoryStateFiles }>;
}

/** Runs a step with a server on loopback, and closes it. */
async function withServer(step: (w: World) => Promise<void>): Promise<void> {
  const clock = new FakeClock(0, TEST_NOW);
  const files = new MemoryStateFiles();
  const identity = await IdentityServer.open({
    files,
    clock,
    log: nullLogger,
    name: "s",
    trustDomain: "mesh.test",
    mesh: MESH,
  });
  const door = await serveIdentity(identity);
  try {
    await step({
      identity,
      door,
      clock,
      machine: async (parts = {}) => ({
        files: new MemoryStateFiles(),
        clock,
        servers: [door.url],
        pin: identity.authority.pin,
        token: (await identity.tokens.create({ now: TEST_NOW })).text,
        node: "edge-1",
        version: "0.1.0",
        ...parts,
      } as JoinOptions & { files: MemoryStateFiles }),
    });
  } finally {
    await door.close();
  }
}

async function refused(join: Promise<unknown>, code: ReasonCode, text: RegExp, hint?: RegExp): Promise<void> {
  await assert.rejects(join, (e) => {
    assert.ok(e instanceof MeshError, String(e));
    assert.equal(e.code, code, e.message);
    assert.match(e.message, text);
    if (hint) assert.match(e.hint ?? "", hint);
    return true;
  });
}

const open = (files: MemoryStateFiles, clock: FakeClock) =>
  AgentIdentity.open({ files, clock, log: nullLogger, version: "0.1.0" });

Deno.test("a machine joins over TLS by token and pin, and is a node ever after", () =>
  withServer(async (w) => {
    const m = await w.machine();
    assert.equal(await open(m.files, w.clock), undefined, "not joined yet");
    const grant = await joinMesh(m);
    assert.equal(grant.server, "s");
    assert.equal(m.files.files.has(PENDING_FILE), false);
    const agent = (await open(m.files, w.clock))!;
    assert.equal(agent.node, "edge-1");
    assert.equal(agent.trustDomain, "mesh.test");
    assert.deepEqual(agent.state.mesh, MESH);
    assert.equal(agent.state.pin, w.identity.authority.pin);
    assert.equal(agent.verify([w.identity.certificate.raw], { role: "server", name: "s" }).node, "s");
    assert.equal(w.identity.enrolments.get("edge-1")?.keyHash, agent.certificate.keyHash);
    assert.ok(!("keyPem" in agent.state));
  }));

Deno.test("PIN_MISMATCH names both pins and sends nothing", () =>
  withServer(async (w) => {
    const other = await testMesh();
    const m = await w.machine({ pin: other.authority.pin });
    await refused(
      joinMesh(m),
      "PIN_MISMATCH",
      new RegExp(`presented ${w.identity.authority.pin}, but ${other.authority.pin} is pinned`),
    );
    assert.equal(w.identity.tokens.list().every((t) => t.uses.length === 0), true);
    assert.equal(m.files.files.has(IDENTITY_FILE), false);
  }));

Deno.test("T05: an impostor that shows the pinned authority beside a certificate of its own is refused", () =>
  withServer(async (w) => {
    const evil = await (await testMesh()).member("server", "s");
    const leaf = evil.certPem.slice(0, evil.certPem.indexOf("-----END") + 26);
    const impostor = await serveIdentity(w.identity, {
      keyPem: evil.keyPem,
      certPem: leaf + w.identity.authority.bundlePem,
    });
    try {
      await refused(
        joinMesh(await w.machine({ servers: [impostor.url] })),
        "PIN_MISMATCH",
        /its own certificate is not from it/,
      );
    } finally {
      await impostor.close();
    }
  }));

Deno.test("T03: a node of the mesh cannot play its server", () =>
  withServer(async (w) => {
    const victim = await w.machine({ node: "victim" });
    const m = await w.machine();
    await joinMesh(m);
    const node = (await open(m.files, w.clock))!.tls();
    const impostor = await serveIdentity(w.identity, {
      ...node,
      certPem: node.certPem + w.identity.authority.bundlePem,
    });
    try {
      await refused(
        joinMesh({ ...victim, servers: [impostor.url] }),
        "CERT_UNTRUSTED",
        /the peer is node edge-1, but a server is expected/,
      );
    } finally {
      await impostor.close();
    }
  }));

Deno.test("the server's refusal arrives with its code, sentence and hint", () =>
  withServer(async (w) => {
    await refused(
      joinMesh(await w.machine({ token: newToken().text })),
      "TOKEN_INVALID",
      /not known to this server/,
      /token create/,
    );
    await joinMesh(await w.machine());
    await refused(
      joinMesh(await w.machine()),
      "NODE_KEY_MISMATCH",
      /edge-1 has been enrolled with another key/,
      /operator/,
    );
    const late = new FakeClock(0, TEST_NOW + 26 * 3600 * 1000);
    await refused(
      joinMesh(await w.machine({ clock: late, node: "edge-2" })),
      "CLOCK_SKEW",
      /1 day 2 h ahead of the server's/,
    );
    const old = new FakeClock(0, 0);
    await refused(
      joinMesh(await w.machine({ clock: old, node: "edge-2" })),
      "CLOCK_SKEW",
      /behind the server's: it says 1970/,
    );
    await joinMesh(await w.machine({ clock: old, node: "edge-2", acceptSkew: true }));
  }));

Deno.test("a join whose answer got lost is repeated with the same key and the same single-use token", () =>
  withServer(async (w) => {
    const m = await w.machine();
    const lossy: JoinOptions["connect"] = async (target) => {
      const c = await connectPinned(target);
      return {
        ...c,
        post: async (path, body) => {
          await c.post(path, body);
          throw new MeshError("SERVER_UNREACHABLE", "lost");
        },
      };
    };
    await refused(joinMesh({ ...m, connect: lossy }), "SERVER_UNREACHABLE", /lost/);
    assert.equal(m.files.files.has(IDENTITY_FILE), false);
    const enrolled = w.identity.enrolments.get("edge-1")!.keyHash;
    await joinMesh(m);
    assert.equal((await open(m.files, w.clock))!.certificate.keyHash, enrolled);
    assert.equal(w.identity.tokens.list()[0]!.uses.length, 1);
  }));

Deno.test("a node joins again under its name with its key, and under no other name", () =>
  withServer(async (w) => {
    const m = await w.machine();
    await joinMesh(m);
    const before = (await open(m.files, w.clock))!.certificate;
    await joinMesh(await w.machine({ files: m.files }));
    const after = (await open(m.files, w.clock))!.certificate;
    assert.equal(after.keyHash, before.keyHash);
    assert.notEqual(after.serial, before.serial);
    await refused(
      joinMesh(await w.machine({ files: m.files, node: "edge-2" })),
      "CONFIG_INVALID",
      /this machine is node edge-1 already/,
      /--node-name/,
    );
  }));

Deno.test("a machine that lost its state is told what to do, and comes back once the operator removed it", () =>
  withServer(async (w) => {
    const m = await w.machine();
    await joinMesh(m);
    const former = (await open(m.files, w.clock))!.certificate;
    const reborn = await w.machine();
    await refused(
      joinMesh(reborn),
      "NODE_KEY_MISMATCH",
      /edge-1/,
      /lost its state, have an operator remove the old enrolment on the server, then join with a new token/,
    );
    const list = (await w.identity.removeNode("edge-1"))!;
    await joinMesh(reborn);
    const agent = (await open(reborn.files, w.clock))!;
    await agent.applyRevocations("s", list);
    assert.throws(() => agent.verify([former.raw], { role: "node" }), (e) => codeOf(e) === "REVOKED");
  }));

Deno.test("servers are tried in order; one that cannot be reached is passed over, one with another pin is not", () =>
  withServer(async (w) => {
    const dead = net.createServer().listen(0, "127.0.0.1");
    await once(dead, "listening");
    const { port } = dead.address() as net.AddressInfo;
    await new Promise((resolve) => dead.close(resolve));
    const unreachable = `wss://127.0.0.1:${port}`;
    await joinMesh(await w.machine({ servers: [unreachable, w.door.url] }));
    await refused(
      joinMesh(await w.machine({ servers: [unreachable] })),
      "SERVER_UNREACHABLE",
      new RegExp(`127.0.0.1:${port} could not be reached`),
      /curl/,
    );
    await refused(joinMesh(await w.machine({ servers: [] })), "CONFIG_INVALID", /no server/);
    const wrong = (await testMesh()).authority.pin;
    await refused(
      joinMesh(await w.machine({ servers: [w.door.url, unreachable], pin: wrong })),
      "PIN_MISMATCH",
      /pinned/,
    );
  }));

Deno.test("addresses that are none, names that are none and tokens that are none never reach the network", async () => {
  const clock = new FakeClock(0, TEST_NOW);
  const pin = "sha256:" + "00".repeat(32);
  const base = {
    files: new MemoryStateFiles(),
    clock,
    servers: ["wss://x"],
    pin,
    token: newToken().text,
    node: "edge-1",
    version: "0",
  };
  for (const url of ["http://x", "ws://x", "x", "wss://u:p@x", "wss://"]) {
    await refused(joinMesh({ ...base, servers: [url] }), "CONFIG_INVALID", /is not a server address/);
  }
  await refused(joinMesh({ ...base, node: "Edge" }), "CONFIG_INVALID", /cannot be a node name/);
  await refused(joinMesh({ ...base, pin: "abc" }), "CONFIG_INVALID", /CA pin/);
  await refused(joinMesh({ ...base, token: "abc" }), "TOKEN_INVALID", /form em_/);
});

Deno.test("a server that does not speak TLS, or never answers, is SERVER_UNREACHABLE in time", async () => {
  const sockets: net.Socket[] = [];
  const serve = (greet: (s: net.Socket) => void) =>
    net.createServer((s) => greet(sockets[sockets.push(s.on("error", () => {})) - 1]!)).listen(0, "127.0.0.1");
  const plain = serve((s) => s.end("HTTP/1.1 400 Bad Request\r\n\r\n"));
  const silent = serve(() => {});
  await Promise.all([once(plain, "listening"), once(silent, "listening")]);
  const connect = (server: net.Server) =>
    connectPinned({
      url: `wss://127.0.0.1:${(server.address() as net.AddressInfo).port}`,
      pin: "sha256:" + "00".repeat(32),
      clock: systemClock,
      timeoutMs: 300,
    });
  try {
    await refused(connect(plain), "SERVER_UNREACHABLE", /could not be reached/);
    await refused(connect(silent), "SERVER_UNREACHABLE", /did not complete a TLS handshake within 0.3 s/);
  } finally {
    for (const s of sockets) s.destroy();
    for (const s of [plain, silent]) await new Promise((resolve) => s.close(resolve));
  }
});
