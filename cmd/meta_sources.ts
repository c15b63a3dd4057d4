/** Sources of metadata that are named in the configuration, made ready to be started. */
import { type Cidr } from "../lib/addr.ts";
import { systemClock } from "../lib/clock.ts";
import { MeshError } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { openFolder } from "../lib/meta/folder.ts";
import type { MetaSource } from "../lib/meta/source.ts";
import { FilesSource } from "../lib/meta/source_files.ts";
import type { MetaLayer } from "../lib/meta/store.ts";

/** Value of `kubeconfig` that means the service account of the pod we run in. */
const IN_CLUSTER = "in-cluster";

/** A folder of manifests. */
export function filesSource(path: string, layer: MetaLayer, cidrs: readonly Cidr[], log: Logger): MetaSource {
  return new FilesSource({
    folder: openFolder(path),
    layer,
    clock: systemClock,
    log: log.child("meta"),
    allocateFrom: cidrs,
  });
}

/** A Kubernetes API: `in-cluster` or a kubeconfig file. The code for it is loaded only here. */
export async function kubeSource(
  kubeconfig: string,
  layer: MetaLayer,
  options: { readonly log: Logger; readonly pods: "all" | { readonly node: string } },
): Promise<MetaSource> {
  const [{ KubeSource }, { FetchApi }, { inClusterAccess, kubeconfigAccess }] = await Promise.all([
    import("../lib/meta/source_kube.ts"),
    import("../lib/meta/kube_api.ts"),
    import("../lib/meta/kube_config.ts"),
  ]);
  if (kubeconfig !== IN_CLUSTER && !kubeconfig.startsWith("/")) {
    throw new MeshError("CONFIG_INVALID", `kubeconfig must be ${IN_CLUSTER} or an absolute path, not ${kubeconfig}`);
  }
  const access = kubeconfig === IN_CLUSTER ? inClusterAccess() : kubeconfigAccess(kubeconfig);
  return new KubeSource({
    api: new FetchApi(access, { clock: systemClock, address: kubeconfig }),
    layer,
    clock: systemClock,
    log: options.log.child("meta"),
    pods: options.pods,
  });
}
