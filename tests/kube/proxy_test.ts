/**
 * Beside the real kube-proxy (A23, B08): in its nftables and its iptables mode, started before and after the agent. It
 * knows the same Services and would send their connections to pods that its node cannot reach, so every answer shows
 * who was asked first. Skipped with a reason where the binaries are not: scripts/build_kube.sh makes them once.
 */
// deno-lint-ignore-file no-console -- the reason is for whoever runs it
import assert from "node:assert/strict";
import { parseAllDocuments } from "yaml";
import { pause } from "../../lib/clock.ts";
import { until } from "../../lib/lab/exec.ts";
import type { LabNode } from "../../lib/lab/node.ts";
import type { HostProcess } from "../../lib/lab/process.ts";
import { requireTools } from "../../lib/lab/tools.ts";
import { curl, startAll, tell, withMesh } from "../lab/fixture.ts";
import { manifest, type ServiceSpec } from "../lab/manifests.ts";
import { ControlPlane, kubeBinaries } from "./control_plane.ts";

const MODES = ["nftables", "iptables"] as const;
/** Where the API server is to be found inside the node, whose loopback is another one than the API server's. */
const API_PORT = 6443;
/** The original's label: what has it is left to others. kube-proxy does not know it. */
const NOT_OURS = `service.edgemesh.kubeedge.io/service-proxy-name: ""`;
const SYNC_MS = 1_000;

const bin = await kubeBinaries();
const program = bin && await Deno.stat(`${bin}/kube-proxy`).then(() => `${bin}/kube-proxy`, () => undefined);
if (!program) {
  console.log("tests/kube/proxy_test: no kube-proxy; run scripts/build_kube.sh or set EDGEMESH_KUBE_BIN; skipped");
}

Deno.test({
  name: "beside the real kube-proxy: our Services go our way and its own stay its own, in either start order",
  ignore: !program,
  fn: (t) =>
    withMesh({ cloud: "none", podsPerNode: 2 }, async (mesh) => {
      const { topology } = mesh;
      const node = topology.node("edge-1");
      const [client, near, far] = ["edge-1-pod-1", "edge-1-pod-2", "edge-2-pod-1"].map((name) => topology.pod(name));
      const services: readonly ServiceSpec[] = [
        { name: "ours", ip: "10.96.0.80", endpoints: [far!], nodePort: 30070, spec: "type: NodePort" },
        { name: "mixed", ip: "10.96.0.81", endpoints: [near!, far!] },
        { name: "empty", ip: "10.96.0.82", endpoints: [] },
        { name: "theirs", ip: "10.96.0.83", endpoints: [near!], labels: NOT_OURS },
      ];
      const ipOf = (name: string) => services.find((s) => s.name === name)!.ip;
      const [one, two] = [`${near!.name} on edge-1`, `${far!.name} on edge-2`];
      await mesh.writeManifest("services.yaml", services.map(manifest).join("---\n"));
      await startAll(mesh);
      await using plane = await ControlPlane.start(bin!);
      await apply(plane, node, services);
      await using api = await apiInside(plane, node);

      const isRight = async (when: string) => {
        for (const from of [client!, node]) {
          const says = async (url: string) => (await curl(from, url)).body;
          assert.equal(await says(`http://${ipOf("ours")}/`), two, when);
          assert.equal(await says(`http://${node.address}:30070/`), two, `${when}: node port`);
          const seen = new Set([await says(`http://${ipOf("mixed")}/`), await says(`http://${ipOf("mixed")}/`)]);
          assert.deepEqual([...seen].sort(), [one, two], when);
          assert.equal(await says(`http://${ipOf("theirs")}/`), one, `${when}: kube-proxy's own`);
          const empty = await curl(from, `http://${ipOf("empty")}/`);
          assert.equal(empty.code, 7, `${when}: ${empty.stderr}`);
        }
      };

      for (const mode of MODES) {
        await t.step(`kube-proxy in ${mode} mode comes after the agent, and syncs`, async () => {
          const proxy = await startProxy(node, mode, api.kubeconfig);
          await knows(node, mode, services);
          await isRight("it came after us");
          // Whatever it does each second it has done twice.
          await pause(2 * SYNC_MS);
          await isRight("after its syncs");
          await plane.must(
            "PATCH",
            "/api/v1/namespaces/default/services/ours",
            { metadata: { labels: { a: mode } } },
            MERGE,
          );
          await isRight("after a change of its Service");
          await proxy.kill();
        });
        await t.step(`kube-proxy in ${mode} mode is there when the agent starts`, async () => {
          await mesh.stopAgent(node);
          const proxy = await startProxy(node, mode, api.kubeconfig);
          await knows(node, mode, services);
          assert.notEqual((await curl(client!, `http://${ipOf("ours")}/`, ["--max-time", "1"])).code, 0, "no proof");
          assert.equal((await curl(client!, `http://${ipOf("theirs")}/`)).body, one);
          await mesh.startAgent(node);
          await isRight("it was there before us");
          await pause(2 * SYNC_MS);
          await isRight("after its syncs");
          tell(`${mode}: ${(await mesh.status(node)).services.length} Service ports of ours beside it`);
          await proxy.kill();
          await node.host.execOk([program!, "--cleanup"]);
          assert.equal((await curl(client!, `http://${ipOf("ours")}/`)).body, two, "it cleaned up after itself");
        });
      }
    }),
});

const MERGE = "application/merge-patch+json";

/** The Services and endpoints as the agent knows them, in the API that kube-proxy follows. */
async function apply(plane: ControlPlane, node: LabNode, services: readonly ServiceSpec[]): Promise<void> {
  const spec = { podCIDR: node.podNetwork!.cidr };
  const made = await plane.must("POST", "/api/v1/nodes", { metadata: { name: node.name }, spec });
  const status = { addresses: [{ type: "InternalIP", address: node.address }] };
  await plane.must("PUT", `/api/v1/nodes/${node.name}/status`, { ...made, status });
  for (const document of services.flatMap((service) => parseAllDocuments(manifest(service)))) {
    const object = document.toJS() as { apiVersion: string; kind: string; endpoints?: unknown };
    const root = object.apiVersion === "v1" ? "/api/v1" : `/apis/${object.apiVersion}`;
    await plane.must("POST", `${root}/namespaces/default/${object.kind.toLowerCase()}s`, object);
  }
}

/** Makes the API server reachable on the node's own loopback. */
async function apiInside(plane: ControlPlane, node: LabNode) {
  const { socat } = await requireTools(["socat"]);
  const dir = await Deno.makeTempDir({ prefix: "edgemesh-api-" });
  const socket = `${dir}/api.sock`;
  const outside = new Deno.Command(socat!, {
    args: [`UNIX-LISTEN:${socket},fork`, `TCP4:127.0.0.1:${plane.port}`],
    stdin: "null",
  }).spawn();
  await until("the socket", () => Deno.stat(socket).then(() => true as const, () => undefined));
  const inside = await node.host.start(
    "api",
    [socat!, `TCP4-LISTEN:${API_PORT},bind=127.0.0.1,fork,reuseaddr`, `UNIX-CONNECT:${socket}`],
    { ready: { port: API_PORT } },
  );
  const kubeconfig = `${dir}/kubeconfig`;
  const admin = await Deno.readTextFile(await plane.adminKubeconfig());
  await Deno.writeTextFile(kubeconfig, admin.replaceAll(`:${plane.port}`, `:${API_PORT}`), { mode: 0o600 });
  return {
    kubeconfig,
    async [Symbol.asyncDispose]() {
      await inside.kill();
      outside.kill("SIGKILL");
      await outside.status;
      await Deno.remove(dir, { recursive: true });
    },
  };
}

/** Its own sysctls for connection tracking are off: they are the machine's, not the node's. */
function startProxy(node: LabNode, mode: typeof MODES[number], kubeconfig: string): Promise<HostProcess> {
  const flags = [
    `--kubeconfig=${kubeconfig}`,
    `--proxy-mode=${mode}`,
    `--hostname-override=${node.name}`,
    `--cluster-cidr=${node.podNetwork!.cidr}`,
    `--iptables-sync-period=${SYNC_MS}ms`,
    `--iptables-min-sync-period=0s`,
    "--conntrack-max-per-core=0",
    "--conntrack-tcp-timeout-established=0s",
    "--conntrack-tcp-timeout-close-wait=0s",
    "--healthz-bind-address=127.0.0.1:10256",
    "--metrics-bind-address=127.0.0.1:10249",
  ];
  return node.host.start(`kube-proxy-${mode}`, [program!, ...flags], { ready: { port: 10256 } });
}

/** Waits until the kernel holds what kube-proxy makes of each Service that has endpoints. */
async function knows(node: LabNode, mode: typeof MODES[number], services: readonly ServiceSpec[]): Promise<void> {
  const list = mode === "nftables" ? ["nft", "list", "table", "ip", "kube-proxy"] : ["iptables-save", "-t", "nat"];
  await until(`kube-proxy's rules (${mode})`, async () => {
    const { stdout } = await node.host.exec(list);
    return services.every(({ ip, endpoints }) => endpoints.length === 0 || stdout.includes(ip)) || undefined;
  }, 30_000);
}
