import assert from "node:assert/strict";
import { hostPort } from "../../addr.ts";
import { FakeClock } from "../../clock.ts";
import { MeshError, type ReasonCode } from "../../errors.ts";
import { idleHandler, type IpPort, type MeshStream } from "../../net.ts";
import type { Carrier } from "../carrier.ts";
import type { PunchMessage } from "../control/path_message.ts";
import { type PunchPrepare, PunchRound } from "./punch_round.ts";
import type { PunchResult } from "./pursuit.ts";

const PREPARE: PunchPrepare = {
  type: "punch",
  step: "prepare",
  id: 7,
  peer: "b",
  nonce: "0".repeat(32),
  port: 3478,
  servers: ["203.0.113.2", "203.0.113.4", "2001:db8::1"],
};
const TARGET: IpPort = { ip: "198.51.100.20", port: 26001 };

class Stream implements MeshStream {
  handler = idleHandler;
  resets = 0;
  read = () => -1;
  write = (_from: Uint8Array, _offset: number, length: number) => length;
  closeWrite() {}
  reset() {
    this.resets++;
  }
}

const carrier = (): Carrier & { closed?: ReasonCode } => ({
  path: "direct",
  peer: { node: "b", keyHash: "k" },
  handler: { onBatch() {}, onDrain() {}, onClose() {} },
  send: () => true,
  close(reason) {
    this.closed = reason;
  },
});

/** A round with everything around it faked; what is under way is answered by the test. */
class Rig {
  readonly clock = new FakeClock(0, 1_000_000);
  readonly said: PunchMessage[] = [];
  readonly results: PunchResult[] = [];
  readonly observers: { readonly at: string; asked(): void; answer(result: IpPort | MeshError): void }[] = [];
  readonly dials: {
    readonly at: string;
    readonly left: number;
    cancelled: boolean;
    end(r: MeshStream | ReasonCode): void;
  }[] = [];
  readonly securing: { readonly stream: MeshStream; cancelled: boolean; end(r: Carrier | MeshError): void }[] = [];
  readonly opened: number[] = [];
  closed = 0;
  warmed = 0;
  taken = 0;
  offsetMs: number | undefined = 500;
  incoming: (stream: MeshStream) => void = () => {};
  readonly round: PunchRound;

  constructor(prepare: Partial<PunchPrepare> = {}) {
    this.round = new PunchRound(this.#host(), { ...PREPARE, ...prepare });
  }

  #host(): ConstructorParameters<typeof PunchRound>[0] {
    // deno-lint-ignore no-this-alias
    const rig = this;
    return {
      clock: rig.clock,
      random: () => 0.5,
      ports: [20000, 29999],
      server: "203.0.113.1",
      rttMs: 40.4,
      get offsetMs() {
        return rig.offsetMs;
      },
      allowed: (target) => !target.ip.startsWith("10."),
      send: (m) => rig.said.push(m),
      warm: () => rig.warmed++,
      open(port, onIncoming) {
        rig.opened.push(port);
        if (rig.taken-- > 0) return undefined;
        rig.incoming = (stream) => onIncoming(stream, TARGET);
        return {
          port,
          observe: (server, nonce, { onAsked, onAnswer }) => {
            assert.equal(nonce, PREPARE.nonce);
            rig.observers.push({ at: hostPort(server), asked: onAsked, answer: onAnswer });
          },
          dial: (to, left, done) => {
            const dial = { at: hostPort(to), left, cancelled: false, end: done };
            rig.dials.push(dial);
            return () => dial.cancelled = true;
          },
          close: () => rig.closed++,
        };
      },
      secure(stream, done) {
        const one = { stream, cancelled: false, end: done };
        rig.securing.push(one);
        return () => one.cancelled = true;
      },
      done: (result) => rig.results.push(result),
    };
  }

  go(parts: Partial<PunchMessage & { step: "go" }> = {}): void {
    this.round.message({
      type: "punch",
      step: "go",
      id: 7,
      at: 1_000_500 + 100,
      targets: [TARGET],
      mapping: "same",
      peerMapping: "same",
      ...parts,
    });
  }

  /** Seen, ready, started. */
  started(parts: Partial<PunchMessage & { step: "go" }> = {}): this {
    this.round.start();
    for (const { answer } of [...this.observers]) answer({ ip: "203.0.113.10", port: 25001 });
    this.go(parts);
    this.clock.advance(100);
    return this;
  }

  get steps(): string[] {
    return this.said.map((m) => m.step + (m.step === "stop" ? ` ${m.code} ${m.message}` : ""));
  }

  why(): string {
    const [result] = this.results;
    assert.ok(result?.kind === "failed", "it did not fail");
    assert.equal(this.results.length, 1);
    return `${result.why}${result.again ? " (again)" : ""}`;
  }

  over(): void {
    assert.equal(this.closed, 1, "the sockets are closed once");
    assert.equal(this.clock.pending, 0, "no timer is left");
  }
}

Deno.test("it shows its port to the server it is connected to first, two per family, and says when it was seen", () => {
  const rig = new Rig();
  rig.round.start();
  assert.deepEqual(rig.opened, [25000]);
  assert.deepEqual(rig.observers.map((o) => o.at), ["203.0.113.1:3478", "203.0.113.2:3478", "[2001:db8::1]:3478"]);
  for (const { asked, answer } of rig.observers) {
    assert.deepEqual([rig.said, rig.warmed], [[], 0]);
    asked();
    answer({ ip: "203.0.113.10", port: 25000 });
  }
  assert.equal(rig.warmed, 1, "once all were asked there is time for what a handshake needs");
  assert.deepEqual(rig.said, [{ type: "punch", step: "ready", id: 7, rttMs: 40 }]);
});

Deno.test("an observer that is silent is not waited for long; one that answers late changes nothing", () => {
  const rig = new Rig();
  rig.round.start();
  rig.observers[0]!.answer({ ip: "203.0.113.10", port: 25000 });
  rig.clock.advance(399);
  assert.deepEqual(rig.said, []);
  rig.clock.advance(1);
  assert.deepEqual(rig.steps, ["ready"]);
  rig.observers[1]!.answer(new MeshError("DIAL_TIMEOUT", "late"));
  assert.deepEqual(rig.steps, ["ready"]);
});

Deno.test("a server that counts is told at once how many sightings to expect, and nothing more when all come", () => {
  const rig = new Rig({ counts: true });
  rig.round.start();
  assert.deepEqual(rig.said, [{ type: "punch", step: "ready", id: 7, rttMs: 40, expect: 3 }]);
  rig.observers[0]!.answer({ ip: "203.0.113.10", port: 25000 });
  rig.clock.advance(1_000);
  for (const { answer } of rig.observers.slice(1)) answer({ ip: "203.0.113.10", port: 25000 });
  assert.deepEqual(rig.steps, ["ready"]);
});

Deno.test("a server that counts hears when fewer saw it than were asked, and when nobody did", () => {
  const some = new Rig({ counts: true });
  some.round.start();
  some.observers[0]!.answer({ ip: "203.0.113.10", port: 25000 });
  some.observers[1]!.answer(new MeshError("DIAL_REFUSED", "x"));
  assert.deepEqual(some.steps, ["ready"]);
  some.observers[2]!.answer(new MeshError("DIAL_REFUSED", "x"));
  assert.deepEqual(some.said.slice(1), [{ type: "punch", step: "ready", id: 7, rttMs: 40 }]);
  const none = new Rig({ counts: true });
  none.round.start();
  for (const { answer } of none.observers) answer(new MeshError("DIAL_TIMEOUT", "x"));
  assert.match(none.why(), /does not answer/);
  none.over();
});

Deno.test("a server that counts may give the start before an answer is here: what comes after changes nothing", () => {
  const rig = new Rig({ counts: true });
  rig.round.start();
  rig.go();
  for (const { answer } of rig.observers) answer(new MeshError("DIAL_REFUSED", "x"));
  assert.deepEqual(rig.steps, ["ready"]);
  rig.clock.advance(100);
  assert.equal(rig.dials.length, 1);
});

Deno.test("nobody sees it: the round ends with a sentence", () => {
  const rig = new Rig();
  rig.round.start();
  for (const { answer } of rig.observers) answer(new MeshError("DIAL_TIMEOUT", "x"));
  assert.match(rig.why(), /observation port 203\.0\.113\.1:3478 does not answer/);
  assert.match(rig.steps[0]!, /^stop UNSUPPORTED/);
  rig.over();
});

Deno.test("a taken port is no end; no free port is", () => {
  const some = new Rig();
  some.taken = 3;
  some.round.start();
  assert.equal(some.opened.length, 4);
  const none = new Rig();
  none.taken = 100;
  none.round.start();
  assert.equal(none.opened.length, 10);
  assert.match(none.why(), /no local port between 20000 and 29999 is free$/);
  assert.equal(none.clock.pending, 0);
});

Deno.test("connecting begins at the server's time, by the offset between the clocks", () => {
  const rig = new Rig();
  rig.round.start();
  rig.observers[0]!.answer({ ip: "203.0.113.10", port: 25000 });
  // Our clock says 1 000 000, the server's is 500 ms ahead: 100 ms are left.
  rig.go();
  rig.clock.advance(99);
  assert.equal(rig.dials.length, 0);
  rig.clock.advance(1);
  assert.deepEqual(rig.dials.map((d) => [d.at, d.left]), [["198.51.100.20:26001", 5000]]);
});

Deno.test("a start in the past is now, one in the far future is a wrong clock", () => {
  const past = new Rig();
  past.round.start();
  past.go({ at: 1 });
  past.clock.advance(0);
  assert.equal(past.dials.length, 1);
  const future = new Rig();
  future.offsetMs = undefined;
  future.round.start();
  future.go({ at: 9_000_000 });
  future.clock.advance(4_000);
  assert.equal(future.dials.length, 1);
});

Deno.test("a refusal is answered by another try after 25 to 50 ms, a pending SYN is left alone", () => {
  const rig = new Rig().started();
  rig.dials[0]!.end("DIAL_REFUSED");
  rig.clock.advance(37);
  assert.equal(rig.dials.length, 1);
  rig.clock.advance(1);
  assert.equal(rig.dials.length, 2);
  rig.dials[1]!.end("LIMIT");
  rig.clock.advance(50);
  assert.equal(rig.dials.length, 3);
  rig.clock.advance(2_000);
  assert.equal(rig.dials.length, 3, "the kernel repeats a SYN by itself");
  rig.dials[2]!.end("DIAL_UNREACHABLE");
  rig.clock.advance(2_000);
  assert.equal(rig.dials.length, 3);
});

Deno.test("the first connection that proves who it is wins, and everything else is closed", () => {
  const rig = new Rig().started({ targets: [TARGET, { ip: "2001:db8:2::1", port: 8 }] });
  rig.dials[0]!.end(new Stream());
  rig.incoming(new Stream());
  assert.equal(rig.securing.length, 2);
  const won = carrier();
  rig.securing[1]!.end(won);
  assert.deepEqual(rig.results, [{ kind: "carrier", carrier: won }]);
  assert.ok(rig.securing[0]!.cancelled && rig.dials[1]!.cancelled);
  assert.deepEqual(rig.steps, ["ready", "stop SHUTDOWN connected"]);
  rig.over();
  const late = carrier();
  rig.securing[0]!.end(late);
  assert.equal(late.closed, "SHUTDOWN");
  assert.equal(rig.results.length, 1);
});

Deno.test("a connection that only one side has is tried again; an uninvited one is just dropped", () => {
  const rig = new Rig().started();
  rig.dials[0]!.end(new Stream());
  rig.securing[0]!.end(new MeshError("PEER_GONE", "half open"));
  rig.clock.advance(50);
  assert.equal(rig.dials.length, 2);
  rig.incoming(new Stream());
  rig.securing[1]!.end(new MeshError("CERT_UNTRUSTED", "stranger"));
  rig.clock.advance(50);
  assert.equal(rig.dials.length, 2);
  assert.equal(rig.results.length, 0);
});

Deno.test("a crowd at the open port is turned away beyond eight", () => {
  const rig = new Rig().started();
  const crowd = Array.from({ length: 12 }, () => new Stream());
  for (const stream of crowd) rig.incoming(stream);
  assert.equal(rig.securing.length, 8);
  assert.deepEqual(crowd.map((s) => s.resets), [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1]);
  rig.securing[0]!.end(new MeshError("TIMEOUT", "x"));
  rig.incoming(new Stream());
  assert.equal(rig.securing.length, 9);
});

Deno.test("after five seconds it is over, with a sentence that knows the NATs", () => {
  const plain = new Rig().started();
  plain.clock.advance(4_999);
  assert.equal(plain.results.length, 0);
  plain.clock.advance(1);
  assert.equal(plain.why(), "198.51.100.20:26001 did not answer (again)");
  assert.match(plain.steps.at(-1)!, /^stop TIMEOUT/);
  plain.over();
  const refused = new Rig().started();
  refused.dials[0]!.end("DIAL_REFUSED");
  refused.clock.advance(5_000);
  assert.equal(refused.why(), "198.51.100.20:26001 refused (again)");
  const ours = new Rig().started({ mapping: "varies" });
  ours.clock.advance(5_000);
  assert.equal(ours.why(), "the NAT of this site gives each destination another port");
  const counting = new Rig().started({ peerMapping: "steps", stride: 1 });
  counting.clock.advance(5_000);
  assert.match(
    counting.why(),
    /^the NAT of b gives the next port to each destination, and not those .*foretold \(again\)$/,
  );
  const theirs = new Rig().started({ peerMapping: "varies" });
  theirs.clock.advance(5_000);
  assert.equal(theirs.why(), "the NAT of b gives each destination another port");
});

Deno.test("a NAT that counts up: the next eight ports in order, by IPv4 only; what refuses is tried again", () => {
  const six = { ip: "2001:db8::2", port: 26001 };
  const rig = new Rig().started({ targets: [six, TARGET], peerMapping: "steps", stride: 3 });
  assert.deepEqual(rig.dials.map((d) => d.at), [
    hostPort(six),
    ...Array.from({ length: 8 }, (_, i) => `198.51.100.20:${26001 + 3 * i}`),
  ]);
  rig.dials[2]!.end("DIAL_REFUSED");
  rig.clock.advance(50);
  assert.equal(rig.dials.at(-1)!.at, "198.51.100.20:26004");
  const last = new Rig().started({ targets: [{ ip: TARGET.ip, port: 65_533 }], peerMapping: "steps", stride: 1 });
  assert.deepEqual(last.dials.map((d) => d.at.split(":")[1]), ["65533", "65534", "65535"]);
});

Deno.test("targets that this host must not dial are left out; with none left the round ends", () => {
  const rig = new Rig().started({ targets: [{ ip: "10.0.0.1", port: 22 }, TARGET] });
  assert.deepEqual(rig.dials.map((d) => d.at), ["198.51.100.20:26001"]);
  const none = new Rig();
  none.round.start();
  none.go({ targets: [{ ip: "10.0.0.1", port: 22 }] });
  assert.match(none.why(), /no address that may be dialled$/);
  none.over();
});

Deno.test("the server ends the round; that the peer is through is no end", () => {
  const rig = new Rig().started();
  rig.round.message({ type: "punch", step: "stop", id: 7, code: "SHUTDOWN", message: "connected" });
  assert.equal(rig.results.length, 0);
  rig.round.message({ type: "punch", step: "stop", id: 7, code: "UNSUPPORTED", message: "both symmetric" });
  assert.equal(rig.why(), "both symmetric");
  rig.over();
  rig.round.message({ type: "punch", step: "stop", id: 7, code: "TIMEOUT", message: "again" });
  rig.go();
  rig.clock.advance(10_000);
  assert.equal(rig.results.length, 1);
});

Deno.test("a server that never gives the start is given up", () => {
  const rig = new Rig();
  rig.round.start();
  rig.observers[0]!.answer({ ip: "203.0.113.10", port: 25000 });
  rig.clock.advance(6_000);
  assert.match(rig.why(), /did not give the start \(again\)$/);
  rig.over();
});

Deno.test("cancelling tells the server and leaves nothing; a second start order is ignored", () => {
  const rig = new Rig().started();
  rig.go({ targets: [{ ip: "198.51.100.99", port: 1 }] });
  rig.clock.advance(200);
  assert.equal(rig.dials.length, 1);
  rig.round.cancel();
  rig.round.cancel();
  assert.deepEqual(rig.steps.slice(1), ["stop SHUTDOWN not needed any more"]);
  assert.deepEqual(rig.results, []);
  rig.over();
  rig.dials[0]!.end(new Stream());
  assert.equal(rig.securing.length, 0);
});
