import assert from "node:assert/strict";
import fc from "fast-check";
import { ipFromBytes } from "../../addr.ts";
import { decodeAnswer, decodeRequest, encodeAnswer, encodeRequest } from "./sighting.ts";

const nonce = "00112233445566778899aabbccddeeff";
const hex = (bytes: Uint8Array) => Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");

Deno.test("golden bytes", () => {
  assert.equal(hex(encodeRequest(nonce)), "454d4f31" + nonce);
  assert.equal(
    hex(encodeAnswer(nonce, { ip: "203.0.113.9", port: 0x1234 })),
    "454d413104001225cb11533a445566778899aabbccddeeff",
  );
});

Deno.test("any address and port survive, whatever the nonce", () => {
  const byte = fc.integer({ min: 0, max: 255 });
  const ip = fc.oneof(fc.array(byte, { minLength: 4, maxLength: 4 }), fc.array(byte, { minLength: 16, maxLength: 16 }));
  const anyNonce = fc.array(byte, { minLength: 16, maxLength: 16 }).map((bytes) => hex(Uint8Array.from(bytes)));
  fc.assert(fc.property(anyNonce, ip, fc.integer({ min: 1, max: 65535 }), (nonce, bytes, port) => {
    const seen = { ip: ipFromBytes(Uint8Array.from(bytes)), port };
    assert.equal(decodeRequest(encodeRequest(nonce)), nonce);
    assert.deepEqual(decodeAnswer(nonce, encodeAnswer(nonce, seen)), seen);
  }));
});

Deno.test("fuzz: anything else is nothing", () => {
  assert.equal(decodeRequest(encodeRequest(nonce).subarray(0, 19)), undefined);
  assert.equal(decodeAnswer(nonce, encodeAnswer(nonce, { ip: "10.0.0.1", port: 1 }).subarray(1)), undefined);
  const other = encodeAnswer(nonce, { ip: "10.0.0.1", port: 1 });
  other[4] = 5;
  assert.equal(decodeAnswer(nonce, other), undefined);
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 40 }), (bytes) => {
      assert.equal(decodeRequest(bytes), undefined);
      assert.equal(decodeAnswer(nonce, bytes), undefined);
    }),
    { numRuns: 10_000 },
  );
});
