import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { createHash, X509Certificate } from "node:crypto";
import fc from "fast-check";
import { codeOf } from "../errors.ts";
import { CA_KEY_FILE } from "./ca.ts";
import { isNodeKey, isSignedBy, MAX_CERTIFICATE_BYTES, parseCertificate, parsePem, toPem } from "./certificate.ts";
import { attested, TEST_NOW, testKey, testMesh } from "./testing.ts";
import { element, makeCertificate, resign, unknownExtension } from "./testing_certificates.ts";
import { verifyPeer } from "./trust.ts";

const untrusted = (e: unknown) => codeOf(e) === "CERT_UNTRUSTED";

Deno.test("parseCertificate reads what another implementation reads", async () => {
  const mesh = await testMesh();
  for (const c of [(await mesh.member("node", "edge-1")).certificate, mesh.authority.anchors[0]!]) {
    const other = new X509Certificate(Buffer.from(c.raw));
    assert.equal(c.serial, other.serialNumber.toLowerCase().replace(/^0+/, ""));
    assert.equal(c.notBefore, other.validFromDate.getTime());
    assert.equal(c.notAfter, other.validToDate.getTime());
    assert.equal(c.isCa, other.ca);
    assert.deepEqual(c.uris.map((u) => "URI:" + u).join(", "), other.subjectAltName);
    assert.deepEqual(Buffer.from(c.spki), other.publicKey.export({ type: "spki", format: "der" }));
    assert.equal(c.keyHash, createHash("sha256").update(c.spki).digest("hex"));
    assert.equal(other.subject, `CN=${c.commonName}`);
  }
});

Deno.test("toPem and parsePem are inverse, for several certificates with text around them", async () => {
  const mesh = await testMesh();
  const { certificate } = await mesh.member("node", "a");
  const anchor = mesh.authority.anchors[0]!;
  const read = parsePem(
    `# mine\n${toPem(certificate)}\nand its authority\r\n${toPem(anchor).replaceAll("\n", "\r\n")}`,
  );
  assert.deepEqual(read.map((c) => c.raw), [certificate.raw, anchor.raw]);
  assert.throws(() => parsePem("nothing here"), untrusted);
});

Deno.test("a version 1 certificate that our authority's key signed is refused", async () => {
  const mesh = await testMesh();
  const { certificate } = await mesh.member("node", "a");
  const caKey = mesh.files.files.get(CA_KEY_FILE)!;
  assert.doesNotThrow(
    () => parseCertificate(resign(certificate.raw, caKey, (parts) => parts)),
    "resign itself is sound",
  );
  const v1 = resign(certificate.raw, caKey, (parts) => parts.slice(1, -1));
  assert.throws(() => parseCertificate(v1), /version is not 3/);
  const v2 = resign(certificate.raw, caKey, ([, ...rest]) => [element(0xa0, Uint8Array.of(2, 1, 1)), ...rest]);
  assert.throws(() => parseCertificate(v2), /version is not 3/);
});

Deno.test("certificates outside the profile are refused with what is wrong", async () => {
  const good = await makeCertificate();
  const edited = (edit: (parts: Uint8Array[]) => Uint8Array[]) => resign(good.der, good.keyPem, edit);
  const cases: [RegExp, Uint8Array][] = [
    [
      /critical extension 1\.3\.6\.1\.4\.1\.99999\.1 is unknown/,
      (await makeCertificate({ extra: [unknownExtension(true)] })).der,
    ],
    [/left over/, Uint8Array.from([...good.der, 0])],
    [/cut short|longer than/, good.der.subarray(0, -1)],
    [/signature algorithm/, edited((p) => p.with(2, element(0x30, Uint8Array.of(6, 1, 42))))],
    [/not an uncompressed P-256 point/, edited((p) => p.with(6, p[6]!.with(26, 2)))],
    [/negative INTEGER/, edited((p) => p.with(1, Uint8Array.of(2, 1, 0x80)))],
    [/beyond 20 bytes/, edited((p) => p.with(1, element(2, new Uint8Array(21).fill(1))))],
    [/comes twice/, edited((p) => p.with(7, twice(p[7]!)))],
    [/left over/, edited((p) => [...p, Uint8Array.of(5, 0)])],
    [/more than 4096/, new Uint8Array(MAX_CERTIFICATE_BYTES + 1)],
  ];
  for (const [why, der] of cases) {
    assert.throws(
      () => parseCertificate(der),
      (e) => untrusted(e) && why.test(String(e)) || assert.fail(`${why}: ${e}`),
    );
  }
  const harmless = await makeCertificate({ extra: [unknownExtension(false)] });
  assert.doesNotThrow(() => parseCertificate(harmless.der));
});

Deno.test("no single changed byte of a genuine certificate verifies", async () => {
  const mesh = await testMesh();
  const { certificate } = await mesh.member("node", "a");
  const verify = (der: Uint8Array) =>
    verifyPeer({ chainDer: [der], expected: { role: "node" }, trust: mesh.trust(), now: attested(TEST_NOW) });
  assert.equal(verify(certificate.raw).node, "a");
  for (let i = 0; i < certificate.raw.length; i++) {
    const changed = certificate.raw.with(i, certificate.raw[i]! ^ (1 << (i % 8)));
    assert.throws(() => verify(changed), untrusted, `byte ${i}`);
  }
});

Deno.test("random bytes and random edits never throw anything but CERT_UNTRUSTED", async () => {
  const { der } = await makeCertificate();
  const edit = fc.record({ at: fc.nat(der.length), cut: fc.nat(8), put: fc.uint8Array({ maxLength: 8 }) });
  const input = fc.oneof(
    fc.uint8Array({ maxLength: 200 }),
    edit.map(({ at, cut, put }) => Uint8Array.from([...der.subarray(0, at), ...put, ...der.subarray(at + cut)])),
  );
  fc.assert(
    fc.property(input, (bytes) => {
      try {
        parseCertificate(bytes);
      } catch (e) {
        assert.ok(untrusted(e), String(e));
      }
    }),
    { numRuns: 2000 },
  );
});

Deno.test("isNodeKey takes P-256 points on the curve in one encoding", () => {
  const { spki } = testKey();
  assert.equal(isNodeKey(spki), true);
  assert.equal(isNodeKey(spki.with(90, spki[90]! ^ 1)), false, "not on the curve");
  assert.equal(isNodeKey(spki.subarray(0, 90)), false);
  assert.equal(isNodeKey(Uint8Array.from([...spki, 0])), false);
  assert.equal(isNodeKey(spki.with(26, 4 ^ 2)), false);
});

Deno.test("isSignedBy tells who signed", async () => {
  const [one, two] = [await testMesh(), await testMesh()];
  const { certificate } = await one.member("node", "a");
  assert.equal(isSignedBy(certificate, one.authority.anchors[0]!), true);
  assert.equal(isSignedBy(certificate, two.authority.anchors[0]!), false);
});

/** The [3] extensions with the first extension repeated. */
function twice(extensions: Uint8Array): Uint8Array {
  const list = extensions.subarray(extensions[1] === 0x81 ? 3 : 2);
  const inner = list.subarray(list[1] === 0x81 ? 3 : 2);
  const length = 2 + inner[1]!;
  return element(0xa3, element(0x30, inner.subarray(0, length), inner));
}
