/** docs/getting-started.md, Kubernetes: kubectl with deploy/rbac.yaml and deploy/kubeconfig.sh, against a real API. */
import assert from "node:assert/strict";
import { createLogger, memorySink } from "../../lib/log.ts";
import { systemClock } from "../../lib/clock.ts";
import { exec, execOk, until } from "../../lib/lab/exec.ts";
import { FetchApi } from "../../lib/meta/kube/kube_api.ts";
import { kubeconfigAccess } from "../../lib/meta/kube/kube_config.ts";
import { KubeSource } from "../../lib/meta/kube/source_kube.ts";
import { MetaStore } from "../../lib/meta/store/store.ts";
import { say } from "../lab/support.ts";
import { ControlPlane, kubeBinaries } from "./control_plane.ts";

const ROOT = new URL("../../", import.meta.url).pathname;
const bin = await kubeBinaries();
const kubectl = (await exec(["sh", "-c", "command -v kubectl"])).code === 0;
if (!bin || !kubectl) say("skipped: it needs kubectl, and scripts/build_kube.sh");

Deno.test({
  name: "kubeconfig.sh: a kubeconfig that may read what the server needs, until its Secret is deleted",
  ignore: !bin || !kubectl,
  async fn() {
    await using plane = await ControlPlane.start(bin!);
    const env = { KUBECONFIG: await plane.adminKubeconfig(), HOME: "/nonexistent" };
    await execOk(["kubectl", "apply", "-f", `${ROOT}deploy/rbac.yaml`], { env });
    const { stdout } = await execOk([`${ROOT}deploy/kubeconfig.sh`], { env, timeoutMs: 60_000 });
    const file = await Deno.makeTempFile();
    await Deno.writeTextFile(file, stdout);
    const reader = { KUBECONFIG: file, HOME: "/nonexistent" };
    await execOk(["kubectl", "get", "services", "-A"], { env: reader });
    const refused = await exec(["kubectl", "get", "secrets", "-A"], { env: reader });
    assert.match(refused.stderr, /forbidden/);

    const store = new MetaStore({ clock: systemClock, log: createLogger(memorySink()), layers: ["base"] });
    const source = new KubeSource({
      api: new FetchApi(kubeconfigAccess(file), { clock: systemClock, address: `https://127.0.0.1:${plane.port}` }),
      layer: store.layer("base"),
      clock: systemClock,
      log: createLogger(memorySink()),
      pods: "all",
    });
    await source.start();
    await until("the source to be synced", () => source.status().state === "synced" ? true : undefined, 20_000);
    await source.stop();

    await execOk(["kubectl", "-n", "edgemesh", "delete", "secret", "edgemesh-server"], { env });
    const gone = () => exec(["kubectl", "get", "services", "-A"], { env: reader });
    await until(
      "the token to be refused",
      async () => /Unauthorized/.test((await gone()).stderr) ? true : undefined,
      30_000,
    );
    await Deno.remove(file);
  },
});
