/** A Kubernetes API as the product uses it: GET with credentials, over Deno's fetch. */
import type { Clock } from "../../clock.ts";
import { describe, MeshError } from "../../errors.ts";
import { VERSION } from "../../version.ts";

export interface ApiAnswer {
  readonly status: number;
  /** From `Retry-After`, in milliseconds. */
  readonly retryAfterMs: number | undefined;
  readonly contentType: string;
  /** Must be read to its end or cancelled. */
  readonly body: ReadableStream<Uint8Array> | null;
}

export interface KubeApi {
  /** `https://10.0.0.1:6443`, for status and logs. */
  readonly address: string;
  /** Why its answers are not believed now, where that is so. */
  readonly problem?: string | undefined;
  /** Rejects when no answer came; the body may still break. */
  get(pathAndQuery: string, signal: AbortSignal): Promise<ApiAnswer>;
  /** Reads tokens and certificates anew: the server refused the present ones. */
  reauthenticate(): Promise<void>;
  close(): void;
}

/** Where an API is and how to prove who we are. Read anew as a whole: files behind it rotate. */
export interface Access {
  readonly server: string;
  /** PEM certificates of authorities; empty: the system's. */
  readonly caCerts: readonly string[];
  /** PEM client certificate and key. */
  readonly client?: { readonly cert: string; readonly key: string };
  readonly token?: string;
  readonly basic?: { readonly user: string; readonly password: string };
  /** Do not check who answers. */
  readonly insecure?: boolean;
  readonly proxyUrl?: string;
}

/** How long a token read from a file is used before the file is looked at again, as Kubernetes' own clients do. */
const ACCESS_MS = 60_000;
/** After a refusal, at most this often. */
const REREAD_MS = 200;

export class FetchApi implements KubeApi {
  readonly #load: (fresh: boolean) => Promise<Access>;
  readonly #clock: Clock;
  #access: Access | undefined;
  #loadedAt = -Infinity;
  #client: Deno.HttpClient | undefined;
  #clientKey = "";
  #address: string;
  #loading: Promise<Access> | undefined;
  #refused = false;

  /** `load` reads the access; `address` is shown until it was read. */
  constructor(load: (fresh: boolean) => Promise<Access>, options: { readonly clock: Clock; readonly address: string }) {
    this.#load = load;
    this.#clock = options.clock;
    this.#address = options.address;
  }

  get address(): string {
    return this.#address;
  }

  async get(pathAndQuery: string, signal: AbortSignal): Promise<ApiAnswer> {
    const access = await this.#current();
    signal.throwIfAborted();
    const headers = new Headers({ accept: "application/json", "user-agent": `edgemesh/${VERSION}` });
    if (access.token !== undefined) headers.set("authorization", `Bearer ${access.token}`);
    else if (access.basic) {
      headers.set("authorization", `Basic ${btoa(`${access.basic.user}:${access.basic.password}`)}`);
    }
    if (access.insecure && access.server.startsWith("https:")) {
      const { insecureGet } = await import("./insecure_https.ts");
      return await insecureGet(access, pathAndQuery, { headers, signal });
    }
    const client = this.#clientFor(access);
    // A redirect would carry the token to wherever it points.
    const answer = await fetch(access.server + pathAndQuery, { headers, signal, redirect: "manual", client });
    return {
      status: answer.status,
      retryAfterMs: retryAfter(answer.headers.get("retry-after")),
      contentType: answer.headers.get("content-type") ?? "",
      body: answer.body,
    };
  }

  async reauthenticate(): Promise<void> {
    // Many resources are refused with one token; it is read anew once for all of them.
    if (this.#clock.now() - this.#loadedAt < REREAD_MS) return;
    this.#loadedAt = -Infinity;
    this.#refused = true;
    await this.#current().catch(() => {});
  }

  close(): void {
    this.#client?.close();
    this.#client = undefined;
  }

  async #current(): Promise<Access> {
    if (this.#access && this.#clock.now() - this.#loadedAt < ACCESS_MS) return this.#access;
    // Many resources ask at the same moment; a plugin must not be started for each.
    const refused = this.#refused;
    this.#refused = false;
    this.#loading ??= this.#load(refused).finally(() => this.#loading = undefined);
    try {
      this.#access = await this.#loading;
      this.#loadedAt = this.#clock.now();
      this.#address = this.#access.server;
    } catch (error) {
      // A file that is just being replaced: what worked a minute ago may still work.
      if (!this.#access) throw new MeshError("CONFIG_INVALID", `Kubernetes access cannot be read: ${describe(error)}`);
    }
    return this.#access;
  }

  /** One client per set of certificates. HTTP/1.1: each watch then has a connection of its own to die with. */
  #clientFor(access: Access): Deno.HttpClient {
    const key = JSON.stringify([access.caCerts, access.client, access.proxyUrl]);
    if (this.#client && this.#clientKey === key) return this.#client;
    this.#client?.close();
    const certificates = access.client ? { cert: access.client.cert, key: access.client.key } : {};
    this.#client = Deno.createHttpClient({
      ...(access.caCerts.length > 0 ? { caCerts: [...access.caCerts] } : {}),
      ...certificates,
      ...(access.proxyUrl === undefined ? {} : { proxy: { url: access.proxyUrl } }),
      http1: true,
      http2: false,
    });
    this.#clientKey = key;
    return this.#client;
  }
}

/** Milliseconds of a `Retry-After` in seconds, which is the form Kubernetes sends. */
export function retryAfter(header: string | null | undefined): number | undefined {
  const seconds = header === null || header === undefined || header === "" ? NaN : Number(header);
  return Number.isFinite(seconds) && seconds >= 0 ? seconds * 1000 : undefined;
}

/**
 * The chunks of a body until its end; rejects when the signal is aborted. The signal given to `fetch` does not do:
 * Deno 2.9.6 holds what connects it to the body by a weak reference only, so after a garbage collection an abort no
 * longer ends the body, and a silent watch would hang for good. Cancelling the reader always does.
 */
export async function* chunksOf(
  body: ReadableStream<Uint8Array> | null,
  signal: AbortSignal,
): AsyncIterableIterator<Uint8Array> {
  if (!body) return;
  const reader = body.getReader();
  const cancel = () => void reader.cancel().catch(() => {});
  signal.addEventListener("abort", cancel, { once: true });
  try {
    for (;;) {
      signal.throwIfAborted();
      const { done, value } = await reader.read();
      signal.throwIfAborted();
      if (done) return;
      yield value;
    }
  } finally {
    signal.removeEventListener("abort", cancel);
    // Whoever stops reading early gives up the connection with it.
    cancel();
  }
}
