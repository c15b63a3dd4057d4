/** Whole histories of agents at one switch, checked against what each agent may expect. */
import assert from "node:assert/strict";
import fc from "fast-check";
import {
  CHANNEL,
  CHANNEL_HEADER,
  channelOf,
  creditOf,
  encodeClose,
  encodeCredit,
  encodeOpen,
  INITIAL_WINDOW,
  openedNode,
} from "./frames.ts";
import { data, Rig } from "./testing.ts";

type Step =
  | { readonly op: "open"; readonly from: number; readonly to: number }
  | { readonly op: "data" | "credit" | "close"; readonly from: number; readonly pick: number; readonly n: number }
  | { readonly op: "full" | "drain" | "reconnect"; readonly from: number };

/** Properties over whole histories of four agents that keep the rules, with connections that fill and drain. */
Deno.test("property: per channel bytes arrive in order and whole, queues stay within grants, everything is freed", () => {
  const agent = fc.integer({ min: 0, max: 3 });
  const step: fc.Arbitrary<Step> = fc.oneof(
    { weight: 2, arbitrary: fc.record({ op: fc.constant("open" as const), from: agent, to: agent }) },
    {
      weight: 8,
      arbitrary: fc.record({
        op: fc.constantFrom("data" as const, "data" as const, "credit" as const, "close" as const),
        from: agent,
        pick: fc.nat(20),
        n: fc.integer({ min: 1, max: 60_000 }),
      }),
    },
    { weight: 3, arbitrary: fc.record({ op: fc.constantFrom("full" as const, "drain" as const), from: agent }) },
    { weight: 1, arbitrary: fc.record({ op: fc.constant("reconnect" as const), from: agent }) },
  );
  fc.assert(
    fc.property(fc.array(step, { maxLength: 120 }), (steps) => new Model().run(steps)),
    { numRuns: 400 },
  );
});

interface End {
  readonly line: number;
  credit: number;
  sent: number;
  received: number;
  other: End | undefined;
}

/** Agents that remember what they may do, and check what they get. */
class Model {
  readonly rig = new Rig();
  readonly lines = [0, 1, 2, 3];
  readonly ends = new Map<string, End>();
  readonly next = new Map<number, number>();
  #newLine = 4;
  readonly #opening: { line: number; channel: number; end: End }[] = [];

  run(steps: readonly Step[]): void {
    for (const line of this.lines) this.rig.connect(line, `n${line}`);
    for (const s of steps) {
      this.step(s);
      this.collect();
    }
    for (const line of this.lines) this.rig.drain(line);
    this.collect();
    for (const line of this.lines) this.rig.relay.disconnect(line);
    const { queuedBytes, lines } = this.rig.relay.stats();
    assert.deepEqual([queuedBytes, lines.length], [0, 0]);
  }

  step(s: Step): void {
    const line = this.lines[s.from]!;
    switch (s.op) {
      case "open": {
        const channel = this.next.get(line) ?? 1;
        this.next.set(line, channel + 2);
        const end: End = { line, credit: INITIAL_WINDOW, sent: 0, received: 0, other: undefined };
        this.ends.set(`${line}:${channel}`, end);
        this.#opening.push({ line, channel, end });
        return this.rig.send(line, encodeOpen(channel, `n${s.to}`));
      }
      case "full":
        return void this.rig.full.add(line);
      case "drain":
        return this.rig.drain(line);
      case "reconnect": {
        this.rig.relay.disconnect(line);
        for (const key of [...this.ends.keys()]) if (key.startsWith(`${line}:`)) this.ends.delete(key);
        this.lines[s.from] = this.#newLine++;
        return this.rig.connect(this.lines[s.from]!, `n${s.from}`);
      }
      default: {
        const mine = [...this.ends].filter(([key]) => key.startsWith(`${line}:`));
        if (mine.length === 0) return;
        const [key, end] = mine[s.pick % mine.length]!;
        this.act(s, Number(key.split(":")[1]), end);
      }
    }
  }

  act(s: Step & { readonly op: "data" | "credit" | "close" }, channel: number, end: End): void {
    if (s.op === "close") {
      this.ends.delete(`${end.line}:${channel}`);
      return this.rig.send(end.line, encodeClose(channel, "SHUTDOWN"));
    }
    if (s.op === "credit") {
      // Grants only what was received, as an agent does.
      const owed = Math.min(s.n, end.received);
      if (owed === 0) return;
      end.received -= owed;
      return this.rig.send(end.line, encodeCredit(channel, owed));
    }
    const n = Math.min(s.n, end.credit);
    if (n < 4) return;
    end.credit -= n;
    const payload = new Uint8Array(n).fill(7);
    new DataView(payload.buffer).setUint32(0, end.sent++);
    this.rig.send(end.line, data(channel, payload));
  }

  collect(): void {
    for (const [line, frames] of this.rig.out) {
      for (const frame of frames.splice(0)) this.got(line, frame);
    }
    for (const { node, queuedBytes, channels } of this.rig.relay.stats().lines) {
      assert.ok(
        queuedBytes <= channels * INITIAL_WINDOW,
        `${node} holds ${queuedBytes} for ${channels} channels`,
      );
    }
  }

  got(line: number, frame: Uint8Array): void {
    const key = `${line}:${channelOf(frame)}`;
    if (frame[0] === CHANNEL.OPEN) {
      const from = this.#opening.find((o) =>
        o.end.other === undefined && `n${this.lines.indexOf(o.line)}` === openedNode(frame)
      );
      const end: End = { line, credit: INITIAL_WINDOW, sent: 0, received: 0, other: from?.end };
      if (from) from.end.other = end;
      return void this.ends.set(key, end);
    }
    const end = this.ends.get(key);
    if (!end) return;
    if (frame[0] === CHANNEL.CREDIT) end.credit += creditOf(frame);
    else if (frame[0] === CHANNEL.CLOSE) this.ends.delete(key);
    else {
      end.received += frame.length - CHANNEL_HEADER;
      const tag = new DataView(frame.buffer, frame.byteOffset + CHANNEL_HEADER).getUint32(0);
      const seen = this.tags.get(key) ?? 0;
      assert.equal(tag, seen, `channel ${key} in order`);
      this.tags.set(key, seen + 1);
    }
  }

  readonly tags = new Map<string, number>();
}
