import assert from "node:assert/strict";
import { FakeClock } from "../clock.ts";
import { codeOf, MeshError } from "../errors.ts";
import { createLogger, memorySink, nullLogger } from "../log.ts";
import { AGENT_REVOCATIONS_FILE, AgentIdentity, TIME_FILE } from "./agent.ts";
import {
  type AgentState,
  checkAgentState,
  IDENTITY_FILE,
  loadAgentState,
  PENDING_FILE,
  pendingKey,
  saveAgentState,
} from "./agent_state.ts";
import { toPem } from "./certificate.ts";
import { type Grant, grantAnswer, readRenewRequest, refusalAnswer } from "./messages.ts";
import { PEERS_FILE } from "./peer_keys.ts";
import { MemoryStateFiles } from "./state_files.ts";
import { TEST_NOW, testKey, type TestMember, type TestMesh, testMesh } from "./testing.ts";

const DAY = 24 * 3600 * 1000;
const MESH = { serviceCidrs: ["10.96.0.0/12"], zone: "cluster.local", servers: ["wss://one"] };

function stateOf(mesh: TestMesh, member: TestMember): AgentState {
  return {
    node: member.name,
    trustDomain: mesh.authority.trustDomain,
    keyPem: member.keyPem,
    chainPem: toPem(member.certificate),
    bundlePem: mesh.authority.bundlePem,
    pin: mesh.authority.pin,
    mesh: MESH,
    labels: {},
    joinedAt: TEST_NOW,
  };
}

interface Agent {
  mesh: TestMesh;
  files: MemoryStateFiles;
  clock: FakeClock;
  agent: AgentIdentity;
  reopen(clock?: FakeClock): Promise<AgentIdentity>;
}

async function setup(): Promise<Agent> {
  const mesh = await testMesh();
  const files = new MemoryStateFiles();
  const clock = new FakeClock(0, TEST_NOW);
  await saveAgentState(files, stateOf(mesh, await mesh.member("node", "edge-1")));
  const reopen = async (at: FakeClock = clock) =>
    (await AgentIdentity.open({ files, clock: at, log: nullLogger, version: "0.1.0" }))!;
  return { mesh, files, clock, agent: await reopen(), reopen };
}

/** What a server grants for the agent's key. */
async function grantFor(a: Agent, parts: Partial<Grant> = {}): Promise<Grant> {
  const { spki } = a.agent.certificate;
  const issued = await a.mesh.authority.issue({ role: "node", name: "edge-1", spki, now: a.clock.wall(), why: "test" });
  const { bundlePem, trustDomain } = a.mesh.authority;
  return {
    node: "edge-1",
    trustDomain,
    chainPem: issued.chainPem,
    bundlePem,
    server: "s",
    time: a.clock.wall(),
    mesh: MESH,
    labels: {},
    ...parts,
  };
}

Deno.test("the identity survives a restart; its parts must belong together", async () => {
  const a = await setup();
  const state = (await loadAgentState(a.files))!.state;
  const reopened = await a.reopen();
  assert.equal(reopened.certificate.serial, a.agent.certificate.serial);
  const foreign = await testMesh();
  const other = await a.mesh.member("node", "edge-2");
  const broken: Record<string, Partial<AgentState>> = {
    "another machine's key": { keyPem: testKey().keyPem },
    "another node's certificate": { chainPem: toPem(other.certificate) },
    "another name": { node: "edge-2" },
    "a foreign authority": { bundlePem: foreign.authority.bundlePem },
    "another trust domain": { trustDomain: "other.test" },
    "no certificate": { chainPem: "-----BEGIN CERTIFICATE-----" },
    "no key": { keyPem: "-----BEGIN PRIVATE KEY-----\n" + "A".repeat(120) + "\n-----END PRIVATE KEY-----" },
    "no pin": { pin: "x".repeat(71) },
  };
  for (const [what, part] of Object.entries(broken)) {
    assert.throws(() => checkAgentState({ ...state, ...part }), MeshError, what);
    a.files.files.set(IDENTITY_FILE, JSON.stringify({ format: 1, ...state, ...part }));
    const before = a.files.files.get(IDENTITY_FILE);
    await assert.rejects(a.reopen(), (e) => {
      assert.ok(e instanceof MeshError);
      assert.equal(e.code, "STATE_INVALID", what);
      assert.match(e.hint!, /restore it from a backup/);
      assert.ok(!JSON.stringify([e.message, String(e.cause)]).includes(state.keyPem.slice(40, 80)), "never the key");
      return true;
    }, what);
    assert.equal(a.files.files.get(IDENTITY_FILE), before, "never made anew");
  }
});

Deno.test("every damaged state file is an error that names it, except the time, which is ignored with a warning", async () => {
  for (const file of [IDENTITY_FILE, AGENT_REVOCATIONS_FILE, PEERS_FILE]) {
    for (const damage of ["", "{", '{"format":9}', "[1]"]) {
      const a = await setup();
      a.files.files.set(file, damage);
      await assert.rejects(
        a.reopen(),
        (e) => codeOf(e) === "STATE_INVALID" && String(e).includes(file),
        `${file} ${damage}`,
      );
    }
  }
  const a = await setup();
  a.files.files.set(TIME_FILE, "{");
  const sink = memorySink();
  const { files, clock } = a;
  assert.ok(await AgentIdentity.open({ files, clock, log: createLogger(sink), version: "0" }));
  assert.match(sink.lines.join("\n"), /WARN.*saved time is ignored/);
});

Deno.test("a truncated identity file at every length is an error, never another identity", async () => {
  const a = await setup();
  const text = a.files.files.get(IDENTITY_FILE)!;
  for (let n = 0; n < text.length - 2; n += 97) {
    a.files.files.set(IDENTITY_FILE, text.slice(0, n));
    await assert.rejects(a.reopen(), (e) => codeOf(e) === "STATE_INVALID");
  }
});

Deno.test("the key of an unanswered join is kept for its name and made anew for another", async () => {
  const files = new MemoryStateFiles();
  const first = await pendingKey(files, "edge-1");
  assert.equal(await pendingKey(files, "edge-1"), first);
  assert.notEqual(await pendingKey(files, "edge-2"), first);
  files.files.set(PENDING_FILE, "{}");
  await assert.rejects(pendingKey(files, "edge-2"), (e) => codeOf(e) === "STATE_INVALID");
});

Deno.test("an enrolled agent works with its clock at 1970 and a week ahead, before and after it hears a server", async () => {
  const a = await setup();
  const peer = (await a.mesh.member("node", "edge-2")).certificate.raw;
  const server = (await a.mesh.member("server", "s")).certificate.raw;
  for (const wall of [0, TEST_NOW + 7 * DAY, TEST_NOW - 365 * DAY]) {
    const clock = new FakeClock(0, wall);
    const agent = await a.reopen(clock);
    const works = () => {
      assert.equal(agent.verify([server], { role: "server" }).node, "s");
      assert.equal(agent.verify([peer], { role: "node", name: "edge-2" }).node, "edge-2");
    };
    works();
    agent.learnTime("s", TEST_NOW + 1000, clock.now());
    works();
    assert.equal(agent.now().ms, TEST_NOW + 1000);
  }
});

Deno.test("a clock two years ahead still reaches the server, which corrects it for peers too", async () => {
  const a = await setup();
  a.agent.learnTime("s", TEST_NOW, a.clock.now());
  await a.agent.persistTime();
  const clock = new FakeClock(0, TEST_NOW + 730 * DAY);
  const agent = await a.reopen(clock);
  const peer = (await a.mesh.member("node", "edge-2")).certificate.raw;
  const server = (await a.mesh.member("server", "s")).certificate.raw;
  assert.throws(() => agent.verify([peer], { role: "node" }), (e) => codeOf(e) === "CERT_EXPIRED");
  assert.equal(agent.verify([server], { role: "server" }).node, "s");
  agent.learnTime("s", TEST_NOW + 5000, clock.now());
  assert.equal(agent.verify([peer], { role: "node" }).node, "edge-2");
});

Deno.test("a large skew is logged once with its amount, and nothing fails", async () => {
  const a = await setup();
  const sink = memorySink();
  const { files } = a;
  const clock = new FakeClock(0, TEST_NOW + 7 * DAY);
  const agent = (await AgentIdentity.open({ files, clock, log: createLogger(sink), version: "0" }))!;
  assert.equal(agent.learnTime("s", TEST_NOW, clock.now()), 7 * DAY);
  clock.advance(15_000);
  agent.learnTime("s", TEST_NOW + 15_000, clock.now());
  assert.equal(sink.lines.length, 1);
  assert.match(sink.lines[0]!, /clock differs from the server's.*skewSeconds=604800/);
});

Deno.test("the servers' time is persisted, and a reboot without a clock starts from it", async () => {
  const a = await setup();
  const stop = a.agent.watch(() => Promise.reject(new Error("offline")), () => {});
  a.agent.learnTime("s", TEST_NOW + 40 * DAY, a.clock.now());
  a.clock.advance(3600_000);
  await a.agent.close();
  stop();
  assert.equal(a.clock.pending, 0);
  const rebooted = await a.reopen(new FakeClock(0, 0));
  assert.ok(rebooted.now().ms >= TEST_NOW + 40 * DAY);
});

Deno.test("revocations are on disk before they are reported, win after a restart, and older lists change nothing", async () => {
  const a = await setup();
  const peer = (await a.mesh.member("node", "edge-2")).certificate.raw;
  const list = { epoch: 7, entries: [{ by: "node", value: "edge-2", reason: "stolen", at: TEST_NOW }] };
  assert.equal(await a.agent.applyRevocations("s", list), true);
  assert.equal(await a.agent.applyRevocations("s", list), false);
  assert.equal(await a.agent.applyRevocations("s", { epoch: 6, entries: [] }), false);
  for (const agent of [a.agent, await a.reopen()]) {
    assert.throws(() => agent.verify([peer], { role: "node" }), (e) => codeOf(e) === "REVOKED");
    assert.equal(agent.revocations.epochOf("s"), 7);
    assert.equal(agent.revoked, undefined);
  }
  await a.agent.applyRevocations("s", {
    epoch: 8,
    entries: [{ by: "node", value: "edge-1", reason: "", at: TEST_NOW }],
  });
  assert.equal(a.agent.revoked?.by, "node");
});

Deno.test("keys of peers are remembered across restarts until an operator forgets them", async () => {
  const a = await setup();
  const [first, second] = [await a.mesh.member("node", "edge-2"), await a.mesh.member("node", "edge-2")];
  assert.equal(a.agent.verify([first.certificate.raw], { role: "node" }).firstUse, true);
  await a.agent.close();
  const agent = await a.reopen();
  assert.throws(
    () => agent.verify([second.certificate.raw], { role: "node" }),
    (e) => codeOf(e) === "NODE_KEY_MISMATCH",
  );
  assert.equal(await agent.knownKeys.forget("edge-2"), true);
  assert.equal(await agent.knownKeys.forget("edge-2"), false);
  assert.deepEqual((await a.reopen()).knownKeys.list(), []);
  assert.equal(agent.verify([second.certificate.raw], { role: "node" }).firstUse, true);
});

Deno.test("a renewed certificate is in force and on disk; service networks stay as they were at the join", async () => {
  const a = await setup();
  a.clock.advance(16 * 3600_000);
  const pushed = { serviceCidrs: ["0.0.0.0/0"], zone: "other.local", servers: ["wss://two"] };
  await a.agent.takeGrant(await grantFor(a, { mesh: pushed }));
  for (const agent of [a.agent, await a.reopen()]) {
    assert.equal(agent.certificate.notAfter, TEST_NOW + 40 * 3600_000);
    assert.deepEqual(agent.state.mesh, { ...pushed, serviceCidrs: MESH.serviceCidrs });
  }
});

Deno.test("a grant that does not fit this node changes nothing, in memory or on disk", async () => {
  const a = await setup();
  const before = a.files.files.get(IDENTITY_FILE);
  const foreign = await testMesh();
  const other = await a.mesh.member("node", "edge-1");
  const bad: Record<string, Partial<Grant>> = {
    "another node": { node: "edge-2" },
    "another trust domain": { trustDomain: "other.test" },
    "a certificate for another key": { chainPem: toPem(other.certificate) },
    "every authority replaced": { bundlePem: foreign.authority.bundlePem },
    "garbage": { chainPem: "garbage" },
  };
  for (const [what, parts] of Object.entries(bad)) {
    const serial = a.agent.certificate.serial;
    await assert.rejects(a.agent.takeGrant(await grantFor(a, parts)), MeshError, what);
    assert.equal(a.agent.certificate.serial, serial, what);
    assert.equal(a.files.files.get(IDENTITY_FILE), before, what);
  }
});

Deno.test("authorities are replaced in two steps: both for a while, then the new one", async () => {
  const a = await setup();
  const next = await testMesh();
  const both = a.mesh.authority.bundlePem + next.authority.bundlePem;
  await a.agent.takeGrant(await grantFor(a, { bundlePem: both }));
  const peer = (await next.member("node", "edge-2")).certificate.raw;
  assert.equal(a.agent.verify([peer], { role: "node" }).node, "edge-2");
  const { spki } = a.agent.certificate;
  const issued = await next.authority.issue({ role: "node", name: "edge-1", spki, now: TEST_NOW, why: "test" });
  await a.agent.takeGrant(await grantFor(a, { chainPem: issued.chainPem, bundlePem: next.authority.bundlePem }));
  assert.deepEqual((await a.reopen()).anchors.map((c) => c.raw), next.authority.anchors.map((c) => c.raw));
});

Deno.test("watch renews over the connection it is given, reports changes, and shows why it cannot", async () => {
  const a = await setup();
  let answer: () => Promise<string> = () => Promise.reject(new MeshError("SERVER_UNREACHABLE", "no route"));
  let changes = 0;
  const stop = a.agent.watch((body) => {
    assert.equal(readRenewRequest(body).agent, "0.1.0");
    return answer();
  }, () => changes++);
  const pass = async (ms: number) => {
    for (; ms > 0; ms -= 60_000) {
      a.clock.advance(60_000);
      await new Promise((resolve) => setImmediate(resolve));
    }
  };
  await pass(18 * 3600_000);
  assert.equal(changes, 0);
  assert.equal(a.agent.renewal.lastError?.code, "SERVER_UNREACHABLE");
  assert.equal(a.agent.renewal.expired, false);
  answer = () => Promise.resolve(refusalAnswer(new MeshError("REVOKED", "edge-1 was revoked")).body);
  await pass(20 * 60_000);
  assert.equal(a.agent.renewal.lastError?.code, "REVOKED");
  const grant = await grantFor(a);
  answer = () => Promise.resolve(grantAnswer(grant).body);
  for (let i = 0; i < 40 && changes === 0; i++) await pass(60_000);
  assert.equal(changes, 1);
  assert.equal(a.agent.renewal.lastError, undefined);
  stop();
  assert.equal(a.clock.pending, 0);
});

Deno.test("the key is in no log line and in no plain view of the agent", async () => {
  const a = await setup();
  const { keyPem } = a.agent.tls();
  const secret = keyPem.split("\n")[1]!;
  assert.ok(!JSON.stringify(a.agent).includes(secret));
  assert.ok(!JSON.stringify(a.agent.state).includes(secret));
  assert.ok(!Deno.inspect(a.agent, { depth: 9 }).includes(secret));
});
