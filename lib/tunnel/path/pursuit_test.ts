import assert from "node:assert/strict";
import { hostPort } from "../../addr.ts";
import { FakeClock } from "../../clock.ts";
import { MeshError, type ReasonCode } from "../../errors.ts";
import type { Carrier, PathKind } from "../carrier.ts";
import type { HostAddress } from "./candidates.ts";
import { Pursuit, type Whereabouts } from "./pursuit.ts";

const LAN = { ip: "192.168.1.3", port: 20006 };
const PUBLIC = { ip: "198.51.100.7", port: 20006 };
const here: readonly HostAddress[] = [{ ip: "192.168.1.2", bits: 24, link: 2 }];
const behindNat: Whereabouts = { addresses: [{ ip: "10.9.9.9", port: 20006 }], observed: ["198.51.100.9"] };

interface Dial {
  readonly at: string;
  readonly path: PathKind;
  cancelled: boolean;
  up(): FakeCarrier;
  fail(code?: ReasonCode): void;
}

class FakeCarrier {
  closed: ReasonCode | undefined;
  handler = { onBatch() {}, onDrain() {}, onClose() {} };
  readonly peer = { node: "b", keyHash: "k" };
  constructor(readonly path: PathKind) {}
  send = () => true;
  close(reason: ReasonCode) {
    this.closed = reason;
  }
}

/** A pursuit of `b` by `a`; delivered carriers are in use at once. */
class Rig {
  readonly clock = new FakeClock();
  readonly asked: string[] = [];
  readonly dials: Dial[] = [];
  readonly delivered: Carrier[] = [];
  readonly notes: string[] = [];
  rests = 0;
  server = true;
  lan = false;
  /** What becomes of a delivered carrier. */
  deliver = (carrier: Carrier) => this.pursuit.use(carrier.path);
  onRest = () => {};
  readonly pursuit: Pursuit;

  constructor(acceptor = false) {
    this.pursuit = new Pursuit({
      clock: this.clock,
      random: () => 0.5,
      acceptor,
      meet: (punch) => {
        this.asked.push(punch ? "punch" : "meet");
        return this.server;
      },
      discover: () => {
        this.asked.push("lan");
        return this.lan;
      },
      rules: (observed) => ({ host: here, observed, self: "203.0.113.1", allowed: [] }),
      dial: (target, done) => {
        const dial: Dial = {
          at: hostPort(target.at),
          path: target.path,
          cancelled: false,
          up: () => {
            const carrier = new FakeCarrier(target.path);
            done(carrier);
            return carrier;
          },
          fail: (code = "DIAL_TIMEOUT") => done(new MeshError(code, `no: ${code}`)),
        };
        this.dials.push(dial);
        return () => dial.cancelled = true;
      },
      deliver: (carrier) => {
        this.delivered.push(carrier);
        this.deliver(carrier);
      },
      note: (path, text) => this.notes.push(`${path} ${text}`),
      onRest: () => {
        this.rests++;
        this.onRest();
      },
    });
  }

  /** Dials under way. */
  get open(): string[] {
    return this.dials.filter((dial) => !dial.cancelled).map((dial) => dial.at);
  }

  dial(at: { readonly ip: string; readonly port: number }): Dial {
    const found = this.dials.findLast((dial) => dial.at === hostPort(at));
    assert.ok(found, `${hostPort(at)} was not dialled`);
    return found;
  }

  text(): string {
    return this.pursuit.report.text("b", this.pursuit.trying, this.clock);
  }

  /** A try that ends with three rounds of punching that failed. */
  failPunching(): void {
    for (let i = 0; i < 3; i++) this.pursuit.punched({ kind: "failed", why: "nobody came", again: true });
  }
}

const learnedNat = (rig: Rig) => {
  rig.pursuit.want();
  rig.pursuit.learned("server", behindNat);
  rig.clock.advance(0);
};

Deno.test("it asks where the peer is, dials what the rules allow, and the first path of a rank wins", () => {
  const rig = new Rig();
  rig.pursuit.want();
  assert.deepEqual(rig.asked, ["meet", "lan"]);
  rig.pursuit.learned("server", { addresses: [PUBLIC, LAN, { ip: "10.0.0.1", port: 1 }], observed: [PUBLIC.ip] });
  assert.deepEqual(rig.open, ["192.168.1.3:20006", "198.51.100.7:20006"]);
  rig.dial(PUBLIC).up();
  assert.equal(rig.pursuit.rank, 1);
  assert.ok(!rig.dial(LAN).cancelled, "the LAN would be better still");
  rig.dial(LAN).up();
  assert.equal(rig.pursuit.rank, 2);
  assert.ok(!rig.pursuit.trying);
  assert.deepEqual(rig.delivered.map((c) => c.path), ["direct", "lan"]);
  assert.equal(rig.clock.pending, 0, "a LAN path needs no other try");
});

Deno.test("a path that is no better than the one in use is closed, and its dials are given up", () => {
  const rig = new Rig();
  rig.pursuit.want();
  rig.pursuit.learned("server", { addresses: [PUBLIC, LAN], observed: [PUBLIC.ip] });
  const late = rig.dial(PUBLIC);
  rig.dial(LAN).up();
  assert.ok(late.cancelled);
  const carrier = late.up();
  assert.equal(carrier.closed, "SHUTDOWN");
  assert.equal(rig.delivered.length, 1);
});

Deno.test("with nobody to dial punching begins at once, with listeners a moment later", () => {
  const nat = new Rig();
  learnedNat(nat);
  assert.deepEqual(nat.asked, ["meet", "lan", "punch"]);
  const rig = new Rig();
  rig.pursuit.want();
  rig.pursuit.learned("server", { addresses: [LAN], observed: ["198.51.100.9"] });
  rig.clock.advance(49);
  assert.ok(!rig.asked.includes("punch"));
  rig.clock.advance(1);
  assert.ok(rig.asked.includes("punch"));
});

Deno.test("a LAN path before punching begins saves it", () => {
  const rig = new Rig();
  rig.pursuit.want();
  rig.pursuit.learned("server", { addresses: [LAN], observed: ["198.51.100.9"] });
  rig.dial(LAN).up();
  rig.clock.advance(10_000);
  assert.ok(!rig.asked.includes("punch"));
});

Deno.test("three rounds, then the next try after about 30 s, 5 min, 1 h; the sentence says so", () => {
  const rig = new Rig();
  learnedNat(rig);
  rig.pursuit.use("relay");
  for (
    const [wait, text] of [[30_000, "30 s"], [300_000, "5 min"], [3_600_000, "60 min"], [3_600_000, "60 min"]] as const
  ) {
    rig.asked.length = 0;
    rig.failPunching();
    rig.clock.advance(1_000);
    assert.equal(rig.asked.filter((a) => a === "punch").length, 2, "the first round was asked for before");
    assert.ok(!rig.pursuit.trying);
    assert.equal(
      rig.text(),
      `no direct path to b: hole punching: nobody came; next try in ${text}`,
    );
    rig.asked.length = 0;
    rig.clock.advance(wait - 1);
    assert.deepEqual(rig.asked, []);
    rig.clock.advance(1);
    assert.deepEqual(rig.asked, ["meet", "lan"]);
    rig.pursuit.learned("server", behindNat);
    rig.clock.advance(0);
  }
});

Deno.test("a round that cannot help is not repeated", () => {
  const rig = new Rig();
  learnedNat(rig);
  rig.pursuit.punched({ kind: "failed", why: "symmetric", again: false });
  rig.clock.advance(1_000);
  assert.ok(!rig.pursuit.trying);
  assert.equal(rig.asked.filter((a) => a === "punch").length, 1);
});

Deno.test("a punched path is used, unless something as good came before", () => {
  const rig = new Rig();
  learnedNat(rig);
  const carrier = new FakeCarrier("direct");
  rig.pursuit.punched({ kind: "carrier", carrier });
  assert.deepEqual(rig.delivered, [carrier]);
  const second = new FakeCarrier("direct");
  rig.pursuit.punched({ kind: "carrier", carrier: second });
  assert.equal(second.closed, "SHUTDOWN");
  rig.clock.advance(1_000);
  assert.equal(rig.clock.pending, 0);
});

Deno.test("the acceptor lets the initiator go first", () => {
  const rig = new Rig(true);
  rig.pursuit.want();
  rig.pursuit.learned("server", { addresses: [LAN], observed: [] });
  rig.clock.advance(199);
  assert.deepEqual(rig.open, []);
  rig.clock.advance(1);
  assert.deepEqual(rig.open, ["192.168.1.3:20006"]);
  const other = new Rig(true);
  other.pursuit.want();
  other.pursuit.learned("server", { addresses: [LAN], observed: [] });
  other.pursuit.use("lan");
  other.clock.advance(1_000);
  assert.deepEqual(other.dials, [], "the peer's own dial came through meanwhile");
});

Deno.test("no server and no LAN: it rests at once and says why; a LAN alone is waited for shortly", () => {
  const rig = new Rig();
  rig.server = false;
  rig.pursuit.want();
  assert.equal(rig.rests, 1);
  assert.match(rig.text(), /^no direct path to b: no server is connected; next try in 30 s$/);
  const lan = new Rig();
  lan.server = false;
  lan.lan = true;
  lan.pursuit.want();
  lan.clock.advance(399);
  assert.ok(lan.pursuit.trying);
  lan.clock.advance(1);
  assert.ok(!lan.pursuit.trying);
  assert.match(lan.text(), /: no server is connected, and it was not found on this LAN; next try/);
  lan.pursuit.retryNow();
  lan.pursuit.learned("lan", { addresses: [LAN], observed: [] });
  lan.dial(LAN).up();
  assert.equal(lan.pursuit.rank, 2);
});

Deno.test("a server that is silent is said to be", () => {
  const rig = new Rig();
  rig.pursuit.want();
  rig.clock.advance(1_000);
  assert.match(rig.text(), /^no direct path to b: the server does not answer; next try/);
});

Deno.test("who cannot be met is remembered in the sentence, and ends a round that was asked for", () => {
  const rig = new Rig();
  learnedNat(rig);
  rig.pursuit.unmet("the server says: too many");
  rig.clock.advance(1_000);
  assert.ok(!rig.pursuit.trying);
  assert.match(rig.text(), /the server says: too many; next try/);
});

Deno.test("addresses that failed or are forbidden are told apart", () => {
  const rig = new Rig();
  rig.pursuit.want();
  rig.pursuit.learned("server", { addresses: [LAN, PUBLIC, { ip: "10.0.0.1", port: 1 }], observed: [PUBLIC.ip] });
  rig.dial(LAN).fail("CERT_UNTRUSTED");
  rig.dial(PUBLIC).fail();
  rig.clock.advance(1_000);
  rig.failPunching();
  assert.match(
    rig.text(),
    /192\.168\.1\.3:20006 \(is another machine\), 198\.51\.100\.7:20006 \(does not answer\); hole punching/,
  );
  assert.deepEqual([...rig.pursuit.report.refused], ["10.0.0.1:1: it is private and in no network of this host"]);
});

Deno.test("news from the peer's side begin a try without asking back; a flood of news does not", () => {
  const rig = new Rig();
  rig.pursuit.use("relay");
  assert.deepEqual(rig.asked.splice(0), ["meet", "lan"], "a session that the peer began is searched for, too");
  rig.clock.advance(10_000);
  for (let i = 0; i < 100; i++) rig.pursuit.learned("server", { addresses: [LAN], observed: [] });
  assert.deepEqual(rig.asked, [], "asking back would go on for ever");
  assert.equal(rig.dials.length, 1);
  rig.dial(LAN).fail("DIAL_REFUSED");
  rig.clock.advance(300);
  rig.pursuit.punched({ kind: "failed", why: "x", again: false });
  assert.ok(!rig.pursuit.trying);
  rig.pursuit.learned("server", { addresses: [LAN], observed: [] });
  assert.equal(rig.dials.length, 1, "too soon");
  rig.clock.advance(2_000);
  rig.pursuit.learned("server", { addresses: [LAN], observed: [] });
  assert.equal(rig.dials.length, 2);
});

Deno.test("news while on the LAN change nothing; while direct only the LAN is tried", () => {
  const rig = new Rig();
  rig.pursuit.use("lan");
  rig.clock.advance(10_000);
  rig.pursuit.learned("server", { addresses: [LAN, PUBLIC], observed: [PUBLIC.ip] });
  assert.equal(rig.dials.length, 0);
  rig.pursuit.use("direct");
  rig.clock.advance(10_000);
  rig.pursuit.learned("server", { addresses: [LAN, PUBLIC], observed: [PUBLIC.ip] });
  assert.deepEqual(rig.open, ["192.168.1.3:20006"]);
  rig.clock.advance(1_000);
  assert.ok(!rig.asked.includes("punch"));
});

Deno.test("a network change begins anew at once and forgets the back-off", () => {
  const rig = new Rig();
  learnedNat(rig);
  rig.failPunching();
  rig.clock.advance(1_000);
  rig.clock.advance(30_000);
  rig.pursuit.learned("server", behindNat);
  rig.clock.advance(0);
  rig.failPunching();
  rig.clock.advance(1_000);
  assert.match(rig.text(), /next try in 5 min/);
  rig.asked.length = 0;
  rig.pursuit.retryNow();
  assert.deepEqual(rig.asked, ["meet", "lan"]);
  rig.pursuit.learned("server", behindNat);
  rig.clock.advance(0);
  rig.failPunching();
  rig.clock.advance(1_000);
  assert.match(rig.text(), /next try in (29|30) s/);
});

/** Rests on the relay after a try that failed, then punches through. */
function punchedThrough(rig: Rig): void {
  learnedNat(rig);
  rig.pursuit.use("relay");
  rig.failPunching();
  rig.clock.advance(1_000);
  rig.clock.advance(30_000);
  rig.pursuit.learned("server", behindNat);
  rig.clock.advance(0);
  rig.pursuit.punched({ kind: "carrier", carrier: new FakeCarrier("direct") });
  rig.clock.advance(1_000);
  assert.equal(rig.pursuit.rank, 1);
  rig.asked.length = 0;
}

Deno.test("a good path that breaks is searched for at once, and failures count from the beginning", () => {
  const rig = new Rig();
  punchedThrough(rig);
  rig.clock.advance(70_000);
  rig.pursuit.use("relay");
  assert.deepEqual(rig.asked, ["meet", "lan"]);
  rig.pursuit.learned("server", behindNat);
  rig.clock.advance(0);
  rig.failPunching();
  rig.clock.advance(1_000);
  assert.match(rig.text(), /next try in (29|30) s/);
});

Deno.test("a path that flaps waits for its turn, with the relay in use; with none in use it is searched for", () => {
  const rig = new Rig();
  punchedThrough(rig);
  rig.clock.advance(5_000);
  rig.pursuit.use("relay");
  assert.deepEqual(rig.asked, []);
  assert.match(rig.text(), /next try in 5 min/);
  rig.clock.advance(300_000);
  assert.deepEqual(rig.asked, ["meet", "lan"]);
  const down = new Rig();
  punchedThrough(down);
  down.pursuit.use(undefined);
  down.pursuit.want();
  assert.deepEqual(down.asked, ["meet", "lan"]);
});

Deno.test("a path that went with the servers is searched for at once when they are back, whichever is noticed first", () => {
  const before = new Rig();
  punchedThrough(before);
  before.clock.advance(5_000);
  before.pursuit.serverUp();
  before.pursuit.use("relay");
  assert.deepEqual(before.asked, ["meet", "lan"]);
  const after = new Rig();
  punchedThrough(after);
  after.clock.advance(5_000);
  after.pursuit.use("relay");
  assert.deepEqual(after.asked, []);
  after.clock.advance(9_000);
  after.pursuit.serverUp();
  assert.deepEqual(after.asked, ["meet", "lan"]);
  const unrelated = new Rig();
  punchedThrough(unrelated);
  unrelated.clock.advance(5_000);
  unrelated.pursuit.use("relay");
  unrelated.clock.advance(10_000);
  unrelated.pursuit.serverUp();
  assert.deepEqual(unrelated.asked, [], "a server that comes later says nothing about this path");
});

Deno.test("a carrier that lost its race on the other side is made again soon, twice at most", () => {
  const rig = new Rig();
  rig.deliver = () => {};
  for (let i = 0; i < 3; i++) {
    if (i === 0) rig.pursuit.want();
    else rig.clock.advance(1_500);
    rig.pursuit.learned("server", { addresses: [LAN], observed: [] });
    rig.dial(LAN).up();
    rig.pursuit.use("relay");
    rig.clock.advance(300);
    rig.pursuit.punched({ kind: "failed", why: "x", again: false });
    rig.clock.advance(700);
    assert.ok(!rig.pursuit.trying);
  }
  assert.equal(rig.dials.length, 3);
  rig.clock.advance(20_000);
  assert.equal(rig.dials.length, 3);
});

Deno.test("who gives the peer up at the end of a try leaves nothing", () => {
  const rig = new Rig();
  rig.server = false;
  rig.onRest = () => rig.pursuit.stop();
  rig.pursuit.want();
  assert.equal(rig.clock.pending, 0);
});

Deno.test("stopping cancels dials, timers and retries, and nothing comes afterwards", () => {
  const rig = new Rig();
  rig.pursuit.want();
  rig.pursuit.learned("server", { addresses: [LAN, PUBLIC], observed: [PUBLIC.ip] });
  rig.pursuit.stop();
  assert.ok(rig.dials.every((dial) => dial.cancelled));
  assert.equal(rig.clock.pending, 0);
  assert.equal(rig.dials[0]!.up().closed, "SHUTDOWN");
  rig.pursuit.want();
  assert.ok(!rig.pursuit.trying);
});
