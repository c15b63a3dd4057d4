/**
 * An HTTP proxy on the way to a server: which one, and the CONNECT request that makes it a pipe (RFC 9110 §9.3.6). What
 * runs through the pipe is TLS to a server of ours, so a proxy sees a host name, sizes and times.
 */
import type { Duplex } from "node:stream";
import { cidrContains, familyOf, parseCidr, parseIp } from "./addr.ts";
import { MeshError } from "./errors.ts";

export interface HttpProxy {
  readonly host: string;
  readonly port: number;
  /** Value of `Proxy-Authorization`; a secret. */
  readonly authorization?: string;
}

export interface ProxyTarget {
  readonly host: string;
  readonly port: number;
}

/** What leads to a target: a proxy, or undefined for nothing in between. */
export type ProxyFor = (target: ProxyTarget) => HttpProxy | undefined;

/** Variables that name a proxy, the first one that is set counts: the servers are reached over TLS. */
export const PROXY_VARIABLES = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] as const;
const EXCEPT_VARIABLES = ["NO_PROXY", "no_proxy"] as const;
/** A proxy's refusal comes with a page for people; its head is all that is read. */
const MAX_HEAD = 8192;

/**
 * How to choose: `auto` asks the environment as curl does, `off` never takes one, anything else is a proxy's URL. Throws
 * MeshError CONFIG_INVALID when that URL, or the variable, is none.
 */
export function proxyChoice(setting: string, env: (name: string) => string | undefined): ProxyFor {
  if (setting === "off") return () => undefined;
  if (setting !== "auto") {
    const proxy = parseProxy(setting);
    return () => proxy;
  }
  const url = firstOf(PROXY_VARIABLES, env);
  if (url === undefined) return () => undefined;
  const proxy = parseProxy(url);
  const except = (firstOf(EXCEPT_VARIABLES, env) ?? "").split(/[\s,]+/).filter((entry) => entry !== "");
  return (target) => except.some((entry) => isExcepted(entry, target)) ? undefined : proxy;
}

/** Whether a text names a proxy that can be used. */
export function isProxyUrl(text: string): boolean {
  try {
    parseProxy(text);
    return true;
  } catch {
    return false;
  }
}

function parseProxy(text: string): HttpProxy {
  const withScheme = text.includes("://") ? text : `http://${text}`;
  const url = URL.canParse(withScheme) ? new URL(withScheme) : undefined;
  if (url?.protocol !== "http:" || url.hostname === "" || url.pathname !== "/" || url.search !== "") {
    throw new MeshError("CONFIG_INVALID", "The HTTP proxy is not of the form http://[user:password@]host:port", {
      hint: "set `proxy`, or HTTPS_PROXY; TLS towards the proxy itself and SOCKS are not spoken",
    });
  }
  const credentials = `${decodeURIComponent(url.username)}:${decodeURIComponent(url.password)}`;
  return {
    host: url.hostname.replace(/^\[|\]$/g, ""),
    port: url.port === "" ? 80 : Number(url.port),
    ...(url.username === "" ? {} : { authorization: `Basic ${base64(credentials)}` }),
  };
}

/** NO_PROXY as curl reads it: `*`, a network, an address, a name with all names below it; `:port` narrows it down. */
function isExcepted(entry: string, { host, port }: ProxyTarget): boolean {
  if (entry === "*") return true;
  const ip = parseIp(host);
  const cidr = parseCidr(entry);
  if (ip !== undefined && cidr !== undefined) return familyOf(cidr.ip) === familyOf(ip) && cidrContains(cidr, ip);
  if (ip !== undefined && parseIp(entry) === ip) return true;
  const [, name, only] = /^\[?\.?(.*?)\]?(?::(\d+))?$/.exec(entry.toLowerCase())!;
  if (only !== undefined && Number(only) !== port) return false;
  if (ip !== undefined) return parseIp(name!) === ip;
  const lower = host.toLowerCase();
  return lower === name || lower.endsWith(`.${name}`);
}

/** The request for a pipe to the target. */
export function connectRequest(proxy: HttpProxy, target: ProxyTarget): Uint8Array {
  const at = `${target.host.includes(":") ? `[${target.host}]` : target.host}:${target.port}`;
  const authorization = proxy.authorization === undefined ? "" : `Proxy-Authorization: ${proxy.authorization}\r\n`;
  return new TextEncoder().encode(`CONNECT ${at} HTTP/1.1\r\nHost: ${at}\r\n${authorization}\r\n`);
}

/** Collects the answer to CONNECT. */
export class ConnectAnswer {
  #head = "";

  /**
   * Takes bytes as they come; true once the pipe stands. Throws MeshError SERVER_UNREACHABLE for a refusal, PROTOCOL for
   * what is no answer to CONNECT.
   */
  push(bytes: Uint8Array, proxy: HttpProxy): boolean {
    for (const byte of bytes) this.#head += String.fromCharCode(byte);
    const end = this.#head.indexOf("\r\n\r\n");
    if (end < 0 && this.#head.length < MAX_HEAD) return false;
    const where = `${proxy.host}:${proxy.port}`;
    const [, status, reason] = /^HTTP\/1\.[01] (\d{3})(?: ([^\r\n]*))?\r\n/.exec(this.#head) ?? [];
    if (status === undefined) {
      throw new MeshError("PROTOCOL", `The HTTP proxy ${where} answers something else than HTTP`);
    }
    if (!status.startsWith("2")) {
      const said = `${status} ${(reason ?? "").slice(0, 100)}`.trim();
      throw new MeshError("SERVER_UNREACHABLE", `The HTTP proxy ${where} refuses to connect to the server: ${said}`, {
        hint: status === "407"
          ? "the proxy wants a name and a password: HTTPS_PROXY=http://user:password@host:port"
          : "have CONNECT to the server's host and port allowed there, or set proxy=off to go without it",
      });
    }
    // A server of ours says nothing before it has heard us.
    if (end + 4 !== this.#head.length) {
      throw new MeshError("PROTOCOL", `The HTTP proxy ${where} says more than it should`);
    }
    return true;
  }
}

/**
 * Asks for a pipe on a connection to a proxy; the connection then leads to the target. Rejects with MeshError. The
 * deadline is the caller's, who destroys the connection.
 */
export function throughProxy(connection: Duplex, proxy: HttpProxy, target: ProxyTarget): Promise<void> {
  return new Promise((resolve, reject) => {
    const answer = new ConnectAnswer();
    const end = (error?: MeshError) => {
      connection.removeListener("data", onData);
      connection.removeListener("error", onError);
      connection.removeListener("close", onClose);
      connection.pause();
      if (!error) return resolve();
      reject(error);
    };
    const lost = (cause?: unknown) =>
      end(
        new MeshError("SERVER_UNREACHABLE", `The HTTP proxy ${proxy.host}:${proxy.port} ended the connection`, {
          cause,
        }),
      );
    const onError = (cause: Error) => lost(cause);
    const onClose = () => lost();
    const onData = (bytes: Uint8Array) => {
      try {
        if (answer.push(bytes, proxy)) end();
      } catch (error) {
        end(error as MeshError);
      }
    };
    connection.on("data", onData);
    connection.once("error", onError);
    connection.once("close", onClose);
    connection.write(connectRequest(proxy, target));
  });
}

function firstOf(names: readonly string[], env: (name: string) => string | undefined): string | undefined {
  return names.map(env).find((value) => value !== undefined && value !== "");
}

function base64(text: string): string {
  return btoa(String.fromCharCode(...new TextEncoder().encode(text)));
}
