import assert from "node:assert/strict";
import { MASK, redactConfig, redactText } from "./redact.ts";

const SECRET = "canary7canary7canary7canar";

for (
  const [what, text, keeps] of [
    ["a join token", `joined with em_abcdefgh.${SECRET} today`, "em_abcdefgh"],
    ["a proxy's password", `HTTPS_PROXY=http://mesh:${SECRET}@proxy.example.com:3128`, "proxy.example.com:3128"],
    ["a user in a URL", `https://${SECRET}@git.example.com/x`, "git.example.com/x"],
    ["a header", `Authorization: Bearer ${SECRET}`, "Bearer"],
    ["a service account", `value eyJhbGciOiJSUzI1NiJ9.${SECRET}.${SECRET} end`, "end"],
    ["a YAML value", `password: ${SECRET}\nname: web`, "name: web"],
    ["a quoted YAML value", `client-secret: "${SECRET} and more"\nname: web`, "name: web"],
    ["a JSON value", `{"token":"${SECRET}","name":"web"}`, `"name":"web"`],
    ["a log field", `msg=started api_key=${SECRET} port=80`, "port=80"],
    ["a private key", `-----BEGIN EC PRIVATE KEY-----\n${SECRET}\n-----END EC PRIVATE KEY-----\nafter`, "after"],
    ["a key whose end is cut off", `-----BEGIN PRIVATE KEY-----\n${SECRET}\n${SECRET}`, "private key"],
  ] as const
) {
  Deno.test(`redact: ${what} goes, what is beside it stays`, () => {
    const out = redactText(text);
    assert.ok(!out.includes(SECRET), out);
    assert.ok(out.includes(keeps), out);
  });
}

Deno.test("redact: ordinary lines stay as they are", () => {
  for (
    const text of [
      "https://mesh.example.com:443/x",
      "sha256:0123456789abcdef is the pin",
      "tokenFile: /etc/edgemesh/join-token",
      "no token was given",
      "2026-11-23T05:00:00Z INFO identity: enrolled node=edge-1",
    ]
  ) assert.equal(redactText(text), text);
});

Deno.test("redact: a token pasted where a file's name belongs is masked, a path is not", () => {
  const config = { tokenFile: SECRET, dns: { upstreams: ["1.1.1.1"] }, n: 1, none: null };
  assert.deepEqual(redactConfig(config), { ...config, tokenFile: MASK });
  assert.equal(redactConfig({ tokenFile: "/run/secrets/join" }).tokenFile, "/run/secrets/join");
  assert.equal(redactConfig({ kubeconfig: "in-cluster" }).kubeconfig, "in-cluster");
});
