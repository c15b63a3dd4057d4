/** What all servers of a mesh know alike: read as one value, compared by one digest, merged from others. */
import { createHash } from "node:crypto";
import type { WallMs } from "../clock.ts";
import type { Logger } from "../log.ts";
import type { Enrolments } from "./enrolment.ts";
import type { Members } from "./members.ts";
import type { RevocationList } from "./revocation.ts";
import type { RevocationRegistry } from "./revocation_registry.ts";
import type { SharedState } from "./server_messages.ts";

export interface SharedParts {
  readonly enrolments: Enrolments;
  readonly registry: RevocationRegistry;
  readonly members: Members;
  readonly log: Logger;
}

export class SharedStore {
  readonly #parts: SharedParts;
  /** The digest, and the immutable parts it was made of: counting thousands of nodes every two seconds is no idling. */
  #known: { readonly of: readonly unknown[]; readonly digest: string } | undefined;

  constructor(parts: SharedParts) {
    this.#parts = parts;
  }

  /** Everything, in one order on all servers. */
  value(): SharedState {
    const { enrolments, registry, members } = this.#parts;
    const revoked = this.#revokedKeys();
    const nodes = enrolments.list()
      .filter((e) => !revoked.has(e.keyHash))
      .map(({ node, keyHash, enrolledAt, token, labels }) => ({
        node,
        keyHash,
        enrolledAt,
        ...(token === undefined ? {} : { token }),
        labels: Object.fromEntries(Object.entries(labels).sort(([a], [b]) => a < b ? -1 : 1)),
      }))
      .sort((a, b) => a.node < b.node ? -1 : 1);
    const inOrder = <T extends { readonly by: string; readonly value: string }>(list: readonly T[]): readonly T[] =>
      [...list].sort((a, b) => a.by + a.value < b.by + b.value ? -1 : 1);
    return {
      revocations: { entries: inOrder(registry.list.entries), lifted: inOrder(registry.lifted) },
      nodes,
      servers: members.all,
    };
  }

  /** SHA-256 over {@link value}, hex: equal on servers that know the same. */
  digest(): string {
    const { enrolments, registry, members } = this.#parts;
    const of = [enrolments.byName, registry.list, registry.lifted, members.all];
    if (!this.#known || of.some((part, i) => part !== this.#known!.of[i])) {
      this.#known = { of, digest: createHash("sha256").update(JSON.stringify(this.value())).digest("hex") };
    }
    return this.#known.digest;
  }

  /**
   * Takes over what another server knows. On disk when it resolves; gives the revocation list when it changed, which the
   * caller puts in force. Throws PROTOCOL, LIMIT.
   */
  async merge(from: string, theirs: SharedState, now: WallMs): Promise<RevocationList | undefined> {
    const { enrolments, registry, members, log } = this.#parts;
    await members.merge(theirs.servers);
    const list = await registry.merge(theirs.revocations, now);
    const revoked = this.#revokedKeys();
    const disputed = await enrolments.merge(theirs.nodes, (keyHash) => revoked.has(keyHash));
    for (const node of disputed) {
      log.warn("two servers enrolled different keys under one name: the older one stays", { node, from });
    }
    return list;
  }

  /** Keys that hold no name any more. */
  #revokedKeys(): ReadonlySet<string> {
    return new Set(this.#parts.registry.list.entries.filter((e) => e.by === "key").map((e) => e.value));
  }
}
