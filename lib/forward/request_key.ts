/**
 * The value in an HTTP/1 request that keeps its client at one endpoint: a header, a cookie or a query parameter, as
 * Istio's `consistentHash` names it. Only the head of a connection's first request is looked at, and nothing in it is
 * judged: whatever is no HTTP/1 request has no key. Pure.
 */

/** What of a request is hashed. Header names are in lower case. */
export type HashOn =
  | { readonly kind: "header"; readonly name: string }
  | { readonly kind: "cookie"; readonly name: string }
  | { readonly kind: "query"; readonly name: string };

/**
 * - `more`: the bytes so far do not say yet.
 * - `known`: the key, or undefined where the request has none (or is none).
 */
export type RequestKey = { readonly state: "more" } | { readonly state: "known"; readonly key: string | undefined };

const MORE: RequestKey = { state: "more" };
const NONE: RequestKey = { state: "known", key: undefined };
/** Longest method (RFC 9110 and its registry: `UPDATEREDIRECTREF`, 17 letters); more without a space is not HTTP. */
const MAX_METHOD = 20;
const TOKEN = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/;
const REQUEST_LINE = /^[^ ]+ ([^ ]+) HTTP\/1\.[01]$/;

/** Looks for the key in the bytes that a client has sent so far. */
export function requestKey(head: Uint8Array, on: HashOn): RequestKey {
  // One character per byte: names are ASCII, and values need only be told apart.
  const text = latin1(head);
  const space = text.indexOf(" ");
  const method = space < 0 ? text : text.slice(0, space);
  if (method.length > MAX_METHOD || (method !== "" && !TOKEN.test(method))) return NONE;
  const end = text.indexOf("\n");
  if (end < 0) return MORE;
  const target = REQUEST_LINE.exec(lineAt(text, 0, end))?.[1];
  if (target === undefined) return NONE;
  return on.kind === "query" ? known(queryValue(target, on.name)) : headerKey(text, end + 1, on);
}

function headerKey(text: string, from: number, on: HashOn): RequestKey {
  const wanted = on.kind === "header" ? on.name : "cookie";
  for (let start = from, end = text.indexOf("\n", start); end >= 0; start = end + 1, end = text.indexOf("\n", start)) {
    const line = lineAt(text, start, end);
    if (line === "") return NONE;
    const colon = line.indexOf(":");
    if (colon < 0 || line.slice(0, colon).toLowerCase() !== wanted) continue;
    const value = line.slice(colon + 1).trim();
    const key = on.kind === "header" ? value : cookieValue(value, on.name);
    // Cookies may be spread over several lines (RFC 9113 §8.2.3 lets gateways do so).
    if (key !== undefined) return known(key);
  }
  return MORE;
}

/** RFC 6265 §5.4: `name=value` pairs, separated by `; `. */
function cookieValue(header: string, name: string): string | undefined {
  for (const pair of header.split(";")) {
    const equals = pair.indexOf("=");
    if (equals >= 0 && pair.slice(0, equals).trim() === name) return pair.slice(equals + 1).trim();
  }
  return undefined;
}

/** The first value of the parameter; names and values count as they decode, so that `%61` is `a`. */
function queryValue(target: string, name: string): string | undefined {
  const question = target.indexOf("?");
  if (question < 0) return undefined;
  const hash = target.indexOf("#", question);
  return new URLSearchParams(target.slice(question + 1, hash < 0 ? undefined : hash)).get(name) ?? undefined;
}

function known(key: string | undefined): RequestKey {
  return { state: "known", key };
}

/** The line without its end, CRLF or LF alone (RFC 9112 §2.2). */
function lineAt(text: string, start: number, end: number): string {
  return text.slice(start, text[end - 1] === "\r" && end > start ? end - 1 : end);
}

function latin1(bytes: Uint8Array): string {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return text;
}
