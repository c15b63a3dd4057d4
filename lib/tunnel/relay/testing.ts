/** A switch in memory, for its tests. */
import assert from "node:assert/strict";
import type { ReasonCode } from "../../errors.ts";
import {
  CHANNEL,
  CHANNEL_HEADER,
  channelOf,
  checkFrame,
  closedWith,
  creditOf,
  encodeOpen,
  openedNode,
  setChannel,
} from "./frames.ts";
import { type RelayLimits, RelaySwitch } from "./switch.ts";

export type Said =
  | readonly ["open", number, string]
  | readonly ["data", number, string]
  | readonly ["credit", number, number]
  | readonly ["close", number, ReasonCode | undefined];

/** A switch with its connections as lists of frames. */
export class Rig {
  readonly out = new Map<number, Uint8Array[]>();
  /** Connections that are full: `emit` takes one frame more and says stop. */
  readonly full = new Set<number>();
  readonly relay: RelaySwitch;
  now = 0;

  constructor(limits?: Partial<RelayLimits>, refusal?: (from: string, to: string) => ReasonCode | undefined) {
    this.relay = new RelaySwitch({
      limits: limits ?? {},
      emit: (line, frame) => {
        checkFrame(frame);
        this.out.get(line)!.push(frame);
        return !this.full.has(line);
      },
      ...(refusal ? { refusal } : {}),
    });
  }

  connect(line: number, node: string): void {
    this.out.set(line, []);
    this.relay.connect(line, node);
  }

  send(line: number, frame: Uint8Array): void {
    this.relay.receive(line, frame, this.now);
  }

  /** What a connection was sent since the last look. */
  said(line: number): Said[] {
    return this.out.get(line)!.splice(0).map(read);
  }

  drain(line: number): void {
    this.full.delete(line);
    this.relay.drained(line);
  }
}

/** Agents a (line 1) and b (line 2) with a channel from a to b: 1 on a's connection, 2 on b's. */
export function pair(limits: Partial<RelayLimits> = {}): Rig {
  const rig = new Rig(limits);
  rig.connect(1, "a");
  rig.connect(2, "b");
  rig.send(1, encodeOpen(1, "b"));
  assert.deepEqual(rig.said(2), [["open", 2, "a"]]);
  return rig;
}

export function data(channel: number, bytes: Uint8Array | string): Uint8Array {
  const payload = typeof bytes === "string" ? new TextEncoder().encode(bytes) : bytes;
  const frame = new Uint8Array(CHANNEL_HEADER + payload.length);
  frame[0] = CHANNEL.DATA;
  setChannel(frame, channel);
  frame.set(payload, CHANNEL_HEADER);
  return frame;
}

export function read(frame: Uint8Array): Said {
  const channel = channelOf(frame);
  switch (frame[0]) {
    case CHANNEL.OPEN:
      return ["open", channel, openedNode(frame)];
    case CHANNEL.DATA: {
      const payload = frame.subarray(CHANNEL_HEADER);
      return ["data", channel, payload.length > 64 ? `${payload.length} bytes` : new TextDecoder().decode(payload)];
    }
    case CHANNEL.CREDIT:
      return ["credit", channel, creditOf(frame)];
    default:
      return ["close", channel, closedWith(frame)];
  }
}
