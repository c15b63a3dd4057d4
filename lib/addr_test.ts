import assert from "node:assert/strict";
import fc from "fast-check";
import { ipBytes, ipFromBytes, parseIp } from "./addr.ts";

Deno.test("addr: bytes of an address and back, both families", () => {
  fc.assert(fc.property(fc.oneof(fc.uint8Array({ minLength: 4, maxLength: 4 }), fc.ipV6()), (input) => {
    const ip = typeof input === "string" ? parseIp(input) : ipFromBytes(input);
    if (ip === undefined) return;
    assert.equal(ipFromBytes(ipBytes(ip)), ip);
    if (typeof input !== "string") assert.deepEqual(ipBytes(ip), input);
  }));
});
