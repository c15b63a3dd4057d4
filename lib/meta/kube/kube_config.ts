/**
 * Where a Kubernetes API is and how to prove who we are: the account of a pod, a kubeconfig, KubeEdge's MetaServer.
 * Each gives a function that reads everything anew, because tokens and certificates rotate in place. Exec and OIDC
 * plugins go through @kubernetes/client-node, loaded only when a kubeconfig names one: it costs more memory than the
 * rest of the agent.
 */
import { MeshError } from "../../errors.ts";
import { readReferenced } from "../../file_reference.ts";
import type { Access } from "./kube_api.ts";
import type { Proof } from "./kube_plugins.ts";

/** Reads files and the environment; handed in so that tests need neither. */
export interface AccessDeps {
  readText(path: string): Promise<string>;
  env(name: string): string | undefined;
}

/** Reads the access; `fresh`: what plugins remember was refused and must not be used again. */
export type LoadAccess = (fresh: boolean) => Promise<Access>;

const ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount";

export const systemDeps: AccessDeps = {
  readText: readReferenced,
  env: (name) => Deno.env.get(name),
};

/** The service account of the pod we run in. */
export function inClusterAccess(deps: AccessDeps = systemDeps): LoadAccess {
  return async () => {
    const host = deps.env("KUBERNETES_SERVICE_HOST");
    const port = deps.env("KUBERNETES_SERVICE_PORT") ?? "443";
    if (!host) {
      throw new MeshError("CONFIG_INVALID", "KUBERNETES_SERVICE_HOST is not set", {
        hint: "run in a pod with a service account, or give a kubeconfig file",
      });
    }
    const [ca, token] = await Promise.all([
      readPem(deps, `${ACCOUNT}/ca.crt`),
      deps.readText(`${ACCOUNT}/token`),
    ]);
    const server = `https://${host.includes(":") ? `[${host}]` : host}:${port}`;
    return { server, caCerts: [ca], token: token.trim() };
  };
}

/** The current (or named) context of a kubeconfig file. */
export function kubeconfigAccess(
  path: string,
  options: { readonly context?: string; readonly deps?: AccessDeps } = {},
): LoadAccess {
  const deps = options.deps ?? systemDeps;
  let plugin: { readonly text: string; readonly prove: () => Promise<Proof> } | undefined;
  return async (fresh) => {
    const text = await deps.readText(path);
    const { parse } = await import("../../yaml.ts");
    const parts = selectContext(parse(text, { maxAliasCount: 10 }), options.context, path);
    const user = parts.user;
    if (user.exec === undefined && user["auth-provider"] === undefined) return await plainAccess(parts, path, deps);
    if (plugin?.text !== text || fresh) {
      const { pluginProof } = await import("./kube_plugins.ts");
      plugin = { text, prove: pluginProof(text, parts.context) };
    }
    const proof = await plugin.prove();
    return { ...await plainAccess({ ...parts, user: {} }, path, deps), ...proof };
  };
}

/** KubeEdge's MetaServer, as the original is configured for it (`kubeAPIConfig.metaServer`). */
export interface MetaServerConfig {
  readonly server: string;
  readonly requireAuthorization?: boolean;
  readonly insecureSkipTLSVerify?: boolean;
  readonly tlsCaFile?: string;
  readonly tlsCertFile?: string;
  readonly tlsPrivateKeyFile?: string;
  readonly tokenFile?: string;
}

export function metaServerAccess(config: MetaServerConfig, deps: AccessDeps = systemDeps): LoadAccess {
  return async () => {
    if (!config.requireAuthorization) return { server: config.server.replace(/\/$/, ""), caCerts: [] };
    const server = config.server.replace(/^http:/, "https:").replace(/\/$/, "");
    const token = (await deps.readText(config.tokenFile ?? `${ACCOUNT}/token`)).trim();
    if (config.insecureSkipTLSVerify) return { server, caCerts: [], token, insecure: true };
    const caCerts = config.tlsCaFile ? [await readPem(deps, config.tlsCaFile)] : [];
    if (!config.tlsCertFile || !config.tlsPrivateKeyFile) return { server, caCerts, token };
    const [cert, key] = await Promise.all([
      readPem(deps, config.tlsCertFile),
      readPem(deps, config.tlsPrivateKeyFile),
    ]);
    return { server, caCerts, token, client: { cert, key } };
  };
}

interface Parts {
  readonly context: string;
  readonly cluster: Readonly<Record<string, unknown>>;
  readonly user: Readonly<Record<string, unknown>>;
}

function selectContext(config: unknown, wanted: string | undefined, path: string): Parts {
  const root = record(config);
  const context = wanted ?? root["current-context"];
  if (typeof context !== "string" || context === "") {
    throw invalid(path, "no context is current", "kubectl config use-context NAME");
  }
  const chosen = named(root.contexts, context, "context");
  if (!chosen) throw invalid(path, `context ${context} is not in it`);
  const cluster = named(root.clusters, chosen.cluster, "cluster");
  if (!cluster || typeof cluster.server !== "string") {
    throw invalid(path, `context ${context} names no cluster with a server`);
  }
  return { context, cluster, user: named(root.users, chosen.user, "user") ?? {} };
}

async function plainAccess(parts: Parts, path: string, deps: AccessDeps): Promise<Access> {
  const { cluster, user } = parts;
  const server = String(cluster.server).replace(/\/$/, "");
  if (cluster["tls-server-name"] !== undefined) {
    throw invalid(path, "tls-server-name cannot be honoured", "use a server address that its certificate names");
  }
  const file = (value: unknown) => fromFolder(path, String(value));
  const pem = async (holder: Readonly<Record<string, unknown>>, key: string) => {
    const data = holder[`${key}-data`];
    if (typeof data === "string") return base64(data, path, `${key}-data`);
    return holder[key] === undefined ? undefined : await readPem(deps, file(holder[key]));
  };
  const ca = await pem(cluster, "certificate-authority");
  const cert = await pem(user, "client-certificate");
  const key = await pem(user, "client-key");
  const token = user.tokenFile !== undefined
    ? (await deps.readText(file(user.tokenFile))).trim()
    : typeof user.token === "string"
    ? user.token
    : undefined;
  return {
    server,
    caCerts: ca === undefined ? [] : [ca],
    ...(cluster["insecure-skip-tls-verify"] === true ? { insecure: true } : {}),
    ...(typeof cluster["proxy-url"] === "string" ? { proxyUrl: cluster["proxy-url"] } : {}),
    ...(cert !== undefined && key !== undefined ? { client: { cert, key } } : {}),
    ...(token === undefined ? {} : { token }),
    ...(typeof user.username === "string" && typeof user.password === "string"
      ? { basic: { user: user.username, password: user.password } }
      : {}),
  };
}

function named(list: unknown, name: unknown, inner: string): Record<string, unknown> | undefined {
  const entry = Array.isArray(list) ? list.find((e) => record(e).name === name) : undefined;
  return entry === undefined ? undefined : record(record(entry)[inner]);
}

function record(value: unknown): Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value) ? value as Record<string, unknown> : {};
}

async function readPem(deps: AccessDeps, path: string): Promise<string> {
  const text = await deps.readText(path);
  if (!text.includes("-----BEGIN ")) throw invalid(path, "it holds no PEM data");
  return text;
}

function base64(data: string, path: string, field: string): string {
  try {
    return new TextDecoder().decode(Uint8Array.from(atob(data), (c) => c.charCodeAt(0)));
  } catch {
    throw invalid(path, `${field} is not base64`);
  }
}

/** Paths in a kubeconfig are relative to its folder, and relative ones stay in it. */
function fromFolder(kubeconfig: string, file: string): string {
  if (file.startsWith("/")) return file;
  if (file.split("/").includes("..")) throw invalid(kubeconfig, `${file} leads out of its folder`, "an absolute path");
  return `${kubeconfig.slice(0, kubeconfig.lastIndexOf("/") + 1)}${file}`;
}

function invalid(path: string, reason: string, hint?: string): MeshError {
  return new MeshError("CONFIG_INVALID", `${path} cannot be used: ${reason}`, hint === undefined ? {} : { hint });
}
