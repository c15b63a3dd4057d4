import assert from "node:assert/strict";
import fc from "fast-check";
import { type HashOn, requestKey } from "./request_key.ts";

const bytes = (text: string) => Uint8Array.from(text, (c) => c.charCodeAt(0));
const header: HashOn = { kind: "header", name: "user-agent" };
const cookie: HashOn = { kind: "cookie", name: "sid" };
const query: HashOn = { kind: "query", name: "user" };

const cases: readonly (readonly [HashOn, string, string | undefined | "more"])[] = [
  [header, "GET / HTTP/1.1\r\nUser-Agent: curl/8\r\n", "curl/8"],
  [header, "GET / HTTP/1.1\nuser-agent:curl/8 \n", "curl/8"],
  [header, "GET / HTTP/1.1\r\nHost: a\r\nUSER-AGENT: a b\r\n\r\n", "a b"],
  [header, "GET / HTTP/1.1\r\nUser-Agent: one\r\nUser-Agent: two\r\n\r\n", "one"],
  [header, "GET / HTTP/1.1\r\nUser-Agent:\r\n\r\n", ""],
  [header, "GET / HTTP/1.1\r\nHost: a\r\n\r\nUser-Agent: body", undefined],
  [header, "GET / HTTP/1.1\r\nX-User-Agent: no\r\n\r\n", undefined],
  [header, "GET / HTTP/1.1\r\nUser-Agent: cur", "more"],
  [header, "GET / HTTP/1.1\r\nHost: a\r\n", "more"],
  [header, "GE", "more"],
  [header, "", "more"],
  [header, "GET /\r\n", undefined],
  [header, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", undefined],
  [header, "\x16\x03\x01\x02\x00", undefined],
  [header, "SSH-2.0-OpenSSH_9.2p1", undefined],
  [cookie, "GET / HTTP/1.1\r\nCookie: a=1; sid=x=y; b=2\r\n\r\n", "x=y"],
  [cookie, "GET / HTTP/1.1\r\nCookie: a=1\r\nCookie: sid=2\r\n\r\n", "2"],
  [cookie, "GET / HTTP/1.1\r\nCookie: xsid=1; sidx=2; sid\r\n\r\n", undefined],
  [query, "GET /p?x=1&user=ann%20b&user=z HTTP/1.1\r\n", "ann b"],
  [query, "GET /p?x=1#user=1 HTTP/1.1\r\n", undefined],
  [query, "GET /p HTTP/1.1\r\nReferer: ?user=1\r\n\r\n", undefined],
];
for (const [on, text, wanted] of cases) {
  Deno.test(`request key: ${on.kind} of ${JSON.stringify(text)} is ${wanted ?? "nothing"}`, () => {
    assert.deepEqual(
      requestKey(bytes(text), on),
      wanted === "more" ? { state: "more" } : { state: "known", key: wanted },
    );
  });
}

Deno.test("request key: what is known does not change with later bytes, and any bytes are read without an error", () => {
  const piece = fc.oneof(
    fc.constantFrom("GET ", "/?user=1", " HTTP/1.1", "\r\n", "\n", "User-Agent: ", "Cookie: sid=", ";", "x"),
    fc.string({ maxLength: 4 }),
  );
  fc.assert(fc.property(fc.array(piece, { maxLength: 12 }), fc.nat(), (pieces, at) => {
    const all = bytes(pieces.join(""));
    for (const on of [header, cookie, query]) {
      const early = requestKey(all.subarray(0, at % (all.length + 1)), on);
      if (early.state === "known") assert.deepEqual(requestKey(all, on), early);
    }
  }));
});
