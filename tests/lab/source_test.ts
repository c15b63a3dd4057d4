/** The same life of a Service with every source of metadata, each behind the built executable. */
import assert from "node:assert/strict";
import { systemClock } from "../../lib/clock.ts";
import { until } from "../../lib/lab/exec.ts";
import type { Mesh } from "../../lib/lab/mesh.ts";
import type { LabNode } from "../../lib/lab/node.ts";
import type { Pod } from "../../lib/lab/pod.ts";
import { makeAuthority } from "../kube/certificates.ts";
import type { Obj } from "../kube/fake_apiserver.ts";
import { kubeService, kubeSlice, NODES, SERVICES, SLICES } from "../kube/objects.ts";
import { curl, tell, webService, withMesh } from "./fixture.ts";
import { fixture, labTest } from "./support.ts";

const WEB = "10.96.0.10";
const NAME = "web.default.svc.cluster.local";
const API_PORT = 10550;
const CONTROL_PORT = 10549;
const TOKEN_FILE = "/etc/edgemesh/token";
const TLS_FOLDER = "/etc/edgemesh/metaserver";
/** curl's exit code for a refused connection. */
const REFUSED = 7;

/** Where Services are written for the source under test. */
interface Cluster {
  serve(pod: Pod): Promise<unknown>;
  remove(): Promise<unknown>;
}

labTest("every source: a Service appears, changes its endpoint and goes; by address and by name", async (t) => {
  const step = async (name: string, run: () => Promise<unknown>) => {
    const good = await t.step(name, async () => void await run());
    assert.ok(good, `what follows "${name}" would begin with what it left`);
  };
  await withMesh({ sites: [{ nat: "cone" }], cloud: "none", podsPerNode: 3 }, async (mesh) => {
    const { topology } = mesh;
    const node = topology.node("edge-1");
    await mesh.startServer();
    await mesh.join(node);
    for (const host of [node, topology.server]) await writeTls(host);

    await step("server, from a folder of manifests", () => life(mesh, manifests(mesh), /^server:/));

    const restart = async (...flags: string[]) => {
      await mesh.stopAgent(node);
      await mesh.startAgent(node, { flags, waitReady: false });
    };
    await step("a folder on the node wins over the server", async () => {
      const folder = node.host.path("/etc/edgemesh/local");
      await Deno.mkdir(folder, { recursive: true });
      await restart("--manifests", "/etc/edgemesh/local");
      const status = await life(mesh, {
        serve: (pod) => Deno.writeTextFile(`${folder}/web.yaml`, webService("web", WEB, [pod])),
        remove: () => Deno.remove(`${folder}/web.yaml`),
      }, /^server:/);
      assert.equal(status.metadata.local?.from, "/etc/edgemesh/local");
    });
    await step("kube-apiserver, by kubeconfig", async () => {
      const api = await startApi(node, "apiserver");
      await Deno.writeTextFile(node.host.path("/etc/edgemesh/kubeconfig"), kubeconfig("http"));
      await restart("--set", "kubeconfig=/etc/edgemesh/kubeconfig");
      const status = await life(mesh, api, /^kube:http:\/\/127\.0\.0\.1:10550/);
      assert.equal(status.metadata.follows.kind, "kube");
      await api.stop();
    });
    const url = (scheme: string) => ["--set", `metaServer.server=${scheme}://127.0.0.1:${API_PORT}`];
    await step("MetaServer, plain", async () => {
      const api = await startApi(node, "metaserver");
      await restart(...url("http"));
      const status = await life(mesh, api, /^metaserver:http:/);
      assert.equal(status.metadata.follows.kind, "metaserver");
      assert.match((await node.run(["status"])).stdout, /metadata +on: follows http:\/\/127\.0\.0\.1:10550/);
      await api.stop();
    });
    const secure = ["requireAuthorization=true", `tokenFile=${TOKEN_FILE}`];
    const security = (...settings: string[]) => settings.flatMap((s) => ["--set", `metaServer.security.${s}`]);
    await step("A32: MetaServer with one-way TLS and a token", async () => {
      const api = await startApi(node, "metaserver", { tls: "/etc/edgemesh/one-way" });
      await restart(...url("http"), ...security(...secure, "insecureSkipTLSVerify=true"));
      await life(mesh, api, /^metaserver:https:/);
      await api.stop();
    });
    await step("A33: MetaServer with mutual TLS", async () => {
      const api = await startApi(node, "metaserver", { tls: "/etc/edgemesh/mutual" });
      await restart(...url("http"), ...security(...secure));
      await life(mesh, api, /^metaserver:https:/);
      await api.stop();
    });
    await step("server, from a kube-apiserver that wants a token, which an exec plugin gives", async () => {
      const api = await startApi(topology.server, "apiserver", { node, tls: "/etc/edgemesh/one-way" });
      const credential = {
        apiVersion: "client.authentication.k8s.io/v1",
        kind: "ExecCredential",
        status: { token: "lab-token" },
      };
      const exec = {
        exec: {
          apiVersion: credential.apiVersion,
          command: "echo",
          args: [JSON.stringify(credential)],
          interactiveMode: "Never",
        },
      };
      await Deno.writeTextFile(topology.server.host.path("/etc/edgemesh/kubeconfig"), kubeconfig("https", exec));
      await mesh.stopServer();
      await Deno.writeTextFile(
        topology.server.host.path("/etc/edgemesh/server.yaml"),
        "kubeconfig: /etc/edgemesh/kubeconfig\nmetadata: { scopes: [{ nodes: [edge-*], namespaces: [default] }] }\n",
      );
      await mesh.startServer({ manifests: false, flags: ["--config", "/etc/edgemesh/server.yaml"] });
      await restart();
      await api.put(SERVICES, kubeService("hidden", "10.96.0.99", "shop"));
      await life(mesh, api, /^server:/);
      const { metadata } = await mesh.serverStatus();
      assert.match(metadata.source, /^kube:/);
      // Another namespace is none of this node's business (metadata.scopes).
      const { stdout } = await node.host.execOk(["dig", "@169.254.96.16", "hidden.shop.svc.cluster.local"]);
      assert.match(stdout, /status: NXDOMAIN/);
      assert.equal(metadata.services, 1, "the server knows it");
      await api.stop();
    });
  });
});

/** The scenario. Returns the agent's status while the Service was there. */
async function life(mesh: Mesh, cluster: Cluster, source: RegExp) {
  const { topology } = mesh;
  const node = topology.node("edge-1");
  const [client, first, second] = node.pods as [Pod, Pod, Pod];
  const started = systemClock.now();
  const answers = (from: { host: Pod["host"] }, url: string, pod: Pod) =>
    until(`${pod.name} to answer at ${url}`, async () => {
      return (await curl(from, url, ["--max-time", "1"])).body === `${pod.name} on edge-1` || undefined;
    });
  await cluster.serve(first);
  await answers(client, `http://${WEB}/`, first);
  await answers(client, `http://${NAME}/`, first);
  await answers(node, `http://${WEB}/`, first);
  // What was saved of the source before may serve until this one was asked.
  const status = await until("status to name the source as current", async () => {
    const now = await mesh.status(node);
    return source.test(now.metadata.source) && now.metadata.ageSeconds === 0 ? now : undefined;
  });
  await cluster.serve(second);
  await answers(client, `http://${WEB}/`, second);
  await cluster.remove();
  await until("the Service to be gone", async () => {
    return (await curl(client, `http://${WEB}/`, ["--max-time", "1"])).code === REFUSED || undefined;
  });
  const { stdout } = await client.host.execOk(["dig", "+time=2", "+tries=1", "@169.254.96.16", NAME]);
  assert.match(stdout, /status: NXDOMAIN/);
  tell(`${status.metadata.source}: ${Math.round(systemClock.now() - started)} ms`);
  return status;
}

function manifests(mesh: Mesh): Cluster {
  return {
    serve: (pod) => mesh.writeManifest("web.yaml", webService("web", WEB, [pod])),
    remove: () => mesh.removeManifest("web.yaml"),
  };
}

interface ApiOptions {
  /** Folder of the host with its certificate; it then turns away who does not show the lab's token. */
  readonly tls?: string;
  /** Whose object it holds. Default: the host's. */
  readonly node?: LabNode;
}

/** A fake API on a host, holding the object of a node. */
async function startApi(on: LabNode, kind: "apiserver" | "metaserver", options: ApiOptions = {}) {
  const { tls, node = on } = options;
  const folder = tls === undefined ? [] : [on.host.path(tls)];
  const argv = [...fixture("kube_api"), kind, String(API_PORT), String(CONTROL_PORT), ...folder];
  const process = await on.host.start("kube-api", argv, { ready: { log: /ready/ } });
  const tell = async (what: string, body: { path: string; object?: Obj; key?: string }) => {
    const url = `http://127.0.0.1:${CONTROL_PORT}/${what}`;
    await on.host.execOk(["curl", "-sSf", "-d", JSON.stringify(body), url]);
  };
  const put = (path: string, object: Obj) => tell("put", { path, object });
  await put(NODES, {
    metadata: { name: node.name },
    spec: { podCIDR: node.podNetwork!.cidr, podCIDRs: [node.podNetwork!.cidr] },
    status: { addresses: [{ type: "InternalIP", address: node.address }] },
  });
  return {
    put,
    async serve(pod: Pod) {
      const slice = kubeSlice("web-1", "web", [pod.ip], "default");
      const endpoints = (slice.endpoints as Record<string, unknown>[]).map((e) => ({ ...e, nodeName: pod.node.name }));
      await put(SERVICES, kubeService("web", WEB, "default"));
      await put(SLICES, { ...slice, endpoints });
    },
    async remove() {
      await tell("delete", { path: SERVICES, key: "default/web" });
      await tell("delete", { path: SLICES, key: "default/web-1" });
    },
    stop: () => process.stop(),
  };
}

function kubeconfig(scheme: "http" | "https", user: object = {}): string {
  const cluster = {
    server: `${scheme}://127.0.0.1:${API_PORT}`,
    ...(scheme === "https" ? { "certificate-authority": `${TLS_FOLDER}/rootCA.crt` } : {}),
  };
  return JSON.stringify({
    "current-context": "lab",
    contexts: [{ name: "lab", context: { cluster: "lab", user: "lab" } }],
    clusters: [{ name: "lab", cluster }],
    users: [{ name: "lab", user }],
  });
}

/** Certificates and the token where the node's configuration and the fake look for them. */
async function writeTls(node: LabNode): Promise<void> {
  const authority = await makeAuthority();
  const write = async (folder: string, files: Record<string, string>) => {
    const at = node.host.path(folder);
    await Deno.mkdir(at, { recursive: true });
    for (const [name, text] of Object.entries(files)) await Deno.writeTextFile(`${at}/${name}`, text);
  };
  const server = { "cert.pem": authority.server.cert, "key.pem": authority.server.key };
  await write("/etc/edgemesh/one-way", server);
  await write("/etc/edgemesh/mutual", { ...server, "client-ca.pem": authority.ca });
  // The original's file names and place: the Secret `metaserver-certs`.
  await write(TLS_FOLDER, {
    "rootCA.crt": authority.ca,
    "server.crt": authority.client.cert,
    "server.key": authority.client.key,
  });
  await Deno.writeTextFile(node.host.path(TOKEN_FILE), "lab-token\n");
}
