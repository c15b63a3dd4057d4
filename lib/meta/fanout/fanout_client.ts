/**
 * The agent's side of metadata fan-out as a pure machine: messages in, events and replies out. It accepts a difference
 * only to exactly the state it has; anything else ends the connection, and the next HELLO asks for a complete state.
 */
import { MeshError } from "../../errors.ts";
import { Interner } from "../convert/intern.ts";
import type { EndpointSlice, Kind, MetaVersion } from "../model.ts";
import { KINDS } from "../model.ts";
import type { Changes, ObjectChange } from "../objects.ts";
import { put, remove } from "../objects.ts";
import type { Problem } from "../problems.ts";
import { shown } from "../problems.ts";
import type { Unit } from "./wire.ts";
import {
  ACK_EVERY,
  broken,
  decodeMessage,
  decodeUnit,
  encodeAck,
  encodeHello,
  MAX_UNIT,
  META_PROTOCOL,
} from "./wire.ts";
import { applyPatch } from "../codec/wire_endpoint.ts";
import { decodeObject } from "../codec/wire_objects.ts";

/** Objects of one complete state or one difference: ten times the largest cluster the product is tested with. */
const MAX_OBJECTS = 1_000_000;
const MAX_KEY = 600;

export type ClientEvent =
  /** The server counts as it did when it told us the state at hand: what is new since then follows, if anything is. */
  | { readonly type: "resumed"; readonly version: MetaVersion }
  /** A complete state begins: what is not mentioned until `commit` is gone. */
  | { readonly type: "begin" }
  /** Part of a complete state. */
  | { readonly type: "part"; readonly changes: Changes; readonly problems: readonly Problem[] }
  /** The complete state is complete. */
  | { readonly type: "commit"; readonly version: MetaVersion }
  /** A difference, whole. */
  | {
    readonly type: "delta";
    readonly changes: Changes;
    readonly problems: readonly Problem[];
    readonly version: MetaVersion;
  };

type State =
  | { readonly name: "greeting" }
  | { readonly name: "ready" }
  | { readonly name: "image"; readonly to: number; objects: number }
  | { readonly name: "delta"; readonly to: number; changes: ObjectChange[]; problems: Problem[] };

export class FanoutClient {
  readonly #have: MetaVersion | undefined;
  readonly #base: (key: string) => EndpointSlice | undefined;
  readonly #strings = new Interner();
  #state: State = { name: "greeting" };
  #server: { source: string; epoch: string } | undefined;
  #number: number | undefined;
  #parts: Uint8Array[] = [];
  #partBytes = 0;
  #received = 0;
  #acknowledged = 0;

  /**
   * One per connection. `have`: version of the state at hand, undefined for none. `base`: a slice as the server told it,
   * whatever is believed of it, as of when a difference arrives.
   */
  constructor(have: MetaVersion | undefined, base: (key: string) => EndpointSlice | undefined) {
    this.#have = have;
    this.#base = base;
  }

  /** The first message to send. */
  hello(): Uint8Array {
    return encodeHello(this.#have);
  }

  /**
   * Takes a message of the server; events are to be acted on in order before {@link acknowledge} is asked. Throws
   * MeshError PROTOCOL or VERSION: close the connection then, the state at hand stays good.
   */
  receive(bytes: Uint8Array): ClientEvent[] {
    const message = decodeMessage(bytes);
    switch (message?.type) {
      case undefined:
        return [];
      case "welcome":
        return this.#welcome(message);
      case "unit":
        return this.#part(message);
      default:
        throw broken("a message only agents send");
    }
  }

  /** The acknowledgement due after the events of the last message were acted on, if one is. */
  acknowledge(): Uint8Array | undefined {
    const pending = this.#received - this.#acknowledged;
    if (pending === 0 || (pending < ACK_EVERY && this.#state.name !== "ready")) return undefined;
    this.#acknowledged = this.#received;
    return encodeAck(this.#received);
  }

  #welcome(message: { protocol: number; source: string; epoch: string }): ClientEvent[] {
    if (this.#state.name !== "greeting") throw broken("a second WELCOME");
    if (message.protocol < META_PROTOCOL) {
      throw new MeshError("VERSION", `Server speaks metadata protocol ${message.protocol}, not ${META_PROTOCOL}`);
    }
    this.#server = { source: message.source, epoch: message.epoch };
    const have = this.#have;
    this.#state = { name: "ready" };
    if (have?.source !== message.source || have.epoch !== message.epoch) return [];
    this.#number = have.number;
    return [{ type: "resumed", version: have }];
  }

  #part(message: { first: boolean; last: boolean; bytes: Uint8Array }): ClientEvent[] {
    if (this.#state.name === "greeting") throw broken("an update before WELCOME");
    if (message.first !== (this.#parts.length === 0)) throw broken("parts of a unit out of order");
    this.#received++;
    this.#partBytes += message.bytes.length;
    if (this.#partBytes > MAX_UNIT) throw broken(`a unit larger than ${MAX_UNIT} bytes`);
    this.#parts.push(message.bytes);
    if (!message.last) return [];
    const unit = decodeUnit(joined(this.#parts, this.#partBytes));
    this.#parts = [];
    this.#partBytes = 0;
    return this.#unit(unit);
  }

  #unit(unit: Unit): ClientEvent[] {
    const events: ClientEvent[] = [];
    if (unit.begin) {
      if (this.#state.name !== "ready") throw broken("an update inside an update");
      if (unit.begin.full) {
        this.#state = { name: "image", to: unit.begin.to, objects: 0 };
        // Should the connection break from here on, the state at hand is still the one before.
        events.push({ type: "begin" });
      } else {
        if (this.#number === undefined || unit.begin.from !== this.#number || unit.begin.to <= unit.begin.from) {
          throw broken(
            `a difference from ${unit.begin.from} to ${unit.begin.to} while at ${this.#number ?? "nothing"}`,
          );
        }
        this.#state = { name: "delta", to: unit.begin.to, changes: [], problems: [] };
      }
    }
    const state = this.#state;
    const problems: Problem[] = [];
    if (state.name === "image") {
      const changes = this.#changes(unit.items, undefined, problems);
      state.objects += unit.items.length;
      if (state.objects > MAX_OBJECTS) throw new MeshError("LIMIT", `Server sent more than ${MAX_OBJECTS} objects`);
      events.push({ type: "part", changes, problems });
      if (!unit.more) events.push({ type: "commit", version: this.#arrive(state.to) });
    } else if (state.name === "delta") {
      // Patches within one difference build on what it has put so far.
      for (const change of this.#changes(unit.items, state.changes, problems)) state.changes.push(change);
      state.problems.push(...problems);
      if (state.changes.length > MAX_OBJECTS) {
        throw new MeshError("LIMIT", `Server sent more than ${MAX_OBJECTS} changes`);
      }
      if (!unit.more) {
        const { changes, problems, to } = state;
        events.push({ type: "delta", changes, problems, version: this.#arrive(to) });
      }
    } else {
      throw broken("items outside an update");
    }
    return events;
  }

  #arrive(number: number): MetaVersion {
    this.#number = number;
    this.#state = { name: "ready" };
    return { source: this.#server!.source, epoch: this.#server!.epoch, number };
  }

  /** Items as changes; what cannot be used is left out with a problem, so that one bad object never stops the rest. */
  #changes(items: readonly unknown[], earlier: readonly ObjectChange[] | undefined, problems: Problem[]): Changes {
    const out: ObjectChange[] = [];
    for (const item of items) {
      if (!Array.isArray(item) || !Number.isInteger(item[0])) throw broken("an item that is none");
      const kind = KINDS[item[0] as number];
      if (kind === undefined) continue;
      const change = typeof item[1] === "string"
        ? this.#keyed(kind, item[1], item[2], earlier)
        : this.#put(kind, item[1]);
      if (typeof change !== "string") out.push(change);
      else problems.push(problemOf(kind, item[1], change));
    }
    return out;
  }

  #put(kind: Kind, value: unknown): ObjectChange | string {
    const object = decodeObject(kind, value, this.#strings);
    return typeof object === "string" ? object : put(kind, object);
  }

  #keyed(
    kind: Kind,
    key: string,
    patch: unknown,
    earlier: readonly ObjectChange[] | undefined,
  ): ObjectChange | string {
    if (key.length > MAX_KEY) throw broken("a key that is too long");
    if (patch === undefined) return remove(kind, key);
    if (kind !== "slice" || !earlier) throw broken("a patch where none can be");
    const before = earlier.findLast((c) => c.kind === "slice" && c.key === key)?.object ??
      this.#base(key);
    // Its earlier version could not be read here, so there is nothing to patch; it comes back when it is sent whole.
    if (!before) return "is not known here";
    const after = applyPatch(before as EndpointSlice, patch, this.#strings);
    return typeof after === "string" ? after : put("slice", after);
  }
}

function problemOf(kind: Kind, value: unknown, reason: string): Problem {
  const name = typeof value === "string" ? value : shown(value);
  return { object: `${kind} ${name}`, field: "", value: "", reason, code: "OBJECT_INVALID" };
}

function joined(parts: readonly Uint8Array[], length: number): Uint8Array {
  if (parts.length === 1) return parts[0]!;
  const out = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}
