/** Networks that let next to nothing out: only an HTTP proxy leads to the server, or only TCP port 443 does. */
import assert from "node:assert/strict";
import type { Pod } from "../../lib/lab/pod.ts";
import { curl, outcome, tell, webService, withMesh } from "./fixture.ts";
import { fixture, labTest } from "./support.ts";

const PORT = "3128";
const CREDENTIALS = "edge:s3cret";
const [WEB, BACK] = ["10.96.0.10", "10.96.0.11"];

labTest("a node that reaches nothing but an HTTP proxy, and a site that lets only TCP port 443 out", async (t) => {
  const sites = [{ nat: "cone", nodes: 2 }, { nat: "https-only" }] as const;
  await withMesh({ sites, cloud: "none", defaultRoute: true }, async (mesh) => {
    const { topology } = mesh;
    const [walled, proxy, far] = ["edge-1", "edge-2", "edge-3"].map((name) => topology.node(name));
    const [own, other] = [topology.pod("edge-1-pod-1"), topology.pod("edge-3-pod-1")];
    await mesh.writeManifest("web.yaml", webService("web", WEB, [other]));
    await mesh.writeManifest("back.yaml", webService("back", BACK, [own]));
    await walled!.host.ns.ip("route del default");
    const running = await proxy!.host.start("proxy", [...fixture("connect_proxy"), PORT, CREDENTIALS], {
      ready: { log: /^listening/m },
    });
    await mesh.startServer();
    await mesh.join(far!);
    const at = `${proxy!.address}:${PORT}`;
    const server = new URL(mesh.url).host;

    await t.step("without the password the join fails, and says what to do", async () => {
      const agent = await mesh.join(walled!, { waitReady: false, env: { HTTPS_PROXY: `http://${at}` } });
      const { code, log } = await outcome(agent);
      assert.notEqual(code, 0);
      assert.ok(log.includes(`The HTTP proxy ${at} refuses to connect to the server: 407`), log);
      assert.match(log, /HTTPS_PROXY=http:\/\/user:password@host:port/);
    });
    await t.step("with it the node joins, and requests pass both ways", async () => {
      await mesh.join(walled!, { env: { HTTPS_PROXY: `http://${CREDENTIALS}@${at}` } });
      const there = await curl(own, `http://${WEB}/`);
      assert.equal(there.body, "edge-3-pod-1 on edge-3", there.stderr);
      const back = await curl(other, `http://${BACK}/`);
      assert.equal(back.body, "edge-1-pod-1 on edge-1", back.stderr);
      tell(`there ${Math.round(there.ms)} ms, back ${Math.round(back.ms)} ms`);
      const asked = (await running.log()).trim().split("\n").filter((line) => line.startsWith("CONNECT"));
      assert.ok(asked.filter((line) => line === `CONNECT ${server}:443 200`).length >= 2, asked.join("; "));
      assert.ok(asked.every((line) => line.startsWith(`CONNECT ${server}:443 `)), "only the server was asked for");
    });
    await t.step("the configuration alone does, and the proxy's end is no end of the mesh", async () => {
      await mesh.stopAgent(walled!);
      await mesh.startAgent(walled!, { flags: ["--set", `proxy=http://${CREDENTIALS}@${at}`] });
      await answers(own);
      await running.kill();
      await proxy!.host.start("proxy", [...fixture("connect_proxy"), PORT, CREDENTIALS], {
        ready: { log: /^listening/m },
      });
      await answers(own);
    });
  });
});

/** Within the time that a client has patience for. */
async function answers(from: Pod): Promise<void> {
  const { body, stderr, ms } = await curl(from, `http://${WEB}/`, ["--retry", "3", "--retry-all-errors"]);
  assert.equal(body, "edge-3-pod-1 on edge-3", stderr);
  tell(`answered after ${Math.round(ms)} ms`);
}
