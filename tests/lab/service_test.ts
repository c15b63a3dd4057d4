/** A Service as its users meet it: balanced, changed while in use, found by name, refused at once where nothing is. */
import assert from "node:assert/strict";
import { systemClock } from "../../lib/clock.ts";
import { until } from "../../lib/lab/exec.ts";
import type { Mesh } from "../../lib/lab/mesh.ts";
import type { Pod } from "../../lib/lab/pod.ts";
import { requireTools } from "../../lib/lab/tools.ts";
import { SERVER_ADDRESSES } from "../../lib/lab/topology.ts";
import { curl, startAll, tell, webService, withMesh } from "./fixture.ts";
import { fixture, labTest } from "./support.ts";

const WEB = "10.96.0.10";
const LOCAL = "10.96.0.11";
const NOTHING = "10.96.0.12";
const NEW = "10.96.0.13";
/** curl's exit code for a refused connection. */
const REFUSED = 7;
/** Seen by a person as "at once": a request between two sites takes 80 ms, a silent drop seconds. */
const AT_ONCE_MS = 1000;
const MESH_DNS = "169.254.96.16";
const UPSTREAM = SERVER_ADDRESSES[0];

labTest("a Service balances evenly over three nodes, and own-node traffic passes with the agent frozen", async (t) => {
  await withMesh({ podsPerNode: 2 }, async (mesh) => {
    const { topology } = mesh;
    const node = topology.node("edge-1");
    const pod = topology.pod("edge-1-pod-1");
    const ends = ["edge-1-pod-2", "edge-2-pod-1", "cloud-1-pod-1"].map((name) => topology.pod(name));
    await mesh.writeManifest("web.yaml", webService("web", WEB, ends));
    await mesh.writeManifest("local.yaml", webService("local", LOCAL, [topology.pod("edge-1-pod-2")]));
    await mesh.writeManifest("nothing.yaml", webService("nothing", NOTHING, []));
    await startAll(mesh);

    await t.step("30 requests over two remote endpoints and a local one: 10 each", async () => {
      const each = await separately(pod, 30);
      assert.deepEqual(each, Object.fromEntries(ends.map((end) => [`${end.name} on ${end.node.name}`, 10])));
      tell(JSON.stringify(each));
    });
    await t.step("the agent under SIGSTOP: own-node Services answer, for pods and for the host", async () => {
      const agent = mesh.agent("edge-1");
      agent.freeze();
      try {
        for (const from of [pod, node]) {
          const { body, stderr, ms } = await curl(from, `http://${LOCAL}/`);
          assert.equal(body, "edge-1-pod-2 on edge-1", stderr);
          tell(`${from.name}: ${Math.round(ms)} ms`);
        }
      } finally {
        agent.thaw();
      }
    });
    await t.step("no endpoints: refused at once, for pods and for the host", async () => {
      for (const from of [pod, node]) {
        const { code, ms, stderr } = await curl(from, `http://${NOTHING}/`);
        assert.equal(code, REFUSED, stderr);
        assert.ok(ms < AT_ONCE_MS, `refused after ${Math.round(ms)} ms`);
      }
    });
    await t.step(
      "a port that the Service does not have, and an address that no Service has: refused at once",
      async () => {
        for (const url of [`http://${WEB}:81/`, "http://10.96.200.200/"]) {
          const { code, ms, stderr } = await curl(pod, url);
          assert.equal(code, REFUSED, `${url}: ${stderr}`);
          assert.ok(ms < AT_ONCE_MS, `${url}: refused after ${Math.round(ms)} ms`);
        }
      },
    );
    await t.step("200 short connections, ten at a time: not one fails", async () => {
      const argv = [
        "curl",
        "-sS",
        "--parallel",
        "--parallel-immediate",
        "--parallel-max",
        "10",
        "--max-time",
        "25",
        "-H",
        "Connection: close",
      ];
      const started = systemClock.now();
      const { stdout, stderr } = await pod.host.exec([
        ...argv,
        ...["-o", "/dev/null", "-w", "%{http_code}\n", `http://${WEB}/[1-200]`],
      ]);
      const codes = stdout.trim().split("\n");
      assert.equal(codes.filter((code) => code === "200").length, 200, stderr);
      tell(`${Math.round(systemClock.now() - started)} ms for 200 connections`);
    });
  });
});

labTest(
  "Services come, change and go while agents run; a broken file changes nothing and says where it is broken",
  async (t) => {
    await withMesh({ cloud: "none" }, async (mesh) => {
      const { topology } = mesh;
      const pod = topology.pod("edge-1-pod-1");
      const [here, there] = [pod, topology.pod("edge-2-pod-1")];
      await mesh.writeManifest("web.yaml", webService("web", WEB, [there]));
      await startAll(mesh);

      await t.step("added: answered by address and by name", async () => {
        const ms = await after(() => mesh.writeManifest("new.yaml", webService("new", NEW, [there])), async () => {
          return (await curl(pod, `http://${NEW}/`)).body === "edge-2-pod-1 on edge-2";
        });
        tell(`${ms} ms from the file to an answer`);
        assert.equal((await curl(pod, "http://new.default.svc.cluster.local/")).body, "edge-2-pod-1 on edge-2");
      });
      await t.step("changed: the other endpoint answers", async () => {
        const ms = await after(() => mesh.writeManifest("new.yaml", webService("new", NEW, [here])), async () => {
          return (await curl(topology.pod("edge-2-pod-1"), `http://${NEW}/`)).body === "edge-1-pod-1 on edge-1";
        });
        tell(`${ms} ms from the file to the other endpoint`);
      });
      await t.step("removed: refused, and its name is gone", async () => {
        const ms = await after(() => mesh.removeManifest("new.yaml"), async () => {
          return (await curl(pod, `http://${NEW}/`)).code === REFUSED;
        });
        tell(`${ms} ms from the file to the refusal`);
        assert.match(await dig(pod, "new.default.svc.cluster.local"), /status: NXDOMAIN/);
      });
      await t.step(
        "a broken file: file, line and field in log and status, and the last good state serves",
        async () => {
          const broken = webService("web", WEB, [there]).replace("port: 80,", "port: 80000,");
          await mesh.writeManifest("web.yaml", broken);
          const line = broken.split("\n").findIndex((text) => text.includes("80000")) + 1;
          const says = new RegExp(`web\\.yaml:${line}: Service default/web: spec\\.ports\\[0\\]\\.port 80000: `);
          const problem = await until("status to name the problem", async () => {
            return (await mesh.serverStatus()).metadata.problems.find((text) => says.test(text));
          });
          tell(problem);
          assert.match(await mesh.server.log(), says);
          assert.equal((await curl(pod, `http://${WEB}/`)).body, "edge-2-pod-1 on edge-2");
          const { code, stdout } = await topology.server.run(["status", "--role", "server"]);
          assert.equal(code, 1, "status does not say that something is wrong");
          assert.match(stdout, says);
        },
      );
      await t.step("not even YAML: the same", async () => {
        await mesh.writeManifest("web.yaml", "apiVersion: v1\nkind: Service\nmetadata: { name: web\n");
        const problem = await until("status to name the problem", async () => {
          return (await mesh.serverStatus()).metadata.problems.find((text) => /web\.yaml:\d+: (?!Service)/.test(text));
        });
        tell(problem);
        assert.equal((await curl(pod, `http://${WEB}/`)).body, "edge-2-pod-1 on edge-2");
      });
      await t.step("mended: nothing is left of it", async () => {
        await mesh.writeManifest("web.yaml", webService("web", WEB, [there]));
        await until("the problem to go", async () => {
          return (await mesh.serverStatus()).metadata.problems.length === 0 || undefined;
        });
        assert.equal((await curl(pod, `http://${WEB}/`)).body, "edge-2-pod-1 on edge-2");
      });
    });
  },
);

labTest("names: for pods and for the host, in the mesh and outside of it", async (t) => {
  await withMesh({ sites: [{ nat: "cone" }, { nat: "cone" }], cloud: "none" }, async (mesh) => {
    const { topology } = mesh;
    const { ping } = await requireTools(["ping"]);
    const node = topology.node("edge-1");
    const pod = topology.pod("edge-1-pod-1");
    await mesh.writeManifest("web.yaml", webService("web", WEB, [topology.pod("edge-2-pod-1")]));
    const zone = JSON.stringify({ "www.example.test/A": ["192.0.2.80"] });
    const upstream = await topology.server.host.start("upstream", [...fixture("dns_upstream"), UPSTREAM, "53", zone], {
      ready: { port: 53, protocol: "udp" },
    });
    // The host asks the mesh first; the agent must not take itself for its own upstream.
    await node.host.setResolvConf(`nameserver ${MESH_DNS}\nnameserver ${UPSTREAM}\n`);
    await startAll(mesh);
    const name = "web.default.svc.cluster.local";

    await t.step("a Service's name, short in a pod and full on the host", async () => {
      for (const [from, host] of [[pod, "web"], [pod, "web.default"], [pod, name], [node, name]] as const) {
        const { body, stderr } = await curl(from, `http://${host}/`);
        assert.equal(body, "edge-2-pod-1 on edge-2", `${host} in ${from.name}: ${stderr}`);
      }
      assert.doesNotMatch(await upstream.log(), /cluster\.local/, "names of the cluster were asked upstream");
    });
    await t.step("a foreign name is forwarded", async () => {
      for (const from of [pod, node]) {
        assert.match((await from.host.execOk(["getent", "ahostsv4", "www.example.test"])).stdout, /^192\.0\.2\.80 /);
      }
      assert.match(await upstream.log(), /udp www\.example\.test A/i);
    });
    await t.step("unknown names: no such name, at once", async () => {
      for (const unknown of ["ghost.default.svc.cluster.local", "ghost.example.test"]) {
        assert.match(await dig(pod, unknown), /status: NXDOMAIN/);
      }
      const { code, stderr, ms } = await pod.host.exec([ping, "-c", "1", "ghost"]);
      assert.equal(code, 2, stderr);
      assert.match(stderr, /not known/);
      assert.ok(ms < AT_ONCE_MS, `after ${Math.round(ms)} ms`);
    });
    await t.step("ping of a Service's address is refused, not swallowed: an answer would say nothing", async () => {
      const { code, stdout, ms } = await pod.host.exec([ping, "-c", "1", "-W", "3", WEB]);
      assert.equal(code, 1);
      assert.match(stdout, /Destination Port Unreachable/);
      assert.ok(ms < AT_ONCE_MS, `after ${Math.round(ms)} ms`);
    });
    await t.step("with the upstream silent, names of the cluster are answered as before", async () => {
      await upstream.kill();
      assert.match(await dig(pod, name), new RegExp(WEB));
    });
  });
});

/** How often each endpoint answered so many requests of one connection each. */
async function separately(pod: Pod, requests: number): Promise<Record<string, number>> {
  const { stdout } = await pod.host.execOk([
    ...["curl", "-sS", "--max-time", "20", "-H", "Connection: close", `http://${WEB}/[1-${requests}]`],
  ]);
  const shares: Record<string, number> = {};
  for (const line of stdout.trim().split("\n")) shares[line] = (shares[line] ?? 0) + 1;
  return shares;
}

/** Milliseconds from a change until it shows. */
async function after(change: () => ReturnType<Mesh["writeManifest"]>, shown: () => Promise<boolean>): Promise<number> {
  const started = systemClock.now();
  await change();
  await until("the change to show", async () => await shown() || undefined);
  return Math.round(systemClock.now() - started);
}

async function dig(pod: Pod, name: string): Promise<string> {
  return (await pod.host.execOk(["dig", "+time=2", "+tries=1", `@${MESH_DNS}`, name])).stdout;
}
