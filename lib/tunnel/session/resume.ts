/** What a HELLO means for the session: pure decisions over what both sides remember (PROTOCOL.md §5). */
import type { ReasonCode } from "../../errors.ts";
import { VERSION_MAX, VERSION_MIN } from "../constants.ts";
import type { Hello } from "../frame.ts";

/** What we remember when a HELLO comes. */
export interface Memory {
  /** Our own number, and the peer's as last heard; 0 = never heard. */
  readonly instance: number;
  readonly peer: number;
  /** Offsets of what we sent: acknowledged by the peer, and ever given to a carrier. */
  readonly acked: number;
  readonly sent: number;
  /** Counted bytes we received. */
  readonly received: number;
  /** We sent bytes on a carrier that died before the peer's first HELLO: nobody can say whether they were processed. */
  readonly unsure: boolean;
}

export type ResumeDecision =
  /** Go on: counted frames from offset `from`. */
  | { readonly kind: "continue"; readonly from: number }
  /** The peer has lost its state: drop ours and count from 0. */
  | { readonly kind: "restart" }
  | { readonly kind: "refuse"; readonly reason: ReasonCode; readonly detail: string };

/** The version both sides speak: the highest in common; undefined if there is none. */
export function commonVersion(hello: Pick<Hello, "versionMin" | "versionMax">): number | undefined {
  const version = Math.min(VERSION_MAX, hello.versionMax);
  return version >= Math.max(VERSION_MIN, hello.versionMin) ? version : undefined;
}

/**
 * Decides how the session goes on over the carrier that brought `hello`. The peer's word about what it received may be
 * old (said before the last carrier delivered more), so it is a lower bound; what it acknowledged later stands.
 */
export function decideResume(memory: Memory, hello: Hello): ResumeDecision {
  const knowsUs = hello.peerInstance === memory.instance;
  if (hello.instance !== memory.peer) {
    // Never a second time to another process: a request may have been carried out by the first.
    const touched = memory.peer === 0 ? memory.unsure && !knowsUs : memory.sent > 0 || memory.received > 0;
    if (touched) {
      if (knowsUs && hello.received > 0) return refuse("HELLO claims bytes that were sent to an earlier instance");
      return { kind: "restart" };
    }
  }
  if (!knowsUs) return { kind: "continue", from: memory.acked };
  if (hello.received > memory.sent) return refuse("HELLO claims more bytes than were sent");
  return { kind: "continue", from: Math.max(hello.received, memory.acked) };
}

function refuse(detail: string): ResumeDecision {
  return { kind: "refuse", reason: "PROTOCOL", detail };
}
