import assert from "node:assert/strict";
import { FakeClock } from "../../clock.ts";
import { nullLogger } from "../../log.ts";
import type { MeshStream } from "../../net.ts";
import { memoryPair, MemoryScheduler, type MemoryStream } from "../../net_memory.ts";
import { legHead, type LegMessage } from "../control/leg_message.ts";
import { LegRelay, TICKET_MS } from "./leg_relay.ts";

type Leg = LegMessage & { readonly type: "leg" };

/** A relay whose legs are in memory; joining is noted, and ended by the test. */
function setUp(options: { readonly refuse?: string } = {}) {
  const clock = new FakeClock();
  const scheduler = new MemoryScheduler();
  const told: [string, Leg][] = [];
  const joined: { readonly a: MeshStream; readonly b: MeshStream; end(bytes: number): void; resets: number }[] = [];
  const relay = new LegRelay({
    clock,
    log: nullLogger,
    send: (node, message) => told.push([node, message as Leg]),
    online: (node) => node !== "edge-c",
    refusal: (_from, to) => to === options.refuse ? "UNKNOWN_NODE" : undefined,
    join(a, b, onEnd) {
      const entry = { a, b, end: onEnd, resets: 0 };
      joined.push(entry);
      return {
        bytes: 7,
        reset() {
          entry.resets++;
        },
      };
    },
  });
  /** Connects with the first bytes given; returns the agent's end, and whether the door was told. */
  const arrive = (head: Uint8Array) => {
    const [agent, ours] = memoryPair(scheduler);
    scheduler.run();
    agent.write(head, 0, head.length);
    scheduler.run();
    const guest = { agent, done: 0, over: undefined as string | undefined };
    agent.handler = { onOpen() {}, onReadable() {}, onWritable() {}, onClose: (reason) => guest.over = String(reason) };
    relay.arrived(ours, () => guest.done++);
    scheduler.run();
    return guest;
  };
  return { clock, scheduler, told, joined, relay, arrive };
}

function rest(stream: MemoryStream | MeshStream): number[] {
  const into = new Uint8Array(100);
  const n = stream.read(into);
  return [...into.subarray(0, Math.max(0, n))];
}

Deno.test("two legs with their tickets are joined, and what follows a ticket is not touched", () => {
  const { relay, told, joined, arrive, clock } = setUp();
  relay.ask("edge-a", "edge-b");
  assert.deepEqual(told.map(([node, m]) => [node, m.peer, m.client]), [
    ["edge-a", "edge-b", true],
    ["edge-b", "edge-a", false],
  ]);
  const [first, second] = told.map(([, m]) => legHead(m.ticket));
  const a = arrive(Uint8Array.of(...first!, 22, 3, 1));
  assert.deepEqual(relay.stats(), { joined: 0, waiting: 1, bytes: 0, refused: 0 });
  const b = arrive(second!);
  assert.deepEqual([a.done, b.done, joined.length, a.over, b.over], [1, 1, 1, undefined, undefined]);
  assert.deepEqual(rest(joined[0]!.a), [22, 3, 1]);
  assert.deepEqual(relay.stats(), { joined: 1, waiting: 0, bytes: 7, refused: 0 });
  clock.advance(2 * TICKET_MS);
  assert.equal(relay.bytesOf("edge-a"), 7);
  joined[0]!.end(1000);
  assert.deepEqual(["edge-a", "edge-b", "edge-x"].map((node) => relay.bytesOf(node)), [1000, 1000, 0]);
  assert.deepEqual(relay.stats(), { joined: 0, waiting: 0, bytes: 1000, refused: 0 });
  assert.equal(clock.pending, 0);
});

Deno.test("a ticket is good once, for seconds, and only as a whole", () => {
  const { relay, told, arrive, clock } = setUp();
  relay.ask("edge-a", "edge-b");
  const head = legHead(told[0]![1].ticket);
  const good = arrive(head);
  assert.equal(good.over, undefined);
  const again = arrive(head);
  assert.notEqual(again.over, undefined);
  const other = head.slice();
  other[20]! ^= 1;
  assert.notEqual(arrive(other).over, undefined);
  assert.equal(relay.stats().refused, 2);
  const part = arrive(head.subarray(0, 20));
  assert.deepEqual([part.done, part.over], [0, undefined]);
  // The other leg never comes: the one that waits ends with the ticket.
  clock.advance(TICKET_MS);
  const late = arrive(legHead(told[1]![1].ticket));
  assert.notEqual(late.over, undefined);
  assert.deepEqual(relay.stats(), { joined: 0, waiting: 0, bytes: 0, refused: 3 });
  assert.equal(clock.pending, 0);
});

Deno.test("who may not be reached is not, nobody asks without end, and a refused ask says nothing", () => {
  const { relay, told, clock } = setUp({ refuse: "edge-x" });
  relay.ask("edge-a", "edge-x");
  relay.ask("edge-a", "edge-a");
  assert.equal(told.length, 0);
  for (let i = 0; i < 100; i++) relay.ask("edge-a", `edge-${i}`);
  assert.equal(told.length, 2 * 62, "64 at once, two of them were refused");
  clock.advance(1_000);
  for (let i = 0; i < 100; i++) relay.ask("edge-a", `edge-${i}`);
  assert.equal(told.length, 2 * 66, "four a second");
  relay.close();
  assert.equal(clock.pending, 0);
});

Deno.test("a node has so many pairs of legs, whoever asked for them", () => {
  const { relay, told } = setUp();
  for (let i = 0; i < 300; i++) relay.ask(`edge-${i}`, "hub");
  assert.equal(told.length, 2 * 256);
  relay.close();
});

Deno.test("the legs of a node that is cut end, joined or waiting; those of others go on", () => {
  const { relay, told, joined, arrive, clock, scheduler } = setUp();
  relay.ask("edge-a", "edge-b");
  relay.ask("edge-b", "edge-c");
  relay.ask("edge-a", "edge-c");
  const heads = told.map(([, m]) => legHead(m.ticket));
  arrive(heads[0]!);
  arrive(heads[1]!);
  const waiting = arrive(heads[2]!);
  arrive(heads[4]!);
  arrive(heads[5]!);
  assert.deepEqual(relay.stats(), { joined: 2, waiting: 1, bytes: 14, refused: 0 });
  relay.cut("edge-b");
  scheduler.run();
  assert.deepEqual(joined.map((j) => j.resets), [1, 0]);
  assert.notEqual(waiting.over, undefined);
  relay.gone("edge-a");
  assert.deepEqual([relay.bytesOf("edge-a"), relay.bytesOf("edge-b"), relay.bytesOf("edge-c")], [7, 0, 7]);
  assert.deepEqual(relay.stats(), { joined: 1, waiting: 0, bytes: 14, refused: 0 });
  relay.close();
  assert.equal(clock.pending, 0);
});

Deno.test("a leg that ends before its partner comes gives its place back", () => {
  const { relay, told, arrive, scheduler, clock } = setUp();
  relay.ask("edge-a", "edge-b");
  const { agent } = arrive(legHead(told[0]![1].ticket));
  agent.reset("PEER_GONE");
  scheduler.run();
  assert.equal(relay.stats().waiting, 0);
  assert.equal(clock.pending, 0);
});
