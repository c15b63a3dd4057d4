import assert from "node:assert/strict";
import type { ServiceStatus } from "../lib/status.ts";
import { netcheckText } from "./netcheck.ts";
import { judgeNat, type NatKind, type Sighting } from "./netcheck_judge.ts";
import { connectionsTable, endpointsTable, servicesTable } from "./services.ts";

const seen = (local: string, observed: string, server = "203.0.113.1"): Sighting => {
  const at = (text: string) => ({ ip: text.split(":")[0]!, port: Number(text.split(":")[1]) });
  return { url: `wss://${server}`, local: at(local), observed: at(observed), remote: { ip: server, port: 443 } };
};

for (
  const [what, sightings, kind, text] of [
    ["nobody", [], "not-seen", /no server/],
    ["own address", [seen("192.0.2.7:4000", "192.0.2.7:4000")], "none", /no NAT.*192\.0\.2\.7/],
    ["NAT, one server", [seen("10.0.0.2:4000", "198.51.100.1:4000")], "unknown", /one server address cannot tell/],
    [
      "NAT, ports change",
      [seen("10.0.0.2:4000", "198.51.100.1:61000")],
      "unknown",
      /the port changes.*one server address/,
    ],
    [
      "two servers, ports kept",
      [seen("10.0.0.2:4000", "198.51.100.1:4000"), seen("10.0.0.2:4001", "198.51.100.1:4001", "203.0.113.2")],
      "ports-kept",
      /keeps ports.*2 server addresses/,
    ],
    [
      "two servers, ports change",
      [seen("10.0.0.2:4000", "198.51.100.1:61000"), seen("10.0.0.2:4001", "198.51.100.1:4001", "203.0.113.2")],
      "unknown",
      /ports of their own/,
    ],
    [
      "two servers, two public addresses",
      [seen("10.0.0.2:4000", "198.51.100.1:4000"), seen("10.0.0.2:4001", "198.51.100.9:4001", "203.0.113.2")],
      "addresses-vary",
      /198\.51\.100\.1 and 198\.51\.100\.9/,
    ],
    // The same public port at a machine whose address is another one: not "no NAT".
    ["public address translated", [seen("10.0.0.2:4000", "10.0.0.3:4000")], "unknown", /behind a NAT/],
  ] as const satisfies readonly (readonly [string, readonly Sighting[], NatKind, RegExp])[]
) {
  Deno.test(`netcheck: ${what}`, () => {
    const finding = judgeNat(sightings);
    assert.equal(finding.kind, kind);
    assert.match(finding.text, text);
  });
}

Deno.test("netcheck: text names the failed step, the proxy and what is unknown without an agent", () => {
  const text = netcheckText({
    apiVersion: "edgemesh/v1",
    proxies: ["HTTPS_PROXY"],
    nat: judgeNat([]),
    reach: [{ url: "wss://mesh", pinned: false, failed: { step: "tcp", code: "SERVER_UNREACHABLE", text: "refused" } }],
  });
  assert.match(text, /wss:\/\/mesh .*tcp failed: refused/);
  assert.match(text, /no agent runs here/);
  assert.match(text, /HTTPS_PROXY set: servers are reached as it says/);
});

const services: readonly ServiceStatus[] = [
  {
    service: "shop/web",
    address: "10.96.0.10",
    port: 80,
    protocol: "TCP",
    endpoints: [
      { endpoint: "10.1.0.2:80", node: "edge-1", way: "kernel", why: "here" },
      { endpoint: "10.2.0.2:80", node: "edge-2", way: "tunnel", why: "there" },
      { endpoint: "10.2.0.3:80", way: "tunnel", why: "there" },
    ],
  },
  { service: "shop/db", address: "10.96.0.11", port: 5432, protocol: "TCP", endpoints: [], verdict: "refused: none" },
];

Deno.test("tables: services, endpoints and connections", () => {
  assert.deepEqual(servicesTable(services).split("\n"), [
    "NAMESPACE  NAME  ADDRESS     PORT      ENDPOINTS  WAYS",
    "shop       web   10.96.0.10  80/TCP    3          1 kernel, 2 tunnel",
    "shop       db    10.96.0.11  5432/TCP  0          refused: none",
  ]);
  assert.deepEqual(endpointsTable(services).split("\n"), [
    "PORT      ENDPOINT     NODE    WAY     WHY",
    "80/TCP    10.1.0.2:80  edge-1  kernel  here",
    "80/TCP    10.2.0.2:80  edge-2  tunnel  there",
    "80/TCP    10.2.0.3:80  -       tunnel  there",
    "5432/TCP  -            -       -       refused: none",
  ]);
  assert.equal(servicesTable([]), "no services");
  const counters = {
    connectBuckets: [],
    connectSeconds: 0,
    opened: 5,
    active: 1,
    dialFailures: 2,
    bytesOut: 2000,
    bytesIn: 10,
  };
  const text = connectionsTable({
    connections: 1,
    max: 8192,
    open: [{
      protocol: "TCP",
      client: "10.244.1.2:40000",
      service: "shop/web:80",
      endpoint: "10.244.2.2:8080",
      node: "edge-2",
      way: "tunnel",
      ageSeconds: 61,
      bytesOut: 100,
      bytesIn: 2000,
    }],
    traffic: [{ port: "shop/web:http", way: "tunnel", ...counters }],
    inbound: { ...counters, refused: { NOT_ALLOWED: 3 } },
    refused: { NO_SERVICE: 1 },
  });
  assert.match(
    text,
    /10\.244\.1\.2:40000 +shop\/web:80\/TCP +10\.244\.2\.2:8080 +edge-2 +tunnel +1m1s +100 B +2\.0 kB/,
  );
  assert.match(text, /^1 of at most 8192/m);
  assert.match(text, /shop\/web:http +tunnel +1 +5 +2 +10 B +2\.0 kB/);
  assert.match(text, /refused here: 1 × NO_SERVICE\nrefused to other nodes: 3 × NOT_ALLOWED/);
});
