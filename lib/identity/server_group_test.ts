import assert from "node:assert/strict";
import { pause, systemClock } from "../clock.ts";
import { codeOf, MeshError, type ReasonCode } from "../errors.ts";
import { createLogger, memorySink, nullLogger } from "../log.ts";
import { CA_KEY_FILE, ISSUANCE_LOG_FILE } from "./ca.ts";
import { hashKey } from "./certificate.ts";
import { joinServers, type ServerJoinOptions } from "./server_join_client.ts";
import { copyOf } from "./server_group.ts";
import { IdentityServer, type IdentityServerOptions } from "./server.ts";
import { serverProofText } from "./server_messages.ts";
import { MemoryStateFiles } from "./state_files.ts";
import { testKey } from "./testing.ts";
import { checkPath } from "./trust.ts";
import { serveIdentity, type TestFrontDoor } from "./testing_server.ts";

const MESH = { serviceCidrs: ["10.96.0.0/12"], zone: "cluster.local" };
/** A change must be on the other server by then (T07). */
const SHARED_MS = 5_000;

/** A server on loopback, over real TLS. */
interface TestServer {
  readonly identity: IdentityServer;
  readonly files: MemoryStateFiles;
  readonly door: TestFrontDoor;
  readonly lines: readonly string[];
  /** Times the agents would have been told of revocations. */
  told: number;
  stop(): Promise<void>;
}

async function start(name: string, files = new MemoryStateFiles(), port = freePort()): Promise<TestServer> {
  const sink = memorySink();
  const self: { told: number } = { told: 0 };
  const url = `wss://127.0.0.1:${port}`;
  const options: IdentityServerOptions = {
    files,
    clock: systemClock,
    log: createLogger(sink),
    name,
    url,
    trustDomain: "mesh.test",
    mesh: { ...MESH, servers: [url] },
    onRevocations: () => self.told++,
  };
  const identity = await IdentityServer.open(options);
  const door = await serveIdentity(identity, identity.tls(), port);
  const unwatch = identity.watch(() => {});
  return Object.assign(self, {
    identity,
    files,
    door,
    get lines() {
      return sink.lines;
    },
    async stop() {
      unwatch();
      await identity.group.settled();
      await door.close();
    },
  });
}

/** A port nothing listens on: a server must know its own address before it opens its state. */
function freePort(): number {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  return listener.addr.port;
}

async function joining(first: TestServer, parts: Partial<ServerJoinOptions> = {}): Promise<ServerJoinOptions> {
  const { text } = await first.identity.tokens.create({ now: systemClock.wall(), role: "server" });
  return {
    files: new MemoryStateFiles(),
    clock: systemClock,
    server: first.door.url,
    pin: first.identity.authority.pin,
    token: text,
    name: "second",
    url: "wss://127.0.0.1:1",
    trustDomain: "mesh.test",
    ...parts,
  };
}

async function withTwo(test: (first: TestServer, second: TestServer) => Promise<void>): Promise<void> {
  const first = await start("first");
  let second: TestServer | undefined;
  try {
    const port = freePort();
    const options = await joining(first, { url: `wss://127.0.0.1:${port}` });
    await joinServers(options);
    second = await start("second", options.files as MemoryStateFiles, port);
    await test(first, second);
  } finally {
    await second?.stop();
    await first.stop();
  }
}

async function eventually(what: string, holds: () => boolean, ms = SHARED_MS): Promise<void> {
  const since = systemClock.now();
  while (!holds()) {
    if (systemClock.now() - since > ms) assert.fail(`${what}: not within ${ms} ms`);
    await pause(5);
  }
}

function enrol(server: TestServer, node: string, keyHash = hashKey(testKey().spki)): Promise<void> {
  return server.identity.enrolments.enrol({ node, keyHash, enrolledAt: Math.floor(systemClock.wall()), labels: {} });
}

async function refused(work: Promise<unknown>, code: ReasonCode, text: RegExp): Promise<void> {
  await assert.rejects(work, (e) => {
    assert.ok(e instanceof MeshError, String(e));
    assert.equal(e.code, code, e.message);
    assert.match(`${e.message}; ${e.hint ?? ""}`, text);
    return true;
  });
}

const revoked = (server: TestServer, node: string) =>
  server.identity.trust.revocations.find({ node, keyHash: "", serial: "" }) !== undefined;

Deno.test("server join: the second server issues for the same authority, and knows nodes and revocations at once", async () => {
  const first = await start("first");
  try {
    await enrol(first, "edge-1");
    await first.identity.revoke("node", "edge-9", "stolen");
    const options = await joining(first);
    const grant = await joinServers(options);
    assert.equal(grant.server, "first");
    const second = await IdentityServer.open({
      files: options.files,
      clock: systemClock,
      log: nullLogger,
      name: "second",
      trustDomain: "mesh.test",
      mesh: { ...MESH, servers: [options.url] },
    });
    assert.equal(second.authority.pin, first.identity.authority.pin);
    assert.equal(second.enrolments.get("edge-1")?.keyHash, first.identity.enrolments.get("edge-1")?.keyHash);
    assert.ok(second.trust.revocations.find({ node: "edge-9", keyHash: "", serial: "" }));
    assert.deepEqual(first.identity.members.present.map((m) => m.name), ["first", "second"]);
    const everywhere = first.lines.join("\n") + first.files.files.get(ISSUANCE_LOG_FILE);
    assert.match(everywhere, /authority handed over token=\w+ from=127\.0\.0\.1/);
    const key = first.files.files.get(CA_KEY_FILE)!.split("\n")[1]!;
    assert.ok(!everywhere.includes(key), "the authority's key is in a log");
    assert.deepEqual(second.mesh.servers, [options.url, first.door.url], "agents are told of both");
  } finally {
    await first.stop();
  }
});

Deno.test("T02: server join: a token is good once, also for whoever repeats the very request", async () => {
  const first = await start("first");
  try {
    const options = await joining(first);
    await joinServers(options);
    await refused(joinServers(options), "TOKEN_USED", /used up by server second/);
    await refused(
      joinServers({ ...options, files: new MemoryStateFiles(), name: "third" }),
      "TOKEN_USED",
      /token create/,
    );
    const { text } = await first.identity.tokens.create({ now: systemClock.wall() - 7_200_000, role: "server" });
    await refused(joinServers(await joining(first, { token: text })), "TOKEN_EXPIRED", /token create --server|expired/);
  } finally {
    await first.stop();
  }
});

Deno.test("T01, T05: server join: wrong pin, wrong token, a node's token, another's name, a foreign mesh: nothing is given", async () => {
  const first = await start("first");
  try {
    const node = await first.identity.tokens.create({ now: systemClock.wall() });
    const pin = "sha256:" + "0".repeat(64);
    await refused(joinServers(await joining(first, { pin })), "PIN_MISMATCH", /is pinned/);
    await refused(
      joinServers(await joining(first, { token: node.text })),
      "TOKEN_NAME",
      /for a node, not for a server/,
    );
    const mistyped = (await joining(first)).token.replace(/.{4}$/, "aaaa");
    await refused(joinServers(await joining(first, { token: mistyped })), "TOKEN_INVALID", /not known/);
    await refused(joinServers(await joining(first, { name: "first" })), "NODE_KEY_MISMATCH", /called first itself/);
    await refused(
      joinServers(await joining(first, { trustDomain: "other" })),
      "CONFIG_INVALID",
      /trustDomain: mesh\.test/,
    );
    await refused(joinServers(await joining(first, { url: "http://a" })), "PROTOCOL", /not a server address/);
    await joinServers(await joining(first));
    await refused(joinServers(await joining(first)), "NODE_KEY_MISMATCH", /second with another key/);
    assert.deepEqual(first.identity.members.present.map((m) => m.name), ["first", "second"]);
    // A host with another authority keeps it.
    const other = await start("other");
    try {
      await refused(
        joinServers(await joining(first, { files: other.files, name: "third" })),
        "STATE_INVALID",
        /another authority/,
      );
    } finally {
      await other.stop();
    }
  } finally {
    await first.stop();
  }
});

Deno.test("T05: server join: a proof for another server, token, name or key is none", () => {
  const claim = { tokenId: "a", name: "b", url: "c", keyHash: "d", time: 1, nonce: "e", serverKeyHash: "f" };
  const texts = Object.keys(claim).map((k) => String(serverProofText({ ...claim, [k]: k === "time" ? 2 : "x" })));
  assert.equal(new Set([...texts, String(serverProofText(claim))]).size, Object.keys(claim).length + 1);
});

Deno.test("T07: a revocation on one server is in force and on the other's disk within five seconds, both ways; so is its end", () =>
  withTwo(async (first, second) => {
    await enrol(first, "edge-1");
    await first.identity.revoke("node", "edge-1", "stolen");
    await eventually("first to second", () => revoked(second, "edge-1") && second.told > 0);
    await second.identity.revoke("node", "edge-2", "lost");
    await eventually("second to first", () => revoked(first, "edge-2") && first.told > 0);
    assert.match(second.files.files.get("revocations.json")!, /edge-1/);
    // Lifted on the server that did not revoke it.
    await second.identity.liftRevocation("node", "edge-1");
    await eventually("the end of it", () => !revoked(first, "edge-1"));
    assert.ok(revoked(second, "edge-2"), "the other one stays");
  }));

Deno.test("T05: a name enrolled on one server is taken on the other; a removed node may come back with another key there", () =>
  withTwo(async (first, second) => {
    await enrol(first, "edge-1");
    first.identity.group.changed();
    await eventually("the enrolment", () => second.identity.enrolments.get("edge-1") !== undefined);
    assert.throws(
      () => second.identity.enrolments.checkKey("edge-1", "ab".repeat(32)),
      (e) => codeOf(e) === "NODE_KEY_MISMATCH",
    );
    await first.identity.removeNode("edge-1");
    await eventually("the name to be free", () => second.identity.enrolments.get("edge-1") === undefined);
    second.identity.enrolments.checkKey("edge-1", "ab".repeat(32));
  }));

Deno.test("each server keeps the others' issuance logs, and what one missed while it was away comes later", () =>
  withTwo(async (first, second) => {
    for (let i = 0; i < 300; i++) {
      await first.files.append(ISSUANCE_LOG_FILE, `{"name":"edge-${i}","why":"${"x".repeat(300)}"}\n`);
    }
    second.identity.group.changed();
    const own = () => first.files.files.get(ISSUANCE_LOG_FILE);
    await eventually("the log", () => second.files.files.get(copyOf("first")) === own());
    await eventually(
      "the other's",
      () => first.files.files.get(copyOf("second")) === second.files.files.get(ISSUANCE_LOG_FILE),
    );
  }));

Deno.test("T07: a server that was away hears of a revocation when it is back, after a restart of both", async () => {
  const first = await start("first");
  const options = await joining(first, { url: `wss://127.0.0.1:${freePort()}` });
  await joinServers(options);
  await first.identity.revoke("node", "edge-1", "stolen while the other was away");
  await first.stop();
  const again = await start("first", first.files, first.door.port);
  const second = await start(
    "second",
    options.files as MemoryStateFiles,
    Number(new URL(options.url.replace("wss", "https")).port),
  );
  try {
    await eventually("the revocation", () => revoked(second, "edge-1"));
    assert.equal(second.identity.group.status()[0]!.error, "");
  } finally {
    await second.stop();
    await again.stop();
  }
});

Deno.test("T05: nodes, strangers and removed servers exchange nothing", () =>
  withTwo(async (first, second) => {
    const { spki } = testKey();
    const node = await first.identity.authority.issue({
      role: "node",
      name: "second",
      spki,
      now: systemClock.wall(),
      why: "t",
    });
    const fake = await first.identity.authority.issue({
      role: "server",
      name: "second",
      spki,
      now: systemClock.wall(),
      why: "t",
    });
    for (const { certificate } of [node, fake]) {
      assert.throws(() => first.identity.group.admit([certificate.raw]), (e) => codeOf(e) === "CERT_UNTRUSTED");
    }
    assert.throws(() => first.identity.group.admit([]), (e) => codeOf(e) === "CERT_UNTRUSTED");
    await first.identity.removeServer("second");
    assert.throws(
      () => first.identity.group.admit([second.identity.certificate.raw]),
      (e) => codeOf(e) === "CERT_UNTRUSTED",
    );
    assert.deepEqual(first.identity.group.status(), []);
  }));

Deno.test("a server that lost its authority while joining does not make a new one", async () => {
  const first = await start("first");
  try {
    const options = await joining(first);
    await joinServers(options);
    await options.files.remove(CA_KEY_FILE);
    await refused(start("second", options.files as MemoryStateFiles), "STATE_INVALID", /server join/);
  } finally {
    await first.stop();
  }
});

Deno.test("T07: a rotation of the authority goes through on both servers, also where one was away at the end", () =>
  withTwo(async (first, second) => {
    await first.identity.keeper.rotate(3_600_000);
    const { next } = first.identity.authority.view.rotation!;
    await eventually("the announcement", () => second.identity.authority.view.rotation?.next === next);
    await second.identity.keeper.step("switch", true);
    await eventually("the switch", () => first.identity.authority.issuingPin === next);
    // The other one does not hear of the end at once: its certificate is of the old authority then.
    await second.door.close();
    await first.identity.keeper.step("finish", true);
    assert.equal(first.identity.authority.pin, next);
    await eventually("the end", () => second.identity.authority.pin === next);
    await eventually("its new certificate", () => {
      try {
        checkPath([second.identity.certificate], first.identity.authority);
        return true;
      } catch {
        return false;
      }
    });
  }));

Deno.test("a rotation names the nodes that it would leave behind, and goes on with them by force only", async () => {
  const first = await start("first");
  try {
    await enrol(first, "edge-1");
    await enrol(first, "edge-2");
    const { keeper, authority } = first.identity;
    const old = authority.pin;
    await keeper.rotate(3_600_000);
    const { next } = authority.view.rotation!;
    keeper.heard("edge-1", { trusted: [old, next], issuer: old });
    keeper.heard("edge-2", { trusted: [old], issuer: old });
    assert.deepEqual([keeper.status().ready, keeper.status().waiting], [1, ["edge-2"]]);
    await refused(keeper.step("switch", false), "CONFIG_INVALID", /1 of 2 nodes would be left behind: edge-2/);
    keeper.heard("edge-2", { trusted: [old, next], issuer: old });
    await eventually("the switch by itself", () => authority.view.rotation?.phase === "switched");
    assert.equal(keeper.status().ready, 0);
    await refused(keeper.step("finish", false), "CONFIG_INVALID", /join again/);
    for (const node of ["edge-1", "edge-2"]) keeper.heard(node, { trusted: [old, next], issuer: next });
    await keeper.step("finish", false);
    assert.equal(authority.pin, next);
  } finally {
    await first.stop();
  }
});
