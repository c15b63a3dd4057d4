/**
 * Messages about relay legs: connections of their own to the server, which it joins in the kernel. Sent only to a side
 * that named {@link LEGS_FEATURE}.
 */
import { isNodeName } from "../../addr.ts";
import { MeshError } from "../../errors.ts";

/** In `features` of HELLO and WELCOME: relay legs are spoken here. */
export const LEGS_FEATURE = "legs";
/** Bytes of a ticket. It is shown in the clear once, and nobody guesses one within its life of seconds. */
export const TICKET_BYTES = 32;
/** What a relay leg begins with, so that it is not taken for TLS. */
export const LEG_MAGIC: Uint8Array = new TextEncoder().encode("EMR1");
/** First bytes of a relay leg: magic and ticket. */
export const LEG_HEAD = 4 + TICKET_BYTES;
/** Largest body of these messages. */
export const MAX_LEG_BODY = 1024;

export type LegMessage =
  /** → server: the channel to `peer` is busy, give us both a leg. */
  | { readonly type: "leg-ask"; readonly peer: string }
  /** → agent: connect to this server with `ticket` (hex) and speak to `peer`, as TLS client or server. */
  | { readonly type: "leg"; readonly peer: string; readonly ticket: string; readonly client: boolean };

/** Reads a body. Throws MeshError PROTOCOL. */
export function readLegMessage(type: LegMessage["type"], m: Readonly<Record<string, unknown>>): LegMessage {
  const { peer, ticket, client } = m;
  if (typeof peer !== "string" || !isNodeName(peer)) throw bad("a leg to a name that is not a node's");
  if (type === "leg-ask") return { type, peer };
  if (typeof ticket !== "string" || ticket.length !== 2 * TICKET_BYTES || !/^[0-9a-f]+$/.test(ticket)) {
    throw bad("a leg without a ticket");
  }
  if (typeof client !== "boolean") throw bad("a leg without a role");
  return { type, peer, ticket, client };
}

/** The first bytes of a leg. */
export function legHead(ticket: string): Uint8Array {
  const head = new Uint8Array(LEG_HEAD);
  head.set(LEG_MAGIC);
  for (let i = 0; i < TICKET_BYTES; i++) head[LEG_MAGIC.length + i] = parseInt(ticket.slice(2 * i, 2 * i + 2), 16);
  return head;
}

/** The ticket in the first bytes of a leg; undefined when they are none. */
export function ticketOf(head: Uint8Array): string | undefined {
  if (head.length !== LEG_HEAD || LEG_MAGIC.some((byte, i) => head[i] !== byte)) return undefined;
  return [...head.subarray(LEG_MAGIC.length)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function bad(what: string): MeshError {
  return new MeshError("PROTOCOL", `Control connection got ${what}`);
}
