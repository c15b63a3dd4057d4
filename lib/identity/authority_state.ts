/**
 * What an authority is, and how one is replaced by another without anybody losing anybody. Pure: authority.ts keeps it
 * on disk and issues by it.
 *
 * announced: the new one is told to all; certificates still come from the old one.
 * switched:  nodes get certificates of the new one; servers keep showing the old one's, which also those know who were
 *            away so far.
 * returning: taken back after the switch: nodes get certificates of the old one again; both are trusted.
 * Then one of the two is dropped. Who was away all the time, from the announcement to the end, has to join again.
 */
import type { WallMs } from "../clock.ts";
import { assertNever, MeshError } from "../errors.ts";
import { integer, literal, object, optional, string, type Validator } from "./shape.ts";

/** One authority with its key. */
export interface AuthorityMaterial {
  /** Certificates that members trust, PEM. */
  readonly bundlePem: string;
  /** PKCS #8 PEM. */
  readonly keyPem: string;
  /** The issuing certificate with its chain when it is not in the bundle itself (offline root). */
  readonly issuerPem?: string | undefined;
}

export type RotationPhase = "announced" | "switched" | "returning";

export interface Rotation {
  readonly phase: RotationPhase;
  readonly next: AuthorityMaterial;
  readonly startedAt: WallMs;
  /** When nodes get certificates of the new one, unless all of them know it before. */
  readonly switchAt: WallMs;
  /** When the one that is leaving is dropped. */
  readonly finishAt: WallMs;
}

export interface AuthorityState {
  /** Rises with every change; of two servers the higher one is right. */
  readonly generation: number;
  readonly current: AuthorityMaterial;
  readonly rotation?: Rotation | undefined;
}

/** What an operator, or the time, does to an authority. */
export type AuthorityStep =
  | { readonly step: "rotate"; readonly next: AuthorityMaterial; readonly now: WallMs; readonly overlapMs: number }
  | { readonly step: "switch" }
  | { readonly step: "finish" }
  | { readonly step: "rollback"; readonly now: WallMs };

/** The least time in which both are trusted: agents that are connected hear of a change within seconds. */
export const MIN_OVERLAP_MS = 60_000;
export const MAX_OVERLAP_MS = 365 * 24 * 3600 * 1000;
/** As long as peers accept an expired certificate: who was away for longer has to join again anyway. */
export const DEFAULT_OVERLAP_MS = 30 * 24 * 3600 * 1000;

const MATERIAL: Validator<AuthorityMaterial> = object({
  bundlePem: string(1, 16_384),
  keyPem: string(1, 1000),
  issuerPem: optional(string(1, 16_384)),
});

/** Shape on disk and between servers. */
export const AUTHORITY_STATE: Validator<AuthorityState> = object({
  generation: integer(0),
  current: MATERIAL,
  rotation: optional(object({
    phase: literal("announced", "switched", "returning"),
    next: MATERIAL,
    startedAt: integer(0),
    switchAt: integer(0),
    finishAt: integer(0),
  })),
});

/** The state after a step. Throws CONFIG_INVALID with the reason when the step does not fit the phase. */
export function afterStep(state: AuthorityState, input: AuthorityStep): AuthorityState {
  const { current, rotation } = state;
  const generation = state.generation + 1;
  switch (input.step) {
    case "rotate": {
      if (rotation) {
        throw refused(
          "a rotation of the authority is under way",
          "see `edgemesh server ca status`; finish or take it back",
        );
      }
      if (current.issuerPem !== undefined) {
        throw refused(
          "the root of this authority is offline: only its owner can make another one",
          "put the new root beside the old one into ca.crt on every server; when every node has renewed, replace ca.key " +
            "and issuer.crt, and later take the old root out",
        );
      }
      const { next, now, overlapMs } = input;
      if (!(overlapMs >= MIN_OVERLAP_MS && overlapMs <= MAX_OVERLAP_MS)) {
        throw refused(`an overlap of ${overlapMs / 1000} s is not possible`, "use one minute to 365 days, like 30d");
      }
      const startedAt = Math.floor(now);
      const finishAt = startedAt + Math.floor(overlapMs);
      const switchAt = startedAt + Math.floor(overlapMs / 2);
      return { generation, current, rotation: { phase: "announced", next, startedAt, switchAt, finishAt } };
    }
    case "switch":
      if (rotation?.phase !== "announced") throw refused(`nothing is announced: ${phaseText(rotation)}`);
      return { generation, current, rotation: { ...rotation, phase: "switched" } };
    case "finish":
      if (!rotation) throw refused("no rotation of the authority is under way");
      switch (rotation.phase) {
        case "announced":
          throw refused(
            "nodes have no certificates of the new authority yet",
            "`edgemesh server ca switch` comes first",
          );
        case "switched":
          return { generation, current: rotation.next };
        case "returning":
          return { generation, current };
        default:
          return assertNever(rotation.phase);
      }
    case "rollback":
      if (!rotation) throw refused("no rotation of the authority is under way");
      switch (rotation.phase) {
        case "announced":
          return { generation, current };
        case "switched": {
          // As long as the rotation would have taken: nodes that are away carry certificates of the new one.
          const finishAt = Math.floor(input.now) + (rotation.finishAt - rotation.startedAt);
          return { generation, current, rotation: { ...rotation, phase: "returning", finishAt } };
        }
        case "returning":
          throw refused("the rotation was taken back already", "it ends by itself, or by `edgemesh server ca finish`");
        default:
          return assertNever(rotation.phase);
      }
    default:
      return assertNever(input);
  }
}

/** The step whose time has come. `allKnow`: every node that is not revoked knows the new authority. */
export function dueStep(state: AuthorityState, now: WallMs, allKnow: boolean): "switch" | "finish" | undefined {
  const { rotation } = state;
  if (!rotation) return undefined;
  if (rotation.phase === "announced") return allKnow || now >= rotation.switchAt ? "switch" : undefined;
  return now >= rotation.finishAt ? "finish" : undefined;
}

/** Trusted certificates of a state, PEM: the one that leads to servers' certificates first. */
export function trustedPem({ current, rotation }: AuthorityState): string {
  return current.bundlePem + (rotation?.next.bundlePem ?? "");
}

/** Where certificates of nodes come from. */
export function issuingMaterial({ current, rotation }: AuthorityState): AuthorityMaterial {
  return rotation?.phase === "switched" ? rotation.next : current;
}

function phaseText(rotation: Rotation | undefined): string {
  return rotation ? `the rotation is ${rotation.phase}` : "no rotation of the authority is under way";
}

function refused(message: string, hint?: string): MeshError {
  return new MeshError("CONFIG_INVALID", message, hint === undefined ? {} : { hint });
}
