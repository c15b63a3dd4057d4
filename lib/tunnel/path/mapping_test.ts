import assert from "node:assert/strict";
import { mappedIn, type Sighting } from "./mapping.ts";

const IP = "198.51.100.7";
/** A port seen by servers 1, 2, …, in this order. */
const seen = (...from: (number | readonly [string, number])[]): Sighting[] =>
  from.map((where, i) => {
    const [ip, port] = typeof where === "number" ? [IP, where] : where;
    return { from: { ip, port }, at: { ip: `203.0.113.${i + 1}`, port: 3478 } };
  });

for (
  const [name, sightings, mapping, next, stride] of [
    ["one sighting says little", seen(25_001), "unknown", 25_001, undefined],
    ["the same port for two servers", seen(25_001, 25_001), "same", 25_001, undefined],
    ["the next port for the next server", seen(30_004, 30_005), "steps", 30_006, 1],
    ["connections that passed the NAT in the other order", seen(30_005, 30_004), "steps", 30_006, 1],
    ["steps of more than one", seen(30_004, 30_008), "steps", 30_012, 4],
    ["too far apart for counting", seen(30_004, 30_013), "varies", 30_004, undefined],
    ["random ports", seen(11_037, 25_456), "varies", 11_037, undefined],
    ["another address for another server", seen(30_004, ["198.51.100.8", 30_005]), "varies", 30_004, undefined],
    ["at the end of all ports", seen(65_534, 65_535), "varies", 65_534, undefined],
  ] as const
) {
  Deno.test(`mapping: ${name}: ${mapping}`, () => {
    const ip = sightings[0]!.from.ip;
    assert.deepEqual(mappedIn(sightings, 4), {
      mapping,
      next: { ip, port: next },
      ...(stride === undefined ? {} : { stride }),
    });
  });
}

Deno.test("mapping: families do not mix, and IPv6 is never foretold", () => {
  const six = seen(["2001:db8::1", 25_001], ["2001:db8::1", 25_002]);
  assert.equal(mappedIn([...seen(30_001, 30_001), ...six], 4).mapping, "same");
  assert.equal(mappedIn([...seen(30_001, 30_001), ...six], 6).mapping, "varies");
});
