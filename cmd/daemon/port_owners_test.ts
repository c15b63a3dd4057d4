import assert from "node:assert/strict";
import { ownersIn, portOwners } from "./port_owners.ts";

const HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
const AT = { ip: "127.0.0.1", port: 10550 };

function row(local: string, state: string, uid: number, remote = "00000000:0000"): string {
  return `   7: ${local} ${remote} ${state} 00000000:00000000 00:00000000 00000000  ${uid}        0 31337 1 0 100 0 0 10 0\n`;
}

Deno.test("port owners: the most specific listener, and everybody who has accepted there", () => {
  const root = row("0100007F:2936", "0A", 0);
  const cases: [string, string[], number[]][] = [
    ["nobody", [HEAD, HEAD], []],
    ["root", [HEAD + root], [0]],
    ["another user", [HEAD + row("0100007F:2936", "0A", 65534)], [65534]],
    ["all addresses", [HEAD + row("00000000:2936", "0A", 0)], [0]],
    ["all addresses of IPv6", [HEAD, HEAD + row("00000000000000000000000000000000:2936", "0A", 0)], [0]],
    ["IPv6 only beside root's IPv4", [HEAD + root, HEAD + row("00000000000000000000000000000000:2936", "0A", 9)], [0]],
    ["another port", [HEAD + row("0100007F:2937", "0A", 0)], []],
    ["another address", [HEAD + row("0200007F:2936", "0A", 0)], []],
    ["a stranger's accepted connection", [HEAD + root + row("0100007F:2936", "01", 1000, "0100007F:9C40")], [0, 1000]],
    ["our own end of a connection does not count", [HEAD + root + row("0100007F:9C40", "01", 5, "0100007F:2936")], [0]],
  ];
  for (const [name, tables, expected] of cases) assert.deepEqual(ownersIn(tables, AT), expected, name);
});

Deno.test("port owners: as this kernel tells it", async () => {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const at = { ip: "127.0.0.1", port: listener.addr.port };
  assert.deepEqual(await portOwners(at), [Deno.uid()]);
});
