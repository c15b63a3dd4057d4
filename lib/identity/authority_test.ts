import assert from "node:assert/strict";
import { codeOf } from "../errors.ts";
import { Authority, AUTHORITY_FILE } from "./authority.ts";
import { CA_BUNDLE_FILE, CA_KEY_FILE, openAuthority } from "./ca.ts";
import { parsePem } from "./certificate.ts";
import { pinOf } from "./pin.ts";
import { MemoryStateFiles } from "./state_files.ts";
import { TEST_NOW, testKey } from "./testing.ts";
import { checkPath, issuerPin } from "./trust.ts";

const OVERLAP = 3_600_000;
const options = { trustDomain: "mesh.test", now: TEST_NOW };

const node = (authority: Authority, role: "node" | "server" = "node") =>
  authority.issue({ role, name: "x", spki: testKey().spki, now: TEST_NOW, why: "test" });

/** Files that break down at the n-th change, as a crash would. */
class CrashingFiles extends MemoryStateFiles {
  left = Infinity;

  override writeAtomic(name: string, text: string): Promise<void> {
    return this.#change(() => super.writeAtomic(name, text));
  }

  override remove(name: string): Promise<void> {
    return this.#change(() => super.remove(name));
  }

  #change(change: () => Promise<void>): Promise<void> {
    if (this.left-- <= 0) return Promise.reject(new Error("crash"));
    return change();
  }
}

Deno.test("a rotation: nobody who was there once in the overlap loses anybody, and the old key is gone at the end", async () => {
  const files = new MemoryStateFiles();
  const authority = await Authority.open(files, options);
  const [oldPin, oldKey] = [authority.pin, files.files.get(CA_KEY_FILE)!];
  const before = { anchors: authority.anchors, leaf: (await node(authority)).certificate };

  await authority.rotate(TEST_NOW, OVERLAP);
  const newPin = authority.view.rotation!.next;
  const announced = { anchors: authority.anchors, leaf: (await node(authority)).certificate };
  assert.deepEqual(announced.anchors.map(pinOf), [oldPin, newPin]);
  assert.equal(issuerPin([announced.leaf], announced.anchors), oldPin);
  assert.equal(authority.pin, oldPin, "join lines that are out stay good");

  await authority.step({ step: "switch" });
  const switched = (await node(authority)).certificate;
  assert.equal(issuerPin([switched], authority.anchors), newPin);
  const server = (await node(authority, "server")).certificate;
  checkPath([server], before); // Who was away so far still reaches a server.
  checkPath([switched], announced);
  assert.throws(() => checkPath([switched], before), (e) => codeOf(e) === "CERT_UNTRUSTED");

  await authority.step({ step: "finish" });
  assert.equal(authority.pin, newPin);
  assert.throws(() => checkPath([before.leaf], authority), (e) => codeOf(e) === "CERT_UNTRUSTED");
  checkPath([(await node(authority, "server")).certificate], announced);
  const disk = [...files.files.values()].join("\n");
  assert.ok(!disk.includes(oldKey.split("\n")[1]!), "the old key is still on disk");
  assert.equal((await openAuthority(files)).pin, newPin, "a server of before reads it, too");
  assert.equal((await Authority.open(files, options)).generation, 3);
});

Deno.test("a rotation that is interrupted at any write goes on, or never began, after the next start", async () => {
  const steps = [
    (a: Authority) => a.rotate(TEST_NOW, OVERLAP),
    (a: Authority) => a.step({ step: "switch" }),
    (a: Authority) => a.step({ step: "rollback", now: TEST_NOW }),
    (a: Authority) => a.step({ step: "finish" }),
  ];
  const orders = [[0, 1, 3], [0, 2], [0, 1, 2, 3]];
  const tried = new Set<string>();
  let crashes = 0;
  for (const order of orders) {
    for (const [i, at] of order.entries()) {
      if (tried.has(order.slice(0, i + 1).join())) continue;
      tried.add(order.slice(0, i + 1).join());
      for (let writes = 0;; writes++) {
        const files = new CrashingFiles();
        let authority = await Authority.open(files, options);
        for (const step of order.slice(0, i)) await steps[step]!(authority);
        const [was, trusted] = [authority.generation, authority.anchors.map(pinOf)];
        files.left = writes;
        const done = await steps[at]!(authority).then(() => true, () => false);
        files.left = Infinity;
        if (!done) assert.equal(authority.generation, was, "what is not on disk is not in force");
        authority = await Authority.open(files, options);
        assert.ok(authority.generation === was || authority.generation === was + 1);
        if (authority.generation === was) assert.deepEqual(authority.anchors.map(pinOf), trusted);
        // Whatever the phase: it issues, what it issues is trusted, and the files alone say the same.
        checkPath([(await node(authority)).certificate], authority);
        checkPath([(await node(authority, "server")).certificate], authority);
        assert.equal(files.files.get(CA_BUNDLE_FILE), authority.bundlePem);
        assert.deepEqual((await openAuthority(files)).anchors.map(pinOf), authority.anchors.map(pinOf));
        if (done) break;
        crashes++;
      }
    }
  }
  assert.ok(crashes > 10, `only ${crashes} crashes were tried`);
});

Deno.test("taken back before the switch, the new authority is gone at once", async () => {
  const files = new MemoryStateFiles();
  const authority = await Authority.open(files, options);
  const { pin } = authority;
  await authority.rotate(TEST_NOW, OVERLAP);
  const next = parsePem(authority.bundlePem).map(pinOf).find((p) => p !== pin)!;
  await authority.step({ step: "rollback", now: TEST_NOW });
  assert.deepEqual(authority.anchors.map(pinOf), [pin]);
  assert.ok(!files.files.get(AUTHORITY_FILE)!.includes("PRIVATE"), "no key stays in the rotation's file");
  assert.notEqual(next, pin);
});

Deno.test("a server takes over a newer state, never an older one, never one of another mesh", async () => {
  const first = await Authority.open(new MemoryStateFiles(), options);
  const files = new MemoryStateFiles();
  for (const name of [CA_BUNDLE_FILE, CA_KEY_FILE]) {
    await files.writeAtomic(name, name === CA_KEY_FILE ? first.state.current.keyPem : first.bundlePem);
  }
  const other = await Authority.open(files, options);
  await first.rotate(TEST_NOW, OVERLAP);
  const old = other.state;
  assert.equal(await other.adopt(first.state), true);
  assert.deepEqual(other.view, first.view);
  assert.equal(await other.adopt(first.state), false);
  assert.equal(await first.adopt(old), false);
  const foreign = await Authority.open(new MemoryStateFiles(), { ...options, trustDomain: "other" });
  const forged = { ...foreign.state, generation: 99 };
  await assert.rejects(other.adopt(forged), (e) => codeOf(e) === "CERT_UNTRUSTED");
  assert.equal(other.trustDomain, "mesh.test");
});
