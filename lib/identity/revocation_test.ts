import assert from "node:assert/strict";
import { codeOf } from "../errors.ts";
import { MAX_REVOCATION_SOURCES, MAX_REVOCATIONS, type RevocationEntry, Revocations } from "./revocation.ts";
import { RevocationRegistry, REVOCATIONS_FILE } from "./revocation_registry.ts";
import { MemoryStateFiles } from "./state_files.ts";

const KEY = "ab".repeat(32);
const entry = (by: RevocationEntry["by"], value: string): RevocationEntry => ({ by, value, reason: "", at: 1 });
const subject = { node: "a", keyHash: KEY, serial: "5a" };

Deno.test("a list with a higher epoch replaces one with a lower; older and equal ones change nothing", () => {
  const r = new Revocations();
  assert.equal(r.apply("s", { epoch: 5, entries: [entry("node", "a")] }), true);
  assert.ok(r.find(subject));
  for (const epoch of [0, 4, 5]) assert.equal(r.apply("s", { epoch, entries: [] }), false);
  assert.ok(r.find(subject), "an older list never lifts a revocation");
  assert.equal(r.apply("s", { epoch: 6, entries: [] }), true);
  assert.equal(r.find(subject), undefined);
  assert.equal(r.epochOf("s"), 6);
  assert.equal(r.epochOf("other"), 0);
});

Deno.test("being on any server's list is enough", () => {
  const r = new Revocations();
  r.apply("one", { epoch: 9, entries: [] });
  r.apply("two", { epoch: 1, entries: [entry("key", KEY)] });
  assert.equal(r.find(subject)?.by, "key");
  r.apply("one", { epoch: 10, entries: [entry("serial", "5a")] });
  r.apply("two", { epoch: 2, entries: [] });
  assert.equal(r.find(subject)?.by, "serial");
});

Deno.test("lists survive a restart", () => {
  const r = new Revocations();
  r.apply("one", { epoch: 9, entries: [entry("node", "a")] });
  r.apply("two", { epoch: 1, entries: [entry("key", KEY)] });
  const loaded = Revocations.load(JSON.parse(JSON.stringify(r.save())));
  assert.deepEqual(loaded.save(), r.save());
  assert.equal(loaded.apply("one", { epoch: 8, entries: [] }), false);
  assert.ok(loaded.find({ ...subject, keyHash: "" }));
});

Deno.test("lists of servers that are not configured any more are dropped", () => {
  const r = new Revocations();
  r.apply("wss://one.example.com:8443", { epoch: 9, entries: [entry("node", "a")] });
  r.apply("wss://two.example.com", { epoch: 1, entries: [] });
  assert.equal(r.retain(["wss://one.example.com:8443", "wss://two.example.com"]), false);
  assert.ok(r.find(subject));
  assert.equal(r.retain(["wss://two.example.com"]), true);
  assert.equal(r.find(subject), undefined);
});

Deno.test("what is applied can be loaded: the longest address of a server too, and nothing beyond", () => {
  const r = new Revocations();
  r.apply("w".repeat(300), { epoch: 1, entries: [] });
  assert.equal(Revocations.load(r.save()).epochOf("w".repeat(300)), 1);
  for (const bad of ["", "w".repeat(301)]) {
    assert.throws(() => r.apply(bad, { epoch: 1, entries: [] }), (e) => codeOf(e) === "PROTOCOL");
  }
});

Deno.test("malformed lists are refused and change nothing", () => {
  const r = new Revocations();
  r.apply("s", { epoch: 1, entries: [entry("node", "a")] });
  const bad: unknown[] = [
    undefined,
    [],
    { epoch: "2", entries: [] },
    { epoch: -1, entries: [] },
    { epoch: 2 },
    { epoch: 2, entries: [entry("node", "Not A Name")] },
    { epoch: 2, entries: [entry("key", "abc")] },
    { epoch: 2, entries: [entry("serial", "xyz")] },
    { epoch: 2, entries: [{ ...entry("node", "a"), by: "everyone" }] },
    { epoch: 2, entries: Array(MAX_REVOCATIONS + 1).fill(entry("node", "a")) },
  ];
  for (const list of bad) assert.throws(() => r.apply("s", list), (e) => codeOf(e) === "PROTOCOL");
  assert.equal(r.epochOf("s"), 1);
  assert.ok(r.find(subject));
});

Deno.test("lists of a bounded number of servers are kept", () => {
  const r = new Revocations();
  for (let i = 0; i < MAX_REVOCATION_SOURCES; i++) r.apply(`s${i}`, { epoch: 1, entries: [] });
  assert.throws(() => r.apply("one-more", { epoch: 1, entries: [] }), (e) => codeOf(e) === "LIMIT");
  assert.equal(r.apply("s0", { epoch: 2, entries: [] }), true);
});

Deno.test("a server's registry raises its epoch with every change and never below the time", async () => {
  const files = new MemoryStateFiles();
  const registry = await RevocationRegistry.open(files);
  assert.deepEqual(registry.list, { epoch: 0, entries: [] });
  const first = await registry.add({ ...entry("node", "a"), at: 1000 });
  assert.equal(first.epoch, 1000);
  const second = await registry.add({ ...entry("node", "b"), at: 500 });
  assert.equal(second.epoch, 1001, "also when the clock went back");
  const again = await registry.add({ ...entry("node", "a"), reason: "again", at: 2000 });
  assert.deepEqual(again.entries.map((e) => e.value).sort(), ["a", "b"], "one entry per subject");
  const lifted = await registry.lift("node", "a", 3000);
  assert.deepEqual(lifted, { epoch: 3000, entries: second.entries.filter((e) => e.value === "b") });
  assert.equal(await registry.lift("node", "nobody", 4000), lifted);
  assert.deepEqual((await RevocationRegistry.open(files)).list, lifted);
});

Deno.test("a registry restored from an old backup still publishes newer lists than before", async () => {
  const files = new MemoryStateFiles();
  const before = await RevocationRegistry.open(files);
  await before.add({ ...entry("node", "a"), at: 1000 });
  const backup = files.files.get(REVOCATIONS_FILE)!;
  const published = await before.add({ ...entry("node", "b"), at: 2000 });
  files.files.set(REVOCATIONS_FILE, backup);
  const after = await (await RevocationRegistry.open(files)).add({ ...entry("node", "c"), at: 3000 });
  assert.ok(after.epoch > published.epoch);
});

Deno.test("changes at the same time are all kept; the registry is capped and its file checked", async () => {
  const files = new MemoryStateFiles();
  const registry = await RevocationRegistry.open(files);
  await Promise.all(Array.from({ length: 50 }, (_, i) => registry.add({ ...entry("node", `n${i}`), at: 1 })));
  assert.equal(registry.list.entries.length, 50);
  files.files.set(REVOCATIONS_FILE, "garbage");
  await assert.rejects(
    RevocationRegistry.open(files),
    (e) => codeOf(e) === "STATE_INVALID" && /backup/.test((e as { hint?: string }).hint!),
  );
  const full = Array.from({ length: MAX_REVOCATIONS }, (_, i) => entry("node", `n${i}`));
  files.files.set(REVOCATIONS_FILE, JSON.stringify({ format: 1, list: { epoch: 1, entries: full } }));
  const capped = await RevocationRegistry.open(files);
  await assert.rejects(capped.add(entry("node", "one-more")), (e) => codeOf(e) === "LIMIT");
});
