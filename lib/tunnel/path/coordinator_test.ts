import assert from "node:assert/strict";
import type { ReasonCode } from "../../errors.ts";
import type { IpPort } from "../../net.ts";
import type { PathMessage, PunchMessage } from "../control/path_message.ts";
import { Coordinator } from "./coordinator.ts";

const S1: IpPort = { ip: "203.0.113.1", port: 3478 };
const S2: IpPort = { ip: "203.0.113.2", port: 3478 };
const S6: IpPort = { ip: "2001:db8::1", port: 3478 };
const lan = [{ ip: "192.168.1.2", port: 20006 }];

class Rig {
  readonly sent: { readonly to: string; readonly m: PathMessage }[] = [];
  readonly refusals = new Map<string, ReasonCode>();
  now = 0;
  #nonces = 0;
  readonly coordinator: Coordinator;

  constructor(port = 3478) {
    this.coordinator = new Coordinator({
      emit: (to, m) => this.sent.push({ to, m }),
      nonce: () => (++this.#nonces).toString(16).padStart(32, "0"),
      wall: () => 1_000_000 + this.now,
      refusal: (from, to) => this.refusals.get(`${from} ${to}`),
    }, { observe: { port, servers: [S1.ip, S2.ip] } });
  }

  connect(node: string, ip: string): this {
    this.coordinator.connected(node, { ip, port: 4000 }, this.now);
    this.say(node, { type: "candidates", addresses: lan });
    return this;
  }

  say(node: string, m: PathMessage): void {
    this.coordinator.message(node, m, this.now);
  }

  meet(node: string, peer: string, punch = false): void {
    this.say(node, { type: "meet", peer, punch });
  }

  /** Meets as an agent does that has no direct path. */
  hope(node: string, peer: string): void {
    this.say(node, { type: "meet", peer, punch: false, ifApart: true });
  }

  /** What was sent since the last call. */
  take(): string[] {
    return this.sent.splice(0).map(({ to, m }) => `${to} ${m.type}${m.type === "punch" ? ` ${m.step}` : ""}`);
  }

  tick(ms: number): void {
    this.now += ms;
    this.coordinator.tick(this.now);
  }

  /** The last message of a kind to a node. */
  last<T extends PathMessage>(to: string, type: T["type"], step?: string): T {
    const found = this.sent.findLast((s) =>
      s.to === to && s.m.type === type && (step === undefined || (s.m as { step?: string }).step === step)
    );
    assert.ok(found, `${to} got no ${type} ${step ?? ""}`);
    return found.m as T;
  }

  see(node: string, from: IpPort, at = S1): void {
    const { nonce } = this.last<Prepare>(node, "punch", "prepare");
    assert.ok(this.coordinator.seen(nonce, from, at, this.now));
  }

  ready(node: string, { rttMs = 40, expect }: { readonly rttMs?: number; readonly expect?: number } = {}): void {
    const { id } = this.last<Prepare>(node, "punch", "prepare");
    this.say(node, { type: "punch", step: "ready", id, rttMs, ...(expect === undefined ? {} : { expect }) });
  }

  /** What was sent to a node of a round: its steps. */
  steps(node: string): string[] {
    return this.sent.flatMap(({ to, m }) => to === node && m.type === "punch" ? [m.step] : []);
  }
}

type Prepare = PunchMessage & { step: "prepare" };
type Go = PunchMessage & { step: "go" };
type Stop = PunchMessage & { step: "stop" };
type Addresses = PathMessage & { type: "addresses" };
type Unmet = PathMessage & { type: "unmet" };

const pair = (port?: number) => {
  const rig = new Rig(port).connect("a", "203.0.113.10").connect("b", "203.0.113.20");
  rig.sent.length = 0;
  return rig;
};

Deno.test("meeting tells both sides each other's addresses and where the server saw them", () => {
  const rig = pair();
  rig.meet("a", "b");
  assert.deepEqual(rig.last<Addresses>("a", "addresses"), {
    type: "addresses",
    peer: "b",
    addresses: lan,
    observed: ["203.0.113.20"],
  });
  assert.deepEqual(rig.last<Addresses>("b", "addresses").observed, ["203.0.113.10"]);
  assert.deepEqual(rig.take(), ["a addresses", "b addresses"]);
});

Deno.test("who cannot be met, and why", () => {
  const rig = pair();
  rig.refusals.set("a c", "UNKNOWN_NODE").set("a d", "PEER_OFFLINE");
  for (
    const [peer, code] of [["a", "NOT_ALLOWED"], ["c", "UNKNOWN_NODE"], ["d", "PEER_OFFLINE"], ["e", "UNSUPPORTED"]]
  ) {
    rig.meet("a", peer!);
    const unmet = rig.last<Unmet>("a", "unmet");
    assert.deepEqual([unmet.peer, unmet.code], [peer, code]);
    assert.notEqual(unmet.message, "");
  }
  assert.ok(rig.take().every((line) => line === "a unmet"), "nobody else hears of it");
});

Deno.test("asking too often is refused, and patience helps", () => {
  const rig = pair();
  for (let i = 0; i < 64; i++) rig.meet("a", "b");
  rig.meet("a", "b");
  assert.equal(rig.last<Unmet>("a", "unmet").code, "LIMIT");
  rig.now += 1000;
  rig.sent.length = 0;
  rig.meet("a", "b");
  assert.deepEqual(rig.take(), ["a addresses", "b addresses"]);
});

Deno.test("a probe with the nonce adds an address the server saw; partners hear of it once, a moment later", () => {
  const rig = new Rig().connect("a", "203.0.113.10").connect("b", "203.0.113.20");
  const { nonce } = rig.last<PathMessage & { type: "observe" }>("a", "observe");
  rig.meet("b", "a");
  rig.sent.length = 0;
  assert.ok(rig.coordinator.seen(nonce, { ip: "2001:db8:1::2", port: 1 }, S6, rig.now));
  assert.ok(rig.coordinator.seen(nonce, { ip: "2001:db8:1::2", port: 2 }, S6, rig.now));
  assert.ok(rig.coordinator.seen(nonce, { ip: "203.0.113.10", port: 2 }, S1, rig.now));
  assert.deepEqual(rig.take(), []);
  assert.ok(rig.coordinator.nextAt <= 150);
  rig.tick(200);
  assert.deepEqual(rig.last<Addresses>("b", "addresses").observed, ["203.0.113.10", "2001:db8:1::2"]);
  assert.deepEqual(rig.take(), ["b addresses"]);
  rig.tick(60_000);
  assert.deepEqual(rig.take(), []);
  assert.ok(!rig.coordinator.seen(nonce, { ip: "10.0.0.1", port: 1 }, S1, rig.now), "the nonce is too old");
  assert.ok(!rig.coordinator.seen("f".repeat(32), { ip: "10.0.0.1", port: 1 }, S1, rig.now), "nobody's nonce");
});

Deno.test("an agent whose addresses change all the time reaches its partners rarely", () => {
  const rig = pair();
  rig.meet("a", "b");
  rig.sent.length = 0;
  for (let i = 0; i < 600; i++) {
    rig.say("a", { type: "candidates", addresses: [{ ip: "192.168.1.2", port: 1000 + i }] });
    rig.tick(100);
  }
  const told = rig.sent.filter((s) => s.to === "b").length;
  assert.ok(told > 5 && told < 25, `b was told ${told} times in a minute`);
});

Deno.test("a round: both prepare, are seen, get ready, and start at one moment towards what was seen", () => {
  const rig = pair();
  rig.meet("a", "b", true);
  assert.deepEqual(rig.sent.map((s) => `${s.to} ${s.m.type}`), ["a addresses", "a punch", "b punch"]);
  const [pa, pb] = [rig.last<Prepare>("a", "punch", "prepare"), rig.last<Prepare>("b", "punch", "prepare")];
  assert.ok(pa.id === pb.id && pa.nonce !== pb.nonce && pa.peer === "b" && pb.peer === "a" && pa.port === 3478);
  rig.see("a", { ip: "203.0.113.10", port: 25001 });
  rig.see("a", { ip: "203.0.113.10", port: 25001 }, S2);
  rig.see("b", { ip: "203.0.113.20", port: 26001 });
  rig.ready("a", { rttMs: 100 });
  assert.throws(() => rig.last("a", "punch", "go"));
  rig.ready("b", { rttMs: 9999 });
  const [ga, gb] = [rig.last<Go>("a", "punch", "go"), rig.last<Go>("b", "punch", "go")];
  assert.deepEqual(ga.targets, [{ ip: "203.0.113.20", port: 26001 }]);
  assert.deepEqual(gb.targets, [{ ip: "203.0.113.10", port: 25001 }]);
  assert.equal(ga.at, gb.at);
  assert.equal(ga.at, 1_000_000 + 1000 + 500, "a claimed round trip is believed up to 2 s");
  assert.deepEqual([ga.mapping, ga.peerMapping, gb.mapping, gb.peerMapping], ["same", "unknown", "unknown", "same"]);
  rig.sent.length = 0;
  rig.say("a", { type: "punch", step: "stop", id: pa.id, code: "SHUTDOWN", message: "connected" });
  assert.deepEqual(rig.take(), ["b punch stop"]);
  assert.deepEqual(rig.coordinator.stats(), { agents: 2, rounds: 0, begun: 1, started: 1, connected: 1 });
});

Deno.test("the start is half the longer round trip and a margin away, which grows with it", () => {
  for (const [rtt, wait] of [[0, 20], [40, 40], [80, 60], [400, 300]] as const) {
    const rig = pair();
    rig.meet("a", "b", true);
    for (const [node, ip] of [["a", "203.0.113.10"], ["b", "203.0.113.20"]] as const) rig.see(node, { ip, port: 5000 });
    rig.ready("a", { rttMs: 0 });
    rig.ready("b", { rttMs: rtt });
    assert.equal(rig.last<Go>("a", "punch", "go").at, 1_000_000 + wait);
  }
});

Deno.test("agents that are ready before they are seen: the start comes with the last sighting", () => {
  const rig = pair();
  rig.meet("a", "b", true);
  assert.equal(rig.last<Prepare>("a", "punch", "prepare").counts, true);
  rig.ready("a", { expect: 2 });
  rig.ready("b", { expect: 1 });
  rig.see("a", { ip: "203.0.113.10", port: 25001 });
  rig.see("b", { ip: "203.0.113.20", port: 26001 });
  assert.deepEqual(rig.steps("b"), ["prepare"]);
  rig.see("a", { ip: "203.0.113.10", port: 25001 }, S2);
  assert.deepEqual([rig.steps("a"), rig.steps("b")], [["prepare", "go"], ["prepare", "go"]]);
  assert.equal(rig.last<Go>("b", "punch", "go").peerMapping, "same");
});

Deno.test("a sighting that does not come is not waited for long, and not at all when the agent says so", () => {
  for (const told of [false, true]) {
    const rig = pair();
    rig.meet("a", "b", true);
    rig.ready("a", { expect: 2 });
    rig.see("a", { ip: "203.0.113.10", port: 25001 });
    // A build that counts itself says nothing about how many to expect.
    rig.see("b", { ip: "203.0.113.20", port: 26001 });
    rig.ready("b");
    assert.equal(rig.coordinator.nextAt, 400);
    if (told) rig.ready("a");
    else rig.tick(399);
    assert.equal(rig.steps("a").includes("go"), told);
    rig.tick(1);
    assert.deepEqual(rig.steps("a"), ["prepare", "go"]);
  }
});

Deno.test("ready, but never seen: the round ends in time and names who is missing", () => {
  const rig = pair();
  rig.meet("a", "b", true);
  rig.ready("a", { expect: 1 });
  rig.ready("b", { expect: 1 });
  rig.see("a", { ip: "203.0.113.10", port: 25001 });
  rig.ready("a", { expect: 2 });
  assert.equal(rig.coordinator.nextAt, 400);
  rig.tick(400);
  assert.equal(rig.coordinator.nextAt, 4_000, "what is over is not waited for again and again");
  rig.tick(3_600);
  assert.match(rig.last<Stop>("a", "punch", "stop").message, /^b did not get ready/);
  assert.equal(rig.coordinator.stats().rounds, 0);
});

Deno.test("who has no direct path gets a round with the first meeting, unless one LAN may hold both", () => {
  const rig = pair().connect("c", "203.0.113.10");
  rig.sent.length = 0;
  rig.hope("a", "b");
  assert.deepEqual(rig.take(), ["a addresses", "b addresses", "a punch prepare", "b punch prepare"]);
  rig.meet("b", "a", true);
  assert.deepEqual(rig.take(), ["b addresses"]);
  rig.hope("a", "c");
  assert.deepEqual(rig.take(), ["a addresses", "c addresses"]);
});

Deno.test("rounds that may not be needed leave room for those that are, and a refusal of one is not told", () => {
  const rig = new Rig().connect("a", "203.0.113.10");
  for (let i = 0; i < 6; i++) rig.connect(`p${i}`, `198.51.100.${i}`);
  rig.sent.length = 0;
  for (let i = 0; i < 6; i++) rig.hope("a", `p${i}`);
  assert.equal(rig.coordinator.stats().rounds, 4);
  assert.ok(!rig.take().includes("a unmet"));
  rig.meet("a", "p5", true);
  assert.equal(rig.coordinator.stats().rounds, 5);
});

Deno.test("with IPv6 on both sides both families are aimed at", () => {
  const rig = pair();
  rig.meet("b", "a", true);
  rig.see("a", { ip: "203.0.113.10", port: 1 });
  rig.see("a", { ip: "2001:db8:1::1", port: 7 }, S6);
  rig.see("b", { ip: "203.0.113.20", port: 2 });
  rig.see("b", { ip: "2001:db8:2::1", port: 8 }, S6);
  rig.ready("a");
  rig.ready("b");
  assert.deepEqual(rig.last<Go>("a", "punch", "go").targets.map((t) => t.port), [2, 8]);
});

Deno.test("no common family, or two symmetric NATs: both are told why at once", () => {
  const rig = pair();
  rig.meet("a", "b", true);
  rig.see("a", { ip: "2001:db8:1::1", port: 7 }, S6);
  rig.see("b", { ip: "203.0.113.20", port: 2 });
  rig.ready("a");
  rig.ready("b");
  assert.match(rig.last<Stop>("a", "punch", "stop").message, /common address family/);
  rig.meet("a", "b", true);
  for (const [node, ip] of [["a", "203.0.113.10"], ["b", "203.0.113.20"]] as const) {
    rig.see(node, { ip, port: 5000 });
    rig.see(node, { ip, port: 6000 }, S2);
    rig.ready(node);
  }
  for (const node of ["a", "b"]) {
    assert.match(rig.last<Stop>(node, "punch", "stop").message, /give each destination another port/);
  }
  assert.equal(rig.coordinator.stats().rounds, 0);
});

Deno.test("one symmetric NAT is tried, and both know", () => {
  const rig = pair();
  rig.meet("a", "b", true);
  rig.see("a", { ip: "203.0.113.10", port: 1 });
  rig.see("a", { ip: "203.0.113.10", port: 1 }, S2);
  rig.see("b", { ip: "203.0.113.20", port: 2 });
  rig.see("b", { ip: "203.0.113.20", port: 300 }, S2);
  rig.ready("a");
  rig.ready("b");
  const go = rig.last<Go>("a", "punch", "go");
  assert.deepEqual([go.mapping, go.peerMapping, go.stride], ["same", "varies", undefined]);
});

Deno.test("a NAT that counts up is aimed at where it will be, also when both do; beside one that does not it is hopeless", () => {
  const seen = (ports: Readonly<Record<"a" | "b", readonly [number, number]>>) => {
    const rig = pair();
    rig.meet("a", "b", true);
    for (const node of ["a", "b"] as const) {
      const ip = `203.0.113.${node === "a" ? 10 : 20}`;
      rig.see(node, { ip, port: ports[node][0] });
      rig.see(node, { ip, port: ports[node][1] }, S2);
      rig.ready(node);
    }
    return rig;
  };
  const one = seen({ a: [25_001, 25_001], b: [30_004, 30_006] });
  const [a, b] = [one.last<Go>("a", "punch", "go"), one.last<Go>("b", "punch", "go")];
  assert.deepEqual(a.targets, [{ ip: "203.0.113.20", port: 30_008 }]);
  assert.deepEqual([a.mapping, a.peerMapping, a.stride], ["same", "steps", 2]);
  assert.deepEqual(b.targets, [{ ip: "203.0.113.10", port: 25_001 }]);
  assert.deepEqual([b.mapping, b.peerMapping, b.stride], ["steps", "same", undefined]);
  const both = seen({ a: [40_001, 40_002], b: [30_004, 30_006] });
  assert.deepEqual(["a", "b"].map((node) => both.last<Go>(node, "punch", "go").stride), [2, 1]);
  const hopeless = seen({ a: [40_001, 50_002], b: [30_004, 30_006] });
  assert.match(hopeless.last<Stop>("a", "punch", "stop").message, /give each destination another port/);
});

Deno.test("both asking makes one round; a pair and a node have a limit of rounds", () => {
  const rig = pair();
  rig.meet("a", "b", true);
  rig.sent.length = 0;
  rig.meet("b", "a", true);
  assert.deepEqual(rig.take(), ["b addresses"]);
  let ended = 1;
  for (; ended < 20; ended++) {
    rig.tick(4_000);
    rig.sent.length = 0;
    rig.meet("a", "b", true);
    if (rig.take().includes("a unmet")) break;
  }
  assert.equal(ended, 6, "six rounds of a pair a minute");
  for (let i = 0; i < 9; i++) rig.connect(`p${i}`, `198.51.100.${i}`);
  rig.sent.length = 0;
  for (let i = 0; i < 9; i++) rig.meet("a", `p${i}`, true);
  assert.match(rig.last<Unmet>("a", "unmet").message, /8 nodes already/);
});

Deno.test("rounds end by themselves: nobody ready, one missing, one gone, nobody says stop", () => {
  const rig = pair();
  rig.meet("a", "b", true);
  rig.see("a", { ip: "203.0.113.10", port: 1 });
  rig.ready("a");
  assert.equal(rig.coordinator.nextAt, 4_000);
  rig.tick(4_000);
  assert.match(rig.last<Stop>("a", "punch", "stop").message, /^b did not get ready/);
  rig.meet("a", "b", true);
  rig.sent.length = 0;
  rig.coordinator.gone("b", rig.now);
  assert.deepEqual(rig.take(), ["a punch stop"]);
  rig.connect("b", "203.0.113.20").meet("a", "b", true);
  for (const [node, ip] of [["a", "203.0.113.10"], ["b", "203.0.113.20"]] as const) {
    rig.see(node, { ip, port: 5000 });
    rig.ready(node);
  }
  rig.tick(7_000);
  assert.equal(rig.last<Stop>("a", "punch", "stop").code, "TIMEOUT");
  assert.equal(rig.coordinator.nextAt, Infinity);
});

Deno.test("messages about rounds of others, and of agents that are gone, change nothing", () => {
  const rig = pair().connect("c", "198.51.100.1");
  rig.meet("a", "b", true);
  const { id, nonce } = rig.last<Prepare>("a", "punch", "prepare");
  rig.sent.length = 0;
  rig.say("c", { type: "punch", step: "ready", id, rttMs: 1 });
  rig.say("c", { type: "punch", step: "stop", id, code: "TIMEOUT", message: "" });
  rig.say("a", { type: "punch", step: "ready", id: id + 1, rttMs: 1 });
  rig.say("nobody", { type: "candidates", addresses: lan });
  assert.deepEqual(rig.take(), []);
  assert.equal(rig.coordinator.stats().rounds, 1);
  rig.coordinator.gone("a", rig.now);
  assert.ok(!rig.coordinator.seen(nonce, S1, S1, rig.now), "the nonce went with the round");
});

Deno.test("without an observation port nothing is probed and nobody punches", () => {
  const rig = new Rig(0).connect("a", "203.0.113.10").connect("b", "203.0.113.20");
  assert.deepEqual(rig.take(), []);
  rig.meet("a", "b", true);
  assert.match(rig.last<Unmet>("a", "unmet").message, /no observation port/);
});
