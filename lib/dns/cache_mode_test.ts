/** Nodes that keep CoreDNS: every name is asked of the cluster's DNS Services and kept for a while. */
import assert from "node:assert/strict";
import { clusterDnsAddresses } from "./cluster/cluster_dns.ts";
import { TestServer, upstreamProgram } from "./testing.ts";
import { MemoryMeta, service } from "./testing_meta.ts";

const CORE = { ip: "10.96.0.10", port: 53 };
const withCore = (ip = CORE.ip) =>
  new MemoryMeta({
    services: [
      service("kube-system", "kube-dns", { clusterIPs: [ip], labels: { "k8s-app": "kube-dns" } }),
      service("shop", "web", { clusterIPs: ["10.96.0.7"] }),
    ],
  });
const zone = {
  "web.shop.svc.cluster.local/A": [{ name: "web.shop.svc.cluster.local", type: "A", ttl: 300, data: "10.96.0.7" }],
} as const;

function start(asked: string[], meta = withCore()): TestServer {
  return new TestServer({
    meta,
    config: { mode: "cache" },
    files: { "/etc/resolv.conf": "nameserver 192.0.2.1\n" },
    prepare: (network) => network.at(CORE, upstreamProgram(zone, asked)),
  });
}

Deno.test("cache mode: cluster names come from the cluster's own DNS, for at most 30 s, and stale when it is gone", async () => {
  const asked: string[] = [];
  const server = start(asked);
  const first = await server.ask("web.shop.svc.cluster.local");
  assert.equal((first.answers![0] as { ttl: number }).ttl, 30);
  assert.equal(first.flag_aa, false);
  await server.ask("web.shop.svc.cluster.local");
  assert.deepEqual(asked, ["web.shop.svc.cluster.local/A"]);
  server.network.at(CORE, undefined);
  server.clock.advance(31_000);
  assert.equal((await server.ask("web.shop.svc.cluster.local")).answers!.length, 1);
  await server.close();
});

Deno.test("cache mode: the DNS Service is followed when its address changes, and nobody else is asked", async () => {
  const asked: string[] = [];
  const server = start(asked, new MemoryMeta({ synced: false }));
  assert.equal((await server.ask("web.shop.svc.cluster.local")).rcode, "SERVFAIL");
  server.meta = withCore();
  server.clock.advance(6000);
  assert.equal((await server.ask("web.shop.svc.cluster.local")).rcode, "NOERROR");
  const moved = { ip: "10.96.0.53", port: 53 };
  server.network.at(moved, upstreamProgram(zone, asked));
  server.meta = withCore(moved.ip);
  server.clock.advance(31_000);
  assert.equal((await server.ask("web.shop.svc.cluster.local")).rcode, "NOERROR");
  assert.deepEqual(server.network.sent.filter((d) => d.to.port === 53 && d.to.ip === "192.0.2.1"), []);
  assert.ok(server.network.sent.some((d) => d.to.ip === moved.ip));
  await server.close();
});

Deno.test("cache mode: which Services are the cluster's DNS", () => {
  const meta = new MemoryMeta({
    services: [
      service("kube-system", "coredns", { clusterIPs: ["10.96.0.9", "fd00::9"] }),
      service("kube-system", "kube-dns", { clusterIPs: ["10.96.0.10"] }),
      service("dns", "other", { clusterIPs: ["10.96.0.11"], labels: { "k8s-app": "kube-dns" } }),
      service("dns", "headless", { headless: true, labels: { "k8s-app": "kube-dns" } }),
      service("default", "coredns", { clusterIPs: ["10.96.0.12"] }),
    ],
  });
  assert.deepEqual(clusterDnsAddresses(meta), ["10.96.0.11", "10.96.0.9", "10.96.0.10", "fd00::9"]);
});
