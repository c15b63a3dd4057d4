/** The server's join tokens on disk. Every change is on disk before its effect leaves the process. */
import { isNodeName } from "../addr.ts";
import type { WallMs } from "../clock.ts";
import { MeshError } from "../errors.ts";
import type { Role } from "./names.ts";
import { Serial } from "./serial.ts";
import { array, integer, LABELS, literal, object, optional, string } from "./shape.ts";
import type { StateFiles } from "./state_files.ts";
import { readState, writeState } from "./state_json.ts";
import {
  DEFAULT_TOKEN_TTL_MS,
  hashSecret,
  judgeToken,
  KEEP_EXPIRED_MS,
  MAX_TOKEN_USES,
  MAX_TOKENS,
  newToken,
  type ParsedToken,
  TOKEN_ID,
  type TokenDemand,
  type TokenRecord,
} from "./token.ts";

export const TOKENS_FILE = "tokens.json";

const HASH = string(64, 64, /^[0-9a-f]{64}$/);
const FILE = object({
  format: literal(1),
  tokens: array(
    object({
      id: string(1, 16, TOKEN_ID),
      secretHash: HASH,
      createdAt: integer(0),
      expiresAt: integer(0),
      maxUses: integer(1, MAX_TOKEN_USES),
      uses: array(object({ node: string(1, 63), keyHash: HASH, at: integer(0) }), MAX_TOKEN_USES),
      role: optional(literal("node", "server")),
      node: optional(string(1, 63)),
      labels: LABELS,
    }),
    MAX_TOKENS,
  ),
});

export interface NewTokenOptions {
  readonly now: WallMs;
  /** Default one hour. */
  readonly ttlMs?: number | undefined;
  /** Default one. */
  readonly maxUses?: number | undefined;
  /** Default: a node. */
  readonly role?: Role | undefined;
  readonly node?: string | undefined;
  readonly labels?: Readonly<Record<string, string>> | undefined;
}

/** Who shows a token: all of a {@link TokenDemand} but the secret. */
export type TokenHolder = Omit<TokenDemand, "secret">;

/** What a redeemed token gives. */
export interface Redeemed {
  readonly id: string;
  readonly labels: Readonly<Record<string, string>>;
}

export class TokenStore {
  readonly #files: StateFiles;
  readonly #serial = new Serial();
  #tokens: ReadonlyMap<string, TokenRecord>;

  private constructor(files: StateFiles, tokens: readonly TokenRecord[]) {
    this.#files = files;
    this.#tokens = new Map(tokens.map((t) => [t.id, t]));
  }

  /** Reads the store. Throws STATE_INVALID. */
  static async open(files: StateFiles): Promise<TokenStore> {
    const saved = await readState(files, TOKENS_FILE, {
      check: FILE,
      hint: "restore it from a backup, or remove it: tokens that were not used yet are then void",
    });
    // Tokens of before servers could join are for nodes.
    return new TokenStore(files, (saved?.tokens ?? []).map((t) => ({ ...t, role: t.role ?? "node" })));
  }

  /** Makes a token and returns its text, which cannot be had again. Throws CONFIG_INVALID or LIMIT. */
  create(options: NewTokenOptions): Promise<{ readonly text: string; readonly record: TokenRecord }> {
    const ttlMs = options.ttlMs ?? DEFAULT_TOKEN_TTL_MS;
    const maxUses = options.maxUses ?? 1;
    if (
      !Number.isFinite(ttlMs) || ttlMs < 1000 || !Number.isInteger(maxUses) || maxUses < 1 ||
      maxUses > MAX_TOKEN_USES ||
      (options.role === "server" && maxUses !== 1)
    ) {
      throw new MeshError("CONFIG_INVALID", `a token for ${maxUses} uses and ${ttlMs} ms cannot be made`);
    }
    if (options.node !== undefined && !isNodeName(options.node)) {
      throw new MeshError("CONFIG_INVALID", `${JSON.stringify(options.node)} cannot be a node name`);
    }
    const labels = LABELS(options.labels ?? {}, "labels");
    const { id, secret, text } = newToken();
    const token: TokenRecord = {
      id,
      secretHash: hashSecret(secret),
      createdAt: Math.floor(options.now),
      expiresAt: Math.floor(options.now + ttlMs),
      maxUses,
      uses: [],
      role: options.role ?? "node",
      ...(options.node === undefined ? {} : { node: options.node }),
      labels,
    };
    return this.#serial.run(async () => {
      const kept = [...this.#tokens.values()].filter((t) => t.expiresAt + KEEP_EXPIRED_MS > options.now);
      if (kept.length >= MAX_TOKENS) {
        throw new MeshError("LIMIT", `${MAX_TOKENS} join tokens exist already`, {
          hint: "revoke some, or wait until they expire",
        });
      }
      await this.#save([...kept, token]);
      return { text, record: token };
    });
  }

  /** All tokens, oldest first, without secrets. */
  list(): readonly TokenRecord[] {
    return [...this.#tokens.values()];
  }

  /** Forgets a token. Returns false when there is none of that id. */
  revoke(id: string): Promise<boolean> {
    return this.#serial.run(async () => {
      if (!this.#tokens.has(id)) return false;
      await this.#save([...this.#tokens.values()].filter((t) => t.id !== id));
      return true;
    });
  }

  /** Judges a token without using it; see {@link judgeToken} for what it throws. */
  check(token: ParsedToken, who: TokenHolder): void {
    judgeToken(this.#tokens.get(token.id), { ...who, secret: token.secret });
  }

  /** Uses a token for a node. When this resolves the use is on disk. Throws as {@link judgeToken} does. */
  redeem(token: ParsedToken, who: TokenHolder): Promise<Redeemed> {
    return this.#serial.run(async () => {
      const found = this.#tokens.get(token.id);
      const { fresh } = judgeToken(found, { ...who, secret: token.secret });
      if (fresh) {
        const use = { node: who.node, keyHash: who.keyHash, at: Math.floor(who.now) };
        const used = { ...found!, uses: [...found!.uses, use] };
        await this.#save([...this.#tokens.values()].map((t) => t.id === used.id ? used : t));
      }
      return { id: token.id, labels: found!.labels };
    });
  }

  /** Disk first, then memory: a failed write leaves both as they were. */
  async #save(tokens: readonly TokenRecord[]): Promise<void> {
    await writeState(this.#files, TOKENS_FILE, { format: 1, tokens });
    this.#tokens = new Map(tokens.map((t) => [t.id, t]));
  }
}
