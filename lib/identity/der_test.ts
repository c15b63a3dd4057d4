import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import fc from "fast-check";
import { derBoolean, DerError, derOid, derOnly, DerReader, derTime, derUnsigned, TAG } from "./der.ts";

const bytes = (hex: string) => new Uint8Array(Buffer.from(hex.replaceAll(" ", ""), "hex"));

Deno.test("DerReader walks elements and knows its end", () => {
  const r = new DerReader(bytes("02 01 05 04 02 aa bb"));
  assert.equal(r.peek(), TAG.INTEGER);
  assert.deepEqual(r.next(TAG.INTEGER).content, bytes("05"));
  assert.equal(r.optional(TAG.BOOLEAN), undefined);
  assert.deepEqual(r.next().raw, bytes("0402aabb"));
  assert.equal(r.done, true);
  r.end();
});

Deno.test("DerReader refuses what is not strict DER", () => {
  const refused = {
    "indefinite length": "30 80 00 00",
    "long form of a short length": "04 81 01 aa",
    "long form with a leading zero": "04 82 00 80" + "aa".repeat(128),
    "four length bytes": "04 84 00 00 00 01 aa",
    "content cut short": "04 02 aa",
    "no length": "04",
    "no tag": "",
    "high tag number": "1f 81 00 00",
  };
  for (const [name, hex] of Object.entries(refused)) {
    assert.throws(() => new DerReader(bytes(hex)).next(), DerError, name);
  }
  assert.throws(() => derOnly(bytes("04 01 aa 00"), TAG.OCTET_STRING), /1 bytes left over/);
  assert.throws(() => derOnly(bytes("04 01 aa"), TAG.SEQUENCE), /0x30 expected, 0x04 found/);
});

Deno.test("DER integers, booleans and object identifiers have one form each", () => {
  assert.deepEqual(derUnsigned(bytes("0080")), bytes("80"));
  assert.deepEqual(derUnsigned(bytes("00")), bytes("00"));
  for (const bad of ["", "80", "0001", "0000"]) assert.throws(() => derUnsigned(bytes(bad)), DerError, bad);
  assert.equal(derBoolean(bytes("ff")), true);
  assert.equal(derBoolean(bytes("00")), false);
  for (const bad of ["01", "", "ffff"]) assert.throws(() => derBoolean(bytes(bad)), DerError, bad);
  assert.equal(derOid(bytes("2a8648ce3d040302")), "1.2.840.10045.4.3.2");
  assert.equal(derOid(bytes("551d11")), "2.5.29.17");
  for (const bad of ["", "80", "2a80", "2a8001"]) assert.throws(() => derOid(bytes(bad)), DerError, bad);
});

Deno.test("DER times are read in the forms of RFC 5280 only", () => {
  const time = (tag: number, text: string) => derTime({ tag, raw: bytes(""), content: new TextEncoder().encode(text) });
  assert.equal(time(TAG.UTC_TIME, "261123000000Z"), Date.UTC(2026, 10, 23));
  assert.equal(time(TAG.UTC_TIME, "500101000000Z"), Date.UTC(1950, 0, 1));
  assert.equal(time(TAG.UTC_TIME, "491231235959Z"), Date.UTC(2049, 11, 31, 23, 59, 59));
  assert.equal(time(TAG.GENERALIZED_TIME, "20500101000000Z"), Date.UTC(2050, 0, 1));
  assert.equal(time(TAG.GENERALIZED_TIME, "20240229120000Z"), Date.UTC(2024, 1, 29, 12));
  const bad: [number, string][] = [
    [TAG.UTC_TIME, "2611230000Z"],
    [TAG.UTC_TIME, "261123000000+0100"],
    [TAG.UTC_TIME, "260231000000Z"],
    [TAG.UTC_TIME, "261323000000Z"],
    [TAG.UTC_TIME, "261123240000Z"],
    [TAG.GENERALIZED_TIME, "20261123000000.5Z"],
    [TAG.GENERALIZED_TIME, "20230229120000Z"],
    [TAG.GENERALIZED_TIME, "261123000000Z"],
    [TAG.INTEGER, "261123000000Z"],
  ];
  for (const [tag, text] of bad) assert.throws(() => time(tag, text), DerError, text);
});

Deno.test("no bytes make the reader throw anything but DerError, or read beyond the end", () => {
  fc.assert(fc.property(fc.uint8Array({ maxLength: 64 }), (input) => {
    const r = new DerReader(input);
    let total = 0;
    try {
      while (!r.done) total += r.next().raw.length;
      assert.equal(total, input.length);
    } catch (e) {
      assert.ok(e instanceof DerError, String(e));
    }
  }));
});
