/** Sources of metadata that are named in the configuration, made ready to be started. */
import { type Cidr, parseIp } from "../../lib/addr.ts";
import { pause, systemClock } from "../../lib/clock.ts";
import type { AgentConfig } from "../../lib/config.ts";
import type { Logger } from "../../lib/log.ts";
import { openFolder } from "../../lib/meta/files/folder.ts";
import type { Guard } from "../../lib/meta/guard.ts";
import type { KubeApi } from "../../lib/meta/kube/kube_api.ts";
import { problemText } from "../../lib/meta/problems.ts";
import type { MetaSource, SourceStatus } from "../../lib/meta/source.ts";
import { FilesSource } from "../../lib/meta/files/source_files.ts";
import type { KubeSourceOptions } from "../../lib/meta/kube/source_kube.ts";
import type { MetaLayer } from "../../lib/meta/store/store.ts";
import type { SourceView } from "../../lib/status.ts";
import { portOwners } from "./port_owners.ts";

/** Value of `kubeconfig` that means the service account of the pod we run in. */
const IN_CLUSTER = "in-cluster";

/** A folder of manifests. */
export function filesSource(
  path: string,
  layer: MetaLayer,
  cidrs: readonly Cidr[],
  options: { readonly log: Logger; readonly extraLabels?: readonly string[] },
): MetaSource {
  const { log, extraLabels } = options;
  return new FilesSource({
    folder: openFolder(path),
    layer,
    clock: systemClock,
    log: log.child("meta"),
    allocateFrom: cidrs,
    ...(extraLabels === undefined ? {} : { extraLabels }),
  });
}

/** What is read from an API, and where it goes. */
export interface ReadOptions {
  readonly layer: MetaLayer;
  readonly log: Logger;
  readonly pods: "all" | { readonly node: string };
  readonly namespaces: readonly string[];
  readonly routes: boolean;
  readonly extraLabels?: readonly string[];
}

/** Whether an agent's configuration names an API: then no server's metadata is followed. */
export function isNamed({ kubeconfig, metaServer }: AgentConfig): boolean {
  return kubeconfig !== undefined || metaServer.server !== undefined;
}

/** The API that an agent's configuration names; undefined: the joined server is followed. */
export async function namedSource(
  config: AgentConfig,
  to: { readonly layer: MetaLayer; readonly log: Logger; readonly guard: Guard; readonly node: string },
): Promise<MetaSource | undefined> {
  const { layer, log, guard, node } = to;
  const options = { layer, log, pods: { node }, ...config.metadata };
  const { kubeconfig, metaServer } = config;
  if (metaServer.server !== undefined) {
    return await metaServerSource(metaServer.server, metaServer, { ...options, guard });
  }
  return kubeconfig === undefined ? undefined : await kubeSource(kubeconfig, options);
}

/** A Kubernetes API: `in-cluster` or a kubeconfig file. The code for it is loaded only here. */
export async function kubeSource(kubeconfig: string, options: ReadOptions): Promise<MetaSource> {
  const [{ KubeSource }, { FetchApi }, { inClusterAccess, kubeconfigAccess }, { prepareFetch }] = await Promise.all([
    import("../../lib/meta/kube/source_kube.ts"),
    import("../../lib/meta/kube/kube_api.ts"),
    import("../../lib/meta/kube/kube_config.ts"),
    import("../../lib/meta/kube/prepare_fetch.ts"),
  ]);
  await prepareFetch(() => pause(0));
  const access = kubeconfig === IN_CLUSTER ? inClusterAccess() : kubeconfigAccess(kubeconfig);
  const api = new FetchApi(access, { clock: systemClock, address: kubeconfig });
  return new KubeSource(sourceOptions(api, options));
}

/** KubeEdge's MetaServer at `server`; its objects must pass the guard, as pushed ones must. */
export async function metaServerSource(
  server: string,
  { security }: AgentConfig["metaServer"],
  options: ReadOptions & { readonly guard: Guard },
): Promise<MetaSource> {
  const [{ MetaServerSource }, { FetchApi }, { RootApi }, { metaServerAccess }, { prepareFetch }] = await Promise.all([
    import("../../lib/meta/kube/source_metaserver.ts"),
    import("../../lib/meta/kube/kube_api.ts"),
    import("../../lib/meta/kube/root_api.ts"),
    import("../../lib/meta/kube/kube_config.ts"),
    import("../../lib/meta/kube/prepare_fetch.ts"),
  ]);
  await prepareFetch(() => pause(0));
  const { tlsCertFile, ...rest } = security;
  const url = new URL(server);
  const proven = (security.requireAuthorization || url.protocol === "https:") && !security.insecureSkipTLSVerify;
  // One name for one address: whose port it is must be asked of the very address that is connected to.
  if (url.hostname === "localhost" && !proven) url.hostname = "127.0.0.1";
  const access = metaServerAccess({ ...rest, server: url.href, ...(tlsCertFile === "off" ? {} : { tlsCertFile }) });
  const inner = new FetchApi(access, { clock: systemClock, address: server });
  const ip = parseIp(url.hostname.replace(/^\[|\]$/g, ""));
  const log = options.log.child("meta");
  let api: KubeApi = inner;
  if (!proven && ip !== undefined && (ip.startsWith("127.") || ip === "::1")) {
    const at = { ip, port: Number(url.port) || (url.protocol === "https:" ? 443 : 80) };
    api = new RootApi(inner, { owners: () => portOwners(at), log });
  } else if (!proven) {
    log.warn("the MetaServer does not prove who it is: whoever answers at its address owns this node's Services", {
      server,
      hint: "metaServer.security.requireAuthorization, with tlsCaFile",
    });
  }
  return new MetaServerSource({ ...sourceOptions(api, options), guard: options.guard });
}

/** How a source is, for status. What a guard refuses is shown apart. */
export function sourceView(status: SourceStatus): SourceView {
  return {
    kind: status.kind,
    from: status.from,
    state: status.state,
    ...(status.lastError === undefined ? {} : { detail: status.lastError }),
    problems: status.problems.filter((p) => p.code !== "META_REFUSED").map(problemText),
    unreadable: status.problems.flatMap(({ object, code }): SourceView["unreadable"][number][] => {
      if (code === "SOURCE_FORBIDDEN") return [{ resource: object, why: "forbidden" }];
      return code === "SOURCE_UNKNOWN" ? [{ resource: object, why: "unknown" }] : [];
    }),
  };
}

function sourceOptions(api: KubeApi, options: ReadOptions): KubeSourceOptions {
  const { layer, log, pods, namespaces, routes, extraLabels } = options;
  return {
    api,
    layer,
    clock: systemClock,
    log: log.child("meta"),
    pods,
    routes,
    ...(namespaces.length > 0 ? { namespaces } : {}),
    ...(extraLabels === undefined ? {} : { extraLabels }),
  };
}
