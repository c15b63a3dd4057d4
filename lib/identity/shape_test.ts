import assert from "node:assert/strict";
import fc from "fast-check";
import { codeOf } from "../errors.ts";
import { array, boolean, integer, LABELS, literal, object, optional, parseJson, record, string } from "./shape.ts";

const shape = object({
  text: string(1, 5, /^[a-z]+$/),
  n: integer(0, 10),
  kind: literal("x", "y"),
  list: array(integer(0), 2),
  maybe: optional(boolean),
});
const good = { text: "abc", n: 1, kind: "x", list: [1, 2] };

Deno.test("a value of the shape is returned, without what the shape does not name", () => {
  assert.deepEqual(shape({ ...good, later: "version" }, "v"), good);
  assert.deepEqual(shape({ ...good, maybe: false }, "v"), { ...good, maybe: false });
});

Deno.test("a wrong value is refused with its path", () => {
  const cases: [unknown, RegExp][] = [
    [null, /^v is not an object/],
    [[], /^v is not an object/],
    [{ ...good, text: 1 }, /v\.text is not text/],
    [{ ...good, text: "" }, /v\.text has 0 characters; 1 to 5/],
    [{ ...good, text: "ABC" }, /v\.text does not have the form/],
    [{ ...good, n: 1.5 }, /v\.n is not a whole number/],
    [{ ...good, n: "1" }, /v\.n is not a whole number/],
    [{ ...good, n: 11 }, /v\.n is 11; 0 to 10/],
    [{ ...good, kind: "z" }, /v\.kind is not one of x, y/],
    [{ ...good, list: [1, 2, 3] }, /v\.list has 3 elements; 2/],
    [{ ...good, list: [1, -1] }, /v\.list\[1\] is -1/],
    [{ ...good, list: {} }, /v\.list is not a list/],
    [{ ...good, maybe: "yes" }, /v\.maybe is not true or false/],
    [Object.create(good), /v\.text is not text/],
  ];
  for (const [value, why] of cases) {
    assert.throws(() => shape(value, "v"), (e) => codeOf(e) === "PROTOCOL" && why.test((e as Error).message));
  }
});

Deno.test("records keep keys as keys and refuse those outside the pattern", () => {
  const any = record(integer(0), { max: 2, key: /^\w+$/ });
  const read = any(JSON.parse('{"__proto__": 1, "a": 2}'), "r");
  assert.deepEqual(Object.entries(read), [["__proto__", 1], ["a", 2]]);
  assert.equal(Object.getPrototypeOf(read), Object.prototype);
  assert.throws(() => any({ "a b": 1 }, "r"), /has the key "a b"/);
  assert.throws(() => any({ a: 1, b: 2, c: 3 }, "r"), /3 entries; 2/);
  assert.deepEqual(LABELS({ "topology.kubernetes.io/zone": "north", "a": "" }, "l"), {
    "topology.kubernetes.io/zone": "north",
    "a": "",
  });
  assert.throws(() => LABELS({ "/x": "y" }, "l"), (e) => codeOf(e) === "PROTOCOL");
});

Deno.test("parseJson measures bytes, not characters, and never throws anything but MeshError", () => {
  const options = { what: "message", maxBytes: 20 };
  assert.deepEqual(parseJson('"1234567890123456"', string(0, 99), options), "1234567890123456");
  assert.throws(() => parseJson(JSON.stringify("€".repeat(7)), string(0, 99), options), (e) => codeOf(e) === "LIMIT");
  assert.throws(() => parseJson("{", string(0, 99), options), (e) => codeOf(e) === "PROTOCOL");
  fc.assert(fc.property(fc.oneof(fc.string(), fc.json()), (text) => {
    try {
      parseJson(text, shape, { what: "message", maxBytes: 100 });
    } catch (e) {
      assert.ok(["PROTOCOL", "LIMIT"].includes(codeOf(e)));
    }
  }));
});
