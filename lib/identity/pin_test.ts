import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { codeOf, MeshError } from "../errors.ts";
import { parseCertificate } from "./certificate.ts";
import { parsePin, pinnedAuthority, pinOf, samePin } from "./pin.ts";
import { testMesh } from "./testing.ts";
import { makeCertificate } from "./testing_certificates.ts";

Deno.test("the pin is sha256: of the authority's public key", async () => {
  const { authority } = await testMesh();
  const anchor = authority.anchors[0]!;
  assert.equal(pinOf(anchor), "sha256:" + createHash("sha256").update(anchor.spki).digest("hex"));
  assert.equal(authority.pin, pinOf(anchor));
});

Deno.test("a pin is read as people paste it and refused with what to copy", () => {
  const pin = "sha256:" + "0a".repeat(32);
  assert.equal(parsePin(`  SHA256:${"0A".repeat(32)}\n`), pin);
  for (
    const bad of [
      "",
      "0a".repeat(32),
      "sha256:" + "0a".repeat(31),
      "sha256:" + "zz".repeat(32),
      pin + "0",
      "sha1:" + "0a".repeat(20),
    ]
  ) {
    assert.throws(
      () => parsePin(bad),
      (e) => codeOf(e) === "CONFIG_INVALID" && /token create/.test((e as MeshError).hint!),
      bad,
    );
  }
  assert.equal(samePin(pin, pin), true);
  assert.equal(samePin(pin, "sha256:" + "0b".repeat(32)), false);
  assert.equal(samePin(pin, "sha256:"), false);
});

Deno.test("PIN_MISMATCH names both pins and what to do", async () => {
  const [ours, theirs] = [await testMesh(), await testMesh()];
  const presented = theirs.authority.anchors;
  assert.throws(() => pinnedAuthority(presented, ours.authority.pin), (e) => {
    assert.ok(e instanceof MeshError);
    assert.equal(e.code, "PIN_MISMATCH");
    assert.equal(e.message, `the server presented ${theirs.authority.pin}, but ${ours.authority.pin} is pinned`);
    assert.match(e.hint!, /address is right.*set up anew.*intercepting/);
    return true;
  });
  assert.throws(() => pinnedAuthority([], ours.authority.pin), /presented no authority at all/);
});

Deno.test("only a certificate that may sign can be the pinned authority", async () => {
  const leaf = parseCertificate((await makeCertificate()).der);
  assert.throws(() => pinnedAuthority([leaf], pinOf(leaf)), (e) => codeOf(e) === "PIN_MISMATCH");
  const mesh = await testMesh();
  const { certificate } = await mesh.member("server", "s");
  assert.equal(
    pinnedAuthority([certificate, ...mesh.authority.anchors], mesh.authority.pin),
    mesh.authority.anchors[0],
  );
});
