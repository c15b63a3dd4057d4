import assert from "node:assert/strict";
import fc from "fast-check";
import { authorityUri, identityUri, isTrustDomain, parseAuthorityUri, parseIdentityUri } from "./names.ts";

const domain = fc.stringMatching(/^[a-z0-9]([a-z0-9._-]{0,20}[a-z0-9])?$/);
const name = fc.stringMatching(/^[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?$/);
const role = fc.constantFrom("node" as const, "server" as const);

Deno.test("identity URIs are read back as written", () => {
  fc.assert(fc.property(domain, role, name, (trustDomain, role, name) => {
    assert.deepEqual(parseIdentityUri(identityUri({ trustDomain, role, name })), { trustDomain, role, name });
  }));
});

Deno.test("a text that is read at all is the one text of its identity", () => {
  const near = fc.oneof(
    fc.string(),
    fc.tuple(domain, fc.string(), fc.string()).map(([d, r, n]) => `spiffe://${d}/${r}/${n}`),
  );
  fc.assert(fc.property(near, (text) => {
    const identity = parseIdentityUri(text);
    if (identity) assert.equal(identityUri(identity), text);
  }));
});

Deno.test("identity URIs in any other spelling are refused", () => {
  for (
    const bad of [
      "",
      "spiffe://mesh/node/",
      "spiffe://mesh/node/a/",
      "spiffe://mesh//a",
      "spiffe:///node/a",
      "spiffe://mesh/node/A",
      "spiffe://Mesh/node/a",
      "SPIFFE://mesh/node/a",
      "spiffe://mesh/node/a%2d",
      "spiffe://mesh/node/a?x",
      "spiffe://mesh:443/node/a",
      "spiffe://u@mesh/node/a",
      "spiffe://mesh/user/a",
      "spiffe://mesh/node/-a",
      " spiffe://mesh/node/a",
    ]
  ) assert.equal(parseIdentityUri(bad), undefined, bad);
});

Deno.test("an authority's URI is the bare trust domain", () => {
  assert.equal(parseAuthorityUri(authorityUri("mesh.example.com")), "mesh.example.com");
  for (const bad of ["spiffe://", "spiffe://mesh/", "spiffe://mesh/node/a", "https://mesh"]) {
    assert.equal(parseAuthorityUri(bad), undefined, bad);
  }
  assert.equal(isTrustDomain("a".repeat(255)), true);
  for (const bad of ["", "-a", "a-", "a b", "ä", "a".repeat(256)]) assert.equal(isTrustDomain(bad), false, bad);
});
