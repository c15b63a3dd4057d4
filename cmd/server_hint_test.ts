import assert from "node:assert/strict";
import { serverHint } from "./server_hint.ts";

for (
  const [said, hint] of [
    ["connect ECONNREFUSED 203.0.113.1:443", /nothing listens/],
    ["The server refused: edge-4 was revoked on 2026-11-23: removed by an operator", /node reset/],
    ["The server refused: too many connections", /netcheck/],
    ["no answer from 203.0.113.1:443 within 5 s", /firewall/],
    ["getaddrinfo EAI_AGAIN mesh.example.com", /nameservers/],
    ["connect ENETUNREACH 203.0.113.1:443", /no route/],
  ] as const
) {
  Deno.test(`server hint: ${said}`, () => assert.match(serverHint(said), hint));
}
