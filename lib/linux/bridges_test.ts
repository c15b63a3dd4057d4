import assert from "node:assert/strict";
import { type BridgeSource, unhookedBridges } from "./bridges.ts";

function source(hooked: string | undefined): BridgeSource {
  return {
    read: () => hooked,
    exists: (path) => path.includes("docker0") || path.includes("br-lan"),
    interfaces: () => [
      { name: "eth0", address: "192.0.2.1" },
      { name: "docker0", address: "172.17.0.1" },
      { name: "docker0", address: "fe80::1%docker0" },
      { name: "br-lan", address: "192.168.1.1" },
    ],
  };
}
const pods = (ip: string) => ip.startsWith("172.17.");

Deno.test("bridges: those of pods count while their frames skip the IP hooks", () => {
  assert.deepEqual(unhookedBridges(pods, source("0\n")), ["docker0"]);
  assert.deepEqual(unhookedBridges(pods, source(undefined)), ["docker0"]);
  assert.deepEqual(unhookedBridges(pods, source("1\n")), []);
  assert.deepEqual(unhookedBridges(() => false, source("0\n")), []);
});

Deno.test("bridges: this machine can be asked", () => {
  assert.ok(Array.isArray(unhookedBridges(() => true)));
});
