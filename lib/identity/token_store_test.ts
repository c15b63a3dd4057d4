import assert from "node:assert/strict";
import { codeOf } from "../errors.ts";
import { MemoryStateFiles } from "./state_files.ts";
import { KEEP_EXPIRED_MS, MAX_TOKENS, parseToken } from "./token.ts";
import { TOKENS_FILE, TokenStore } from "./token_store.ts";

const NOW = 1_800_000_000_000;
const who = (node: string, key = "ab") => ({ role: "node", node, keyHash: key.repeat(32), now: NOW } as const);

Deno.test("a token survives a restart, its secret is nowhere on disk, and its use is", async () => {
  const files = new MemoryStateFiles();
  const { text } = await (await TokenStore.open(files)).create({ now: NOW, labels: { zone: "north" } });
  const token = parseToken(text);
  assert.ok(!files.files.get(TOKENS_FILE)!.includes(token.secret));

  const restarted = await TokenStore.open(files);
  assert.deepEqual(await restarted.redeem(token, who("edge-1")), { id: token.id, labels: { zone: "north" } });
  const again = await TokenStore.open(files);
  await assert.rejects(again.redeem(token, who("edge-2")), (e) => codeOf(e) === "TOKEN_USED");
  assert.equal((await again.redeem(token, who("edge-1"))).id, token.id);
  assert.equal(again.list()[0]!.uses.length, 1);
});

Deno.test("of two joins with one single-use token exactly one wins", async () => {
  const store = await TokenStore.open(new MemoryStateFiles());
  const token = parseToken((await store.create({ now: NOW })).text);
  const results = await Promise.allSettled(Array.from({ length: 20 }, (_, i) => store.redeem(token, who(`edge-${i}`))));
  assert.equal(results.filter((r) => r.status === "fulfilled").length, 1);
  for (const r of results) if (r.status === "rejected") assert.equal(codeOf(r.reason), "TOKEN_USED");
});

Deno.test("a token for three nodes admits three", async () => {
  const store = await TokenStore.open(new MemoryStateFiles());
  const token = parseToken((await store.create({ now: NOW, maxUses: 3 })).text);
  const results = await Promise.allSettled([1, 2, 3, 4, 5].map((i) => store.redeem(token, who(`edge-${i}`))));
  assert.equal(results.filter((r) => r.status === "fulfilled").length, 3);
});

Deno.test("when the disk refuses, the token is not used and the join fails", async () => {
  const files = new MemoryStateFiles();
  const store = await TokenStore.open(files);
  const token = parseToken((await store.create({ now: NOW })).text);
  const write = files.writeAtomic.bind(files);
  files.writeAtomic = () => Promise.reject(new Error("No space left on device"));
  await assert.rejects(store.redeem(token, who("edge-1")), /No space/);
  assert.equal(store.list()[0]!.uses.length, 0);
  files.writeAtomic = write;
  assert.equal((await store.redeem(token, who("edge-2"))).id, token.id);
});

Deno.test("a revoked token is unknown, also after a restart", async () => {
  const files = new MemoryStateFiles();
  const store = await TokenStore.open(files);
  const token = parseToken((await store.create({ now: NOW })).text);
  assert.equal(await store.revoke(token.id), true);
  assert.equal(await store.revoke(token.id), false);
  for (const s of [store, await TokenStore.open(files)]) {
    await assert.rejects(s.redeem(token, who("edge-1")), (e) => codeOf(e) === "TOKEN_INVALID");
  }
});

Deno.test("check judges without using", async () => {
  const store = await TokenStore.open(new MemoryStateFiles());
  const token = parseToken((await store.create({ now: NOW, node: "edge-1" })).text);
  for (let i = 0; i < 3; i++) store.check(token, who("edge-1"));
  assert.throws(() => store.check(token, who("edge-2")), (e) => codeOf(e) === "TOKEN_NAME");
  assert.equal(store.list()[0]!.uses.length, 0);
});

Deno.test("expired tokens are remembered for a week and then make room; the number is capped", async () => {
  const files = new MemoryStateFiles();
  const store = await TokenStore.open(files);
  const ttlMs = 1000;
  for (let i = 0; i < MAX_TOKENS; i++) await store.create({ now: NOW, ttlMs });
  await assert.rejects(store.create({ now: NOW + KEEP_EXPIRED_MS, ttlMs }), (e) => codeOf(e) === "LIMIT");
  await store.create({ now: NOW + KEEP_EXPIRED_MS + ttlMs, ttlMs });
  assert.equal(store.list().length, 1);
});

Deno.test("impossible tokens are refused", async () => {
  const store = await TokenStore.open(new MemoryStateFiles());
  for (
    const bad of [{ ttlMs: 0 }, { ttlMs: NaN }, { maxUses: 0 }, { maxUses: 1.5 }, { maxUses: 10_001 }, {
      node: "Not A Name",
    }]
  ) {
    assert.throws(() => store.create({ now: NOW, ...bad }), (e) => codeOf(e) === "CONFIG_INVALID", JSON.stringify(bad));
  }
  assert.throws(() => store.create({ now: NOW, labels: { "bad key!": "x" } }), (e) => codeOf(e) === "PROTOCOL");
});

Deno.test("a damaged token file is an error that says what to do", async () => {
  const files = new MemoryStateFiles();
  for (const damage of ["", "{", "[]", '{"format":2,"tokens":[]}', '{"format":1,"tokens":[{"id":"x"}]}']) {
    files.files.set(TOKENS_FILE, damage);
    await assert.rejects(
      TokenStore.open(files),
      (e) => codeOf(e) === "STATE_INVALID" && /tokens\.json/.test(String(e)),
      damage,
    );
    assert.equal(files.files.get(TOKENS_FILE), damage, "left as it was");
  }
});
