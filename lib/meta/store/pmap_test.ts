import assert from "node:assert/strict";
import fc from "fast-check";
import { hashText, PMap } from "./pmap.ts";

type Op = { readonly key: string; readonly value: number | undefined };

const key = fc.oneof(fc.string({ maxLength: 3 }), fc.constantFrom(...collidingKeys()));
const op: fc.Arbitrary<Op> = fc.record({ key, value: fc.option(fc.nat(5), { nil: undefined }) });

Deno.test("pmap: behaves like a Map under any operations, in batches of any size, and old versions stay", () => {
  fc.assert(fc.property(fc.array(fc.array(op, { maxLength: 20 }), { maxLength: 12 }), (batches) => {
    let map = PMap.empty<number>();
    const model = new Map<string, number>();
    const history: [PMap<number>, [string, number][]][] = [];
    for (const batch of batches) {
      history.push([map, [...model]]);
      const edit = map.edit();
      for (const { key, value } of batch) {
        if (value === undefined) {
          edit.delete(key);
          model.delete(key);
        } else {
          edit.set(key, value);
          model.set(key, value);
        }
        assert.equal(edit.get(key), value);
      }
      map = edit.done();
    }
    history.push([map, [...model]]);
    for (const [version, entries] of history) {
      assert.equal(version.size, entries.length);
      assert.deepEqual(new Map(version.entries()), new Map(entries));
      assert.deepEqual([...version.keys()].sort(), entries.map(([k]) => k).sort());
      assert.equal([...version.values()].length, entries.length);
      for (const [k, v] of entries) assert.equal(version.get(k), v);
    }
  }));
});

Deno.test("pmap: equal contents iterate in equal order, whatever the way to them", () => {
  fc.assert(fc.property(fc.uniqueArray(key, { maxLength: 40 }), fc.array(key, { maxLength: 40 }), (keys, others) => {
    const straight = keys.reduce((map, k) => map.set(k, 1), PMap.empty<number>());
    const edit = PMap.empty<number>().edit();
    for (const k of [...others, ...keys]) edit.set(k, 1);
    for (const k of others) if (!keys.includes(k)) edit.delete(k);
    const reversed = keys.toReversed().reduce((map, k) => map.set(k, 1), edit.done());
    // Keys with equal hashes lie in the order they came; all others have one place.
    const order = (map: PMap<number>) => [...map.keys()].map(hashText);
    assert.deepEqual(order(straight), order(reversed));
  }));
});

Deno.test("pmap: a batch without effect returns the same map", () => {
  const map = PMap.empty<number>().set("a", 1).set("b", 2);
  assert.equal(map.edit().set("a", 1).delete("zzz").done(), map);
  assert.equal(map.delete("a").delete("b"), PMap.empty());
});

/** Keys whose hashes are equal, and some that agree with them in the first levels only. */
function collidingKeys(): string[] {
  const byHash = new Map<number, string[]>();
  const out: string[] = [];
  // 32-bit hashes of 2^18 keys: about eight full collisions; nearly all agree in 15 bits with some other.
  for (let i = 0; i < 1 << 18 && out.length < 4; i++) {
    const text = `key-${(Math.imul(i, 0x9e3779b1) >>> 0).toString(36)}-${i}`;
    const list = byHash.get(hashText(text)) ?? [];
    list.push(text);
    byHash.set(hashText(text), list);
    if (list.length === 2) out.push(...list);
  }
  assert.ok(out.length >= 2, "no colliding keys found: the collision nodes would go untested");
  return out;
}
