import assert from "node:assert/strict";
import { once } from "node:events";
import https from "node:https";
import { FakeClock } from "../clock.ts";
import { codeOf, MeshError } from "../errors.ts";
import { createLogger, memorySink, nullLogger } from "../log.ts";
import {
  CA_BUNDLE_FILE,
  CA_KEY_FILE,
  createAuthority,
  ISSUANCE_LOG_FILE,
  ISSUER_FILE,
  openAuthority,
  openOrCreateAuthority,
} from "./ca.ts";
import { hashKey, parseCertificate, parsePem, toPem } from "./certificate.ts";
import { Enrolments, NODES_FILE } from "./enrolment.ts";
import { readAnswer, RENEW_PATH, writeRenewRequest } from "./messages.ts";
import { pinOf } from "./pin.ts";
import { IdentityServer } from "./server.ts";
import { SERVER_CERT_FILE, SERVER_KEY_FILE } from "./server_certificate.ts";
import { MemoryStateFiles } from "./state_files.ts";
import { attested, TEST_NOW, testKey } from "./testing.ts";
import { makeCertificate } from "./testing_certificates.ts";
import { serveIdentity } from "./testing_server.ts";
import { type VerifiedPeer, verifyPeer } from "./trust.ts";

const DAY = 24 * 3600 * 1000;
const HOUR = 3600 * 1000;
const MESH = { serviceCidrs: [], zone: "cluster.local", servers: [] };

interface Setup {
  server: IdentityServer;
  files: MemoryStateFiles;
  clock: FakeClock;
  open(parts?: { lifetimeMs?: number; name?: string; trustDomain?: string }): Promise<IdentityServer>;
}

async function setup(): Promise<Setup> {
  const files = new MemoryStateFiles();
  const clock = new FakeClock(0, TEST_NOW);
  const open: Setup["open"] = (parts) =>
    IdentityServer.open({ files, clock, log: nullLogger, name: "s", trustDomain: "mesh.test", mesh: MESH, ...parts });
  return { server: await open(), files, clock, open };
}

/** A node as it comes out of `verifyPeer` on the server, with a certificate issued at `now`. */
async function peer(s: Setup, node: string, options: { now?: number; spki?: Uint8Array } = {}): Promise<VerifiedPeer> {
  const spki = options.spki ?? testKey().spki;
  const issued = await s.server.authority.issue({
    role: "node",
    name: node,
    spki,
    now: options.now ?? s.clock.wall(),
    why: "test",
  });
  const chainDer = [issued.certificate.raw];
  return verifyPeer({ chainDer, expected: { role: "node" }, trust: s.server.trust, now: s.server.now() });
}

const renewText = writeRenewRequest({ time: TEST_NOW, agent: "0.1.0" });

Deno.test("a renewal is granted for the key of the connection", async () => {
  const s = await setup();
  const p = await peer(s, "edge-1");
  const grant = readAnswer((await s.server.handleRenew(renewText, p)).body);
  const leaf = parsePem(grant.chainPem)[0]!;
  assert.equal(leaf.keyHash, p.keyHash);
  assert.notEqual(leaf.serial, p.serial);
  assert.equal(grant.node, "edge-1");
});

Deno.test("an enrolled node renews however long its certificate has expired", async () => {
  const s = await setup();
  const { spki } = testKey();
  await s.server.admit(await peer(s, "edge-1", { spki }));
  s.clock.advance(400 * DAY);
  const stale = await peer(s, "edge-1", { spki, now: TEST_NOW });
  assert.equal(stale.expired, true);
  assert.equal((await s.server.handleRenew(renewText, stale)).status, 200);
});

Deno.test("a node from another server of the mesh is enrolled by its certificate within the grace, not beyond", async () => {
  const s = await setup();
  const { spki } = testKey();
  await s.server.admit(await peer(s, "edge-1", { spki, now: TEST_NOW - 20 * DAY }));
  assert.equal(s.server.enrolments.get("edge-1")!.keyHash, hashKey(spki));
  await assert.rejects(s.server.admit(await peer(s, "edge-2", { now: TEST_NOW - 40 * DAY })), (e) => {
    assert.ok(e instanceof MeshError && e.code === "CERT_EXPIRED");
    assert.match(e.hint!, /new token/);
    return true;
  });
  assert.equal(s.server.enrolments.get("edge-2"), undefined);
});

Deno.test("a name with another key is neither admitted nor renewed", async () => {
  const s = await setup();
  await s.server.admit(await peer(s, "edge-1"));
  const other = await peer(s, "edge-1");
  await assert.rejects(s.server.admit(other), (e) => codeOf(e) === "NODE_KEY_MISMATCH");
  const answer = await s.server.handleRenew(renewText, other);
  assert.equal(answer.status, 409);
  assert.throws(() => readAnswer(answer.body), (e) => codeOf(e) === "NODE_KEY_MISMATCH");
});

Deno.test("a revocation ends renewals on connections that are older than it", async () => {
  const s = await setup();
  const p = await peer(s, "edge-1");
  await s.server.admit(p);
  await s.server.revoke("node", "edge-1", "stolen");
  const answer = await s.server.handleRenew(renewText, p);
  assert.throws(() => readAnswer(answer.body), (e) => codeOf(e) === "REVOKED");
  await s.server.liftRevocation("node", "edge-1");
  assert.equal((await s.server.handleRenew(renewText, p)).status, 200);
});

Deno.test("removing a node revokes its key and frees its name", async () => {
  const s = await setup();
  const p = await peer(s, "edge-1");
  await s.server.admit(p);
  const list = (await s.server.removeNode("edge-1"))!;
  assert.deepEqual(list.entries.map((e) => [e.by, e.value]), [["key", p.keyHash]]);
  await assert.rejects(s.server.admit(p), (e) => codeOf(e) === "REVOKED");
  await s.server.admit(await peer(s, "edge-1"));
  assert.equal(await s.server.removeNode("nobody"), undefined);
});

Deno.test("what agents could not read is never published", async () => {
  const s = await setup();
  await assert.rejects(s.server.revoke("node", "Not A Name", ""), (e) => codeOf(e) === "PROTOCOL");
  await assert.rejects(s.server.revoke("key", "abc", ""), (e) => codeOf(e) === "PROTOCOL");
  await assert.rejects(s.server.revoke("node", "a", "x".repeat(201)), (e) => codeOf(e) === "PROTOCOL");
  assert.deepEqual(s.server.revocationList, { epoch: 0, entries: [] });
});

Deno.test("malformed renewals are refused", async () => {
  const s = await setup();
  const p = await peer(s, "edge-1");
  for (const text of ["", "{}", '{"version":1}', '{"version":7,"time":1,"agent":"x"}', `"${"x".repeat(9000)}"`]) {
    const answer = await s.server.handleRenew(text, p);
    assert.ok(answer.status >= 400 && answer.status < 500, answer.body);
  }
});

Deno.test("a renewal over mutual TLS with an expired certificate works; without a certificate it does not", async () => {
  const s = await setup();
  const { keyPem, spki } = testKey();
  const { authority } = s.server;
  const issued = await authority.issue({ role: "node", name: "edge-1", spki, now: TEST_NOW, why: "test" });
  await s.server.admit(await peer(s, "edge-1", { spki }));
  s.clock.advance(90 * DAY);
  const door = await serveIdentity(s.server);
  const ask = async (own: { key?: string; cert?: string }): Promise<string> => {
    const req = https.request({
      host: "127.0.0.1",
      port: door.port,
      path: RENEW_PATH,
      method: "POST",
      rejectUnauthorized: false,
      agent: false,
      ...own,
    });
    req.end(renewText);
    const [res] = await once(req, "response");
    let text = "";
    for await (const chunk of res) text += chunk;
    return text;
  };
  try {
    const grant = readAnswer(await ask({ key: keyPem, cert: issued.chainPem }));
    assert.equal(parsePem(grant.chainPem)[0]!.keyHash, hashKey(spki));
    const nothing = await ask({});
    assert.throws(() => readAnswer(nothing), (e) => codeOf(e) === "CERT_UNTRUSTED");
  } finally {
    await door.close();
  }
});

Deno.test("the server keeps its key, takes its good certificate, and makes a new one when it should", async () => {
  const s = await setup();
  const { keyHash, serial } = s.server.certificate;
  assert.equal((await s.open()).certificate.serial, serial);
  const shorter = await s.open({ lifetimeMs: HOUR });
  assert.notEqual(shorter.certificate.serial, serial);
  assert.equal(shorter.certificate.notAfter, TEST_NOW + HOUR);
  const renamed = await s.open({ name: "other" });
  assert.deepEqual(renamed.certificate.uris, ["spiffe://mesh.test/server/other"]);
  s.files.files.set(SERVER_CERT_FILE, "damaged");
  const remade = await s.open();
  s.clock.advance(17 * HOUR);
  const due = await s.open();
  assert.notEqual(due.certificate.serial, remade.certificate.serial);
  for (const each of [shorter, renamed, remade, due]) assert.equal(each.certificate.keyHash, keyHash);
  s.files.files.set(SERVER_KEY_FILE, "damaged");
  await assert.rejects(s.open(), (e) => codeOf(e) === "STATE_INVALID");
});

Deno.test("a running server renews its own certificate in time", async () => {
  const s = await setup();
  const { serial } = s.server.certificate;
  const changed = Promise.withResolvers<void>();
  const stop = s.server.watch(() => changed.resolve());
  for (let i = 0; i < 120; i++) s.clock.advance(10 * 60_000);
  await changed.promise;
  assert.notEqual(s.server.certificate.serial, serial);
  assert.ok(s.server.tls().certPem.includes(toPem(s.server.certificate)));
  stop();
});

Deno.test("the authority is made once, and a missing or foreign part of it is an error, never a new one", async () => {
  const s = await setup();
  const { pin } = s.server.authority;
  assert.equal((await s.open()).authority.pin, pin);
  await assert.rejects(
    createAuthority(s.files, { trustDomain: "mesh.test", now: TEST_NOW }),
    (e) => codeOf(e) === "STATE_INVALID",
  );
  await assert.rejects(
    s.open({ trustDomain: "other.test" }),
    (e) => codeOf(e) === "CONFIG_INVALID" && /trust domain mesh\.test/.test(String(e)),
  );
  const whole = new Map(s.files.files);
  const foreign = await setup();
  const damages: [string, string | undefined][] = [
    [CA_KEY_FILE, undefined],
    [CA_BUNDLE_FILE, undefined],
    [CA_KEY_FILE, "damaged"],
    [CA_BUNDLE_FILE, "damaged"],
    [CA_KEY_FILE, foreign.files.files.get(CA_KEY_FILE)],
    [CA_BUNDLE_FILE, foreign.files.files.get(CA_BUNDLE_FILE)],
  ];
  for (const [file, text] of damages) {
    s.files.files.clear();
    for (const [k, v] of whole) s.files.files.set(k, v);
    if (text === undefined) s.files.files.delete(file);
    else s.files.files.set(file, text);
    await assert.rejects(
      s.open(),
      (e) => codeOf(e) === "STATE_INVALID" && (e as MeshError).hint !== undefined,
      `${file} ${text?.slice(0, 20)}`,
    );
  }
});

Deno.test("trust domains that cannot be are refused", async () => {
  for (const trustDomain of ["", "Mesh", "a b", "-x", "x/y"]) {
    await assert.rejects(
      openOrCreateAuthority(new MemoryStateFiles(), { trustDomain, now: TEST_NOW }),
      (e) => codeOf(e) === "CONFIG_INVALID",
    );
  }
});

Deno.test("an authority under an offline root issues chains that lead to the root's pin", async () => {
  const root = await makeCertificate({ subject: "CN=root", ca: true, uris: ["spiffe://mesh.test"] });
  const middle = await makeCertificate({ subject: "CN=issuing", ca: true, uris: [], by: root });
  const files = new MemoryStateFiles();
  files.files.set(CA_BUNDLE_FILE, toPem(parseCertificate(root.der)));
  files.files.set(ISSUER_FILE, toPem(parseCertificate(middle.der)));
  files.files.set(CA_KEY_FILE, middle.keyPem);
  const authority = await openAuthority(files);
  assert.equal(authority.pin, pinOf(parseCertificate(root.der)));
  const issued = await authority.issue({
    role: "node",
    name: "edge-1",
    spki: testKey().spki,
    now: TEST_NOW,
    why: "test",
  });
  const chain = parsePem(issued.chainPem);
  assert.equal(chain.length, 2);
  const { trust } = (await setup()).server;
  const peer = verifyPeer({
    chainDer: chain.map((c) => c.raw),
    expected: { role: "node" },
    trust: { ...trust, anchors: authority.anchors },
    now: attested(TEST_NOW),
  });
  assert.equal(peer.node, "edge-1");
});

Deno.test("nothing is issued for keys that are not P-256, or when the log cannot be written", async () => {
  const s = await setup();
  const bad = s.server.authority.issue({
    role: "node",
    name: "a",
    spki: new Uint8Array(91),
    now: TEST_NOW,
    why: "test",
  });
  await assert.rejects(bad, (e) => codeOf(e) === "CERT_UNTRUSTED");
  s.files.append = () => Promise.reject(new Error("EIO"));
  const unlogged = s.server.authority.issue({
    role: "node",
    name: "a",
    spki: testKey().spki,
    now: TEST_NOW,
    why: "test",
  });
  await assert.rejects(unlogged, /EIO/);
});

Deno.test("every issued certificate is one line of the log, with distinct serials", async () => {
  const s = await setup();
  for (let i = 0; i < 20; i++) await peer(s, `edge-${i}`);
  const lines = s.files.files.get(ISSUANCE_LOG_FILE)!.trim().split("\n").map((l) => JSON.parse(l));
  assert.equal(lines.length, 21, "the server's own included");
  assert.equal(new Set(lines.map((l) => l.serial)).size, 21);
  assert.deepEqual(Object.keys(lines[0]), ["time", "role", "name", "serial", "keyHash", "notAfter", "why"]);
});

Deno.test("refusals are one log line with code and reason; grants one with the node", async () => {
  const s = await setup();
  const sink = memorySink();
  const { files, clock } = s;
  const server = await IdentityServer.open({
    files,
    clock,
    log: createLogger(sink),
    name: "s",
    trustDomain: "mesh.test",
    mesh: MESH,
  });
  await server.handleRenew("{}", await peer(s, "edge-1"));
  await server.handleRenew(renewText, await peer(s, "edge-1"));
  assert.equal(sink.lines.length, 3);
  assert.match(sink.lines[0]!, /WARN.*renewal refused from=edge-1 code=PROTOCOL/);
  assert.match(sink.lines[1]!, /node enrolled by its certificate/);
  assert.match(sink.lines[2]!, /INFO.*renewal granted node=edge-1/);
});

Deno.test("the registry of nodes survives restarts and is checked", async () => {
  const files = new MemoryStateFiles();
  const nodes = await Enrolments.open(files);
  const entry = { node: "edge-1", keyHash: "ab".repeat(32), enrolledAt: 1, token: "abcdefgh", labels: { a: "b" } };
  await nodes.enrol(entry);
  await nodes.enrol({ ...entry, enrolledAt: 2 });
  assert.deepEqual((await Enrolments.open(files)).list(), [entry]);
  await assert.rejects(nodes.enrol({ ...entry, keyHash: "cd".repeat(32) }), (e) => codeOf(e) === "NODE_KEY_MISMATCH");
  files.files.set(NODES_FILE, '{"format":1,"nodes":[{}]}');
  await assert.rejects(Enrolments.open(files), (e) => codeOf(e) === "STATE_INVALID");
});
