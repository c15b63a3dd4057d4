import { strict as assert } from "node:assert";
import fc from "fast-check";
import {
  attrText,
  attrU32,
  MessageBuilder,
  NLM_F_ACK,
  NLM_F_CREATE,
  NLM_F_REQUEST,
  parseAttributes,
  parseMessages,
} from "./netlink_message.ts";

Deno.test("a message is header, fixed structure, and nothing else", () => {
  // RTM_NEWLINK that sets link 1 up: length 32, type 16, NLM_F_REQUEST | NLM_F_ACK, sequence 7, port 0.
  const b = new MessageBuilder(7);
  const fixed = Uint8Array.of(0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0);
  assert.equal(b.message(16, NLM_F_ACK, fixed), 7);
  assert.deepEqual([...b.bytes], [32, 0, 0, 0, 16, 0, 5, 0, 7, 0, 0, 0, 0, 0, 0, 0, ...fixed]);
  assert.equal(b.nextSeq, 8);
});

Deno.test("attributes are padded to four bytes, nested ones are marked and counted", () => {
  const b = new MessageBuilder();
  b.message(1, 0, new Uint8Array(0), () => {
    b.u8(1, 255);
    b.nest(18, () => b.text(1, "dummy"));
    b.be32(3, 0x01020304);
    b.u32(4, 0x01020304);
  });
  const attributes = [5, 0, 1, 0, 255, 0, 0, 0].concat(
    [16, 0, 18, 0x80, 10, 0, 1, 0, 100, 117, 109, 109, 121, 0, 0, 0],
    [8, 0, 3, 0, 1, 2, 3, 4],
    [8, 0, 4, 0, 4, 3, 2, 1],
  );
  assert.deepEqual([...b.bytes.subarray(16)], attributes);
});

Deno.test("what is built is read back, for any content and number of messages", () => {
  const attribute = fc.tuple(fc.integer({ min: 1, max: 0x3fff }), fc.uint8Array({ maxLength: 300 }));
  const message = fc.record({
    type: fc.integer({ min: 0, max: 0xffff }),
    flags: fc.constantFrom(0, NLM_F_ACK, NLM_F_CREATE),
    fixed: fc.uint8Array({ maxLength: 64 }).map((a) => a.subarray(0, a.length & ~3)),
    attributes: fc.uniqueArray(attribute, { selector: ([type]) => type, maxLength: 8 }),
  });
  fc.assert(fc.property(fc.array(message, { maxLength: 20 }), (wanted) => {
    const b = new MessageBuilder(100);
    for (const m of wanted) {
      b.message(m.type, m.flags, m.fixed, () => m.attributes.forEach(([type, value]) => b.attr(type, value)));
    }
    const read = parseMessages(b.bytes);
    assert.equal(read.length, wanted.length);
    read.forEach((m, i) => {
      const { type, flags, fixed, attributes } = wanted[i]!;
      assert.deepEqual([m.type, m.flags, m.seq], [type, flags | NLM_F_REQUEST, 100 + i]);
      assert.deepEqual(m.body.subarray(0, fixed.length), fixed);
      const got = parseAttributes(m.body, fixed.length);
      assert.equal(got.size, attributes.length);
      for (const [type, value] of attributes) assert.deepEqual(got.get(type), value);
    });
  }));
});

Deno.test("bytes that are no netlink messages are read without an error or a hang", () => {
  fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
    for (const m of parseMessages(bytes)) parseAttributes(m.body);
    parseAttributes(bytes, 16);
  }));
  const b = new MessageBuilder();
  b.message(1, 0, new Uint8Array(4));
  b.message(2, 0, new Uint8Array(4));
  assert.equal(parseMessages(b.bytes.subarray(0, b.bytes.length - 1)).length, 1);
});

Deno.test("numbers and texts of attributes that are missing or short are undefined or what is there", () => {
  const attributes = new Map([[1, Uint8Array.of(1, 2)], [2, Uint8Array.of(104, 105)], [
    3,
    Uint8Array.of(1, 0, 0, 128),
  ]]);
  assert.equal(attrU32(attributes, 1), undefined);
  assert.equal(attrU32(attributes, 9), undefined);
  assert.equal(attrU32(attributes, 3), 0x80000001);
  assert.equal(attrText(attributes, 2), "hi");
  assert.equal(attrText(attributes, 9), undefined);
});
