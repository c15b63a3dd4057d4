/** What a search for a direct path has found out, as one sentence for `status`. */
import type { Clock, MonoMs } from "../../clock.ts";
import type { ReasonCode } from "../../errors.ts";

/** Addresses named in the sentence. */
const MAX_NAMED = 3;

export class PursuitReport {
  /** A server said where the peer is. */
  introduced = false;
  /** Why the servers did not introduce us. */
  meeting: string | undefined;
  /** Why the last round of punching failed. */
  punching: string | undefined;
  /** Addresses that were dialled in vain. */
  readonly failed = new Map<string, ReasonCode>();
  /** Addresses that the rules forbid, with the reason. */
  readonly refused = new Set<string>();
  /** When the next try begins. */
  nextAt: MonoMs | undefined;

  /** A new try: what the last one found is forgotten. */
  begin(): void {
    this.introduced = false;
    this.meeting = this.punching = this.nextAt = undefined;
    this.failed.clear();
    this.refused.clear();
  }

  /** Why there is no direct path, without a final period. */
  text(peer: string, trying: boolean, clock: Clock): string {
    const parts: string[] = [];
    if (this.meeting !== undefined) parts.push(this.meeting);
    if (this.failed.size > 0) {
      const named = [...this.failed].slice(0, MAX_NAMED).map(([at, code]) => `${at} (${WORDS[code] ?? code})`);
      const more = this.failed.size - named.length;
      parts.push(`${named.join(", ")}${more > 0 ? ` and ${more} more` : ""}`);
    }
    if (this.punching !== undefined) parts.push(`hole punching: ${this.punching}`);
    if (trying) parts.push("trying now");
    else if (this.nextAt !== undefined) parts.push(`next try in ${span(Math.max(0, this.nextAt - clock.now()))}`);
    return `no direct path to ${peer}: ${parts.length === 0 ? "not looked for yet" : parts.join("; ")}`;
  }
}

const WORDS: Partial<Record<ReasonCode, string>> = {
  DIAL_TIMEOUT: "does not answer",
  DIAL_REFUSED: "refuses",
  DIAL_UNREACHABLE: "no route",
  CERT_UNTRUSTED: "is another machine",
  PEER_GONE: "hangs up",
  TIMEOUT: "does not answer",
};

function span(ms: number): string {
  const seconds = Math.round(ms / 1000);
  return seconds < 90
    ? `${seconds} s`
    : seconds < 5400
    ? `${Math.round(seconds / 60)} min`
    : `${Math.round(seconds / 3600)} h`;
}
