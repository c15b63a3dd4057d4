import assert from "node:assert/strict";
import fc from "fast-check";
import type { Action, Input } from "./reflector.ts";
import { ANSWER_MS, Reflector, SILENCE_MS } from "./reflector.ts";

/** A reflector and a clock; inputs are written without their attempt, which is that of the request under way. */
class Rig {
  readonly reflector = new Reflector(() => 0.5);
  now = 0;
  attempt = 0;
  log: string[] = [];

  do(...inputs: (DistributiveOmit<Input, "attempt"> & { attempt?: number })[]): string[] {
    const out: string[] = [];
    for (const input of inputs) {
      for (const action of this.reflector.step(this.#whole(input), this.now)) {
        if ("attempt" in action && action.do !== "cancel") this.attempt = action.attempt;
        out.push(text(action));
      }
    }
    this.log.push(...out);
    return out;
  }

  #whole(input: DistributiveOmit<Input, "attempt"> & { attempt?: number }): Input {
    const own = ["start", "stop", "time", "nudge"].includes(input.type);
    return (own ? input : { attempt: this.attempt, ...input }) as Input;
  }

  /** Lets time pass to the next deadline. */
  wait(): string[] {
    this.now = this.reflector.deadline!;
    return this.do({ type: "time" });
  }

  get waits(): number {
    return this.reflector.deadline! - this.now;
  }
}

type DistributiveOmit<T, K extends PropertyKey> = T extends unknown ? Omit<T, K> : never;

function text(action: Action): string {
  switch (action.do) {
    case "list":
      return action.token === undefined ? "list" : `list ${action.token}`;
    case "watch":
      return `watch ${action.version}`;
    case "report":
      return `report ${action.health.name}`;
    default:
      return action.do;
  }
}

const page = (version: string, more?: string) => ({ type: "page" as const, version, more });
const refused = (status: number, retryAfterMs?: number) => ({
  type: "refused" as const,
  status,
  ...(retryAfterMs === undefined ? {} : { retryAfterMs }),
});

/** Ways to bring a reflector into each state. */
const INTO: Record<string, (rig: Rig) => void> = {
  stopped: () => {},
  listing: (r) => void r.do({ type: "start" }),
  opening: (r) => void r.do({ type: "start" }, page("7")),
  watching: (r) => void r.do({ type: "start" }, page("7"), { type: "opened" }),
  "waiting to list": (r) => void r.do({ type: "start" }, { type: "broke" }),
  "waiting to watch": (r) => void r.do({ type: "start" }, page("7"), { type: "broke" }),
};

/** Every (state, input) pair: what is done, and the state after. */
const TABLE: [string, DistributiveOmit<Input, "attempt">, string[], string][] = [
  ["stopped", { type: "start" }, ["list"], "listing"],
  ["stopped", { type: "stop" }, [], "stopped"],
  ["stopped", { type: "time" }, [], "stopped"],
  ["stopped", { type: "nudge" }, [], "stopped"],
  ["stopped", { type: "progress" }, [], "stopped"],
  ["stopped", page("9"), [], "stopped"],
  ["stopped", refused(500), [], "stopped"],
  ["stopped", { type: "broke" }, [], "stopped"],
  ["stopped", { type: "unknown" }, [], "stopped"],
  ["stopped", { type: "opened" }, [], "stopped"],
  ["stopped", { type: "event", version: "9" }, [], "stopped"],
  ["stopped", { type: "ended" }, [], "stopped"],
  ["stopped", { type: "garbled" }, [], "stopped"],

  ["listing", { type: "start" }, [], "listing"],
  ["listing", { type: "stop" }, ["cancel"], "stopped"],
  ["listing", { type: "time" }, [], "listing"],
  ["listing", { type: "nudge" }, [], "listing"],
  ["listing", { type: "progress" }, [], "listing"],
  ["listing", page("9"), ["commit", "report following", "watch 9"], "opening"],
  ["listing", page("9", "token"), ["list token"], "listing"],
  ["listing", refused(500), ["report failing"], "waiting"],
  ["listing", refused(401), ["reauthenticate", "report failing"], "waiting"],
  ["listing", refused(403), ["report forbidden"], "waiting"],
  ["listing", refused(404), ["report unknown"], "waiting"],
  ["listing", refused(410), ["list"], "listing"],
  ["listing", { type: "broke" }, ["report failing"], "waiting"],
  ["listing", { type: "unknown" }, ["report unknown"], "waiting"],
  ["listing", { type: "opened" }, [], "listing"],
  ["listing", { type: "event", version: "9" }, [], "listing"],
  ["listing", { type: "ended" }, ["report failing"], "waiting"],
  ["listing", { type: "garbled" }, ["cancel", "report failing"], "waiting"],

  ["opening", { type: "start" }, [], "opening"],
  ["opening", { type: "stop" }, ["cancel"], "stopped"],
  ["opening", { type: "time" }, [], "opening"],
  ["opening", { type: "nudge" }, [], "opening"],
  ["opening", { type: "progress" }, [], "opening"],
  ["opening", page("9"), [], "opening"],
  ["opening", refused(500), ["report failing"], "waiting"],
  ["opening", refused(401), ["reauthenticate", "report failing"], "waiting"],
  ["opening", refused(403), ["report failing"], "waiting"],
  ["opening", refused(404), ["report failing"], "waiting"],
  ["opening", refused(410), ["list"], "listing"],
  ["opening", { type: "broke" }, ["report failing"], "waiting"],
  ["opening", { type: "unknown" }, [], "opening"],
  ["opening", { type: "opened" }, [], "watching"],
  ["opening", { type: "event", version: "9" }, [], "opening"],
  ["opening", { type: "ended" }, ["report failing"], "waiting"],
  ["opening", { type: "garbled" }, [], "opening"],

  ["watching", { type: "start" }, [], "watching"],
  ["watching", { type: "stop" }, ["cancel"], "stopped"],
  ["watching", { type: "time" }, [], "watching"],
  ["watching", { type: "nudge" }, [], "watching"],
  ["watching", { type: "progress" }, [], "watching"],
  ["watching", page("9"), [], "watching"],
  ["watching", refused(500), ["cancel"], "waiting"],
  ["watching", refused(401), ["cancel", "reauthenticate"], "waiting"],
  ["watching", refused(403), ["cancel"], "waiting"],
  ["watching", refused(404), ["cancel"], "waiting"],
  ["watching", refused(410), ["cancel", "list"], "listing"],
  ["watching", { type: "broke" }, [], "waiting"],
  ["watching", { type: "unknown" }, [], "watching"],
  ["watching", { type: "opened" }, [], "watching"],
  ["watching", { type: "event", version: "9" }, [], "watching"],
  ["watching", { type: "ended" }, [], "waiting"],
  ["watching", { type: "garbled" }, ["cancel"], "waiting"],

  ...["waiting to list", "waiting to watch"].flatMap((state): typeof TABLE => [
    [state, { type: "start" }, [], "waiting"],
    [state, { type: "stop" }, [], "stopped"],
    [state, { type: "time" }, [], "waiting"],
    [state, { type: "nudge" }, [], "waiting"],
    [state, { type: "progress" }, [], "waiting"],
    [state, page("9"), [], "waiting"],
    [state, refused(500), [], "waiting"],
    [state, { type: "broke" }, [], "waiting"],
    [state, { type: "unknown" }, [], "waiting"],
    [state, { type: "opened" }, [], "waiting"],
    [state, { type: "event", version: "9" }, [], "waiting"],
    [state, { type: "ended" }, [], "waiting"],
    [state, { type: "garbled" }, [], "waiting"],
  ]),
];

for (const [state, input, expected, after] of TABLE) {
  const name = Object.values(input).join(" ").trim();
  Deno.test(`reflector: ${state}, ${name}`, () => {
    const rig = new Rig();
    INTO[state]!(rig);
    assert.deepEqual(rig.do(input), expected);
    assert.equal(rig.reflector.state, after);
  });
}

Deno.test("reflector: a deadline that passes, in each state", () => {
  const after = (state: string) => {
    const rig = new Rig();
    INTO[state]!(rig);
    const waited = rig.waits;
    return [waited, rig.wait(), rig.reflector.state];
  };
  assert.deepEqual(after("listing"), [ANSWER_MS, ["cancel", "report failing"], "waiting"]);
  assert.deepEqual(after("opening"), [ANSWER_MS, ["cancel", "report failing"], "waiting"]);
  assert.deepEqual(after("watching"), [SILENCE_MS, ["cancel", "watch 7"], "opening"]);
  assert.deepEqual(after("waiting to list").slice(1), [["list"], "listing"]);
  assert.deepEqual(after("waiting to watch").slice(1), [["watch 7"], "opening"]);
});

Deno.test("reflector: inputs of an earlier attempt are ignored", () => {
  const rig = new Rig();
  INTO.watching!(rig);
  const old = rig.attempt;
  rig.wait();
  rig.do({ type: "opened" });
  assert.deepEqual(rig.do({ type: "event", version: "99", attempt: old }, { type: "broke", attempt: old }), []);
  assert.equal(rig.reflector.state, "watching");
  assert.deepEqual(rig.wait(), ["cancel", "watch 7"], "the version of the old attempt was not taken");
});

Deno.test("reflector: a nudge opens a quiet watch anew and ends a wait after failure, but not one for rights", () => {
  const quiet = new Rig();
  INTO.watching!(quiet);
  quiet.now += 1_999;
  assert.deepEqual(quiet.do({ type: "nudge" }), [], "heard of just now");
  quiet.now += 1;
  assert.deepEqual(quiet.do({ type: "nudge" }), ["cancel", "watch 7"]);
  const failing = new Rig();
  INTO["waiting to watch"]!(failing);
  failing.do({ type: "nudge" });
  assert.equal(failing.waits, 0);
  const forbidden = new Rig();
  INTO.listing!(forbidden);
  forbidden.do(refused(403), { type: "nudge" });
  assert.ok(forbidden.waits > 0);
});

Deno.test("reflector: a plain end goes on from the last version, without a list and without a pause", () => {
  const rig = new Rig();
  INTO.watching!(rig);
  rig.do({ type: "event", version: "8" }, { type: "event", version: "12" });
  rig.now += 240_000;
  assert.deepEqual(rig.do({ type: "ended" }), ["watch 12"]);
});

Deno.test("reflector: a server that ends each watch at once is not asked without pause", () => {
  const rig = new Rig();
  INTO.watching!(rig);
  let asked = 0;
  while (rig.now < 10_000) {
    rig.do({ type: "ended" });
    asked += rig.wait().filter((a) => a.startsWith("watch") || a === "list").length;
    rig.do({ type: "opened" });
  }
  assert.ok(asked <= 12, `${asked} requests in ten seconds`);
});

Deno.test("reflector: expired versions: one list at once, then with pauses", () => {
  const rig = new Rig();
  INTO.watching!(rig);
  assert.deepEqual(rig.do(refused(410)), ["cancel", "list"]);
  assert.deepEqual(rig.do(page("20"), refused(410)), ["commit", "watch 20"], "a second 410 in a row waits");
  assert.equal(rig.reflector.state, "waiting");
  assert.deepEqual(rig.wait(), ["list"]);
  rig.do(page("30"), { type: "opened" }, { type: "event", version: "31" });
  assert.deepEqual(rig.do(refused(410)), ["cancel", "list"], "after an event it is a first one again");
});

Deno.test("reflector: a token of a paged list that expired begins the list anew", () => {
  const rig = new Rig();
  assert.deepEqual(rig.do({ type: "start" }, page("5", "t1"), refused(410), page("6")), [
    "list",
    "list t1",
    "list",
    "commit",
    "report following",
    "watch 6",
  ]);
});

Deno.test("reflector: Retry-After is honoured up to a minute", () => {
  for (const [given, expected] of [[2_000, 2_000], [20_000, 20_000], [3_600_000, 60_000]] as const) {
    const rig = new Rig();
    INTO.listing!(rig);
    rig.do(refused(429, given));
    assert.equal(rig.waits, expected);
  }
});

Deno.test("reflector: an API that is gone is asked at least every three seconds, whatever it was doing", () => {
  for (const state of ["listing", "opening", "watching"]) {
    const rig = new Rig();
    INTO[state]!(rig);
    for (let i = 0; i < 50; i++) {
      rig.do({ type: "broke" });
      assert.ok(rig.waits <= 3_000, `${rig.waits}`);
      rig.wait();
    }
    assert.equal(rig.log.filter((l) => l === "commit").length, state === "listing" ? 0 : 1);
    assert.ok(state === "listing" || !rig.log.slice(3).includes("list"), "no list for a server that is not there");
  }
});

Deno.test("reflector: a version the server chokes on is given up for a list", () => {
  const rig = new Rig();
  INTO.opening!(rig);
  for (let i = 0; i < 5; i++) {
    rig.do(refused(500));
    rig.wait();
  }
  assert.equal(rig.log.at(-1), "list");
});

Deno.test("reflector: health is reported once per change", () => {
  const rig = new Rig();
  INTO.watching!(rig);
  for (let i = 0; i < 2; i++) {
    rig.do({ type: "broke" });
    rig.wait();
    rig.do(refused(503));
    rig.wait();
  }
  rig.do({ type: "opened" });
  assert.deepEqual(rig.log.filter((l) => l.startsWith("report")), [
    "report following",
    "report failing",
    "report following",
  ]);
});

Deno.test("reflector: missing rights and resources are told at once, asked for soon at first, then twice a minute", () => {
  for (const [status, name] of [[403, "forbidden"], [404, "unknown"]] as const) {
    const rig = new Rig();
    INTO.listing!(rig);
    assert.deepEqual(rig.do(refused(status)), [`report ${name}`]);
    for (let i = 0; i < 10; i++) {
      assert.ok(i < 6 ? rig.waits <= 3_000 : rig.waits >= 15_000 && rig.waits <= 30_000, `${i}: ${rig.waits}`);
      rig.wait();
      rig.do(refused(status));
    }
    rig.wait();
    assert.deepEqual(rig.do(page("1")), ["commit", "report following", "watch 1"]);
    assert.deepEqual(rig.log.filter((l) => l === `report ${name}`).length, 1);
  }
});

Deno.test("reflector: an API server that has just started forbids everything for a moment: no list, no false report", () => {
  for (const status of [403, 404]) {
    const rig = new Rig();
    INTO.watching!(rig);
    rig.do({ type: "broke" });
    for (let i = 0; i < 4; i++) {
      rig.wait();
      rig.do(refused(status));
    }
    rig.wait();
    rig.do({ type: "opened" });
    assert.equal(rig.reflector.state, "watching");
    assert.ok(!rig.log.some((l) => l.includes("forbidden") || l.includes("unknown")));
    assert.ok(rig.now < 15_000);
    // Rights that were really taken away are told after some seconds.
    rig.do({ type: "broke" });
    for (let i = 0; i < 8; i++) {
      rig.wait();
      rig.do(refused(status));
    }
    assert.ok(rig.log.includes(status === 403 ? "report forbidden" : "report unknown"));
  }
});

Deno.test("reflector: any sequence of inputs leaves it able to go on", () => {
  const input = fc.oneof(
    fc.constantFrom<DistributiveOmit<Input, "attempt">>(
      { type: "start" },
      { type: "time" },
      { type: "progress" },
      { type: "broke" },
      { type: "unknown" },
      { type: "opened" },
      { type: "ended" },
      { type: "garbled" },
      page("1"),
      page("1", "t"),
      { type: "event", version: "5" },
      { type: "event", version: "" },
    ),
    fc.constantFrom(401, 403, 404, 410, 429, 500, 503).map((s) => refused(s)),
  );
  fc.assert(fc.property(fc.array(fc.tuple(input, fc.nat(70_000)), { maxLength: 60 }), (steps) => {
    const rig = new Rig();
    rig.do({ type: "start" });
    for (const [step, ms] of steps) {
      rig.now += ms;
      rig.do(step);
      assert.notEqual(rig.reflector.deadline, undefined, "it always has a next thing to do");
    }
    // A server that behaves from now on is being followed after a few steps.
    for (let i = 0; i < 6 && rig.reflector.state !== "watching"; i++) {
      if (rig.reflector.state === "listing") rig.do(page("9"));
      else if (rig.reflector.state === "opening") rig.do({ type: "opened" });
      else rig.wait();
    }
    assert.equal(rig.reflector.state, "watching");
    assert.deepEqual(rig.do({ type: "stop" }), ["cancel"]);
  }));
});
