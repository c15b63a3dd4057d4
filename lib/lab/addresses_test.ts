import assert from "node:assert/strict";
import { nthAddress } from "./addresses.ts";

Deno.test("addresses are counted within the last byte and never beyond", () => {
  assert.equal(nthAddress("10.244.3.0", 1), "10.244.3.1");
  assert.equal(nthAddress("172.17.0.1", 253), "172.17.0.254");
  assert.throws(() => nthAddress("172.17.0.1", 254), { code: "LIMIT" });
});
