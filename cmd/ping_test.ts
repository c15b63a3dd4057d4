import assert from "node:assert/strict";
import { codeOf, type MeshError, type ReasonCode, REASONS } from "../lib/errors.ts";
import type { ServiceStatus } from "../lib/status.ts";
import { parsePeriod } from "./period.ts";
import { goesOn, pingLine, type PingResult, summarize, summaryText } from "./ping_report.ts";
import { fixFor } from "./reason_help.ts";
import { resolveTarget, servicesNamed, type TargetView } from "./target.ts";

const service = (
  key: string,
  endpoints: readonly (readonly [string, string | undefined, string])[],
): ServiceStatus => ({
  service: key,
  address: "10.96.0.10",
  port: 80,
  protocol: "TCP",
  endpoints: endpoints.map(([endpoint, node, way]) => ({
    endpoint,
    ...(node === undefined ? {} : { node }),
    way,
    why: "because",
  })),
});
const view: TargetView = {
  node: "edge-1",
  zone: "cluster.local",
  nodes: new Set(["edge-1", "edge-2", "web"]),
  services: [
    service("default/web", [["10.1.0.2:80", "edge-1", "kernel"], ["10.2.0.2:80", "edge-2", "tunnel"]]),
    service("default/web", [["10.2.0.2:80", "edge-2", "tunnel"]]),
    service("shop/api", [["192.0.2.1:80", undefined, "proxy"]]),
    service("default/db", []),
  ],
};

Deno.test("ping: what a name means", () => {
  assert.deepEqual(resolveTarget("edge-2", view), { kind: "node", node: "edge-2", self: false });
  assert.deepEqual(resolveTarget("edge-1", view), { kind: "node", node: "edge-1", self: true });
  // A node before a Service of the same name; a name that nobody knows here may be known to the server.
  assert.equal(resolveTarget("web", view).kind, "node");
  assert.deepEqual(resolveTarget("edge-9", view), { kind: "node", node: "edge-9", self: false });
  for (const name of ["default/web", "web.default", "web.default.svc", "web.default.svc.cluster.local."]) {
    const target = resolveTarget(name, view);
    assert.ok(target.kind === "service", name);
    assert.deepEqual([target.endpoints.length, target.nodes], [2, ["edge-2"]], name);
  }
  assert.deepEqual(resolveTarget("api.shop", view), {
    kind: "service",
    service: "shop/api",
    endpoints: view.services[2]!.endpoints,
    nodes: [],
  });
  assert.equal(resolveTarget("db", view).kind, "service");
  for (const wrong of ["web.shop", "web.default.other.example", "shop/apj"]) {
    assert.throws(() => resolveTarget(wrong, view), (e) => codeOf(e) === "NO_SERVICE", wrong);
  }
  assert.throws(() => servicesNamed("shop/apj", view), /There is no Service shop\/apj/);
  const hint = (name: string) => {
    try {
      resolveTarget(name, view);
    } catch (e) {
      return (e as MeshError).hint;
    }
    return undefined;
  };
  assert.equal(hint("wep.default"), "default/web, or: edgemesh services");
  assert.equal(hint("web.shop"), "default/web, or: edgemesh services");
  assert.equal(hint("something.else"), "edgemesh services");
  assert.equal(servicesNamed("web", view).length, 2);
});

const reply = (rttMs: number, path: "lan" | "direct" | "relay" = "relay"): PingResult => ({
  node: "edge-2",
  rttMs,
  path,
});
const failure = (code: ReasonCode): PingResult => ({ node: "edge-2", code, message: "it did not" });

Deno.test("ping: stops when direct, at its count, or never", () => {
  const plan = { count: 3, untilDirect: true };
  assert.ok(goesOn([], plan));
  assert.ok(goesOn([reply(5), failure("TIMEOUT")], plan));
  assert.ok(!goesOn([reply(5), reply(2, "direct")], plan));
  assert.ok(!goesOn([reply(2, "lan")], plan));
  assert.ok(goesOn([reply(2, "lan")], { count: 3, untilDirect: false }));
  assert.ok(!goesOn([reply(5), reply(5), failure("TIMEOUT")], plan));
  assert.ok(goesOn(Array.from({ length: 1000 }, () => reply(1)), { count: 0, untilDirect: true }));
});

Deno.test("ping: lines and numbers", () => {
  assert.equal(
    pingLine({ node: "edge-2", rttMs: 84.2, path: "relay", server: "cloud" }),
    "pong from edge-2 via relay(cloud) in 84 ms",
  );
  assert.equal(pingLine(reply(0.34, "lan")), "pong from edge-2 via lan in 0.3 ms");
  assert.match(pingLine(failure("PEER_OFFLINE")), /^no reply from edge-2: PEER_OFFLINE: it did not; try: on edge-2: /);
  const results = [...Array.from({ length: 19 }, (_, i) => reply(i + 1)), reply(100, "direct"), failure("TIMEOUT")];
  const summary = summarize("edge-2", results);
  assert.deepEqual(summary, {
    node: "edge-2",
    sent: 21,
    received: 20,
    lossPercent: 4.8,
    minMs: 1,
    avgMs: 14.5,
    p95Ms: 19,
    maxMs: 100,
    path: "direct",
  });
  assert.equal(summaryText(summary), "edge-2: 21 sent, 20 received, 4.8 % loss, min/avg/p95 1/14.5/19 ms");
  assert.equal(summaryText(summarize("x", [failure("TIMEOUT")])), "x: 1 sent, 0 received, 100 % loss");
});

Deno.test("ping: every way a connection to a node fails comes with a fix", () => {
  const failures = [
    "SERVER_UNREACHABLE",
    "PEER_OFFLINE",
    "PEER_GONE",
    "UNKNOWN_NODE",
    "TIMEOUT",
    "CERT_UNTRUSTED",
    "CERT_EXPIRED",
    "REVOKED",
    "NODE_KEY_MISMATCH",
    "VERSION",
    "LIMIT",
  ] as const;
  for (const code of failures) assert.ok(fixFor(code, "edge-2"), code);
  for (const code of Object.keys(REASONS) as ReasonCode[]) assert.ok(!fixFor(code, "n")?.endsWith("."), code);
});

Deno.test("ping: spans of time", () => {
  assert.deepEqual(["5", "5s", "500ms", "0.5s", "2m"].map((t) => parsePeriod("--x", t)), [
    5000,
    5000,
    500,
    500,
    120000,
  ]);
  for (const bad of ["", "0", "-1", "5x", "1e9", "soon"]) assert.throws(() => parsePeriod("--x", bad), bad);
});
