import assert from "node:assert/strict";
import fc from "fast-check";
import { codeOf, MeshError, type ReasonCode } from "../errors.ts";
import { hashSecret, judgeToken, newToken, parseToken, type TokenRecord } from "./token.ts";

const NOW = 1_800_000_000_000;
const HASH = "ab".repeat(32);

const token = newToken();
const record: TokenRecord = {
  id: token.id,
  secretHash: hashSecret(token.secret),
  createdAt: NOW,
  expiresAt: NOW + 3600_000,
  maxUses: 1,
  uses: [],
  role: "node",
  labels: {},
};
const demand = { role: "node", secret: token.secret, node: "edge-1", keyHash: HASH, now: NOW } as const;

function refused(run: () => unknown, code: ReasonCode, text: RegExp): void {
  assert.throws(run, (e) => {
    assert.ok(e instanceof MeshError);
    assert.equal(e.code, code);
    assert.match(e.message, text);
    assert.ok(e.hint, "a refusal says what to do");
    assert.ok(!`${e.message} ${e.hint}`.includes(token.secret), "a refusal never repeats the secret");
    return true;
  });
}

Deno.test("tokens are read back as made, also with a line end around them", () => {
  for (let i = 0; i < 200; i++) {
    const t = newToken();
    assert.match(t.text, /^em_[a-z2-9]{8}\.[a-z2-9]{26}$/);
    assert.deepEqual(parseToken(` ${t.text}\r\n`), { id: t.id, secret: t.secret });
  }
});

Deno.test("new tokens do not repeat and use the whole alphabet", () => {
  const texts = Array.from({ length: 2000 }, () => newToken().text);
  assert.equal(new Set(texts).size, texts.length);
  assert.equal(new Set(texts.join("").replaceAll(/em_|\./g, "")).size, 32);
});

Deno.test("no other text is a token, and the refusal does not repeat it", () => {
  fc.assert(
    fc.property(fc.oneof(fc.string({ minLength: 12 }), fc.string({ minLength: 12 }).map((s) => `em_${s}`)), (text) => {
      try {
        const { id, secret } = parseToken(text);
        assert.equal(`em_${id}.${secret}`, text.trim());
      } catch (e) {
        assert.equal(codeOf(e), "TOKEN_INVALID");
        assert.ok(!(e as Error).message.includes(text));
      }
    }),
  );
  for (
    const bad of [
      token.text + "x",
      token.text.slice(0, -1),
      token.text.toUpperCase(),
      "em_" + token.text,
      token.text.replace(".", "-"),
    ]
  ) {
    assert.throws(() => parseToken(bad), (e) => codeOf(e) === "TOKEN_INVALID", bad);
  }
});

Deno.test("refused: unknown id and wrong secret, with one and the same sentence", () => {
  const sentences = [undefined, record].map((r) => {
    try {
      judgeToken(r, { ...demand, secret: newToken().secret });
      return "accepted";
    } catch (e) {
      assert.equal(codeOf(e), "TOKEN_INVALID");
      return `${(e as MeshError).message} ${(e as MeshError).hint}`;
    }
  });
  assert.equal(sentences[0], sentences[1]);
  assert.match(sentences[0]!, /not known to this server.*mistyped, revoked, or of another server/);
});

Deno.test("refused: another node's token, an expired one, a used one", () => {
  refused(() => judgeToken({ ...record, node: "edge-2" }, demand), "TOKEN_NAME", /for node edge-2, not for edge-1/);
  refused(() => judgeToken(record, { ...demand, now: NOW + 3600_000 }), "TOKEN_EXPIRED", /expired 2027-01-15T09:00:00/);
  const used = { ...record, uses: [{ node: "edge-2", keyHash: HASH, at: NOW }] };
  refused(() => judgeToken(used, demand), "TOKEN_USED", /for one join and was used up by node edge-2 on 2027/);
  refused(
    () => judgeToken({ ...used, maxUses: 2, uses: [...used.uses, ...used.uses] }, demand),
    "TOKEN_USED",
    /is for 2 joins/,
  );
});

Deno.test("whoever does not know the secret learns nothing about the token", () => {
  const spent = { ...record, node: "edge-2", expiresAt: NOW - 1, uses: [{ node: "edge-2", keyHash: HASH, at: NOW }] };
  assert.throws(
    () => judgeToken(spent, { ...demand, secret: newToken().secret }),
    (e) => codeOf(e) === "TOKEN_INVALID",
  );
});

Deno.test("the same node with the same key may repeat its join; another key or name may not", () => {
  const used = { ...record, uses: [{ node: "edge-1", keyHash: HASH, at: NOW }] };
  assert.deepEqual(judgeToken(record, demand), { fresh: true });
  assert.deepEqual(judgeToken(used, demand), { fresh: false });
  refused(() => judgeToken(used, { ...demand, keyHash: "cd".repeat(32) }), "TOKEN_USED", /edge-1/);
  refused(() => judgeToken(used, { ...demand, node: "edge-9" }), "TOKEN_USED", /edge-1/);
  refused(() => judgeToken(used, { ...demand, now: NOW + 3600_000 }), "TOKEN_EXPIRED", /expired/);
});

Deno.test("T08: a token for a server admits no node, one for a node no server, and a server's is good once whatever happens", () => {
  const forServer: TokenRecord = { ...record, role: "server" };
  const server = { ...demand, role: "server" } as const;
  refused(() => judgeToken(forServer, demand), "TOKEN_NAME", /for a server, not for a node/);
  refused(() => judgeToken(record, server), "TOKEN_NAME", /for a node, not for a server/);
  assert.deepEqual(judgeToken(forServer, server), { fresh: true });
  const used = { ...forServer, uses: [{ node: "edge-1", keyHash: HASH, at: NOW }] };
  refused(() => judgeToken(used, server), "TOKEN_USED", /used up by server edge-1/);
});
