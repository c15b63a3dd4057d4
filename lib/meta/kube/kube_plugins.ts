/** Exec and OIDC plugins of a kubeconfig, by @kubernetes/client-node. Imported only when one is named. */
import { KubeConfig } from "@kubernetes/client-node";
import type { Access } from "./kube_api.ts";

type RequestOptions = Parameters<KubeConfig["applyToHTTPSOptions"]>[0];

/** What a plugin proves with. */
export type Proof = Pick<Access, "token" | "client">;

/** A function that asks the plugin; the plugin's own cache decides whether it is really run. */
export function pluginProof(text: string, context: string): () => Promise<Proof> {
  const config = new KubeConfig();
  config.loadFromString(text);
  config.setCurrentContext(context);
  return async () => {
    const options: RequestOptions = {};
    await config.applyToHTTPSOptions(options);
    const token = /^Bearer (.+)$/.exec(headerOf(options) ?? "")?.[1];
    const { cert, key } = options;
    return {
      ...(token === undefined ? {} : { token }),
      ...(cert && key ? { client: { cert: String(cert), key: String(key) } } : {}),
    };
  };
}

function headerOf(options: RequestOptions): string | undefined {
  const headers = options.headers as Record<string, unknown> | undefined;
  const value = headers?.Authorization ?? headers?.authorization;
  return typeof value === "string" ? value : undefined;
}
