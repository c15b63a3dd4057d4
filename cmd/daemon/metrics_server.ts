/** Prometheus metrics and health on a loopback port: `/metrics`, `/livez`, `/readyz`. Read-only, for this host. */
import { parseHostPort } from "../../lib/addr.ts";
import { describe } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import type { Registry } from "../../lib/metrics.ts";
import { missingText, type Readiness } from "../../lib/readiness.ts";

export interface MetricsServerOptions {
  /** `address:port`, or `off`. */
  readonly listen: string;
  readonly readiness: Readiness;
  readonly log: Logger;
  /** Fills the registry with what is true now. */
  collect(): Registry;
}

/** Starts it; a port that is taken is said and does not keep the rest from working. */
export function startMetrics(options: MetricsServerOptions): AsyncDisposable {
  const { listen, log, readiness } = options;
  const nothing = { [Symbol.asyncDispose]: () => Promise.resolve() };
  if (listen === "off") return nothing;
  const { ip, port } = parseHostPort(listen)!;
  try {
    const server = Deno.serve({ hostname: ip, port, onListen() {} }, (request) => {
      const { pathname } = new URL(request.url);
      // A page in a browser on this host must not read us through a name it controls (DNS rebinding).
      const host = request.headers.get("host") ?? "";
      if (!/^(localhost|127\.0\.0\.1|\[::1\]|[0-9.]+|\[[0-9a-f:]+\])(:\d+)?$/.test(host)) {
        return new Response("", { status: 421 });
      }
      if (request.method !== "GET") return new Response("", { status: 405 });
      switch (pathname) {
        case "/metrics":
          return new Response(options.collect().expose(), {
            headers: { "content-type": "text/plain; version=0.0.4; charset=utf-8" },
          });
        case "/livez":
          return new Response("ok\n");
        case "/readyz":
          return readiness.ready
            ? new Response("ok\n")
            : new Response(readiness.missing.map((what) => `waiting for ${missingText(what)}\n`).join(""), {
              status: 503,
            });
        default:
          return new Response("", { status: 404 });
      }
    });
    return { [Symbol.asyncDispose]: () => server.shutdown() };
  } catch (error) {
    log.warn("metrics cannot be served; everything else goes on", { listen, error: describe(error) });
    return nothing;
  }
}
