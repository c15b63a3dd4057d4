/** The names of the cluster in pods of the built product: what tests/lab/dns_test.ts shows of the module alone. */
import assert from "node:assert/strict";
import { until } from "../../lib/lab/exec.ts";
import type { Host } from "../../lib/lab/host.ts";
import { SERVER_ADDRESSES } from "../../lib/lab/topology.ts";
import { startAll, tell, webService, withMesh } from "./fixture.ts";
import { fixture } from "./support.ts";

const WEB = "web.default.svc.cluster.local";
const UPSTREAM = SERVER_ADDRESSES[0];
const FOREIGN = "www.example.test";

async function getent(host: Host, name: string): Promise<string> {
  const { code, stdout } = await host.exec(["getent", "ahostsv4", name]);
  return code === 0 ? stdout.split(/\s+/)[0]! : "not found";
}

/** What dig says of a name: its address or the status, how long the answer lives, and how long it took. */
async function lookup(
  host: Host,
  name: string,
): Promise<{ readonly got: string; readonly ttl: number; readonly ms: number }> {
  const { stdout } = await host.exec(["dig", "+tries=1", "+time=6", name]);
  const answer = /^\S+\s+(\d+)\s+IN\s+A\s+(\S+)$/m.exec(stdout);
  return {
    got: answer?.[2] ?? /status: (\w+)/.exec(stdout)?.[1] ?? "timeout",
    ttl: Number(answer?.[1] ?? NaN),
    ms: Number(/Query time: (\d+) msec/.exec(stdout)?.[1] ?? NaN),
  };
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
    const zone = JSON.stringify({ [`${FOREIGN}/A`]: ["192.0.2.80"] });
    const upstream = await mesh.topology.server.host.start("upstream", [
      ...fixture("dns_upstream"),
      UPSTREAM,
      "53",
      zone,
    ], { ready: { port: 53, protocol: "udp" } });
    await t.step("SIGHUP: an upstream that was configured while the agent runs is asked", async () => {
      // Answers of upstreams live for a second, so that what comes after the restart is stale.
      await Deno.writeTextFile(
        one!.host.path("/etc/edgemesh/agent.yaml"),
        `dns: { upstreams: ["${UPSTREAM}"], maxTtlSeconds: 1 }\n`,
      );
      mesh.agent(one!.name).signal("SIGHUP");
      await until("the foreign name", async () => {
        return (await lookup(pod.host, FOREIGN)).got === "192.0.2.80" ? true : undefined;
      });
      assert.equal((await lookup(pod.host, WEB)).got, "10.96.0.7");
    });
    await t.step("cloud and upstream gone, agent restarted: what was known is served stale", async () => {
      await mesh.stopServer("kill");
      await upstream.kill();
      await mesh.stopAgent(one!);
      await mesh.startAgent(one!, { waitReady: false });
      await until("the name after the restart", async () => {
        return (await lookup(pod.host, WEB)).got === "10.96.0.7" ? true : undefined;
      });
      const [known, name, unknown] = [
        await lookup(pod.host, FOREIGN),
        await lookup(pod.host, WEB),
        await lookup(pod.host, "never.example.test"),
      ];
      tell(
        `offline restart: cluster name ${name.ms} ms, stale foreign name ${known.ms} ms (TTL ${known.ttl}), ` +
          `unknown foreign name ${unknown.got} after ${unknown.ms} ms`,
      );
      assert.deepEqual([name.got, known.got, known.ttl, unknown.got], ["10.96.0.7", "192.0.2.80", 30, "SERVFAIL"]);
    });
    await t.step(
      "still without the cloud, agent killed and started: names answer, unknown names of the cluster do not exist",
      async () => {
        const kept = one!.host.path("/var/lib/edgemesh/agent/snapshot.jsonl");
        await until("the snapshot on disk", async () => {
          return await Deno.readTextFile(kept).then((text) => text.includes('"web"') || undefined, () => undefined);
        });
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
        assert.equal((await lookup(pod.host, "never.example.test")).got, "SERVFAIL");
      },
    );
  });
});
