/** How an agent ends, by itself and by force, and what the host and its Services notice of it. */
import assert from "node:assert/strict";
import { systemClock } from "../../lib/clock.ts";
import { until } from "../../lib/lab/exec.ts";
import type { LabNode } from "../../lib/lab/node.ts";
import { curl, outcome, startAll, tell, webService, withMesh } from "./fixture.ts";
import { labTest } from "./support.ts";

const FAR = "10.96.0.10";
const NEAR = "10.96.0.11";
const MIXED = "10.96.0.12";
const AT_ONCE_MS = 1000;

labTest("an agent that ends leaves the host as it was, and a killed one its own-node Services", async (t) => {
  await withMesh({ cloud: "none", podsPerNode: 2 }, async (mesh) => {
    const { topology } = mesh;
    const node = topology.node("edge-1");
    const pod = topology.pod("edge-1-pod-1");
    const [near, far] = [topology.pod("edge-1-pod-2"), topology.pod("edge-2-pod-1")];
    await mesh.writeManifest("far.yaml", webService("far", FAR, [far]));
    await mesh.writeManifest("near.yaml", webService("near", NEAR, [near]));
    await mesh.writeManifest("mixed.yaml", webService("mixed", MIXED, [near, far]));
    const before = await kernelState(node);
    await startAll(mesh);
    const running = await kernelState(node);
    assert.notEqual(running, before, "the agent changes nothing: this test would see nothing");

    await t.step("T18: SIGTERM: rules, links, addresses, routes and sysctls are as before", async () => {
      const started = systemClock.now();
      const status = await mesh.agent("edge-1").stop();
      tell(`stopped after ${Math.round(systemClock.now() - started)} ms`);
      assert.equal(status.code, 0);
      assert.equal(await kernelState(node), before);
      await mesh.startAgent(node);
    });
    await t.step("two starts of one agent: the second is refused with a sentence, the first goes on", async () => {
      const second = await node.run(["agent", "--node-name", "edge-1"]);
      assert.equal(second.code, 1);
      const said = second.stderr.trim().split("\n").at(-1)!;
      assert.match(said, /^error: Another edgemesh agent uses the state in \/var\/lib\/edgemesh\/agent; try: stop it/);
      tell(said);
      assert.equal(await kernelState(node), running);
      assert.equal((await curl(pod, `http://${FAR}/`)).body, "edge-2-pod-1 on edge-2");
    });
    await t.step("SIGKILL: own-node Services go on by the kernel alone", async () => {
      await mesh.stopAgent(node, "kill");
      for (const from of [pod, node]) {
        const { body, stderr } = await curl(from, `http://${NEAR}/`);
        assert.equal(body, "edge-1-pod-2 on edge-1", stderr);
      }
    });
    await t.step("SIGKILL: a Service with endpoints here and elsewhere goes on with those here", async () => {
      for (let i = 0; i < 4; i++) {
        const { body, stderr } = await curl(pod, `http://${MIXED}/`);
        assert.equal(body, "edge-1-pod-2 on edge-1", stderr);
      }
    });
    await t.step("SIGKILL: what needs the agent is refused at once, never swallowed", async () => {
      for (const from of [pod, node]) {
        const { code, ms, stderr } = await curl(from, `http://${FAR}/`);
        assert.equal(code, 7, stderr);
        assert.ok(ms < AT_ONCE_MS, `refused after ${Math.round(ms)} ms`);
      }
    });
    await t.step("a new start heals it", async () => {
      const started = systemClock.now();
      await mesh.startAgent(node, { waitReady: false });
      await until("an answer from the other site", async () => {
        return (await curl(pod, `http://${FAR}/`)).body === "edge-2-pod-1 on edge-2" || undefined;
      });
      tell(`healed ${Math.round(systemClock.now() - started)} ms after the start`);
      assert.equal(await kernelState(node), running);
    });
    await t.step("SIGKILL, then `edgemesh cleanup`: as before, also when asked twice", async () => {
      await mesh.stopAgent(node, "kill");
      for (let i = 0; i < 2; i++) {
        const { code, stdout, stderr } = await node.run(["cleanup"]);
        assert.equal(code, 0, stderr);
        tell(stdout.trim());
        assert.equal(await kernelState(node), before);
      }
    });
    await t.step("`edgemesh cleanup` beside a running agent does nothing to it", async () => {
      await mesh.startAgent(node);
      const { code, stderr } = await node.run(["cleanup"]);
      assert.equal(code, 1);
      assert.match(stderr, /^error: The agent of this host is running.*; try: systemctl stop/);
      tell(stderr.trim());
      assert.equal(await kernelState(node), running);
    });
  });
});

labTest("an agent that is asked to stop while it starts, or is told to stop twice, ends cleanly", async (t) => {
  await withMesh({ sites: [{ nat: "cone" }], cloud: "none", web: [] }, async (mesh) => {
    const node = mesh.topology.node("edge-1");
    await startAll(mesh);
    await mesh.stopAgent(node);
    const before = await kernelState(node);
    for (const at of [/DNS listens/, /metadata loaded/]) {
      await t.step(`SIGTERM at ${at.source}`, async () => {
        const process = await node.start("early", ["agent"], { ready: { log: at } });
        process.signal("SIGTERM");
        const { code, log } = await outcome(process);
        assert.equal(code, 0, log);
        assert.equal(await kernelState(node), before);
      });
    }
  });
});

/** Everything in the kernel that an agent may touch, as text. */
async function kernelState(node: LabNode): Promise<string> {
  const { stdout } = await node.host.execOk(["sh", "-c", KERNEL_STATE]);
  // A new link has another random hardware address, and a link-local one made from it.
  return stdout.replace(/\b([0-9a-f]{2}:){5}[0-9a-f]{2}\b/g, "MAC").replace(/\bfe80::[0-9a-f:]+/g, "fe80::EUI")
    .split("\n== ").map((part) => part.startsWith("sorted") ? part.split("\n").sort().join("\n") : part).join("\n== ");
}

const KERNEL_STATE = `nft list ruleset | sed -E 's/packets [0-9]+ bytes [0-9]+/packets N/'
ip -br link
ip -br addr
ip rule; ip -6 rule
sysctl -a 2>/dev/null | grep -E '^net[.]ipv[46][.](ip_forward|conf[.])' | sort
echo "== sorted routes"
ip route show table all; ip -6 route show table all`;
