/** A host that refuses FFI: the built executable over the runtime's own sockets, and the source where FFI is denied. */
import assert from "node:assert/strict";
import { startEcho } from "../../lib/lab/backends.ts";
import { until } from "../../lib/lab/exec.ts";
import type { LabNode } from "../../lib/lab/node.ts";
import { requireTools } from "../../lib/lab/tools.ts";
import { curl, startAll, tell, withMesh } from "./fixture.ts";
import { manifest, type ServiceSpec } from "./manifests.ts";
import { labTest, sourceCommand } from "./support.ts";

const UDP_PORT = 5353;
/** curl's exit codes for a refused connection, and for one that ended with nothing said. */
const CURL_REFUSED = 7;
const CURL_RESET = [52, 56];

labTest(
  "without FFI Services, names and peers work over the runtime's own sockets, and status says what is lost",
  async (t) => {
    await withMesh({ cloud: "none", podsPerNode: 2 }, async (mesh) => {
      const { topology } = mesh;
      const [node, other] = [topology.node("edge-1"), topology.node("edge-2")];
      const client = topology.pod("edge-1-pod-1");
      const [near, far] = [topology.pod("edge-1-pod-2"), topology.pod("edge-2-pod-1")];
      const services: readonly ServiceSpec[] = [
        { name: "near", ip: "10.96.0.60", endpoints: [near] },
        { name: "far", ip: "10.96.0.61", endpoints: [far], nodePort: 30080, spec: "type: NodePort" },
        { name: "both", ip: "10.96.0.62", endpoints: [near, far] },
        { name: "least", ip: "10.96.0.63", endpoints: [near], balance: "{ simple: LEAST_REQUEST }" },
        { name: "dead", ip: "10.96.0.64", endpoints: [far], targetPort: 9 },
        { name: "none", ip: "10.96.0.65", endpoints: [] },
        { name: "echo", ip: "10.96.0.66", endpoints: [far], port: UDP_PORT, targetPort: UDP_PORT, protocol: "UDP" },
      ];
      const ipOf = (name: string) => services.find((s) => s.name === name)!.ip;
      await mesh.writeManifest("services.yaml", services.map(manifest).join("---\n"));
      await startEcho(far.host, { port: UDP_PORT, protocol: "udp" });
      const { socat } = await requireTools(["socat"]);
      await startAll(mesh);

      const works = async (on: LabNode, why: RegExp) => {
        const forward = (await mesh.status(on)).modules.find((module) => module.name === "forward")!;
        assert.equal(forward.state, "degraded");
        assert.match(forward.detail, /^rules by nft/);
        assert.match(forward.detail, why);
        assert.match(forward.detail, /copied instead of spliced.*through the server only/);
        const { stdout, stderr } = await on.run(["check"]);
        assert.match(stdout + stderr, /copied instead of spliced/);
        assert.equal((await curl(client, "http://near/")).body, "edge-1-pod-2 on edge-1", "kernel way, by name");
        assert.equal((await curl(client, "http://far.default/")).body, "edge-2-pod-1 on edge-2", "tunnel");
        assert.equal((await curl(on, `http://${ipOf("far")}/`)).body, "edge-2-pod-1 on edge-2", "from the host");
        assert.equal((await curl(client, `http://${node.address}:30080/`)).body, "edge-2-pod-1 on edge-2", "node port");
        assert.equal((await curl(client, `http://${ipOf("least")}/`)).body, "edge-1-pod-2 on edge-1", "proxy");
        const seen = await Promise.all(Array.from({ length: 12 }, () => curl(client, `http://${ipOf("both")}/`)));
        assert.equal(seen.filter(({ body }) => body === "edge-2-pod-1 on edge-2").length, 6, "half of them each");
        assert.equal((await curl(client, `http://${ipOf("none")}/`)).code, CURL_REFUSED);
        const dead = await curl(client, `http://${ipOf("dead")}/`);
        assert.ok(CURL_RESET.includes(dead.code), `curl ended with ${dead.code}: ${dead.stderr}`);
        const ask = ["sh", "-c", `echo -n over-udp | ${socat} -T2 - UDP:${ipOf("echo")}:${UDP_PORT}`];
        assert.equal((await client.host.execOk(ask)).stdout, "over-udp");
        const ways = (await mesh.status(on)).services.flatMap((s) => s.endpoints.map((e) => `${s.service} ${e.way}`));
        for (const way of ["default/near kernel", "default/far tunnel", "default/least proxy"]) {
          assert.ok(ways.includes(way), `${way} is not in ${ways.join(", ")}`);
        }
      };

      await t.step("sockets: portable", async () => {
        await mesh.stopAgent(node);
        const agent = await mesh.startAgent(node, { flags: ["--set", "sockets=portable"] });
        await works(node, /sockets is portable in the configuration/);
        assert.equal((await mesh.status(node)).warnings.length, 0, "what was chosen is no warning");
        // And as the receiver: its peers reach its pods.
        const from = topology.pod("edge-2-pod-2");
        await until("the peer to reach its pod", async () => {
          return (await curl(from, `http://${ipOf("near")}/`)).body === "edge-1-pod-2 on edge-1" || undefined;
        });
        tell(`${(await mesh.status(node)).memory.privateMb.toFixed(1)} MB private`);
        assert.equal(agent.pid, (await mesh.status(node)).pid);
        await mesh.stopAgent(node);
        const left = await node.host.execOk(["sh", "-c", "nft list tables; ip -o link show; ip route"]);
        assert.doesNotMatch(left.stdout, /edgemesh/, "an orderly stop leaves nothing");
      });
      await t.step("FFI denied", async () => {
        const [deno] = sourceCommand();
        const permissions = ["read", "write", "net", "env", "run", "sys"].map((name) => `--allow-${name}`);
        const main = sourceCommand().at(-1)!;
        const agent = await node.host.start(
          "agent",
          [deno!, "run", "--quiet", "--no-prompt", ...permissions, main, "agent", "--node-name", node.name],
          { ready: { log: /agent ready/ } },
        );
        await works(node, /Cannot open libc\.so\.6/);
        const { warnings } = await mesh.status(node);
        assert.match(warnings.map((w) => w.text).join(), /FFI is refused/);
        await agent.stop();
      });
      assert.ok(mesh.agent(other.name).pid > 0);
    });
  },
);
