/** What happens at the ends of what a node can do: more connections than descriptors, addresses claimed twice, ports in use. */
import assert from "node:assert/strict";
import { pause, systemClock } from "../../lib/clock.ts";
import { until } from "../../lib/lab/exec.ts";
import type { HostProcess } from "../../lib/lab/process.ts";
import { requireTools } from "../../lib/lab/tools.ts";
import { allowed, curl, startAll, tell, withMesh } from "./fixture.ts";
import { manifest, type ServiceSpec } from "./manifests.ts";
import { fixture, labTest } from "./support.ts";

/** The agent keeps 256 for itself, and counts two for each connection. */
const OPEN_FILES = 356;
const PLACES = 50;
const COMERS = 150;
/** How long clients wait for a place, and for an endpoint to answer. */
const WAIT_MS = 2000;
const SHED_OVER_MS = 150;
/** Fewer than any agent has open: nothing at all can be opened. */
const NO_FILES = 8;
const ECHO_PORT = 7000;
const CURL_REFUSED = 7;

labTest(
  "limits: more connections than descriptors, ports in use, addresses claimed twice, impossible ports",
  async (t) => {
    await withMesh({ cloud: "none", podsPerNode: 2 }, async (mesh) => {
      const { topology } = mesh;
      const node = topology.node("edge-1");
      const client = topology.pod("edge-1-pod-1");
      const [near, far] = [topology.pod("edge-1-pod-2"), topology.pod("edge-2-pod-1")];
      const services: readonly ServiceSpec[] = [
        { name: "near", ip: "10.96.0.60", endpoints: [near] },
        { name: "far", ip: "10.96.0.61", endpoints: [far] },
        { name: "echo", ip: "10.96.0.62", port: ECHO_PORT, targetPort: ECHO_PORT, endpoints: [far] },
        { name: "claim-a", ip: "10.96.0.63", endpoints: [near], nodePort: 30090, spec: "type: NodePort" },
        { name: "claim-b", ip: "10.96.0.64", endpoints: [far], nodePort: 30090, spec: "type: NodePort" },
        { name: "claim-ip", ip: "10.96.0.63", endpoints: [far] },
        { name: "used", ip: "10.96.0.65", endpoints: [far], nodePort: 30091, spec: "type: NodePort" },
      ];
      const ipOf = (name: string) => services.find((s) => s.name === name)!.ip;
      await mesh.writeManifest("services.yaml", services.map(manifest).join("---\n"));
      await far.host.start("echo", [...fixture("hold_peer"), "serve", String(ECHO_PORT)], {
        ready: { port: ECHO_PORT },
      });
      await startAll(mesh);
      await mesh.stopAgent(node);
      const limited = ["prlimit", `--nofile=${OPEN_FILES}:${OPEN_FILES}`, ...node.command];
      const flags = ["--set", `forward.connectTimeoutMs=${WAIT_MS}`];
      const agent = await node.host.start("agent", [...limited, "agent", "--node-name", node.name, ...flags], {
        ready: { log: /agent ready/ },
      });
      const hold = (count: number) =>
        client.host.start("hold", [...fixture("hold_peer"), "hold", ipOf("echo"), String(ECHO_PORT), String(count)]);
      const shows = (process: HostProcess, line: RegExp) => process.waitFor({ log: line });
      assert.equal((await curl(client, `http://${ipOf("far")}/`)).body, "edge-2-pod-1 on edge-2");
      assert.match(await agent.log(), new RegExp(`"maxConnections":${PLACES},"openFiles":${OPEN_FILES}`));

      await t.step(
        `${COMERS} at ${PLACES} places: the first are served, the others wait, then are refused`,
        async () => {
          const began = systemClock.now();
          const crowd = await hold(COMERS);
          await shows(crowd, new RegExp(`^answered ${PLACES} refused 0 waiting ${COMERS - PLACES}$`, "m"));
          // All places are taken: what needs none goes on, and so does the agent.
          assert.equal((await curl(client, `http://${ipOf("near")}/`)).body, "edge-1-pod-2 on edge-1");
          assert.equal((await curl(client, "http://near/")).code, 0);
          assert.equal((await mesh.status(node)).ready, true);
          await shows(crowd, new RegExp(`^answered ${PLACES} refused ${COMERS - PLACES} waiting 0$`, "m"));
          tell(`refused ${Math.round(systemClock.now() - began)} ms after they came`);
          // Whoever comes while the queue is emptied (50 ms) is refused with it.
          await pause(SHED_OVER_MS);
          const late = curl(client, `http://${ipOf("far")}/`);
          await pause(300);
          crowd.signal("SIGUSR2");
          const { body, ms } = await late;
          assert.equal(body, "edge-2-pod-1 on edge-2", "who waits gets the place that became free");
          tell(`served after ${Math.round(ms)} ms, of which 300 were waited for a place`);
          await crowd.kill();
          await until("the places to be free", async () => {
            return (await curl(client, `http://${ipOf("far")}/`)).ms < allowed(1000) || undefined;
          });
        },
      );
      await t.step(
        "not one descriptor left: nobody is lost, nothing dies, and all is well when there are some",
        async () => {
          const crowd = await hold(10);
          await shows(crowd, /^answered 10 /m);
          await node.host.execOk(["prlimit", "--pid", String(agent.pid), `--nofile=${NO_FILES}:${OPEN_FILES}`]);
          const [waits, direct] = await Promise.all([
            curl(client, `http://${ipOf("far")}/`, ["--max-time", "2"]),
            curl(client, `http://${ipOf("near")}/`),
          ]);
          assert.notEqual(waits.code, 0);
          assert.equal(direct.body, "edge-1-pod-2 on edge-1");
          const kept = [...(await crowd.log()).matchAll(/^answered (\d+)/gm)].at(-1)![1];
          assert.equal(kept, "10", "connections that stood were lost");
          await node.host.execOk(["prlimit", "--pid", String(agent.pid), `--nofile=${OPEN_FILES}:${OPEN_FILES}`]);
          await until("Services to answer", async () => {
            return (await curl(client, `http://${ipOf("far")}/`, ["--max-time", "2"])).code === 0 || undefined;
          });
          assert.equal((await mesh.status(node)).pid, agent.pid);
          await crowd.kill();
        },
      );
      await t.step(
        "B20: a node port that a program of the host listens on is the Service's, and the program is untouched",
        async () => {
          const { socat } = await requireTools(["socat"]);
          const program = await node.host.start("program", [
            socat!,
            "TCP4-LISTEN:30091,fork,reuseaddr",
            "SYSTEM:echo mine",
          ], {
            ready: { port: 30091 },
          });
          for (const from of [client, node]) {
            assert.equal((await curl(from, `http://${node.address}:30091/`)).body, "edge-2-pod-1 on edge-2");
          }
          const own = await node.host.exec(["sh", "-c", `${socat} -T2 - TCP:127.0.0.1:30091 </dev/null`]);
          assert.equal(own.stdout, "mine\n");
          await program.kill();
        },
      );
      await t.step(
        "one node port and one address claimed twice: the first by name has them, status says so",
        async () => {
          assert.equal((await curl(client, `http://${node.address}:30090/`)).body, "edge-1-pod-2 on edge-1");
          assert.equal((await curl(client, `http://${ipOf("claim-a")}/`)).body, "edge-1-pod-2 on edge-1");
          assert.equal((await curl(client, `http://${ipOf("claim-b")}/`)).body, "edge-2-pod-1 on edge-2");
          const { refused } = (await mesh.status(node)).metadata;
          for (
            const line of [
              /default\/claim-b: TCP :30090 is claimed by default\/claim-a, which keeps it/,
              /default\/claim-ip: TCP 10\.96\.0\.63:80 is claimed by default\/claim-a/,
            ]
          ) {
            assert.ok(refused.some((text) => line.test(text)), `${line} is not in ${refused.join("\n")}`);
          }
          // The first goes: the others have them.
          await mesh.writeManifest(
            "services.yaml",
            services.filter((s) => s.name !== "claim-a").map(manifest).join("---\n"),
          );
          await until("the others to have them", async () => {
            const urls = [`http://${node.address}:30090/`, `http://${ipOf("claim-ip")}/`];
            const answers = await Promise.all(urls.map((url) => curl(client, url)));
            return answers.every(({ body }) => body === "edge-2-pod-1 on edge-2") || undefined;
          });
        },
      );
      await t.step("impossible ports: named in the server's status, and the last good state serves", async () => {
        for (const port of [0, 65_536]) {
          await mesh.writeManifest("bad.yaml", manifest({ name: "bad", ip: "10.96.0.66", port, endpoints: [far] }));
          const says = await until("the problem", async () => {
            const { problems } = (await mesh.serverStatus()).metadata;
            return problems.find((text) =>
              new RegExp(`Service default/bad: spec\\.ports\\[0\\]\\.port ${port}`).test(text)
            );
          });
          tell(says);
          assert.equal((await curl(client, "http://10.96.0.66/")).code, CURL_REFUSED);
          assert.equal((await curl(client, `http://${ipOf("far")}/`)).code, 0);
        }
      });
      await agent.stop();
    });
  },
);
