import assert from "node:assert/strict";
import { joinCommand } from "./token.ts";

const TOKEN = {
  id: "abcd1234",
  role: "node",
  token: "em_abcd1234.secret",
  node: "edge-1",
  uses: 1,
  expiresAt: "2026-11-23T10:00:00.000Z",
  url: "wss://mesh.example.com",
  pin: "sha256:abc",
} as const;

Deno.test("token create prints the line that installs the node from where the server was installed from", () => {
  assert.deepEqual(joinCommand({ ...TOKEN, installUrl: "https://get.example.com" }).split("\n"), [
    "# good for one node until 2026-11-23T10:00:00.000Z; on the edge host, as root",
    "# as a service:",
    "curl -fsSL https://get.example.com/install.sh | EDGEMESH_TOKEN=em_abcd1234.secret sh -s - agent --node-name edge-1 --server wss://mesh.example.com --ca-pin sha256:abc",
    "# in the foreground, where edgemesh is installed:",
    "echo em_abcd1234.secret | edgemesh agent --node-name edge-1 --server wss://mesh.example.com --ca-pin sha256:abc --token-file -",
  ]);
  const { node: _node, ...any } = TOKEN;
  const lines = joinCommand({ ...any, uses: 3 }).split("\n");
  assert.match(lines[0]!, /^# good for 3 nodes until /);
  assert.match(
    lines[2]!,
    /^EDGEMESH_TOKEN=em_abcd1234\.secret sh install\.sh agent --from \.\/edgemesh --node-name \$\(hostname -s\) /,
  );
});
