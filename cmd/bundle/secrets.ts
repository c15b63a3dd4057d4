/** The secrets of this host that are known by where they are: they must not be in a bundle, whatever they look like. */
import type { AgentConfig, ServerConfig } from "../../lib/config.ts";
import { MASK, redactText } from "../../lib/redact.ts";

/** Shorter texts are words: masking them would destroy the bundle and hide nothing. */
const SHORTEST = 8;
/** More than any secret; a bigger file is not one. */
const LONGEST = 64 * 1024;

const SECRET_NAME = /TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|PRIVATE/i;

/** What is read to find them; replaced in tests. */
export interface SecretSources {
  readonly env: Readonly<Record<string, string>>;
  /** Undefined where a file is missing or not ours to read. */
  readText(path: string): Promise<string | undefined>;
}

/** Contents of token files, values of variables whose names speak of secrets, user parts of proxies. */
export async function knownSecrets(
  config: Partial<AgentConfig> & Partial<ServerConfig>,
  sources: SecretSources,
): Promise<readonly string[]> {
  const found = new Set<string>();
  const add = (text: string | undefined) => {
    const secret = text?.trim() ?? "";
    if (secret.length >= SHORTEST && secret.length <= LONGEST) found.add(secret);
  };
  for (const [name, value] of Object.entries(sources.env)) {
    // A path is where a secret is, not the secret.
    if (SECRET_NAME.test(name) && !value.startsWith("/")) add(value);
    const user = /^[a-z][a-z0-9+.-]*:\/\/([^/@\s]+)@/i.exec(value)?.[1];
    add(user?.slice(user.indexOf(":") + 1));
  }
  const files = ["/etc/edgemesh/join-token", config.tokenFile].filter((f) => f !== undefined && f !== "-");
  for (const file of files) for (const line of (await sources.readText(file!) ?? "").split("\n")) add(line);
  // Longest first: a secret that contains another one is masked as a whole.
  return [...found].sort((a, b) => b.length - a.length);
}

/** A text without known secrets and without what has the form of one. */
export function masker(secrets: readonly string[]): (text: string) => string {
  return (text) => {
    let out = text;
    for (const secret of secrets) out = out.replaceAll(secret, MASK);
    return redactText(out);
  };
}
