/**
 * The Kubernetes source against a real kube-apiserver, controller-manager and etcd. Skipped with a reason where the
 * binaries are not: scripts/build_kube.sh makes them once.
 */
// deno-lint-ignore-file no-console -- the numbers are for whoever runs it
import assert from "node:assert/strict";
import { parseAllDocuments } from "yaml";
import { systemClock } from "../../lib/clock.ts";
import { createLogger, memorySink } from "../../lib/log.ts";
import { FetchApi } from "../../lib/meta/kube/kube_api.ts";
import { kubeconfigAccess } from "../../lib/meta/kube/kube_config.ts";
import { KubeSource } from "../../lib/meta/kube/source_kube.ts";
import { MetaStore } from "../../lib/meta/store/store.ts";
import { ControlPlane, kubeBinaries, kubeconfigText } from "./control_plane.ts";
import { CutProxy } from "./cut_proxy.ts";

const ROOT = new URL("../../", import.meta.url).pathname;
const CRDS = `${ROOT}../shared/crds`;
const BIG = 5000;

const bin = await kubeBinaries();
if (!bin) {
  console.log("tests/kube: no Kubernetes binaries; run scripts/build_kube.sh or set EDGEMESH_KUBE_BIN; skipped");
}

/** A source over a proxy, with the rights of deploy/rbac.yaml, and what it learned. */
class Rig implements AsyncDisposable {
  readonly store = new MetaStore({ clock: systemClock });
  readonly sink = memorySink("info");
  readonly proxy: CutProxy;
  /** Longest time the event loop was held, measured by a timer that should come every millisecond. */
  longestStall = 0;
  #api!: FetchApi;
  source!: KubeSource;
  readonly #beat: ReturnType<typeof setInterval>;
  #last = performance.now();

  constructor(readonly plane: ControlPlane, readonly folder: string) {
    this.proxy = new CutProxy(plane.port);
    this.#beat = setInterval(() => {
      const now = performance.now();
      this.longestStall = Math.max(this.longestStall, now - this.#last - 1);
      this.#last = now;
    }, 1);
  }

  async start(): Promise<void> {
    const cluster = {
      server: `https://127.0.0.1:${this.proxy.port}`,
      "certificate-authority-data": btoa(await this.plane.caCert()),
    };
    await Deno.writeTextFile(`${this.folder}/kubeconfig`, kubeconfigText(cluster, { tokenFile: "token" }));
    const load = kubeconfigAccess(`${this.folder}/kubeconfig`);
    this.#api = new FetchApi(load, { clock: systemClock, address: cluster.server });
    this.source = new KubeSource({
      api: this.#api,
      layer: this.store.layer("base"),
      clock: systemClock,
      log: createLogger(this.sink),
      pods: "all",
    });
    await this.source.start();
  }

  /** Real milliseconds until a condition holds. */
  async until(what: string, condition: () => boolean, limit: number): Promise<number> {
    const from = performance.now();
    while (!condition()) {
      if (performance.now() - from > limit) {
        assert.fail(
          `not within ${limit} ms: ${what}\n${JSON.stringify(this.source.resources())}\n${this.sink.lines.join("\n")}`,
        );
      }
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
    return Math.round(performance.now() - from);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.source.stop();
    this.proxy.close();
    clearInterval(this.#beat);
  }
}

/** A token of the account in deploy/rbac.yaml, bound to a Secret: deleting the Secret ends it. */
async function tokenBoundTo(plane: ControlPlane, secret: string): Promise<string> {
  const made = await plane.must("POST", "/api/v1/namespaces/edgemesh/secrets", { metadata: { name: secret } });
  const uid = (made.metadata as { uid: string }).uid;
  const bound = { apiVersion: "v1", kind: "Secret", name: secret, uid };
  const path = "/api/v1/namespaces/edgemesh/serviceaccounts/edgemesh-server/token";
  const answer = await plane.must("POST", path, {
    apiVersion: "authentication.k8s.io/v1",
    kind: "TokenRequest",
    spec: { expirationSeconds: 3600, boundObjectRef: bound },
  });
  return (answer.status as { token: string }).token;
}

async function apply(plane: ControlPlane, yaml: string): Promise<void> {
  for (const document of parseAllDocuments(yaml)) {
    const object = document.toJS() as { apiVersion: string; kind: string; metadata: { namespace?: string } };
    const root = object.apiVersion === "v1" ? "/api/v1" : `/apis/${object.apiVersion}`;
    const within = object.metadata.namespace ? `/namespaces/${object.metadata.namespace}` : "";
    await plane.must("POST", `${root}${within}/${object.kind.toLowerCase()}s`, object);
  }
}

function service(name: string, over: Record<string, unknown> = {}) {
  return {
    apiVersion: "v1",
    kind: "Service",
    metadata: { name },
    spec: { ports: [{ port: 80, targetPort: 8080 }], ...over },
  };
}

const SERVICES = "/api/v1/namespaces/shop/services";

Deno.test({
  name: "kube-apiserver, real: everything the source promises",
  ignore: !bin,
  // Resources are released by `await using`; the steps share one control plane, which takes a while to start.
  async fn(t) {
    await using plane = await ControlPlane.start(bin!);
    const folder = await Deno.makeTempDir();
    await apply(plane, await Deno.readTextFile(`${ROOT}deploy/rbac.yaml`));
    await plane.must("POST", "/api/v1/namespaces", { metadata: { name: "shop", labels: { team: "a" } } });
    await Deno.writeTextFile(`${folder}/token`, await tokenBoundTo(plane, "first"));
    await using rig = new Rig(plane, folder);
    await rig.start();
    const s = () => rig.store.snapshot;
    const report = (line: string) => console.log(`  ${line}`);

    await t.step(
      "syncs with the rights of deploy/rbac.yaml alone; missing CRDs are told and do not hold it up",
      async () => {
        const took = await rig.until("synced", () => rig.source.status().state === "synced", 10_000);
        report(`synced after ${took} ms`);
        assert.ok(s().synced);
        assert.equal(s().service("default", "kubernetes")?.clusterIPs[0], "10.96.0.1");
        const problems = rig.source.status().problems;
        assert.ok(problems.length > 0 && problems.every((p) => p.code === "SOURCE_UNKNOWN"), JSON.stringify(problems));
      },
    );

    await t.step("Services and the slices the controllers make: created, changed, deleted", async () => {
      await plane.must("POST", "/api/v1/nodes", {
        metadata: { name: "edge-1", labels: { "topology.kubernetes.io/zone": "z1" } },
        spec: { podCIDR: "10.1.0.0/24" },
      });
      const pod = {
        metadata: { name: "web-1", labels: { app: "web" } },
        spec: { nodeName: "edge-1", containers: [{ name: "c", image: "x" }] },
      };
      await plane.must("POST", "/api/v1/namespaces/shop/pods", pod);
      const ready = {
        phase: "Running",
        podIP: "10.1.0.5",
        podIPs: [{ ip: "10.1.0.5" }],
        conditions: [{ type: "Ready", status: "True" }],
      };
      await plane.must(
        "PATCH",
        "/api/v1/namespaces/shop/pods/web-1/status",
        { status: ready },
        "application/merge-patch+json",
      );
      await plane.must("POST", SERVICES, service("web", { selector: { app: "web" } }));
      const took = await rig.until("endpoint", () => s().slicesByIp("10.1.0.5").length === 1, 15_000);
      report(`Service and controller-made slice seen ${took} ms after they were asked for`);
      const [endpoint] = s().slicesOf("shop", "web")[0]!.endpoints;
      assert.deepEqual([endpoint!.node, endpoint!.zone, endpoint!.pod, endpoint!.ready], [
        "edge-1",
        "z1",
        "web-1",
        true,
      ]);
      assert.equal(s().podsByIp("10.1.0.5")[0]?.name, "web-1");
      assert.deepEqual(s().namespace("shop")?.labels.team, "a");

      const patch = {
        spec: { ports: [{ name: "http", port: 81, targetPort: 8080, protocol: "TCP" }], sessionAffinity: "ClientIP" },
      };
      await plane.must("PATCH", `${SERVICES}/web`, patch, "application/merge-patch+json");
      await rig.until("changed", () => s().service("shop", "web")?.ports[0]?.port === 81, 5000);
      assert.equal(s().service("shop", "web")?.affinitySeconds, 10800);
      await plane.must("DELETE", `${SERVICES}/web`);
      await rig.until(
        "deleted",
        () => s().service("shop", "web") === undefined && s().slicesByIp("10.1.0.5").length === 0,
        15_000,
      );
    });

    await t.step("headless, ExternalName, NodePort, hand-made endpoints", async () => {
      await plane.must("POST", SERVICES, service("headless", { clusterIP: "None" }));
      await plane.must(
        "POST",
        SERVICES,
        service("external", { type: "ExternalName", externalName: "db.example.com", ports: undefined }),
      );
      await plane.must("POST", SERVICES, service("port", { type: "NodePort" }));
      await plane.must("POST", SERVICES, service("manual"));
      await plane.must("POST", "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices", {
        metadata: { name: "manual-1", labels: { "kubernetes.io/service-name": "manual" } },
        addressType: "IPv4",
        endpoints: [{ addresses: ["192.0.2.7"] }],
        ports: [{ port: 8080 }],
      });
      await rig.until(
        "all",
        () => s().slicesByIp("192.0.2.7").length === 1 && s().service("shop", "port") !== undefined,
        5000,
      );
      assert.ok(s().service("shop", "headless")?.headless);
      assert.equal(s().service("shop", "external")?.externalName, "db.example.com");
      assert.ok(s().service("shop", "port")!.ports[0]!.nodePort! >= 30000);
    });

    await t.step("the API server is killed and comes back", async () => {
      await plane.stopApi();
      await rig.until("noticed", () => rig.source.status().state === "degraded", 20_000);
      assert.ok(s().service("shop", "port"), "what was learned is served on");
      await plane.startApi();
      await plane.must("POST", SERVICES, service("after-restart"));
      const took = await rig.until("converged", () => s().service("shop", "after-restart") !== undefined, 5000);
      report(`converged ${took} ms after the API was ready again`);
      await rig.until("synced", () => rig.source.status().state === "synced", 40_000);
    });

    await t.step("the network swallows everything, then is whole again", async () => {
      rig.proxy.cut();
      await plane.must("POST", SERVICES, service("during-cut"));
      const noticed = await rig.until("noticed", () => rig.source.status().state === "degraded", 75_000);
      assert.equal(s().service("shop", "during-cut"), undefined);
      rig.proxy.heal();
      const took = await rig.until("converged", () => s().service("shop", "during-cut") !== undefined, 5000);
      report(`silence noticed after ${noticed} ms, converged ${took} ms after the network was whole`);
    });

    await t.step("the token is rotated and the old one ends", async () => {
      const fresh = await tokenBoundTo(plane, "second");
      await Deno.writeTextFile(`${folder}/token.new`, fresh);
      await Deno.rename(`${folder}/token.new`, `${folder}/token`);
      await plane.must("DELETE", "/api/v1/namespaces/edgemesh/secrets/first");
      // Connections from before are cut, so that every watch must prove itself again.
      rig.proxy.cut();
      rig.proxy.heal();
      await plane.must("POST", SERVICES, service("after-rotation"));
      const took = await rig.until("converged", () => s().service("shop", "after-rotation") !== undefined, 75_000);
      report(`with the rotated token converged after ${took} ms`);
    });

    await t.step(
      "rights are taken away: each missing one is told once, Endpoints stand in, the rest goes on",
      async () => {
        const role = "/apis/rbac.authorization.k8s.io/v1/clusterroles/edgemesh-metadata";
        const { rules } = await plane.must("GET", role) as { rules: { resources: string[] }[] };
        const fewer = rules.filter((rule) => !rule.resources.includes("endpointslices"))
          .map((rule) => ({ ...rule, resources: rule.resources.filter((r) => r !== "pods") }));
        const patch = (to: unknown) => plane.must("PATCH", role, { rules: to }, "application/merge-patch+json");
        await patch(fewer);
        // A folder of its own: the first source reads its kubeconfig again and again.
        await Deno.mkdir(`${folder}/poor`);
        await Deno.copyFile(`${folder}/token`, `${folder}/poor/token`);
        await using poor = new Rig(plane, `${folder}/poor`);
        await poor.start();
        const took = await poor.until("synced", () => poor.source.status().state === "synced", 40_000);
        const refused = () =>
          poor.source.status().problems.filter((p) => p.code === "SOURCE_FORBIDDEN").map((p) => p.object).sort();
        assert.deepEqual(refused(), ["endpointslices.discovery.k8s.io", "pods"]);
        assert.equal(poor.store.snapshot.count("service"), s().count("service"));
        await plane.must("POST", "/api/v1/namespaces/shop/endpoints", {
          metadata: { name: "port" },
          subsets: [{ addresses: [{ ip: "192.0.2.8" }], ports: [{ port: 8080 }] }],
        });
        await poor.until("Endpoints", () => poor.store.snapshot.slicesByIp("192.0.2.8").length === 1, 5000);
        const told = poor.sink.lines.filter((line) => line.includes("no right to read"));
        assert.equal(told.length, 2, told.join("\n"));
        report(`synced with fewer rights after ${took} ms: ${told.length} lines`);
        await patch(rules);
      },
    );

    const crds = await Deno.stat(CRDS).then(() => true, () => false);
    if (!crds) console.log("  CRDs come late: skipped, no ../shared/crds beside the repository");
    await t.step({
      name: "CRDs come late",
      ignore: !crds,
      fn: async () => {
        for await (const file of Deno.readDir(CRDS)) {
          const [object] = parseAllDocuments(await Deno.readTextFile(`${CRDS}/${file.name}`)).map((d) => d.toJS());
          await plane.must("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", object);
        }
        await rig.until(
          "all known",
          () => rig.source.resources().filter((r) => r.health !== "following").length <= 1,
          60_000,
        );
        const route = {
          apiVersion: "gateway.networking.k8s.io/v1",
          kind: "HTTPRoute",
          metadata: { name: "r" },
          spec: { hostnames: ["a.example"] },
        };
        await plane.must("POST", "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes", route);
        const vs = {
          apiVersion: "networking.istio.io/v1beta1",
          kind: "VirtualService",
          metadata: { name: "v" },
          spec: { hosts: ["web"] },
        };
        await plane.must("POST", "/apis/networking.istio.io/v1beta1/namespaces/shop/virtualservices", vs);
        const took = await rig.until(
          "seen",
          () =>
            [...s().routes("gateway.networking.k8s.io", "HTTPRoute")].length === 1 &&
            [...s().routes("networking.istio.io", "VirtualService")].length === 1,
          5000,
        );
        report(`objects of late CRDs seen after ${took} ms`);
        assert.deepEqual(
          ([...s().routes("networking.istio.io", "VirtualService")][0]!.spec as { hosts: string[] }).hosts,
          ["web"],
        );
      },
    });

    await t.step(`${BIG} Services: followed as they are made, and listed by a second source`, async () => {
      const from = performance.now();
      let next = 0;
      await Promise.all(Array.from({ length: 16 }, async () => {
        for (let i = next++; i < BIG; i = next++) await plane.must("POST", SERVICES, service(`big-${i}`));
      }));
      report(`${BIG} Services made in ${Math.round(performance.now() - from)} ms`);
      const count = () => [...s().services()].filter((x) => x.name.startsWith("big-")).length;
      const took = await rig.until("all followed", () => s().count("service") >= BIG && count() === BIG, 30_000);
      report(`the last one seen ${took} ms later`);
      await using second = new Rig(plane, folder);
      await second.start();
      const listed = await second.until("listed", () => second.source.status().state === "synced", 30_000);
      assert.equal(second.store.snapshot.count("service"), s().count("service"));
      report(
        `a fresh source is synced after ${listed} ms; the loop was never held longer than ${
          second.longestStall.toFixed(1)
        } ms`,
      );
    });
    await Deno.remove(folder, { recursive: true });
  },
});
