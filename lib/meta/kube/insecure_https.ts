/**
 * HTTPS without checking who answers, for `insecureSkipTLSVerify` and `insecure-skip-tls-verify` only: Deno's fetch can
 * be told so for the whole process alone, which nobody who checks certificates elsewhere could want. Loaded only when
 * a configuration asks for it.
 */
import type { Access, ApiAnswer } from "./kube_api.ts";
import { retryAfter } from "./kube_api.ts";

export async function insecureGet(
  access: Access,
  pathAndQuery: string,
  options: { readonly headers: Headers; readonly signal: AbortSignal },
): Promise<ApiAnswer> {
  const { request } = await import("node:https");
  const { promise, resolve, reject } = Promise.withResolvers<ApiAnswer>();
  const outgoing = request(access.server + pathAndQuery, {
    headers: Object.fromEntries(options.headers),
    rejectUnauthorized: false,
    ...(access.client ?? {}),
    agent: false,
  }, (incoming) => {
    const body = new ReadableStream<Uint8Array>({
      start(controller) {
        incoming.on("data", (chunk: Uint8Array) => {
          controller.enqueue(new Uint8Array(chunk));
          if ((controller.desiredSize ?? 0) <= 0) incoming.pause();
        });
        incoming.on("end", () => close(() => controller.close()));
        incoming.on("error", (error) => close(() => controller.error(error)));
        incoming.on("aborted", () => close(() => controller.error(new Error("connection reset"))));
      },
      pull: () => void incoming.resume(),
      cancel: () => void outgoing.destroy(),
    });
    resolve({
      status: incoming.statusCode ?? 0,
      retryAfterMs: retryAfter(incoming.headers["retry-after"]),
      contentType: incoming.headers["content-type"] ?? "",
      body,
    });
  });
  outgoing.on("error", reject);
  options.signal.addEventListener("abort", () => outgoing.destroy(new Error("aborted")), { once: true });
  outgoing.end();
  return await promise;
}

/** Ending a stream twice is an error of its own; the first end is the true one. */
function close(end: () => void): void {
  try {
    end();
  } catch {
    // It was over.
  }
}
