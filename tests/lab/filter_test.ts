/** Which Services the mesh leaves alone, and who is not believed, as users of the executable see it. */
import assert from "node:assert/strict";
import { until } from "../../lib/lab/exec.ts";
import type { Mesh } from "../../lib/lab/mesh.ts";
import type { LabNode } from "../../lib/lab/node.ts";
import type { Pod } from "../../lib/lab/pod.ts";
import { kubeService } from "../kube/objects.ts";
import { curl, startAll, tell, webService, withMesh } from "./fixture.ts";
import { labTest } from "./support.ts";

const PLAIN = "10.96.0.10";
const LABELLED = "10.96.0.11";
const APISERVER = "10.96.0.1";
const DNS = "10.96.0.53";
const OUTSIDE = "10.96.0.12";
const EXTERNAL = "198.51.100.7";
const LABEL = "service.edgemesh.kubeedge.io/service-proxy-name";
/** `nobody`. */
const STRANGER = "65534";
const METASERVER_PORT = 10550;
const HEALTHZ_PORT = 10256;
const DIG = ["dig", "+time=2", "+tries=1", "@169.254.96.16"];

labTest("A21, A22: Services left alone are served by the node's own proxy, by label and where it works", async (t) => {
  await withMesh({ sites: [{ nat: "cone" }], cloud: "none", podsPerNode: 3 }, async (mesh) => {
    const { topology } = mesh;
    const node = topology.node("edge-1");
    const [client, ours, native] = node.pods as [Pod, Pod, Pod];
    const service = (name: string, ip: string, change = (yaml: string) => yaml) =>
      mesh.writeManifest(`${name}.yaml`, change(webService(name, ip, [ours])));
    await service("plain", PLAIN);
    await service("labelled", LABELLED, (yaml) => yaml.replace("default }", `default, labels: { ${LABEL}: "" } }`));
    await service("kubernetes", APISERVER);
    const inSystem = (yaml: string) => yaml.replaceAll("default", "kube-system");
    await service("kube-dns", DNS, inSystem);
    await startAll(mesh);
    await asKubeProxy(node, [PLAIN, LABELLED, APISERVER, DNS], native);
    const by = async (ip: string) => {
      const { body } = await curl(client, `http://${ip}/`, ["--max-time", "1"]);
      return body === `${ours.name} on edge-1` ? "mesh" : body === `${native.name} on edge-1` ? "kube-proxy" : body;
    };
    const served = async (expected: Record<string, string>) => {
      let last: Record<string, string> = {};
      await until(`${JSON.stringify(expected)}`, async () => {
        last = Object.fromEntries(await Promise.all(Object.keys(expected).map(async (ip) => [ip, await by(ip)])));
        return JSON.stringify(last) === JSON.stringify(expected) || undefined;
      }).catch((error) => {
        throw new Error(`${error.message}: ${JSON.stringify(last)}`);
      });
    };
    const reasons = async () =>
      Object.fromEntries((await mesh.status(node)).leftAlone.map(({ service, reason }) => [service, reason]));

    await t.step("A21: the labelled Service is kube-proxy's, the others are ours", async () => {
      await served({ [PLAIN]: "mesh", [LABELLED]: "kube-proxy", [APISERVER]: "mesh", [DNS]: "mesh" });
      assert.deepEqual(await reasons(), { "default/labelled": "label-exists" });
      assert.match((await node.run(["status"])).stdout, /left alone: default\/labelled: it has the label/);
      const { stdout } = await client.host.execOk(["dig", "+short", "labelled.default.svc.cluster.local"]);
      assert.equal(stdout.trim(), LABELLED, "its name is answered all the same");
    });
    const health = await httpAnswer(node, HEALTHZ_PORT, "exit 0");
    await t.step("a health check of another user is not kube-proxy's", async () => {
      const stranger = await node.host.start("stranger", asStranger(health), { ready: { port: HEALTHZ_PORT } });
      await restart(mesh, node);
      await served({ [LABELLED]: "kube-proxy", [APISERVER]: "mesh", [DNS]: "mesh" });
      await stranger.kill();
    });
    await t.step("kube-proxy is healthy: the API server and the cluster DNS are left to it", async () => {
      const healthy = await node.host.start("healthz", health, { ready: { port: HEALTHZ_PORT } });
      await restart(mesh, node);
      await served({ [PLAIN]: "mesh", [LABELLED]: "kube-proxy", [APISERVER]: "kube-proxy", [DNS]: "kube-proxy" });
      assert.deepEqual(await reasons(), {
        "default/kubernetes": "native-apiserver",
        "default/labelled": "label-exists",
        "kube-system/kube-dns": "native-dns",
      });
      await healthy.kill();
    });
    await t.step("A22: turned round by a reload: only the labelled Service is ours", async () => {
      const config = node.host.path("/etc/edgemesh/agent.yaml");
      await Deno.writeTextFile(
        config,
        "forward: { serviceFilterMode: FilterIfLabelDoesNotExists, nativeProxy: off }\n",
      );
      mesh.agent("edge-1").signal("SIGHUP");
      await served({ [PLAIN]: "kube-proxy", [LABELLED]: "mesh", [APISERVER]: "kube-proxy" });
      assert.equal((await reasons())["default/plain"], "label-missing");
    });
    await t.step(
      "an external address that a reload allows is served at once, and refused again by the next",
      async () => {
        await service("outside", OUTSIDE, (yaml) => yaml.replace("spec:\n", `spec:\n  externalIPs: ["${EXTERNAL}"]\n`));
        const refused = async () => (await mesh.status(node)).metadata.refused.some((line) => line.includes(EXTERNAL));
        await until("refused", async () => await refused() || undefined);
        const reload = async (yaml: string) => {
          await Deno.writeTextFile(node.host.path("/etc/edgemesh/agent.yaml"), yaml);
          mesh.agent("edge-1").signal("SIGHUP");
        };
        await reload(`forward: { externalIPs: ["${EXTERNAL}/32"] }\n`);
        await served({ [OUTSIDE]: "mesh", [EXTERNAL]: "mesh" });
        assert.equal(await refused(), false);
        await reload("forward: { externalIPs: [] }\n");
        await until("refused again", async () => await refused() || undefined);
        assert.notEqual(await by(EXTERNAL), "mesh");
      },
    );
    await t.step("namespaces that are left out", async () => {
      const config = node.host.path("/etc/edgemesh/agent.yaml");
      await Deno.writeTextFile(config, "forward: { excludeNamespaces: [kube-system], nativeProxy: off }\n");
      mesh.agent("edge-1").signal("SIGHUP");
      await served({ [PLAIN]: "mesh", [DNS]: "kube-proxy" });
    });
  });
});

labTest("a process of another user on 127.0.0.1:10550 changes nothing", async (t) => {
  await withMesh({ sites: [{ nat: "cone" }], cloud: "none", podsPerNode: 2 }, async (mesh) => {
    const { topology } = mesh;
    const node = topology.node("edge-1");
    const [client, web] = node.pods as [Pod, Pod];
    await mesh.writeManifest("web.yaml", webService("web", PLAIN, [web]));
    await startAll(mesh);
    const evil = await httpAnswer(node, METASERVER_PORT, "echo asked >&2; cat /etc/answer");
    const list = { kind: "ServiceList", apiVersion: "v1", metadata: { resourceVersion: "9" }, items: [evilService()] };
    await Deno.writeTextFile(node.host.path("/etc/answer"), JSON.stringify(list));
    const stranger = await node.host.start("stranger", asStranger(evil), { ready: { port: METASERVER_PORT } });
    const unchanged = async () => {
      assert.equal((await curl(client, `http://${PLAIN}/`)).body, `${web.name} on edge-1`);
      const { stdout } = await client.host.execOk([...DIG, "evil.shop.svc.cluster.local"]);
      assert.match(stdout, /status: NXDOMAIN/);
      assert.doesNotMatch(await stranger.log(), /asked/, "it was asked");
    };

    await t.step("not named: it is not even asked", async () => {
      await restart(mesh, node);
      await unchanged();
    });
    const named = ["--set", `metaServer.server=http://127.0.0.1:${METASERVER_PORT}`];
    await t.step("named: it is not believed, status says so, and what was known goes on", async () => {
      await restart(mesh, node, ...named);
      const detail = await until("status to say it", async () => {
        return (await mesh.status(node)).metadata.follows.detail?.match(/.*held by user 65534, not by root.*/)?.[0];
      });
      tell(detail);
      const { code, stdout } = await node.run(["status"]);
      assert.equal(code, 1, "status does not say that something is wrong");
      assert.match(stdout, /warning: the metaserver source that is configured is not followed: .* user 65534/);
      await unchanged();
    });
    await t.step("the same program as root is believed", async () => {
      await stranger.kill();
      await node.host.start("metaserver", evil, { ready: { port: METASERVER_PORT } });
      await until("its Service to be known", async () => {
        // Of the host: this cluster has no Node objects, so pods are strangers to it.
        const { stdout } = await node.host.exec([...DIG, "+short", "evil.shop.svc.cluster.local"]);
        return stdout.trim() === "10.96.0.66" || undefined;
      }, 30_000);
    });
  });
});

/** What kube-proxy would do: the same addresses, at its usual place among the hooks, to a pod of its choice. */
async function asKubeProxy(node: LabNode, addresses: readonly string[], to: Pod): Promise<void> {
  const rules = ["prerouting", "output"].map((hook) =>
    `chain ${hook} {
      type nat hook ${hook} priority -100;
      ip daddr { ${addresses.join(", ")} } tcp dport 80 dnat to ${to.ip}:8080
    }
    `
  );
  await Deno.writeTextFile(node.host.path("/etc/kube-proxy.nft"), `table ip kube-proxy {\n${rules.join("")}}\n`);
  await node.host.execOk(["nft", "-f", "/etc/kube-proxy.nft"]);
}

/** A server that answers each connection with 200 and what a shell command prints. */
async function httpAnswer(node: LabNode, port: number, command: string): Promise<string[]> {
  const script = `/etc/answer-${port}.sh`;
  const lines = [
    // Read to the end of the request first, or closing would reset the connection.
    String.raw`while IFS= read -r line && [ "$line" != "$(printf '\r')" ]; do :; done`,
    String.raw`printf 'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n'`,
    command,
  ];
  await Deno.writeTextFile(node.host.path(script), lines.join("\n") + "\n");
  return ["socat", `TCP4-LISTEN:${port},bind=127.0.0.1,fork,reuseaddr`, `EXEC:sh ${script}`];
}

function asStranger(argv: readonly string[]): string[] {
  return ["setpriv", "--reuid", STRANGER, "--regid", STRANGER, "--clear-groups", ...argv];
}

function evilService() {
  const service = kubeService("evil", "10.96.0.66");
  const metadata = { name: "evil", namespace: "shop", uid: "1", resourceVersion: "8" };
  return { ...service, metadata, apiVersion: "v1", kind: "Service" };
}

async function restart(mesh: Mesh, node: LabNode, ...flags: string[]): Promise<void> {
  await mesh.stopAgent(node);
  await mesh.startAgent(node, { flags });
}
