/**
 * What a node believes of others. A client whose metadata lies asks another node for what it must not have; a server
 * that lies pushes what a node must not take. The receiving node judges by its own knowledge, and dials nothing.
 */
import assert from "node:assert/strict";
import { startNginx } from "../../lib/lab/backends.ts";
import { Capture } from "../../lib/lab/capture.ts";
import { until } from "../../lib/lab/exec.ts";
import { type Mesh, serviceYaml } from "../../lib/lab/mesh.ts";
import type { LabNode } from "../../lib/lab/node.ts";
import { curl, startAll, tell, webService, withMesh } from "./fixture.ts";
import { labTest } from "./support.ts";

const LIES = "/etc/edgemesh/lies";

/** A Service as the lying client has it, and what edge-2 must say to it. */
interface Lie {
  readonly what: string;
  readonly service: string;
  readonly address: string;
  readonly endpoint: { readonly ip: string; readonly port: number };
  /** Reason code in the receiver's log. */
  readonly reason: string;
  readonly why: RegExp;
}

labTest(
  "T08: an OPEN to an address outside the rules is refused by the receiving agent, and nothing is dialled",
  async (t) => {
    await withMesh({ cloud: "none", podsPerNode: 2 }, async (mesh) => {
      const { topology } = mesh;
      const [liar, victim] = [topology.node("edge-1"), topology.node("edge-2")];
      const [client, pod] = [topology.pod("edge-1-pod-1"), topology.pod("edge-2-pod-1")];
      await mesh.writeManifest("web.yaml", webService("web", "10.96.0.10", [pod]));
      // Something answers wherever a lie leads: a dial that should not be would be seen to succeed.
      for (const port of [22, 9090]) await startNginx(victim.host, { port, text: "the host itself\n" });
      await startNginx(pod.host, { port: 9090, text: "another port of the pod\n" });
      // The server itself is wrong about one Service: an address of edge-2 that is no pod.
      await mesh.writeManifest("host.yaml", serviceOn("host", "10.96.0.11", victim.address, 22));
      await mesh.startServer();

      const web = { service: "web", address: "10.96.0.10" };
      const lies: Lie[] = [
        {
          ...web,
          what: "a port of a real pod that no Service has",
          endpoint: { ip: pod.ip, port: 9090 },
          reason: "ENDPOINT_REMOVED",
          why: /is not an endpoint of default\/web/,
        },
        {
          ...web,
          what: "a pod of the node that is not in the Service",
          endpoint: { ip: topology.pod("edge-2-pod-2").ip, port: 8080 },
          reason: "ENDPOINT_REMOVED",
          why: /is not an endpoint of default\/web/,
        },
        {
          ...web,
          what: "the node's own address",
          endpoint: { ip: victim.address, port: 22 },
          reason: "ENDPOINT_REMOVED",
          why: /192\.168\.2\.2:22 is not an endpoint/,
        },
        {
          ...web,
          what: "the router of the node's site",
          endpoint: { ip: "192.168.2.1", port: 80 },
          reason: "ENDPOINT_REMOVED",
          why: /192\.168\.2\.1:80 is not an endpoint/,
        },
        {
          what: "a Service the node does not know",
          service: "ghost",
          address: "10.96.0.12",
          endpoint: { ip: pod.ip, port: 8080 },
          reason: "NO_SERVICE",
          why: /default\/ghost TCP\/80 is not in this node's metadata/,
        },
        {
          what: "an address that the server itself names, but which is no pod's",
          service: "host",
          address: "10.96.0.11",
          endpoint: { ip: victim.address, port: 22 },
          reason: "NOT_ALLOWED",
          why: /port 22 of this host is not opened in forward\.hostPorts/,
        },
      ];
      await Deno.mkdir(liar.host.path(LIES), { recursive: true });
      await mesh.join(victim);
      const agent = await mesh.join(liar, { flags: ["--manifests", LIES] });
      const dialled = await Capture.start(victim.host.ns, {
        filter: `tcp[tcpflags] & tcp-syn != 0 and (port 22 or port 9090 or host 192.168.2.1 or host ${
          topology.pod("edge-2-pod-2").ip
        })`,
      });

      const good = await curl(client, "http://10.96.0.10/");
      assert.equal(good.body, "edge-2-pod-1 on edge-2", good.stderr);
      for (const lie of lies) {
        await t.step(lie.what, async () => {
          const { service, address, endpoint } = lie;
          await tellLie(liar, serviceOn(service, address, endpoint.ip, endpoint.port));
          await believed(mesh, liar, lie);
          const seen = (await mesh.agent("edge-2").log()).length;
          const { code, ms, stderr } = await curl(client, `http://${address}/`);
          assert.ok([7, 52, 56].includes(code), `curl ended with ${code}: ${stderr}`);
          assert.ok(ms < 2000, `refused only after ${Math.round(ms)} ms`);
          const line = (await mesh.agent("edge-2").log()).slice(seen).split("\n").find((l) => l.includes("Refused"));
          assert.ok(line, "the receiving agent's log says nothing of it");
          const entry = JSON.parse(line) as Record<string, string>;
          assert.equal(entry.node, "edge-1");
          assert.equal(entry.service, `default/${service}`);
          assert.equal(entry.endpoint, `${endpoint.ip}:${endpoint.port}`);
          assert.equal(entry.reason, lie.reason);
          assert.match(entry.why!, lie.why);
          tell(`${entry.endpoint}: ${entry.reason}, ${entry.why}`);
        });
      }
      await t.step("T09: 127.0.0.1 is not even asked for", async () => {
        await tellLie(liar, serviceOn("loop", "10.96.0.13", "127.0.0.1", 22));
        const line = /[^\n]*127\.0\.0\.1[^\n]*/;
        await agent.waitFor({ log: line });
        tell(line.exec(await agent.log())![0]);
        const { code, stderr } = await curl(client, "http://10.96.0.13/");
        assert.equal(code, 7, stderr);
      });
      assert.deepEqual(await dialled.packets(), [], "edge-2 sent connection requests where it must not");
    });
  },
);

labTest("a pushed ClusterIP 8.8.8.8 is refused by the node's guard: no rule, no name, and status says so", async () => {
  await withMesh({ sites: [{ nat: "cone" }], cloud: "none" }, async (mesh) => {
    const node = mesh.topology.node("edge-1");
    const pod = mesh.topology.pod("edge-1-pod-1");
    await mesh.writeManifest("web.yaml", webService("web", "10.96.0.10", [pod]));
    await mesh.writeManifest("evil.yaml", webService("evil", "8.8.8.8", [pod]));
    await startAll(mesh);
    const { metadata, services } = await mesh.status(node);
    const refused = metadata.refused.filter((text) => text.includes("8.8.8.8"));
    assert.equal(refused.length, 1, `status refuses: ${metadata.refused}`);
    assert.match(refused[0]!, /Service default\/evil: clusterIPs\[0\] 8\.8\.8\.8: is outside the service networks/);
    tell(refused[0]!);
    assert.deepEqual(services.map((s) => s.service), ["default/web"]);
    const { stdout: kernel } = await node.host.execOk(["sh", "-c", "nft list ruleset; ip route show table all"]);
    assert.ok(kernel.includes("10.96.0.10"), "the good Service has no rule: this test would see nothing");
    assert.ok(!kernel.includes("8.8.8.8"), "the kernel has a rule for 8.8.8.8");
    const dig = async (name: string) =>
      (await pod.host.execOk(["dig", "+time=2", "+tries=1", "@169.254.96.16", name])).stdout;
    assert.match(await dig("web.default.svc.cluster.local"), /10\.96\.0\.10/);
    const answer = await dig("evil.default.svc.cluster.local");
    assert.match(answer, /status: NXDOMAIN/);
    assert.ok(!answer.includes("8.8.8.8"), answer);
  });
});

function serviceOn(name: string, clusterIP: string, ip: string, targetPort: number): string {
  return serviceYaml({ name, clusterIP, port: 80, targetPort, endpoints: [{ ip, node: "edge-2" }] });
}

async function tellLie(node: LabNode, yaml: string): Promise<void> {
  await Deno.writeTextFile(`${node.host.path(LIES)}/new`, yaml);
  await Deno.rename(`${node.host.path(LIES)}/new`, `${node.host.path(LIES)}/lie.yaml`);
}

/** Waits until the lying node's own plan leads to the endpoint: only then the request asks the other node for it. */
async function believed(mesh: Mesh, node: LabNode, { service, endpoint }: Lie): Promise<void> {
  await until(`${node.name} to believe in ${endpoint.ip}:${endpoint.port}`, async () => {
    const entry = (await mesh.status(node)).services.find((s) => s.service === `default/${service}`);
    return entry?.endpoints.some((e) => e.endpoint === `${endpoint.ip}:${endpoint.port}`) || undefined;
  });
}
