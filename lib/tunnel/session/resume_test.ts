/** The decision a HELLO asks for: every combination of what both sides remember. */
import assert from "node:assert/strict";
import type { Hello } from "../frame.ts";
import { commonVersion, decideResume, type Memory, type ResumeDecision } from "./resume.ts";

const US = 10;
const THEM = 20;
const STRANGER = 30;

const hello = (instance: number, peerInstance: number, received: number): Hello => ({
  versionMin: 1,
  versionMax: 1,
  initiator: false,
  draining: false,
  generation: 0,
  instance,
  peerInstance,
  received,
  maxStreams: 1,
  maxFlows: 1,
  retention: 1,
  build: "",
});
const memory = (peer: number, acked: number, sent: number, received: number, unsure = false): Memory => ({
  instance: US,
  peer,
  acked,
  sent,
  received,
  unsure,
});
const from = (offset: number): ResumeDecision => ({ kind: "continue", from: offset });

const CASES: readonly (readonly [string, Memory, Hello, ResumeDecision | "refuse" | "restart"])[] = [
  ["two fresh sides", memory(0, 0, 0, 0), hello(THEM, 0, 0), from(0)],
  ["fresh, bytes sent early on this carrier", memory(0, 0, 50, 0), hello(THEM, 0, 0), from(0)],
  ["fresh, early bytes arrived before the carrier died", memory(0, 0, 50, 0, true), hello(THEM, US, 50), from(50)],
  [
    "fresh, early bytes died with the carrier, the peer knows nothing",
    memory(0, 0, 50, 0, true),
    hello(THEM, 0, 0),
    "restart",
  ],
  ["fresh, but the peer remembers an earlier one of us", memory(0, 0, 0, 0), hello(THEM, STRANGER, 900), from(0)],
  ["fresh, the peer claims what was never sent", memory(0, 0, 50, 0), hello(THEM, US, 51), "refuse"],
  ["both remember", memory(THEM, 100, 500, 70), hello(THEM, US, 300), from(300)],
  ["both remember, the peer's word is older than its ACK", memory(THEM, 400, 500, 70), hello(THEM, US, 300), from(400)],
  ["both remember, all was received", memory(THEM, 100, 500, 70), hello(THEM, US, 500), from(500)],
  ["the peer claims more than was sent", memory(THEM, 100, 500, 70), hello(THEM, US, 501), "refuse"],
  ["a HELLO from before the peer heard of us", memory(THEM, 100, 500, 70), hello(THEM, 0, 0), from(100)],
  ["the peer was replaced", memory(THEM, 100, 500, 70), hello(STRANGER, 0, 0), "restart"],
  [
    "the peer was replaced, but nothing had been sent or received",
    memory(THEM, 0, 0, 0),
    hello(STRANGER, 0, 0),
    from(0),
  ],
  ["the peer was replaced, we had only received", memory(THEM, 0, 0, 9), hello(STRANGER, 0, 0), "restart"],
  ["the peer was replaced and has heard our HELLO", memory(THEM, 100, 500, 70), hello(STRANGER, US, 0), "restart"],
  [
    "the peer was replaced and claims the old one's bytes",
    memory(THEM, 100, 500, 70),
    hello(STRANGER, US, 1),
    "refuse",
  ],
];

for (const [name, state, message, expected] of CASES) {
  Deno.test(`HELLO: ${name}`, () => {
    const decision = decideResume(state, message);
    if (typeof expected === "string") assert.equal(decision.kind, expected);
    else assert.deepEqual(decision, expected);
  });
}

Deno.test("the common version is the highest both speak", () => {
  assert.equal(commonVersion({ versionMin: 1, versionMax: 1 }), 1);
  assert.equal(commonVersion({ versionMin: 0, versionMax: 255 }), 1);
  assert.equal(commonVersion({ versionMin: 2, versionMax: 3 }), undefined);
  assert.equal(commonVersion({ versionMin: 0, versionMax: 0 }), undefined);
});
