import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { sign } from "node:crypto";
import { FakeClock } from "../clock.ts";
import { codeOf, MeshError, type ReasonCode } from "../errors.ts";
import { nullLogger } from "../log.ts";
import { publicKeyOf } from "./agent_state.ts";
import { MAX_SOURCES } from "./backoff.ts";
import { ISSUANCE_LOG_FILE } from "./ca.ts";
import { hashKey, parsePem } from "./certificate.ts";
import { durationText } from "./join_server.ts";
import { type Answer, type Grant, MAX_REQUEST_BYTES, proofText, readAnswer, writeJoinRequest } from "./messages.ts";
import { IdentityServer } from "./server.ts";
import { MemoryStateFiles } from "./state_files.ts";
import { attested, TEST_NOW, testKey } from "./testing.ts";
import { newToken } from "./token.ts";
import type { NewTokenOptions } from "./token_store.ts";
import { verifyPeer } from "./trust.ts";

const MESH = { serviceCidrs: ["10.96.0.0/12"], zone: "cluster.local", servers: ["wss://mesh.example.com"] };
const MINUTE = 60_000;

interface Setup {
  server: IdentityServer;
  files: MemoryStateFiles;
  clock: FakeClock;
  token(options?: Partial<NewTokenOptions>): Promise<string>;
  restart(): Promise<void>;
}

async function setup(): Promise<Setup> {
  const files = new MemoryStateFiles();
  const clock = new FakeClock(0, TEST_NOW);
  const open = () =>
    IdentityServer.open({ files, clock, log: nullLogger, name: "s", trustDomain: "mesh.test", mesh: MESH });
  const s: Setup = {
    server: await open(),
    files,
    clock,
    token: async (options = {}) => (await s.server.tokens.create({ now: clock.wall(), ...options })).text,
    restart: async () => {
      s.server = await open();
    },
  };
  return s;
}

interface Ask {
  readonly token: string;
  readonly node?: string;
  readonly keyPem?: string;
  readonly time?: number;
  readonly acceptSkew?: boolean;
  readonly source?: string;
  /** Overrides in what is signed. */
  readonly signed?: Partial<Parameters<typeof proofText>[0]>;
  readonly signWith?: string;
}

function requestText(s: Setup, ask: Ask): string {
  const keyPem = ask.keyPem ?? testKey().keyPem;
  const spki = publicKeyOf(keyPem);
  const node = ask.node ?? "edge-1";
  const time = ask.time ?? s.clock.wall();
  const nonce = "0123456789abcdef".repeat(2);
  const claim = {
    tokenId: ask.token.slice(3, 11),
    node,
    keyHash: hashKey(spki),
    time,
    nonce,
    serverKeyHash: s.server.certificate.keyHash,
    ...ask.signed,
  };
  const proof = new Uint8Array(sign("sha256", proofText(claim), ask.signWith ?? keyPem));
  return writeJoinRequest({
    token: ask.token,
    node,
    spki,
    time,
    nonce,
    proof,
    agent: "0.1.0",
    acceptSkew: ask.acceptSkew ?? false,
  });
}

function join(s: Setup, ask: Ask): Promise<Answer> {
  return s.server.handleJoin(requestText(s, ask), ask.source ?? "192.0.2.1");
}

async function granted(s: Setup, ask: Ask): Promise<Grant> {
  return readAnswer((await join(s, ask)).body);
}

function refusal(answer: Answer, code: ReasonCode, text: RegExp, hint?: RegExp): void {
  assert.throws(() => readAnswer(answer.body), (e) => {
    assert.ok(e instanceof MeshError);
    assert.equal(e.code, code, e.message);
    assert.match(e.message, text);
    if (hint) assert.match(e.hint ?? "", hint);
    return true;
  });
  assert.notEqual(answer.status, 200);
}

Deno.test("a join grants a certificate that verifies, and what the node has to know", async () => {
  const s = await setup();
  const { keyPem } = testKey();
  const grant = await granted(s, { token: await s.token({ labels: { zone: "north" } }), keyPem });
  const chain = parsePem(grant.chainPem);
  const peer = verifyPeer({
    chainDer: chain.map((c) => c.raw),
    expected: { role: "node", name: "edge-1" },
    trust: { ...s.server.trust, anchors: parsePem(grant.bundlePem) },
    now: attested(TEST_NOW),
  });
  assert.equal(peer.keyHash, hashKey(publicKeyOf(keyPem)));
  assert.equal(peer.notAfter, TEST_NOW + 24 * 60 * MINUTE);
  assert.equal(peer.notBefore, TEST_NOW - 5 * MINUTE);
  const { mesh, labels, time, server, trustDomain, node } = grant;
  assert.deepEqual({ mesh, labels, time, server, trustDomain, node }, {
    mesh: MESH,
    labels: { zone: "north" },
    time: TEST_NOW,
    server: "s",
    trustDomain: "mesh.test",
    node: "edge-1",
  });
  const line = s.files.files.get(ISSUANCE_LOG_FILE)!.trim().split("\n").map((l) => JSON.parse(l)).at(-1);
  assert.equal(line.serial, peer.serial);
  assert.equal(line.keyHash, peer.keyHash);
  assert.equal(line.name, "edge-1");
  assert.match(line.why, /^join token=[a-z2-9]{8} from=192\.0\.2\.1 agent=0\.1\.0$/);
});

Deno.test("refused: TOKEN_INVALID for a wrong, a malformed and a foreign token", async () => {
  const s = await setup();
  const real = await s.token();
  const wrongSecret = real.slice(0, 12) + newToken().secret;
  for (const token of [wrongSecret, newToken().text, "em_x.y"]) {
    refusal(await join(s, { token }), "TOKEN_INVALID", /join token is not/, /token create/);
  }
});

Deno.test("refused: TOKEN_EXPIRED, TOKEN_USED, TOKEN_NAME", async () => {
  const s = await setup();
  const bound = await s.token({ node: "edge-2" });
  refusal(await join(s, { token: bound }), "TOKEN_NAME", /for node edge-2, not for edge-1/);
  const token = await s.token();
  await granted(s, { token });
  refusal(await join(s, { token, node: "edge-3" }), "TOKEN_USED", /used up by node edge-1/);
  const late = await s.token();
  s.clock.advance(61 * MINUTE);
  refusal(await join(s, { token: late, node: "edge-4" }), "TOKEN_EXPIRED", /expired/);
});

Deno.test("refused: NODE_KEY_MISMATCH: a token alone never takes over a name", async () => {
  const s = await setup();
  await granted(s, { token: await s.token() });
  for (const token of [await s.token(), await s.token({ node: "edge-1" })]) {
    refusal(
      await join(s, { token }),
      "NODE_KEY_MISMATCH",
      /node edge-1 has been enrolled with another key since 2026-/,
      /another --node-name; or, .*operator remove the old enrolment on the server/,
    );
  }
  const unused = s.server.tokens.list().filter((t) => t.uses.length === 0);
  assert.equal(unused.length, 2, "a refused join uses no token up");
});

Deno.test("the same node with the same key joins again, with the used token and with a new one", async () => {
  const s = await setup();
  const { keyPem } = testKey();
  const token = await s.token();
  const first = await granted(s, { token, keyPem });
  const second = await granted(s, { token, keyPem });
  const third = await granted(s, { token: await s.token(), keyPem });
  assert.equal(new Set([first, second, third].map((g) => g.chainPem)).size, 3);
  assert.equal(s.server.enrolments.list().length, 1);
});

Deno.test("T02: refused: CLOCK_SKEW names the skew and both times, ahead and behind; five minutes are fine", async () => {
  const s = await setup();
  const token = await s.token();
  const at = (time: number) => join(s, { token, time });
  refusal(
    await at(TEST_NOW - 3 * 60 * MINUTE - 7 * MINUTE),
    "CLOCK_SKEW",
    /is 3 h 7 min behind the server's: it says 2026-11-24T08:53.* the server 2026-11-24T12:00/,
    /date -u -s @\d+/,
  );
  refusal(await at(TEST_NOW + 8 * 24 * 60 * MINUTE), "CLOCK_SKEW", /is 8 days ahead of the server's/);
  refusal(await at(0), "CLOCK_SKEW", /days .* behind the server's: it says 1970-01-01/);
  refusal(await at(TEST_NOW + 5 * MINUTE + 1), "CLOCK_SKEW", /5 min ahead/);
  refusal(await at(Number.MAX_SAFE_INTEGER), "CLOCK_SKEW", /ahead/);
  assert.equal(s.server.tokens.list()[0]!.uses.length, 0);
  assert.equal((await at(TEST_NOW + 5 * MINUTE)).status, 200);
});

Deno.test("a machine that cannot have a right clock may say so", async () => {
  const s = await setup();
  assert.equal((await join(s, { token: await s.token(), time: 0, acceptSkew: true })).status, 200);
});

Deno.test("T02, T03: refused: a key without its proof, or a proof made for something else", async () => {
  const s = await setup();
  const token = await s.token();
  const cases: Partial<Ask>[] = [
    { signWith: testKey().keyPem },
    { signed: { node: "edge-2" } },
    { signed: { tokenId: "aaaaaaaa" } },
    { signed: { serverKeyHash: "00".repeat(32) } },
    { signed: { nonce: "ff".repeat(16) } },
    { signed: { time: TEST_NOW + 1 } },
    { signed: { keyHash: hashKey(testKey().spki) } },
  ];
  for (const c of cases) {
    refusal(await join(s, { token, ...c }), "CERT_UNTRUSTED", /does not prove that edge-1 holds the key/);
  }
  assert.equal(s.server.tokens.list()[0]!.uses.length, 0);
});

Deno.test("refused: REVOKED, by name and by key", async () => {
  const s = await setup();
  const { keyPem, spki } = testKey();
  await s.server.revoke("node", "edge-1", "stolen");
  refusal(await join(s, { token: await s.token() }), "REVOKED", /node edge-1 was revoked/, /operator can lift/);
  await s.server.liftRevocation("node", "edge-1");
  await s.server.revoke("key", hashKey(spki), "leaked");
  refusal(
    await join(s, { token: await s.token(), keyPem }),
    "REVOKED",
    /the key of edge-1 was revoked/,
    /remove the state directory/,
  );
  assert.equal((await join(s, { token: await s.token() })).status, 200);
});

Deno.test("refused: names that are not names, malformed requests, other versions, large bodies", async () => {
  const s = await setup();
  const token = await s.token();
  for (const node of ["Edge-1", "a.b", "-a", "a/../b"]) {
    refusal(await join(s, { token, node }), "PROTOCOL", /cannot be a node name/);
  }
  const good = JSON.parse(requestText(s, { token }));
  for (
    const [key, value] of Object.entries({
      key: "",
      proof: "x".repeat(201),
      nonce: "xyz",
      time: -1,
      agent: 5,
      node: null,
    })
  ) {
    refusal(
      await s.server.handleJoin(JSON.stringify({ ...good, [key]: value }), "192.0.2.1"),
      "PROTOCOL",
      new RegExp(`join request\\.${key}`),
    );
  }
  refusal(
    await s.server.handleJoin(JSON.stringify({ ...good, version: 2 }), "192.0.2.1"),
    "VERSION",
    /version 2; this side speaks 1/,
  );
  refusal(await s.server.handleJoin("not json", "192.0.2.1"), "PROTOCOL", /is not JSON/);
  refusal(
    await s.server.handleJoin(`"${"x".repeat(MAX_REQUEST_BYTES)}"`, "192.0.2.1"),
    "LIMIT",
    /larger than 8192 bytes/,
  );
  const rsaLike = { ...good, key: Buffer.from(new Uint8Array(91)).toString("base64") };
  refusal(await s.server.handleJoin(JSON.stringify(rsaLike), "192.0.2.1"), "CERT_UNTRUSTED", /prove/);
});

Deno.test("of two joins with one single-use token exactly one wins", async () => {
  const s = await setup();
  const token = await s.token();
  const answers = await Promise.all([join(s, { token, node: "edge-1" }), join(s, { token, node: "edge-2" })]);
  assert.deepEqual(answers.map((a) => a.status).sort(), [200, 403]);
  assert.equal(s.server.enrolments.list().length, 1);
});

Deno.test("of two machines that claim one new name at once exactly one gets it", async () => {
  const s = await setup();
  const tokens = [await s.token(), await s.token()];
  const answers = await Promise.all(tokens.map((token) => join(s, { token })));
  assert.deepEqual(answers.map((a) => a.status).sort(), [200, 409]);
  assert.equal(s.server.tokens.list().filter((t) => t.uses.length > 0).length, 1);
});

Deno.test("after a crash between any two steps the same machine completes its join with the same token", async () => {
  for (const broken of ["nodes.json", ISSUANCE_LOG_FILE]) {
    const s = await setup();
    const token = await s.token();
    const { keyPem } = testKey();
    const { writeAtomic, append } = s.files;
    s.files.writeAtomic = (name, text) =>
      name === broken ? Promise.reject(new Error("EIO")) : writeAtomic.call(s.files, name, text);
    s.files.append = (name, text) =>
      name === broken ? Promise.reject(new Error("EIO")) : append.call(s.files, name, text);
    refusal(await join(s, { token, keyPem }), "INTERNAL", /could not handle/);
    Object.assign(s.files, { writeAtomic, append });
    await s.restart();
    assert.equal((await join(s, { token, keyPem })).status, 200, broken);
    refusal(await join(s, { token, node: "edge-2" }), "TOKEN_USED", /edge-1/);
  }
});

Deno.test("a server's restart keeps authority, enrolments, tokens and revocations", async () => {
  const s = await setup();
  const unused = await s.token();
  const { keyPem } = testKey();
  await granted(s, { token: await s.token(), keyPem });
  await s.server.revoke("node", "edge-9", "gone");
  const { pin } = s.server.authority;
  const { serial, keyHash } = s.server.certificate;
  await s.restart();
  assert.equal(s.server.authority.pin, pin);
  assert.equal(s.server.certificate.keyHash, keyHash);
  assert.equal(s.server.certificate.serial, serial, "a good certificate is not made anew");
  refusal(await join(s, { token: unused }), "NODE_KEY_MISMATCH", /edge-1/);
  refusal(await join(s, { token: unused, node: "edge-9" }), "REVOKED", /edge-9/);
  assert.equal((await join(s, { token: unused, node: "edge-2" })).status, 200);
});

Deno.test("T01: ten wrong tokens make a source wait, with the seconds; a right one elsewhere is not held up", async () => {
  const s = await setup();
  for (let i = 0; i < 10; i++) refusal(await join(s, { token: newToken().text }), "TOKEN_INVALID", /not known/);
  const token = await s.token();
  const answer = await join(s, { token });
  refusal(answer, "LIMIT", /too many wrong join tokens came from 192\.0\.2\.1/, /wait 60 seconds/);
  assert.equal(answer.status, 429);
  assert.equal((await join(s, { token, source: "192.0.2.2" })).status, 200);
  s.clock.advance(MINUTE);
  assert.equal((await join(s, { token: await s.token(), node: "edge-2" })).status, 200);
});

Deno.test("a join that is refused for other reasons than the secret never makes its source wait", async () => {
  const s = await setup();
  const token = await s.token({ node: "edge-2" });
  for (let i = 0; i < 30; i++) refusal(await join(s, { token }), "TOKEN_NAME", /edge-2/);
});

Deno.test("T01: 10 000 wrong tokens from many sources leave no state but a bounded list", async () => {
  const s = await setup();
  const before = new Map(s.files.files);
  const text = requestText(s, { token: newToken().text });
  for (let i = 0; i < MAX_SOURCES; i++) {
    const source = `10.${i >> 16}.${(i >> 8) & 255}.${i & 255}`;
    const answer = await s.server.handleJoin(text, source);
    if (answer.status !== 403) assert.fail(answer.body);
  }
  assert.deepEqual(s.files.files, before);
  assert.equal((await join(s, { token: await s.token(), source: "192.0.2.77" })).status, 200);
});

Deno.test("a fault of the server is told to nobody but its log", async () => {
  const s = await setup();
  const token = await s.token();
  s.files.writeAtomic = () => Promise.reject(new Error("/var/lib/edgemesh: disk failure at sector 7"));
  const answer = await join(s, { token });
  assert.equal(answer.status, 500);
  assert.ok(!answer.body.includes("sector"), answer.body);
  assert.equal(codeOf(await granted(s, { token }).catch((e) => e)), "INTERNAL");
});

Deno.test("durations are told in their two largest units", () => {
  assert.equal(durationText(7 * MINUTE), "7 min");
  assert.equal(durationText(125 * MINUTE), "2 h 5 min");
  assert.equal(durationText(120 * MINUTE), "2 h");
  assert.equal(durationText(24 * 60 * MINUTE), "1 day");
  assert.equal(durationText((3 * 24 + 4) * 60 * MINUTE + 5 * MINUTE), "3 days 4 h");
  assert.equal(durationText(10), "0 min");
});
