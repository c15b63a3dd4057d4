/** Beside a CNI that routes pod networks between nodes of one LAN, and what becomes of connections whose endpoint goes. */
import assert from "node:assert/strict";
import { pause } from "../../lib/clock.ts";
import { startNginx } from "../../lib/lab/backends.ts";
import { until } from "../../lib/lab/exec.ts";
import type { Pod } from "../../lib/lab/pod.ts";
import { curl, tell, withMesh } from "./fixture.ts";
import { manifest, type ServiceSpec } from "./manifests.ts";
import { labTest } from "./support.ts";

/** More than curl takes at once before it looks at its limit (100 reads of 100 KB): the rest comes at this rate. */
const BYTES = 16 << 20;
const RATE = "4M";
/** Rounds of a scraper. */
const SCRAPES = 10;

labTest("beside a CNI: pods it routes to are the kernel's; connections outlive their endpoint's Service", async (t) => {
  await withMesh({ sites: [{ nat: "cone", nodes: 2 }, { nat: "cone" }], cloud: "none" }, async (mesh) => {
    const { topology } = mesh;
    const [one, two, three] = ["edge-1", "edge-2", "edge-3"].map((name) => topology.node(name));
    const [client, routed, far] = ["edge-1-pod-1", "edge-2-pod-1", "edge-3-pod-1"].map((name) => topology.pod(name));
    for (const [from, to] of [[one!, two!], [two!, one!]] as const) {
      await from.host.execOk(["ip", "route", "add", to.podNetwork!.cidr, "via", to.address]);
    }
    const service = (name: string, ip: string, pod: Pod): ServiceSpec => ({ name, ip, endpoints: [pod] });
    const large = [routed!, far!].map((pod, i) => ({
      ...service(`large-${i}`, `10.96.0.${72 + i}`, pod),
      targetPort: 8081,
    }));
    const small = [service("routed", "10.96.0.70", routed!), service("far", "10.96.0.71", far!)];
    await Promise.all(
      [routed!, far!].map((pod) => startNginx(pod.host, { port: 8081, text: "x".repeat(BYTES) })),
    );
    const write = (services: readonly ServiceSpec[]) =>
      mesh.writeManifest("services.yaml", services.map(manifest).join("---\n"));
    await write([...small, ...large]);
    await mesh.startServer();
    const declared = ["--set", `mesh.routableCIDRs=${one!.podNetwork!.cidr},${two!.podNetwork!.cidr}`];
    await Promise.all([
      mesh.join(one!, { flags: declared }),
      mesh.join(two!, { flags: declared }),
      mesh.join(three!),
    ]);

    await t.step(
      "the routed pod is reached by the kernel, the other through the tunnel, and status says why",
      async () => {
        const { services } = await mesh.status(one!);
        const wayOf = (name: string) => services.find((s) => s.service === `default/${name}`)!.endpoints[0]!;
        assert.deepEqual([wayOf("routed").way, wayOf("far").way], ["kernel", "tunnel"]);
        tell(`routed: ${wayOf("routed").why}`);
        assert.equal((await curl(client!, "http://routed/")).body, "edge-2-pod-1 on edge-2");
        assert.equal((await curl(client!, "http://far/")).body, "edge-3-pod-1 on edge-3");
        assert.equal((await curl(one!, "http://10.96.0.70/")).body, "edge-2-pod-1 on edge-2", "from the host");
      },
    );
    await t.step(
      "B07: a scraper reaches pods by address where the CNI routes, and one of another site by a Service of its own",
      async () => {
        const targets: readonly (readonly [string, Pod])[] = [[`${routed!.ip}:8080`, routed!], ["10.96.0.71", far!]];
        for (const [at, pod] of targets) {
          const { stdout, stderr } = await client!.host.exec([
            ...["curl", "-sS", "--max-time", "4", "--rate", "20/s", "-H", "Accept: text/plain;version=0.0.4"],
            ...["-w", "%{http_code} %{num_connects}\n", `http://${at}/metrics?[1-${SCRAPES}]`],
          ], { timeoutMs: 30_000 });
          const rounds = stdout.trim().split("\n");
          assert.equal(rounds.length, 2 * SCRAPES, stderr);
          assert.equal(rounds.filter((line) => line === `${pod.name} on ${pod.node.name}`).length, SCRAPES, stdout);
          // A scraper keeps its connection from round to round.
          assert.equal(rounds.filter((line) => line === "200 0").length, SCRAPES - 1, stdout);
        }
        // The mesh carries Services: an address of a pod alone says neither which node nor which site it is on.
        const bare = await curl(client!, `http://${far!.ip}:8080/metrics`, ["--max-time", "2"]);
        assert.notEqual(bare.code, 0, bare.body);
        tell(`${SCRAPES} rounds each; ${far!.ip} of the other site by its bare address: ${bare.stderr}`);
      },
    );
    await t.step(
      "downloads on both ways end whole although their Services have left the endpoints meanwhile",
      async () => {
        const downloads = large.map(({ ip }) =>
          client!.host.exec([
            ...["curl", "-sS", "--max-time", "30", "--limit-rate", RATE],
            ...["-o", "/dev/null", "-w", "%{size_download}", `http://${ip}/`],
          ], { timeoutMs: 40_000 })
        );
        await pause(500);
        // From here on each of the two leads to the endpoint of the other, on the port of the small ones.
        await write([
          ...small,
          service("large-0", "10.96.0.72", far!),
          service("large-1", "10.96.0.73", routed!),
        ]);
        for (const [ip, who] of [["10.96.0.72", "edge-3-pod-1 on edge-3"], ["10.96.0.73", "edge-2-pod-1 on edge-2"]]) {
          await until(`${ip} to lead to ${who}`, async () => {
            return (await curl(client!, `http://${ip}/`, ["--max-filesize", "100"])).body === who || undefined;
          });
        }
        let running = downloads.length;
        for (const download of downloads) void download.then(() => running--);
        await pause(0);
        assert.equal(
          running,
          downloads.length,
          "a download was over before the Services had moved: this test saw nothing",
        );
        for (const { stdout, stderr } of await Promise.all(downloads)) assert.equal(stdout, String(BYTES), stderr);
      },
    );
    await t.step("without the agent the routed pod is served as before", async () => {
      await mesh.stopAgent(one!, "kill");
      assert.equal((await curl(client!, "http://10.96.0.70/")).body, "edge-2-pod-1 on edge-2");
    });
  });
});
