import assert from "node:assert/strict";
import { attested, TEST_NOW, testMesh } from "./testing.ts";
import { verifyPeer } from "./trust.ts";

Deno.test("a certificate that the authority issued verifies", async () => {
  const mesh = await testMesh();
  const { certificate } = await mesh.member("node", "edge-1");
  const peer = verifyPeer({
    chainDer: [certificate.raw],
    expected: { role: "node", name: "edge-1" },
    trust: mesh.trust(),
    now: attested(TEST_NOW),
  });
  assert.equal(peer.node, "edge-1");
  assert.equal(peer.keyHash, certificate.keyHash);
  assert.equal(peer.expired, false);
});
