/** A Kubernetes API that gives too little, produced for real: what check says about rights, kinds and the API's end. */
import assert from "node:assert/strict";
import { fixture, labTest } from "../support.ts";
import { type Bed, lineSays, onBed, row } from "./bed.ts";

const [API_PORT, CONTROL_PORT] = [10550, 10551];
const SLICES = "/apis/discovery.k8s.io/v1/endpointslices";
const KUBECONFIG = `apiVersion: v1
kind: Config
clusters: [{ name: c, cluster: { server: "http://127.0.0.1:${API_PORT}" } }]
users: [{ name: u, user: { token: t } }]
contexts: [{ name: x, context: { cluster: c, user: u } }]
current-context: x
`;

labTest("a broken Kubernetes API: missing rights and kinds are named, and the rest goes on", async (t) => {
  await onBed({ web: [] }, async (bed) => {
    const api = await bed.node.host.start(
      "kube-api",
      [...fixture("kube_api"), "apiserver", String(API_PORT), String(CONTROL_PORT)],
      { ready: { log: /ready/ } },
    );
    await Deno.writeTextFile(bed.node.host.path("/etc/edgemesh/kubeconfig"), KUBECONFIG);
    const flags = ["--set", "kubeconfig=/etc/edgemesh/kubeconfig"];

    await t.step("CRDs missing", async () => {
      await bed.agent({ flags, ready: /agent ready/ }, async () => {
        const line = await bed.line("kube-crds", "ok");
        assert.match(
          line.text,
          /\d+ kinds are not installed, so not followed .*virtualservices\.networking\.istio\.io/,
        );
        row("CRDs missing", "check", line.text);
        await bed.line("kube-rbac", "ok");
        assert.equal((await bed.status()).warnings.length, 0, "a cluster without Istio is no broken cluster");
      });
    });
    await t.step("RBAC missing", async () => {
      await right(bed, SLICES, true);
      await right(bed, "/api/v1/endpoints", true);
      await bed.agent({ flags, ready: /agent ready/ }, async (agent) => {
        const line = await bed.line("kube-rbac", "fail");
        const what = /no right to list and watch endpointslices\.discovery\.k8s\.io.*Services .* wrong or missing/;
        row("RBAC missing", "check", lineSays(line, what, /kubectl apply -f deploy\/rbac\.yaml/));
        assert.match(await agent.log(), /no right to read a resource; the rest goes on.*endpointslices/);
      });
    });
    if (Deno.env.get("EDGEMESH_TEST") !== "full") return;
    await t.step("the API is gone", async () => {
      await api.kill();
      await bed.agent({ flags }, async () => {
        const line = await bed.line("source", "fail");
        row("Kubernetes API gone", "check", lineSays(line, /is not followed: the API cannot be reached/, /reachable/));
      });
    });
  });
});

async function right(bed: Bed, path: string, forbidden: boolean): Promise<void> {
  const body = JSON.stringify({ path, forbidden });
  await bed.node.host.execOk(["curl", "-sSf", "-d", body, `http://127.0.0.1:${CONTROL_PORT}/right`]);
}
