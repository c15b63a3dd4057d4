import assert from "node:assert/strict";
import { codeOf } from "../errors.ts";
import {
  afterStep,
  type AuthorityMaterial,
  type AuthorityState,
  type AuthorityStep,
  dueStep,
  issuingMaterial,
  MIN_OVERLAP_MS,
  type RotationPhase,
  trustedPem,
} from "./authority_state.ts";

const OLD: AuthorityMaterial = { bundlePem: "old;", keyPem: "old key" };
const NEW: AuthorityMaterial = { bundlePem: "new;", keyPem: "new key" };
const NOW = 1_800_000_000_000;
const OVERLAP = 100_000;

const steady: AuthorityState = { generation: 4, current: OLD };

function inPhase(phase: RotationPhase): AuthorityState {
  return {
    generation: 5,
    current: OLD,
    rotation: { phase, next: NEW, startedAt: NOW, switchAt: NOW + OVERLAP / 2, finishAt: NOW + OVERLAP },
  };
}

const STEPS: Readonly<Record<AuthorityStep["step"], AuthorityStep>> = {
  rotate: { step: "rotate", next: NEW, now: NOW, overlapMs: OVERLAP },
  switch: { step: "switch" },
  finish: { step: "finish" },
  rollback: { step: "rollback", now: NOW + 7 },
};

/** [phase after, issuing, trusted]; a refusal is one word. */
const TABLE: readonly [
  RotationPhase | "steady",
  AuthorityStep["step"],
  readonly [RotationPhase | "steady", string, string] | "refused",
][] = [
  ["steady", "rotate", ["announced", "old key", "old;new;"]],
  ["steady", "switch", "refused"],
  ["steady", "finish", "refused"],
  ["steady", "rollback", "refused"],
  ["announced", "rotate", "refused"],
  ["announced", "switch", ["switched", "new key", "old;new;"]],
  ["announced", "finish", "refused"],
  ["announced", "rollback", ["steady", "old key", "old;"]],
  ["switched", "rotate", "refused"],
  ["switched", "switch", "refused"],
  ["switched", "finish", ["steady", "new key", "new;"]],
  ["switched", "rollback", ["returning", "old key", "old;new;"]],
  ["returning", "rotate", "refused"],
  ["returning", "switch", "refused"],
  ["returning", "finish", ["steady", "old key", "old;"]],
  ["returning", "rollback", "refused"],
];

Deno.test("rotation: every step in every phase: what follows, who issues, who is trusted", () => {
  assert.equal(TABLE.length, 4 * Object.keys(STEPS).length);
  for (const [phase, step, expected] of TABLE) {
    const state = phase === "steady" ? steady : inPhase(phase);
    const what = `${step} while ${phase}`;
    if (expected === "refused") {
      assert.throws(() => afterStep(state, STEPS[step]), (e) => codeOf(e) === "CONFIG_INVALID", what);
      continue;
    }
    const next = afterStep(state, STEPS[step]);
    assert.deepEqual(
      [next.rotation?.phase ?? "steady", issuingMaterial(next).keyPem, trustedPem(next)],
      expected,
      what,
    );
    assert.equal(next.generation, state.generation + 1, "the change wins on every server");
  }
});

Deno.test("rotation: a step is due at its time, the switch also when every node knows", () => {
  const due = (phase: RotationPhase, at: number, allKnow = false) => dueStep(inPhase(phase), NOW + at, allKnow);
  assert.equal(dueStep(steady, NOW + 1e12, true), undefined);
  assert.equal(due("announced", OVERLAP / 2 - 1), undefined);
  assert.equal(due("announced", OVERLAP / 2), "switch");
  assert.equal(due("announced", 0, true), "switch");
  assert.equal(due("switched", OVERLAP - 1, true), undefined, "nodes that are away may still come");
  assert.equal(due("switched", OVERLAP), "finish");
  assert.equal(due("returning", OVERLAP), "finish");
});

Deno.test("rotation: taken back after the switch, both stay trusted for as long as the rotation would have taken", () => {
  const back = afterStep(inPhase("switched"), STEPS.rollback);
  assert.equal(back.rotation!.finishAt, NOW + 7 + OVERLAP);
});

Deno.test("rotation: an impossible overlap, and a root that is offline, are refused with what to do", () => {
  for (const overlapMs of [0, -1, NaN, MIN_OVERLAP_MS - 1, Infinity]) {
    assert.throws(() => afterStep(steady, { step: "rotate", next: NEW, now: NOW, overlapMs }), /overlap/);
  }
  const offline = { ...steady, current: { ...OLD, issuerPem: "issuer" } };
  assert.throws(() => afterStep(offline, STEPS.rotate), /offline/);
});
