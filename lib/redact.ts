/**
 * Takes secrets out of what is shown to people or handed to others: `config show`, the support bundle. By form, because
 * a secret may stand where nobody expected one: a token pasted as a file's name, a password inside a proxy's URL.
 */

/** What stands where a secret was. */
export const MASK = "***";

const PATTERNS: readonly (readonly [RegExp, string])[] = [
  [/-----BEGIN ([A-Z ]*PRIVATE KEY)-----[\s\S]*?(-----END \1-----|$)/g, `(private key: ${MASK})`],
  // Join tokens: the id before the dot is no secret and names the token in `edgemesh token list`.
  [/\b(em_[a-z0-9]{4,12})\.[A-Za-z0-9]{8,}/g, `$1.${MASK}`],
  // JSON Web Tokens, as in a kubeconfig or a projected service account.
  [/\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*/g, MASK],
  [/(\b[a-z][a-z0-9+.-]*:\/\/)[^\s/@"']+@/gi, `$1${MASK}@`],
  [/\b(bearer|basic)\s+[\w.~+/=-]{8,}/gi, `$1 ${MASK}`],
  [
    /("?\b[\w.-]*(?:passw(?:or)?d|secret|token|private[_-]?key|api[_-]?key|client-key-data|credentials?)"?\s*[:=]\s*)("(?:[^"\\]|\\.)*"|'[^']*'|[^\s,;}"']+)/gi,
    `$1${MASK}`,
  ],
];

/** The same text without what has the form of a secret. */
export function redactText(text: string): string {
  let out = text;
  for (const [pattern, instead] of PATTERNS) out = out.replace(pattern, instead);
  return out;
}

/** Keys whose values name a file. What is no path there may be the secret itself, pasted by mistake. */
const FILE_KEYS = new Set(["tokenFile", "kubeconfig"]);

/** A copy of a configuration for showing. */
export function redactConfig<T>(value: T, key = ""): T {
  return redacted(value, key) as T;
}

function redacted(value: unknown, key: string): unknown {
  if (typeof value === "string") {
    return FILE_KEYS.has(key) && !/^(-|in-cluster|[~.]?\/.*|[\w./-]+\.(ya?ml|conf|config|token|txt))$/.test(value)
      ? MASK
      : redactText(value);
  }
  if (Array.isArray(value)) return value.map((item) => redacted(item, key));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, redacted(inner, name)]));
}
