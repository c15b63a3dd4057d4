/** Modules of a running agent go and come by SIGHUP; what the others do is not disturbed. */
import assert from "node:assert/strict";
import { until } from "../../lib/lab/exec.ts";
import { curl, startAll, webService, withMesh } from "./fixture.ts";
import { labTest } from "./support.ts";

const [NEAR, FAR, LATER] = ["10.96.0.10", "10.96.0.11", "10.96.0.12"];
const CONFIG = "/etc/edgemesh/agent.yaml";
const DIG = ["dig", "+short", "+time=1", "+tries=1", "@169.254.96.16"];

labTest("modules are switched off and on by a reload, each without the others", async (t) => {
  await withMesh({ cloud: "none", podsPerNode: 2, oneWayDelayMs: 5 }, async (mesh) => {
    const { topology } = mesh;
    const node = topology.node("edge-1");
    const pod = topology.pod("edge-1-pod-1");
    await mesh.writeManifest("near.yaml", webService("near", NEAR, [topology.pod("edge-1-pod-2")]));
    await mesh.writeManifest("far.yaml", webService("far", FAR, [topology.pod("edge-2-pod-1")]));
    await startAll(mesh);
    const agent = mesh.agent("edge-1");

    const near = async () =>
      (await curl(pod, `http://${NEAR}/`, ["--max-time", "2"])).body === "edge-1-pod-2 on edge-1";
    const far = async () => (await curl(pod, `http://${FAR}/`, ["--max-time", "2"])).body === "edge-2-pod-1 on edge-2";
    const named = async (name: string, ip: string) =>
      (await pod.host.exec([...DIG, `${name}.default.svc.cluster.local`])).stdout.trim() === ip;
    const name = () => named("near", NEAR);
    const rules = async () => /table inet edgemesh/.test((await node.host.execOk(["nft", "list", "tables"])).stdout);
    const soon = (what: string, wanted: boolean, seen: () => Promise<boolean>) =>
      until(what, async () => (await seen()) === wanted || undefined);
    const reload = async (yaml: string) => {
      const before = (await agent.log()).split("configuration reloaded").length;
      await Deno.writeTextFile(node.host.path(CONFIG), yaml);
      agent.signal("SIGHUP");
      await agent.waitFor({
        probe: async () => (await agent.log()).split("configuration reloaded").length > before,
      });
    };
    const state = async (module: string) => (await mesh.status(node)).modules.find((m) => m.name === module)!.state;
    await soon("both Services and the name", true, async () => await near() && await far() && await name());

    await t.step("dns off: names unanswered, Services go on; on: back", async () => {
      await reload("dns: { enabled: false }\n");
      assert.ok(!await name());
      assert.equal(await state("dns"), "off");
      assert.ok(await near() && await far());
      await reload("dns: { enabled: true }\n");
      assert.ok(await name());
    });
    await t.step("forward off: no rule is left, names go on; on: as before", async () => {
      assert.ok(await rules());
      await reload("forward: { enabled: false }\n");
      assert.ok(!await rules());
      assert.ok(!await near());
      assert.equal(await state("forward"), "off");
      assert.ok(await name());
      assert.equal((await mesh.status(node)).mode, "online");
      await reload("forward: { enabled: true }\n");
      await soon("both Services", true, async () => await near() && await far());
    });
    await t.step(
      "tunnel off: other nodes out of reach, this one's Services and names go on; on: as before",
      async () => {
        await reload("tunnel: { enabled: false }\n");
        assert.ok(!await far());
        assert.ok(await near() && await name());
        assert.equal(await state("tunnel"), "off");
        assert.equal((await mesh.serverStatus()).agents.some((a) => a.node === "edge-1"), false);
        await reload("tunnel: { enabled: true }\n");
        await soon("the other node", true, far);
        assert.equal((await mesh.status(node)).mode, "online");
      },
    );
    await t.step("metadata off: what is known stays, nothing new comes; on: it comes", async () => {
      await reload("metadata: { enabled: false }\n");
      assert.equal(await state("metadata"), "off");
      await mesh.writeManifest("later.yaml", webService("later", LATER, [topology.pod("edge-1-pod-2")]));
      await soon("the other node to know the new Service", true, async () => {
        return (await mesh.status(topology.node("edge-2"))).services.some((s) => s.service === "default/later");
      });
      assert.ok(!await named("later", LATER));
      assert.ok(await near() && await far() && await name());
      await reload("metadata: { enabled: true }\n");
      await soon("the new Service", true, () => named("later", LATER));
    });
    await t.step("all off at once, and all on: the process is the same, and nothing is left over", async () => {
      const on = (enabled: boolean) =>
        ["dns", "forward", "tunnel", "metadata"].map((m) => `${m}: { enabled: ${enabled} }\n`).join("");
      await reload(on(false));
      assert.ok(!await rules() && !await name() && !await far());
      await reload(on(true));
      await soon("everything", true, async () => await near() && await far() && await name());
      assert.ok(agent.running);
      assert.doesNotMatch(await agent.log(), /need a restart|"level":"error"/);
    });
  });
});
