import assert from "node:assert/strict";
import { codeOf, MeshError, type ReasonCode } from "../errors.ts";
import { CA_KEY_FILE } from "./ca.ts";
import { parseCertificate } from "./certificate.ts";
import { type RevocationEntry, Revocations } from "./revocation.ts";
import { attested, TEST_NOW, type TestMesh, testMesh, unattested } from "./testing.ts";
import { makeCertificate, type Recipe } from "./testing_certificates.ts";
import type { TimeEstimate } from "./time.ts";
import { DEFAULT_GRACE_MS, type KnownKeys, type Trust, verifyPeer, type VerifyRequest } from "./trust.ts";

const DAY = 24 * 3600 * 1000;

interface Case extends Partial<VerifyRequest> {
  readonly chainDer: readonly Uint8Array[];
}

function check(mesh: TestMesh, c: Case) {
  return verifyPeer({ expected: { role: "node" }, trust: mesh.trust(), now: attested(TEST_NOW), ...c });
}

function refused(mesh: TestMesh, c: Case, code: ReasonCode, text: RegExp): void {
  assert.throws(() => check(mesh, c), (e) => {
    assert.ok(e instanceof MeshError, String(e));
    assert.equal(e.code, code, e.message);
    assert.match(e.message, text);
    return true;
  });
}

/** A certificate our own authority could only make by mistake. */
async function byAuthority(mesh: TestMesh, recipe: Recipe): Promise<Uint8Array> {
  const by = { der: mesh.authority.anchors[0]!.raw, keyPem: mesh.files.files.get(CA_KEY_FILE)! };
  return (await makeCertificate({ ...recipe, by })).der;
}

function revoked(...entries: Partial<RevocationEntry>[]): Revocations {
  const revocations = new Revocations();
  revocations.apply("s", {
    epoch: 1,
    entries: entries.map((e) => ({ by: "node", value: "", reason: "lost", at: TEST_NOW - DAY, ...e })),
  });
  return revocations;
}

Deno.test("a good peer is reported with everything later decisions need", async () => {
  const mesh = await testMesh();
  const { certificate } = await mesh.member("node", "edge-1");
  const { notBefore, notAfter, keyHash, serial, spki } = certificate;
  assert.deepEqual(check(mesh, { chainDer: [certificate.raw] }), {
    role: "node",
    node: "edge-1",
    keyHash,
    spki,
    serial,
    notBefore,
    notAfter,
    expired: false,
    firstUse: true,
  });
});

Deno.test("refused: no certificate, too many, garbage", async () => {
  const mesh = await testMesh();
  const { certificate } = await mesh.member("node", "a");
  refused(mesh, { chainDer: [] }, "CERT_UNTRUSTED", /presented no certificate/);
  refused(
    mesh,
    { chainDer: Array(5).fill(certificate.raw) },
    "CERT_UNTRUSTED",
    /presented 5 certificates; 4 are allowed/,
  );
  refused(mesh, { chainDer: [new Uint8Array(50)] }, "CERT_UNTRUSTED", /malformed/);
});

Deno.test("refused: foreign authority, with the pins that are trusted", async () => {
  const mesh = await testMesh();
  const { certificate } = await (await testMesh()).member("node", "a");
  refused(
    mesh,
    { chainDer: [certificate.raw] },
    "CERT_UNTRUSTED",
    new RegExp(`not from this mesh's authority \\(${mesh.authority.pin}\\)`),
  );
});

Deno.test("refused: self-signed with our authority's name", async () => {
  const mesh = await testMesh();
  const self = await makeCertificate({ subject: "CN=edgemesh authority" });
  refused(mesh, { chainDer: [self.der] }, "CERT_UNTRUSTED", /not from this mesh's authority/);
});

Deno.test("refused: an authority's certificate as a peer's own", async () => {
  const mesh = await testMesh();
  refused(mesh, { chainDer: [mesh.authority.anchors[0]!.raw] }, "CERT_UNTRUSTED", /authority's certificate/);
});

Deno.test("refused: another name or role than expected", async () => {
  const mesh = await testMesh();
  const { certificate } = await mesh.member("node", "b");
  const chainDer = [certificate.raw];
  refused(
    mesh,
    { chainDer, expected: { role: "node", name: "a" } },
    "CERT_UNTRUSTED",
    /the peer is node b, but node a is expected/,
  );
  refused(
    mesh,
    { chainDer, expected: { role: "server" } },
    "CERT_UNTRUSTED",
    /the peer is node b, but a server is expected/,
  );
  refused(mesh, { chainDer, expected: { role: "server", name: "b" } }, "CERT_UNTRUSTED", /node b, but server b/);
  assert.equal(check(mesh, { chainDer, expected: { role: "node", name: "b" } }).node, "b");
});

Deno.test("refused: certificates of our authority that do not name exactly one party of this mesh", async () => {
  const mesh = await testMesh();
  const cases: [readonly string[], RegExp][] = [
    [[], /does not name exactly one/],
    [["spiffe://mesh.test/node/a", "spiffe://mesh.test/node/b"], /does not name exactly one/],
    [["spiffe://mesh.test/node/a/b"], /does not name exactly one/],
    [["spiffe://mesh.test/node/A"], /does not name exactly one/],
    [["https://mesh.test/node/a"], /does not name exactly one/],
    [["spiffe://mesh.test/admin/a"], /does not name exactly one/],
    [["spiffe://other.test/node/a"], /trust domain other\.test, not mesh\.test/],
  ];
  for (const [uris, why] of cases) {
    refused(mesh, { chainDer: [await byAuthority(mesh, { uris })] }, "CERT_UNTRUSTED", why);
  }
});

Deno.test("refused: a certificate that is not for both TLS servers and clients", async () => {
  const mesh = await testMesh();
  const der = await byAuthority(mesh, { usages: ["1.3.6.1.5.5.7.3.1"] });
  refused(mesh, { chainDer: [der] }, "CERT_UNTRUSTED", /not for TLS servers and clients/);
});

Deno.test("an intermediate is followed up to an anchor; a leaf that signs is not one", async () => {
  const root = await makeCertificate({ subject: "CN=root", ca: true, uris: ["spiffe://mesh.test"] });
  const middle = await makeCertificate({ subject: "CN=middle", ca: true, pathLength: 0, uris: [], by: root });
  const leaf = await makeCertificate({ by: middle });
  const mesh = await testMesh();
  const trust = mesh.trust({ anchors: [parseCertificate(root.der)] });
  assert.equal(check(mesh, { chainDer: [leaf.der, middle.der], trust }).node, "a");
  assert.equal(check(mesh, { chainDer: [leaf.der, middle.der, root.der], trust }).node, "a");
  refused(mesh, { chainDer: [leaf.der], trust }, "CERT_UNTRUSTED", /not from this mesh's authority/);
  refused(mesh, { chainDer: [leaf.der, root.der], trust }, "CERT_UNTRUSTED", /not from this mesh's authority/);

  const evilLeaf = await makeCertificate({ subject: "CN=b", by: leaf });
  refused(mesh, { chainDer: [evilLeaf.der, leaf.der, middle.der], trust }, "CERT_UNTRUSTED", /not from/);
  const lower = await makeCertificate({ subject: "CN=lower", ca: true, uris: [], by: middle });
  const deep = await makeCertificate({ by: lower });
  refused(mesh, { chainDer: [deep.der, lower.der, middle.der], trust }, "CERT_UNTRUSTED", /not from/); // pathLength 0
  const foreign = await makeCertificate({ subject: "CN=middle", ca: true, uris: [] });
  const viaForeign = await makeCertificate({ by: foreign });
  refused(mesh, { chainDer: [viaForeign.der, foreign.der, middle.der], trust }, "CERT_UNTRUSTED", /not from/);
});

Deno.test("during a rotation both authorities are trusted, also when they have one name", async () => {
  const [former, next] = [await testMesh(), await testMesh()];
  const trust = former.trust({ anchors: [...former.authority.anchors, ...next.authority.anchors] });
  for (const mesh of [former, next]) {
    const { certificate } = await mesh.member("node", "a");
    assert.equal(check(mesh, { chainDer: [certificate.raw], trust }).node, "a");
  }
});

Deno.test("between peers an expired certificate is accepted through the grace and not after", async () => {
  const mesh = await testMesh();
  const { certificate } = await mesh.member("node", "a");
  const chainDer = [certificate.raw];
  const at = (ms: number) => check(mesh, { chainDer, now: attested(ms) });
  assert.equal(at(certificate.notAfter).expired, false);
  assert.equal(at(certificate.notAfter + 1).expired, true);
  assert.equal(at(certificate.notAfter + DEFAULT_GRACE_MS).expired, true);
  refused(
    mesh,
    { chainDer, now: attested(certificate.notAfter + DEFAULT_GRACE_MS + 1) },
    "CERT_EXPIRED",
    /expired 30 days ago; 30 days are accepted/,
  );
  refused(
    mesh,
    { chainDer, trust: mesh.trust({ graceMs: 0 }), now: attested(certificate.notAfter + 1) },
    "CERT_EXPIRED",
    /expired/,
  );
});

Deno.test("a clock at 1970 (floored) or a week ahead breaks no connection", async () => {
  const mesh = await testMesh();
  const node = (await mesh.member("node", "a")).certificate.raw;
  const server = (await mesh.member("server", "s")).certificate.raw;
  const clocks: TimeEstimate[] = [
    unattested(TEST_NOW - 400 * DAY), // The estimate cannot be older than the build; a year-old build at 1970.
    unattested(TEST_NOW + 7 * DAY, TEST_NOW),
    attested(TEST_NOW + 60_000),
  ];
  for (const now of clocks) {
    assert.equal(check(mesh, { chainDer: [node], now }).node, "a");
    assert.equal(check(mesh, { chainDer: [server], expected: { role: "server" }, now }).node, "s");
  }
});

Deno.test("a server is judged by what is certainly past, so that a clock years ahead can be corrected by it", async () => {
  const mesh = await testMesh();
  const server = [(await mesh.member("server", "s")).certificate.raw];
  const node = [(await mesh.member("node", "a")).certificate.raw];
  const ahead = unattested(TEST_NOW + 1000 * DAY, TEST_NOW);
  assert.equal(check(mesh, { chainDer: server, expected: { role: "server" }, now: ahead }).node, "s");
  refused(mesh, { chainDer: node, now: ahead }, "CERT_EXPIRED", /expired/);
  const certainlyLater = unattested(TEST_NOW + 1000 * DAY, TEST_NOW + 40 * DAY);
  refused(mesh, { chainDer: server, expected: { role: "server" }, now: certainlyLater }, "CERT_EXPIRED", /expired/);
  refused(
    mesh,
    { chainDer: server, expected: { role: "server" }, now: attested(TEST_NOW + 40 * DAY) },
    "CERT_EXPIRED",
    /expired/,
  );
});

Deno.test("not yet valid is refused only beyond the grace and when servers confirm the time", async () => {
  const mesh = await testMesh();
  const { certificate } = await mesh.member("node", "a", { now: TEST_NOW + 100 * DAY });
  const chainDer = [certificate.raw];
  refused(mesh, { chainDer, now: attested(TEST_NOW) }, "CERT_UNTRUSTED", /is valid from .* on/);
  assert.equal(check(mesh, { chainDer, now: attested(TEST_NOW + 80 * DAY) }).expired, false);
  assert.equal(check(mesh, { chainDer, now: unattested(TEST_NOW) }).node, "a");
});

Deno.test("a revocation by node, key or serial wins, whatever the dates", async () => {
  const mesh = await testMesh();
  const { certificate } = await mesh.member("node", "a");
  const entries: Partial<RevocationEntry>[] = [
    { by: "node", value: "a" },
    { by: "key", value: certificate.keyHash },
    { by: "serial", value: certificate.serial },
  ];
  for (const entry of entries) {
    const trust = mesh.trust({ revocations: revoked(entry), graceMs: 1000 * DAY });
    for (const now of [attested(TEST_NOW), attested(TEST_NOW + 5 * DAY), unattested(0)]) {
      refused(mesh, { chainDer: [certificate.raw], trust, now }, "REVOKED", /a was revoked on .*: lost/);
    }
  }
  const others = revoked({ value: "b" }, { by: "key", value: "0".repeat(64) }, { by: "serial", value: "1" });
  assert.equal(check(mesh, { chainDer: [certificate.raw], trust: mesh.trust({ revocations: others }) }).node, "a");
});

Deno.test("T05: a node's key is pinned on first use; another key is refused and stays unknown", async () => {
  const mesh = await testMesh();
  const [first, second] = [await mesh.member("node", "a"), await mesh.member("node", "a")];
  const keys = new MemoryKeys();
  const trust = mesh.trust({ knownKeys: keys });
  assert.equal(check(mesh, { chainDer: [first.certificate.raw], trust }).firstUse, true);
  assert.equal(check(mesh, { chainDer: [first.certificate.raw], trust }).firstUse, false);
  refused(
    mesh,
    { chainDer: [second.certificate.raw], trust },
    "NODE_KEY_MISMATCH",
    /a shows the key [0-9a-f]{16}…, but this node knows it by/,
  );
  assert.equal(keys.get("a"), first.certificate.keyHash);
});

Deno.test("a changed key is accepted once the former key is revoked, and only then", async () => {
  const mesh = await testMesh();
  const [first, second, third] = [
    await mesh.member("node", "a"),
    await mesh.member("node", "a"),
    await mesh.member("node", "a"),
  ];
  const keys = new MemoryKeys();
  keys.learn("a", first.certificate.keyHash);
  const nameRevokedElsewhere = revoked({ by: "serial", value: first.certificate.serial });
  refused(
    mesh,
    { chainDer: [second.certificate.raw], trust: mesh.trust({ knownKeys: keys, revocations: nameRevokedElsewhere }) },
    "NODE_KEY_MISMATCH",
    /./,
  );
  const revocations = revoked({ by: "key", value: first.certificate.keyHash });
  const trust: Trust = mesh.trust({ knownKeys: keys, revocations });
  assert.equal(check(mesh, { chainDer: [second.certificate.raw], trust }).firstUse, true);
  assert.equal(keys.get("a"), second.certificate.keyHash);
  refused(mesh, { chainDer: [first.certificate.raw], trust }, "REVOKED", /a was revoked/);
  refused(mesh, { chainDer: [third.certificate.raw], trust }, "NODE_KEY_MISMATCH", /a shows the key/);
});

Deno.test("a refused peer's key is not learned", async () => {
  const mesh = await testMesh();
  const { certificate } = await mesh.member("node", "a");
  const keys = new MemoryKeys();
  const trust = mesh.trust({ knownKeys: keys });
  const cases: Case[] = [
    { chainDer: [certificate.raw], trust, expected: { role: "node", name: "b" } },
    { chainDer: [certificate.raw], trust, now: attested(TEST_NOW + 100 * DAY) },
    { chainDer: [certificate.raw], trust: { ...trust, revocations: revoked({ value: "a" }) } },
    { chainDer: [(await (await testMesh()).member("node", "a")).certificate.raw], trust },
  ];
  for (const c of cases) assert.throws(() => check(mesh, c), (e) => codeOf(e) !== "INTERNAL");
  assert.equal(keys.get("a"), undefined);
});

Deno.test("servers' keys are not pinned: a server set up anew under the same authority is welcome", async () => {
  const mesh = await testMesh();
  const trust = mesh.trust({ knownKeys: new MemoryKeys() });
  for (const member of [await mesh.member("server", "s"), await mesh.member("server", "s")]) {
    assert.equal(
      check(mesh, { chainDer: [member.certificate.raw], expected: { role: "server" }, trust }).firstUse,
      false,
    );
  }
});

class MemoryKeys implements KnownKeys {
  readonly #keys = new Map<string, string>();

  get(node: string): string | undefined {
    return this.#keys.get(node);
  }

  learn(node: string, keyHash: string): void {
    this.#keys.set(node, keyHash);
  }
}
