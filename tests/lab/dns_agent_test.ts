/** The names of the cluster in pods of the built product: what tests/lab/dns_test.ts shows of the module alone. */
import assert from "node:assert/strict";
import { until } from "../../lib/lab/exec.ts";
import type { Host } from "../../lib/lab/host.ts";
import { startAll, tell, webService, withMesh } from "./fixture.ts";

const WEB = "web.default.svc.cluster.local";

async function getent(host: Host, name: string): Promise<string> {
  const { code, stdout } = await host.exec(["getent", "ahostsv4", name]);
  return code === 0 ? stdout.split(/\s+/)[0]! : "not found";
}

/** A headless Service with a host name per pod, as a StatefulSet makes it. */
function statefulSet(pods: readonly { readonly ip: string; readonly node: string; readonly ready: boolean }[]): string {
  const endpoints = pods.map((p, i) =>
    `- addresses: ["${p.ip}"]\n  hostname: db-${i}\n  nodeName: ${p.node}\n  conditions: { ready: ${p.ready} }\n` +
    `  targetRef: { kind: Pod, namespace: default, name: db-${i} }`
  );
  return `apiVersion: v1
kind: Service
metadata: { name: db, namespace: default }
spec:
  clusterIP: None
  ports: [{ name: pg, port: 5432 }]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: db-1, namespace: default, labels: { kubernetes.io/service-name: db } }
addressType: IPv4
ports: [{ name: pg, port: 5432, protocol: TCP }]
endpoints:
${endpoints.join("\n")}
`;
}

Deno.test("A31 B06 B10 dns: names in pods of the mesh, before, during and after the cloud", async (t) => {
  await withMesh({ cloud: "none", web: [] }, async (mesh) => {
    const [one, two] = mesh.topology.edges;
    const [pod, far] = [one!.pods[0]!, two!.pods[0]!];
    await mesh.writeManifest("web.yaml", webService("web", "10.96.0.7", [pod, far]));
    await mesh.writeManifest(
      "db.yaml",
      statefulSet([
        { ip: pod.ip, node: one!.name, ready: true },
        { ip: far.ip, node: two!.name, ready: true },
        { ip: "10.244.2.99", node: two!.name, ready: false },
      ]),
    );
    await t.step("B10: a pod that is older than the agent has no names yet", async () => {
      assert.equal(await getent(pod.host, "web"), "not found");
    });
    await startAll(mesh);
    await t.step("B10: and has them as soon as the agent runs, without being created anew", async () => {
      await until(
        "the name in the old pod",
        async () => await getent(pod.host, "web") === "10.96.0.7" ? true : undefined,
      );
    });
    await t.step("A31: dig in pods of both nodes", async () => {
      for (const p of [pod, far]) {
        await until(`the name on ${p.node.name}`, async () => {
          const { stdout } = await p.host.exec(["dig", "+short", "+tries=1", "+time=2", WEB]);
          return stdout.trim() === "10.96.0.7" ? true : undefined;
        });
      }
      const { stdout } = await pod.host.execOk(["dig", "+short", "_main._tcp." + WEB, "SRV"]);
      assert.equal(stdout.trim(), `0 100 80 ${WEB}.`);
    });
    await t.step("B06: every pod of a StatefulSet by its own name, on every node", async () => {
      for (const p of [pod, far]) {
        assert.equal(await getent(p.host, "db-0.db"), pod.ip);
        assert.equal(await getent(p.host, "db-1.db"), far.ip);
        assert.equal(await getent(p.host, "db-2.db"), "not found");
      }
    });
    await t.step(
      "cloud gone, agent killed and started: names answer, unknown names of the cluster do not exist",
      async () => {
        const kept = one!.host.path("/var/lib/edgemesh/agent/snapshot.jsonl");
        await until("the snapshot on disk", async () => {
          return await Deno.readTextFile(kept).then((text) => text.includes('"web"') || undefined, () => undefined);
        });
        await mesh.stopServer("kill");
        await mesh.stopAgent(one!, "kill");
        const started = performance.now();
        await mesh.startAgent(one!, { waitReady: false });
        await until("the name after the restart", async () => {
          const { stdout } = await pod.host.exec(["dig", "+short", "+tries=1", "+time=1", WEB]);
          return stdout.trim() === "10.96.0.7" ? true : undefined;
        });
        const ms = Math.round(performance.now() - started);
        tell(`offline restart: the first answer ${ms} ms after the start of the agent`);
        assert.ok(ms <= 5000, `${ms} ms`);
        const unknown = await pod.host.exec(["dig", "+tries=1", "+time=2", "nothing.default.svc.cluster.local"]);
        assert.match(unknown.stdout, /status: NXDOMAIN/);
        const foreign = await pod.host.exec(["dig", "+tries=1", "+time=6", "www.example.test"]);
        assert.match(foreign.stdout, /status: SERVFAIL/);
      },
    );
  });
});
