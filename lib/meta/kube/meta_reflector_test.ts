import assert from "node:assert/strict";
import fc from "fast-check";
import type { MetaAction, MetaInput } from "./meta_reflector.ts";
import { META_ANSWER_MS, MetaReflector, SETTLE_MS } from "./meta_reflector.ts";

type Bare = { readonly type: MetaInput["type"]; readonly [key: string]: unknown };

/** Inputs are given with `of`: the attempt of the list or of the watch under way. */
class Rig {
  readonly reflector = new MetaReflector(() => 0.5);
  now = 0;
  list = 0;
  watch = 0;
  log: string[] = [];

  do(...inputs: (Bare & { of?: "list" | "watch" })[]): string[] {
    const out: string[] = [];
    for (const { of, ...input } of inputs) {
      const attempt = of === "watch" ? this.watch : this.list;
      for (const action of this.reflector.step({ attempt, ...input } as unknown as MetaInput, this.now)) {
        if (action.do === "list") this.list = action.attempt;
        if (action.do === "watch") this.watch = action.attempt;
        out.push(text(action));
      }
    }
    this.log.push(...out);
    return out;
  }

  wait(): string[] {
    this.now = this.reflector.deadline!;
    return this.do({ type: "time" });
  }
}

function text(action: MetaAction): string {
  if (action.do === "list") return action.token === undefined ? "list" : `list ${action.token}`;
  return action.do === "report" ? `report ${action.health.name}` : action.do;
}

const cloud = { type: "page", local: false, of: "list" } as const;
const local = { type: "page", local: true, of: "list" } as const;
const opened = { type: "opened", of: "watch" } as const;

const INTO: Record<string, (r: Rig) => void> = {
  "off/off": () => {},
  "listing/off": (r) => void r.do({ type: "start" }),
  "until/off": (r) => void r.do({ type: "start" }, { type: "unknown", of: "list" }),
  "until/opening": (r) => void r.do({ type: "start" }, cloud),
  "until/open": (r) => void r.do({ type: "start" }, cloud, opened),
  "until/until": (r) => void r.do({ type: "start" }, cloud, { type: "broke", of: "watch" }),
  "listing/open": (r) => {
    r.do({ type: "start" }, cloud, opened);
    r.now += SETTLE_MS;
    r.do({ type: "time" });
  },
};

/** Every (state, input) pair of each of the two halves; the other half's state must not change by it. */
const TABLE: [string, Bare & { of?: "list" | "watch" }, string[], string][] = [
  ["off/off", { type: "start" }, ["list"], "listing/off"],
  ["off/off", { type: "stop" }, [], "off/off"],
  ["off/off", { type: "time" }, [], "off/off"],
  ["off/off", { type: "nudge" }, [], "off/off"],
  ["off/off", cloud, [], "off/off"],
  ["off/off", opened, [], "off/off"],

  ["listing/off", { type: "start" }, [], "listing/off"],
  ["listing/off", { type: "stop" }, ["cancel"], "off/off"],
  ["listing/off", { type: "time" }, [], "listing/off"],
  ["listing/off", { type: "nudge" }, [], "listing/off"],
  ["listing/off", { type: "progress", of: "list" }, [], "listing/off"],
  ["listing/off", cloud, ["commit", "report following", "watch"], "until/opening"],
  ["listing/off", { ...cloud, more: "t" }, ["list t"], "listing/off"],
  ["listing/off", local, ["keep", "report failing", "watch"], "until/opening"],
  ["listing/off", { type: "unknown", of: "list" }, ["report unknown"], "until/off"],
  ["listing/off", { type: "refused", status: 500, of: "list" }, ["report failing"], "until/off"],
  ["listing/off", { type: "refused", status: 401, of: "list" }, ["reauthenticate", "report failing"], "until/off"],
  ["listing/off", { type: "refused", status: 403, of: "list" }, ["report forbidden"], "until/off"],
  ["listing/off", { type: "broke", of: "list" }, ["report failing"], "until/off"],

  ["until/off", { type: "start" }, [], "until/off"],
  ["until/off", { type: "stop" }, [], "off/off"],
  ["until/off", { type: "time" }, [], "until/off"],
  ["until/off", { type: "nudge" }, ["list"], "listing/off"],
  ["until/off", cloud, [], "until/off"],
  ["until/off", { type: "broke", of: "list" }, [], "until/off"],

  ["until/opening", { type: "stop" }, ["cancel"], "off/off"],
  ["until/opening", { type: "nudge" }, ["list"], "listing/opening"],
  ["until/opening", opened, [], "until/open"],
  ["until/opening", { type: "ended", of: "watch" }, [], "until/until"],
  ["until/opening", { type: "broke", of: "watch" }, [], "until/until"],
  ["until/opening", { type: "refused", status: 500, of: "watch" }, [], "until/until"],
  ["until/opening", { type: "refused", status: 401, of: "watch" }, ["reauthenticate"], "until/until"],
  ["until/opening", { type: "garbled", of: "watch" }, ["cancel"], "until/until"],
  ["until/opening", { type: "progress", of: "watch" }, [], "until/opening"],
  ["until/opening", { type: "unknown", of: "watch" }, [], "until/opening"],
  ["until/opening", { ...cloud, of: "watch" }, [], "until/opening"],

  ["until/open", { type: "stop" }, ["cancel"], "off/off"],
  ["until/open", { type: "nudge" }, ["list", "cancel", "watch"], "listing/opening"],
  ["until/open", opened, [], "until/open"],
  ["until/open", { type: "ended", of: "watch" }, [], "until/until"],
  ["until/open", { type: "broke", of: "watch" }, [], "until/until"],
  ["until/open", { type: "refused", status: 500, of: "watch" }, [], "until/until"],
  ["until/open", { type: "event", of: "watch" }, [], "until/open"],
  ["until/open", { type: "garbled", of: "watch" }, ["cancel"], "until/until"],

  ["until/until", { type: "stop" }, [], "off/off"],
  ["until/until", { type: "nudge" }, ["list"], "listing/until"],
  ["until/until", opened, [], "until/until"],
  ["until/until", { type: "ended", of: "watch" }, [], "until/until"],

  ["listing/open", { type: "stop" }, ["cancel", "cancel"], "off/off"],
  ["listing/open", { type: "nudge" }, ["cancel", "watch"], "listing/opening"],
  ["listing/open", cloud, ["commit"], "until/open"],
  ["listing/open", local, ["keep", "report failing"], "until/open"],
  ["listing/open", { type: "broke", of: "list" }, ["report failing"], "until/open"],
  ["listing/open", { type: "broke", of: "watch" }, [], "listing/until"],
];

for (const [state, input, expected, after] of TABLE) {
  const name = Object.entries(input).map(([k, v]) => k === "type" ? v : `${k}=${v}`).join(" ");
  Deno.test(`meta reflector: ${state}, ${name}`, () => {
    const rig = new Rig();
    INTO[state]!(rig);
    assert.equal(rig.reflector.state, state);
    assert.deepEqual(rig.do(input), expected);
    assert.equal(rig.reflector.state, after);
  });
}

Deno.test("meta reflector: a list follows each new watch", () => {
  const rig = new Rig();
  INTO["until/open"]!(rig);
  assert.equal(rig.reflector.deadline, SETTLE_MS);
  assert.deepEqual(rig.wait(), ["list"]);
});

Deno.test("meta reflector: pages of which one is local are local together", () => {
  const rig = new Rig();
  assert.deepEqual(rig.do({ type: "start" }, { ...local, more: "t" }, cloud), [
    "list",
    "list t",
    "keep",
    "report failing",
    "watch",
  ]);
});

Deno.test("meta reflector: while the edge answers for itself it is asked every five seconds; the cloud's return renews the watch", () => {
  const rig = new Rig();
  INTO["listing/open"]!(rig);
  rig.do(local);
  const before = rig.now;
  assert.deepEqual(rig.wait(), ["list"]);
  assert.equal(rig.now - before, 5000);
  assert.deepEqual(rig.do(cloud), ["commit", "report following", "cancel", "watch"]);
});

Deno.test("meta reflector: requests without an answer are given up, dead watches too", () => {
  const listing = new Rig();
  INTO["listing/off"]!(listing);
  assert.equal(listing.reflector.deadline, META_ANSWER_MS);
  assert.deepEqual(listing.wait(), ["cancel", "report failing"]);
  const opening = new Rig();
  INTO["until/opening"]!(opening);
  assert.equal(opening.reflector.deadline, META_ANSWER_MS);
  assert.deepEqual(opening.wait(), ["cancel", "watch"]);
  const open = new Rig();
  INTO["listing/open"]!(open);
  open.do(cloud);
  const steps: string[] = [];
  while (open.now < 340_000) {
    steps.push(...open.wait());
    if (open.reflector.state.startsWith("listing")) open.do(cloud);
  }
  assert.ok(steps.includes("watch"), "a watch that outlives its own limit is dead");
});

Deno.test("meta reflector: any sequence of inputs leaves it able to go on", () => {
  const input = fc.oneof(
    fc.constantFrom<Bare & { of?: "list" | "watch" }>(
      { type: "time" },
      { type: "nudge" },
      cloud,
      local,
      { ...cloud, more: "t" },
      { type: "unknown", of: "list" },
      { type: "broke", of: "list" },
      { type: "refused", status: 429, retryAfterMs: 9000, of: "list" },
      opened,
      { type: "ended", of: "watch" },
      { type: "broke", of: "watch" },
      { type: "garbled", of: "watch" },
      { type: "refused", status: 401, of: "watch" },
    ),
    fc.constant<Bare>({ type: "start" }),
  );
  fc.assert(fc.property(fc.array(fc.tuple(input, fc.nat(40_000)), { maxLength: 60 }), (steps) => {
    const rig = new Rig();
    rig.do({ type: "start" });
    for (const [step, ms] of steps) {
      rig.now += ms;
      rig.do(step);
      assert.notEqual(rig.reflector.deadline, undefined);
    }
    for (let i = 0; i < 12 && rig.reflector.state !== "until/open"; i++) {
      if (rig.reflector.state.startsWith("listing")) rig.do(cloud);
      else if (rig.reflector.state.endsWith("opening")) rig.do(opened);
      else rig.wait();
    }
    assert.equal(rig.reflector.state, "until/open");
    rig.do({ type: "stop" });
    assert.equal(rig.reflector.deadline, undefined);
  }));
});
