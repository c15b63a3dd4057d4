/** Every frame in every state: the tables of PROTOCOL.md §4, one row per line. */
import assert from "node:assert/strict";
import { acceptAll, acceptFlows, open, openFlow, Owner, World } from "../../../tests/fixtures/sessions.ts";
import { bytesOf, HELLO, join, rawFrame, rawHello, rawOpen, RawPeer, unhex } from "../../../tests/fixtures/raw_peer.ts";
import { TYPE } from "../frame.ts";
import type { Session } from "./session.ts";

// The session under test is the initiator: its ids are odd, the raw peer's even.
const MINE = 1;
const THEIRS = 2;

const dgram = (id: number, text = "hi") =>
  rawFrame(
    TYPE.DGRAM,
    id,
    join(bytesOf([16, 1], [16, text.length], [16, 0]), new TextEncoder().encode(text)),
  );

/** One valid frame of each type for stream or flow `id`. */
const FRAMES = {
  OPEN: (id: number) => rawOpen(id),
  OPEN_FLOW: (id: number) => rawOpen(id, { flow: true }),
  OPEN_OK: (id: number) => rawFrame(TYPE.OPEN_OK, id, bytesOf([64, 262_144])),
  DATA: (id: number) => rawFrame(TYPE.DATA, id, unhex("6869")),
  CREDIT: (id: number) => rawFrame(TYPE.CREDIT, id, bytesOf([64, 524_288])),
  FIN: (id: number) => rawFrame(TYPE.FIN, id),
  RST: (id: number) => rawFrame(TYPE.RST, id, bytesOf([16, 13])),
  FLOW_CLOSE: (id: number) => rawFrame(TYPE.FLOW_CLOSE, id, bytesOf([16, 4])),
  DGRAM: (id: number) => dgram(id),
} as const;
type FrameName = keyof typeof FRAMES;

interface Scene {
  readonly world: World;
  readonly peer: RawPeer;
  readonly owner: Owner;
  /** The id the frame under test carries. */
  readonly id: number;
  /** What the owner of a flow heard. */
  readonly heard: string[];
}

function scene(): { world: World; peer: RawPeer } {
  const world = new World();
  const peer = new RawPeer(world, world.a.session);
  peer.greet();
  return { world, peer };
}

/** How each state of an id comes about. */
const STATES = {
  "unused, the peer's": () => ({ ...scene(), owner: new Owner(), id: 8, heard: [] }),
  "unused, ours": () => ({ ...scene(), owner: new Owner(), id: 9, heard: [] }),
  opening: () => {
    const { world, peer } = scene();
    const owner = open(world.a);
    world.run();
    return { world, peer, owner, id: MINE, heard: [] };
  },
  offered: () => {
    const { world, peer } = scene();
    world.a.onStream = () => {};
    peer.send(rawOpen(THEIRS));
    return { world, peer, owner: new Owner(), id: THEIRS, heard: [] };
  },
  "open, ours": () => {
    const { world, peer } = scene();
    const owner = open(world.a);
    world.run();
    peer.send(FRAMES.OPEN_OK(MINE));
    return { world, peer, owner, id: MINE, heard: [] };
  },
  "open, theirs": () => {
    const { world, peer } = scene();
    const owners = acceptAll(world.a);
    peer.send(rawOpen(THEIRS));
    return { world, peer, owner: owners[0]!, id: THEIRS, heard: [] };
  },
  "half-closed by us": () => {
    const { world, peer } = scene();
    const owners = acceptAll(world.a);
    peer.send(rawOpen(THEIRS));
    owners[0]!.stream.closeWrite();
    world.run();
    return { world, peer, owner: owners[0]!, id: THEIRS, heard: [] };
  },
  "half-closed by them": () => {
    const { world, peer } = scene();
    const owners = acceptAll(world.a);
    peer.send(rawOpen(THEIRS), FRAMES.FIN(THEIRS));
    return { world, peer, owner: owners[0]!, id: THEIRS, heard: [] };
  },
  "closed both ways": () => {
    const { world, peer } = scene();
    const owners = acceptAll(world.a);
    peer.send(rawOpen(THEIRS), FRAMES.FIN(THEIRS));
    owners[0]!.stream.closeWrite();
    world.run();
    return { world, peer, owner: owners[0]!, id: THEIRS, heard: [] };
  },
  "reset by us": () => {
    const { world, peer } = scene();
    const owner = open(world.a);
    world.run();
    owner.stream.reset("RESET");
    world.run();
    return { world, peer, owner, id: MINE, heard: [] };
  },
  "flow, ours": () => {
    const { world, peer } = scene();
    const flow = openFlow(world.a);
    world.run();
    return { world, peer, owner: new Owner(), id: MINE, heard: flow.calls };
  },
  "flow, offered": () => {
    const { world, peer } = scene();
    world.a.onFlow = () => {};
    peer.send(rawOpen(THEIRS, { flow: true }));
    return { world, peer, owner: new Owner(), id: THEIRS, heard: [] };
  },
  "flow, theirs": () => {
    const { world, peer } = scene();
    const flows = acceptFlows(world.a);
    peer.send(rawOpen(THEIRS, { flow: true }));
    return { world, peer, owner: new Owner(), id: THEIRS, heard: flows[0]!.calls };
  },
  "flow, closed by us": () => {
    const { world, peer } = scene();
    const flow = openFlow(world.a);
    flow.flow.close("SHUTDOWN");
    world.run();
    return { world, peer, owner: new Owner(), id: MINE, heard: flow.calls };
  },
} satisfies Record<string, () => Scene>;
type StateName = keyof typeof STATES;

/** "ok": it acts. "ignored": it is late, nothing happens. Anything else: the session ends with PROTOCOL and this text. */
const USED = "OPEN with a used id";
const OTHER = "OPEN with an id of the other side";
const NEVER = "frame for an id that was never opened";
const FOR_FLOW = "stream frame for a flow";
const late: Omit<Record<FrameName, string>, "OPEN" | "OPEN_FLOW"> = {
  OPEN_OK: "ignored",
  DATA: "ignored",
  CREDIT: "ignored",
  FIN: "ignored",
  RST: "ignored",
  FLOW_CLOSE: "ignored",
  DGRAM: "ignored",
};
const never: typeof late = {
  OPEN_OK: NEVER,
  DATA: NEVER,
  CREDIT: NEVER,
  FIN: NEVER,
  RST: NEVER,
  FLOW_CLOSE: NEVER,
  DGRAM: "ignored",
};
const onFlow: typeof late = {
  OPEN_OK: FOR_FLOW,
  DATA: FOR_FLOW,
  CREDIT: FOR_FLOW,
  FIN: FOR_FLOW,
  RST: FOR_FLOW,
  FLOW_CLOSE: "ok",
  DGRAM: "ok",
};
const onStream = { FLOW_CLOSE: "FLOW_CLOSE for a stream", DGRAM: "DGRAM for a stream" };
const NOT_OPENING = "OPEN_OK for a stream that is not opening";
const NO_CREDIT = "DATA beyond its credit, after FIN, or empty";

const RULES: Record<StateName, Record<FrameName, string>> = {
  "unused, the peer's": { OPEN: "ok", OPEN_FLOW: "ok", ...never },
  "unused, ours": { OPEN: OTHER, OPEN_FLOW: OTHER, ...never },
  opening: {
    OPEN: OTHER,
    OPEN_FLOW: OTHER,
    OPEN_OK: "ok",
    DATA: "DATA before OPEN_OK",
    CREDIT: "CREDIT for a stream that is not open",
    FIN: "FIN before OPEN_OK",
    RST: "ok",
    ...onStream,
  },
  offered: {
    OPEN: USED,
    OPEN_FLOW: USED,
    OPEN_OK: NOT_OPENING,
    DATA: "ok",
    CREDIT: "CREDIT for a stream that is not open",
    FIN: "ok",
    RST: "ok",
    ...onStream,
  },
  "open, ours": {
    OPEN: OTHER,
    OPEN_FLOW: OTHER,
    OPEN_OK: NOT_OPENING,
    DATA: "ok",
    CREDIT: "ok",
    FIN: "ok",
    RST: "ok",
    ...onStream,
  },
  "open, theirs": {
    OPEN: USED,
    OPEN_FLOW: USED,
    OPEN_OK: NOT_OPENING,
    DATA: "ok",
    CREDIT: "ok",
    FIN: "ok",
    RST: "ok",
    ...onStream,
  },
  "half-closed by us": {
    OPEN: USED,
    OPEN_FLOW: USED,
    OPEN_OK: NOT_OPENING,
    DATA: "ok",
    CREDIT: "ok",
    FIN: "ok",
    RST: "ok",
    ...onStream,
  },
  "half-closed by them": {
    OPEN: USED,
    OPEN_FLOW: USED,
    OPEN_OK: NOT_OPENING,
    DATA: NO_CREDIT,
    CREDIT: "ok",
    FIN: "second FIN",
    RST: "ok",
    ...onStream,
  },
  "closed both ways": { OPEN: USED, OPEN_FLOW: USED, ...late },
  "reset by us": { OPEN: OTHER, OPEN_FLOW: OTHER, ...late },
  "flow, ours": { OPEN: OTHER, OPEN_FLOW: OTHER, ...onFlow },
  "flow, offered": { OPEN: USED, OPEN_FLOW: USED, ...onFlow },
  "flow, theirs": { OPEN: USED, OPEN_FLOW: USED, ...onFlow },
  "flow, closed by us": { OPEN: OTHER, OPEN_FLOW: OTHER, ...late },
};

for (const [state, make] of Object.entries(STATES)) {
  for (const [frame, bytes] of Object.entries(FRAMES)) {
    const rule = RULES[state as StateName][frame as FrameName];
    Deno.test(`${frame} on an id that is ${state}: ${rule}`, () => {
      const { world, peer, owner, id, heard } = make();
      const before = JSON.stringify([owner.calls, owner.received, heard]);
      peer.send(bytes(id));
      const { events, session } = world.a;
      if (rule === "ok" || rule === "ignored") {
        assert.equal(session.state, "up", events.join());
        if (rule === "ignored") assert.equal(JSON.stringify([owner.calls, owner.received, heard]), before);
        // The session still works: the next stream opens.
        const owners = acceptAll(world.a);
        peer.send(rawOpen(100));
        assert.equal(owners.length, 1);
      } else {
        assert.equal(events.at(-1), `closed PROTOCOL: ${rule}`);
        assert.deepEqual(peer.got(TYPE.GOAWAY).map((f) => [...f.payload]), [[0, 2, 1]]);
      }
      assert.deepEqual(world.a.faults, []);
      world.close();
      assert.equal(world.clock.pending, 0);
    });
  }
}

/** States of a carrier, and what every session frame does there. */
const LINK_STATES: Record<string, (world: World) => RawPeer> = {
  "before HELLO": (world) => new RawPeer(world, world.a.session),
  "after HELLO": (world) => {
    const peer = new RawPeer(world, world.a.session);
    peer.send(rawHello(HELLO));
    return peer;
  },
  "after RESUME": (world) => {
    const peer = new RawPeer(world, world.a.session);
    peer.greet();
    return peer;
  },
};
/** The same after the session moved to another carrier. */
const LEFT_STATES: typeof LINK_STATES = {
  "left before HELLO": LINK_STATES["before HELLO"]!,
  "left before RESUME": LINK_STATES["after HELLO"]!,
  left: LINK_STATES["after RESUME"]!,
};
const SESSION_FRAMES: Record<string, Uint8Array> = {
  HELLO: rawHello(HELLO),
  RESUME: rawFrame(TYPE.RESUME, 0, bytesOf([64, 0])),
  ACK: rawFrame(TYPE.ACK, 0, bytesOf([64, 0])),
  PING: rawFrame(TYPE.PING, 0, bytesOf([64, 5], [64, 6])),
  PONG: rawFrame(TYPE.PONG, 0, bytesOf([64, 500], [64, 6])),
  "GOAWAY, drain": rawFrame(TYPE.GOAWAY, 0, bytesOf([16, 4], [8, 0])),
  "GOAWAY, final": rawFrame(TYPE.GOAWAY, 0, bytesOf([16, 4], [8, 1])),
  DGRAM: dgram(2),
  OPEN: rawOpen(2),
  "ignorable, not counted": rawFrame(0xc1, 0),
  "ignorable, counted": rawFrame(0x91, 0),
  "unknown, not counted": rawFrame(0x4f, 0),
  "unknown, counted": rawFrame(0x1f, 0),
};
/** Empty: nothing breaks. "carrier": only the carrier is closed, with PROTOCOL. "closed": the session is, by the peer. */
const LINK_RULES: Record<string, Record<string, string>> = {
  "before HELLO": Object.fromEntries(
    Object.keys(SESSION_FRAMES).map((name) => [name, name === "HELLO" ? "" : "carrier"]),
  ),
  "after HELLO": {
    HELLO: "HELLO of a forbidden form, or a second one",
    "GOAWAY, final": "closed",
    OPEN: "counted frame before RESUME",
    "ignorable, counted": "counted frame before RESUME",
    "unknown, counted": "counted frame before RESUME",
    "unknown, not counted": "unknown frame type",
  },
  "after RESUME": {
    HELLO: "HELLO of a forbidden form, or a second one",
    "GOAWAY, final": "closed",
    "unknown, counted": "unknown frame type",
    "unknown, not counted": "unknown frame type",
  },
};

for (const [state, make] of Object.entries(LINK_STATES)) {
  for (const [frame, bytes] of Object.entries(SESSION_FRAMES)) {
    const rule = LINK_RULES[state]![frame] ?? "";
    Deno.test(`${frame} on a carrier ${state}: ${rule || "allowed"}`, () => {
      const world = new World();
      const peer = make(world);
      peer.send(bytes);
      const { session, events } = world.a;
      if (rule === "carrier") {
        assert.equal(session.state, "new");
        assert.deepEqual(events, ["lost direct PROTOCOL", "down PROTOCOL"]);
        assert.equal(peer.closed, "clean");
      } else if (rule === "") assert.equal(session.state, "up", events.join());
      else if (rule === "closed") assert.equal(events.at(-1), "closed SHUTDOWN: closed by the peer");
      else assert.equal(events.at(-1), `closed PROTOCOL: ${rule}`);
      world.close();
      assert.equal(world.clock.pending, 0);
    });
  }
}

/** "acts": as on the carrier in use. "carrier": only this one is closed, with PROTOCOL. */
const LEFT_RULES: Record<string, Record<string, string>> = {
  "left before HELLO": { ...LINK_RULES["before HELLO"], HELLO: "ignored" },
  "left before RESUME": {
    HELLO: LINK_RULES["after HELLO"]!.HELLO!,
    "GOAWAY, drain": "acts",
    "GOAWAY, final": "acts",
    DGRAM: "acts",
    "unknown, not counted": "unknown frame type",
  },
  get left() {
    return this["left before RESUME"]!;
  },
};

for (const [state, make] of Object.entries(LEFT_STATES)) {
  for (const [frame, bytes] of Object.entries(SESSION_FRAMES)) {
    const rule = LEFT_RULES[state]![frame] ?? "ignored";
    Deno.test(`${frame} on a carrier that was ${state}: ${rule}`, () => {
      const world = new World();
      const { session, events } = world.a;
      const flows = acceptFlows(world.a);
      const old = make(world);
      const next = new RawPeer(world, session);
      next.greet();
      next.send(rawOpen(2, { flow: true }));
      world.pass(50);
      const before = { events: [...events], sent: next.frames.length + old.frames.length, stats: stateOf(session) };
      old.send(bytes);
      world.pass(50);
      const after = { events: [...events], sent: next.frames.length + old.frames.length, stats: stateOf(session) };
      if (rule === "ignored") assert.deepEqual(after, before);
      else if (rule === "carrier") {
        assert.deepEqual([after, old.closed], [before, "clean"]);
      } else if (rule === "acts") {
        if (frame === "DGRAM") assert.deepEqual(flows[0]!.texts, ["hi"]);
        else {assert.equal(
            events.at(-1),
            frame === "GOAWAY, drain" ? "draining SHUTDOWN" : "closed SHUTDOWN: closed by the peer",
          );}
      } else assert.equal(events.at(-1), `closed PROTOCOL: ${rule}`);
      world.close();
      assert.deepEqual(world.a.faults, []);
      assert.equal(world.clock.pending, 0);
    });
  }
}

/** What frames change. */
function stateOf(session: Session) {
  const { state, generation, switches, streams, flows, entries, acked, received, repeated } = session.stats();
  return { state, generation, switches, streams, flows, entries, acked, received, repeated };
}

const LENGTHS: readonly (readonly [string, Uint8Array, string])[] = [
  ["OPEN_OK of 7 bytes", rawFrame(TYPE.OPEN_OK, MINE, new Uint8Array(7)), "OPEN_OK of a forbidden form"],
  ["OPEN_OK of 2^53", rawFrame(TYPE.OPEN_OK, MINE, unhex("0020000000000000")), "OPEN_OK of a forbidden form"],
  ["CREDIT of 9 bytes", rawFrame(TYPE.CREDIT, MINE, new Uint8Array(9)), "CREDIT of a forbidden form"],
  ["CREDIT of 2^53", rawFrame(TYPE.CREDIT, MINE, unhex("0020000000000000")), "CREDIT of a forbidden form"],
  ["FIN with a byte", rawFrame(TYPE.FIN, MINE, new Uint8Array(1)), "FIN with a payload"],
  ["RST without a reason", rawFrame(TYPE.RST, MINE), "RST of a forbidden form"],
  ["FLOW_CLOSE of 3 bytes", rawFrame(TYPE.FLOW_CLOSE, MINE, new Uint8Array(3)), "FLOW_CLOSE of a forbidden form"],
  ["RESUME of 4 bytes", rawFrame(TYPE.RESUME, 0, new Uint8Array(4)), "RESUME of a forbidden form"],
  ["RESUME beyond what was received", rawFrame(TYPE.RESUME, 0, bytesOf([64, 1000])), "RESUME that leaves a gap"],
  ["ACK of 7 bytes", rawFrame(TYPE.ACK, 0, new Uint8Array(7)), "ACK of a forbidden form"],
  ["ACK of what was never sent", rawFrame(TYPE.ACK, 0, bytesOf([64, 10_000])), "ACK of what was never sent"],
  ["PING of 8 bytes", rawFrame(TYPE.PING, 0, new Uint8Array(8)), "PING of a forbidden form"],
  ["PONG of 8 bytes", rawFrame(TYPE.PONG, 0, new Uint8Array(8)), "PONG of a forbidden form"],
  ["GOAWAY of 2 bytes", rawFrame(TYPE.GOAWAY, 0, new Uint8Array(2)), "GOAWAY of a forbidden form"],
  ["DGRAM of 5 bytes", rawFrame(TYPE.DGRAM, 2, new Uint8Array(5)), "DGRAM of a forbidden form"],
  ["DGRAM beyond its own length", rawFrame(TYPE.DGRAM, 2, unhex("0001 0001 0000 6869")), "DGRAM of a forbidden form"],
  ["DGRAM piece without bytes", rawFrame(TYPE.DGRAM, 2, unhex("0001 0001 0000")), "DGRAM of a forbidden form"],
  ["DGRAM of 65 508 bytes", rawFrame(TYPE.DGRAM, 2, unhex("0001 ffe4 0000 68")), "DGRAM of a forbidden form"],
  ["empty DATA", rawFrame(TYPE.DATA, MINE), "DATA beyond its credit, after FIN, or empty"],
  ["ACK with an id", rawFrame(TYPE.ACK, 1, bytesOf([64, 0])), "session frame with a stream id"],
  ["OPEN with id 0", rawOpen(0), "OPEN with an id of the other side"],
  ["OPEN of nothing", rawFrame(TYPE.OPEN, 2), "OPEN of a forbidden form"],
  ["DATA with id 0", rawFrame(TYPE.DATA, 0, unhex("68")), "frame for an id that was never opened"],
];

for (const [name, bytes, rule] of LENGTHS) {
  Deno.test(`${name} ends the session`, () => {
    const { world, peer } = scene();
    open(world.a);
    world.run();
    if (name !== "OPEN_OK of 7 bytes" && name !== "OPEN_OK of 2^53") peer.send(FRAMES.OPEN_OK(MINE));
    peer.send(bytes);
    assert.equal(world.a.events.at(-1), `closed PROTOCOL: ${rule}`);
    world.close();
  });
}

Deno.test("counted frames sent again are skipped, unless they lie across the border", () => {
  const { world, peer } = scene();
  const owners = acceptAll(world.a);
  const data = FRAMES.DATA(THEIRS);
  peer.send(rawOpen(THEIRS), data);
  const start = rawOpen(THEIRS).length;
  peer.send(rawFrame(TYPE.RESUME, 0, bytesOf([64, 0])), rawOpen(THEIRS), data, data);
  assert.equal(owners[0]!.text, "hihi");
  assert.equal(world.a.session.stats().repeated, start + data.length);
  peer.send(rawFrame(TYPE.RESUME, 0, bytesOf([64, start + 1])), data, data);
  assert.equal(world.a.events.at(-1), "closed PROTOCOL: resumed inside a frame");
});

Deno.test("ids wrap around, and lie on one side of the last one", () => {
  const { world, peer } = scene();
  const owners = acceptAll(world.a);
  peer.send(rawOpen(0x7fff_fffe), rawOpen(0xffff_fff0), rawOpen(0xffff_fffe), rawOpen(2), FRAMES.DATA(0xffff_fffe));
  assert.equal(owners.length, 4);
  assert.equal(owners[2]!.text, "hi");
  peer.send(rawOpen(0xffff_fff2));
  assert.equal(world.a.events.at(-1), `closed PROTOCOL: ${USED}`);
});

Deno.test("DATA beyond the credit ends the session, up to it does not", () => {
  for (const extra of [0, 1]) {
    const { world, peer } = scene();
    world.a.onStream = () => {};
    peer.send(rawOpen(THEIRS), rawFrame(TYPE.DATA, THEIRS, new Uint8Array(16_383)));
    peer.send(rawFrame(TYPE.DATA, THEIRS, new Uint8Array(1 + extra)));
    assert.equal(world.a.session.state, extra === 0 ? "up" : "closed");
    world.close();
  }
});

Deno.test("a batch cut off at any byte ends the session, and only this one", () => {
  const batch = join(rawOpen(THEIRS), FRAMES.DATA(THEIRS), FRAMES.FIN(THEIRS), rawFrame(0xc1, 0, new Uint8Array(5)));
  const borders = new Set<number>();
  for (let at = 0; at < batch.length;) {
    at += 8 + ((batch[at + 1]! << 16) | (batch[at + 2]! << 8) | batch[at + 3]!);
    borders.add(at);
  }
  const other = new World();
  other.connect();
  for (let n = 1; n <= batch.length; n++) {
    const { world, peer } = scene();
    acceptAll(world.a);
    peer.send(batch.subarray(0, n));
    assert.equal(world.a.session.state, borders.has(n) ? "up" : "closed", `${n} bytes`);
    world.close();
  }
  other.run();
  assert.equal(other.a.session.state, "up");
  other.close();
});

Deno.test("a batch that comes one byte at a time ends the session: frames never cross batches", () => {
  const { world, peer } = scene();
  for (const byte of rawOpen(THEIRS)) {
    if (world.a.session.state === "closed") break;
    peer.send(Uint8Array.of(byte));
  }
  assert.deepEqual(world.a.events.at(-1), "closed PROTOCOL: frame header cut off");
  world.close();
});

Deno.test("lengths that no frame has end the session", () => {
  for (const length of [16_385, 0x10000, 0xffffff]) {
    const { world, peer } = scene();
    const frame = rawFrame(TYPE.DATA, THEIRS, new Uint8Array(20_000));
    frame.set([length >>> 16, length >>> 8, length], 1);
    peer.send(frame);
    assert.equal(world.a.events.at(-1), "closed PROTOCOL: frame too long");
    world.close();
  }
});

Deno.test("both sides in one role end the session", () => {
  const world = new World();
  const peer = new RawPeer(world, world.a.session);
  peer.greet({ initiator: true });
  assert.equal(world.a.events.at(-1), "closed PROTOCOL: both sides claim the same role");
});

Deno.test("no version in common ends the session with VERSION", () => {
  for (const [min, max] of [[2, 9], [0, 0]] as const) {
    const world = new World();
    const peer = new RawPeer(world, world.a.session);
    peer.greet({ min, max });
    assert.equal(world.a.events.at(-1), `closed VERSION: peer speaks versions ${min} to ${max}`);
    assert.deepEqual(peer.got(TYPE.GOAWAY).map((f) => [...f.payload]), [[0, 27, 1]]);
  }
});

Deno.test("a peer that comes back with other versions is told so on its own carrier", () => {
  const { world, peer } = scene();
  const newer = new RawPeer(world, world.a.session);
  newer.greet({ min: 2, max: 2, instance: 4711 });
  assert.deepEqual(newer.got(TYPE.GOAWAY).map((f) => [...f.payload]), [[0, 27, 1]]);
  assert.deepEqual([peer.closed, newer.closed], ["clean", "clean"]);
});

Deno.test("a newer peer that still speaks version 1 is welcome", () => {
  const world = new World();
  const peer = new RawPeer(world, world.a.session);
  peer.greet({ min: 1, max: 200 });
  assert.equal(world.a.session.state, "up");
  world.close();
});
