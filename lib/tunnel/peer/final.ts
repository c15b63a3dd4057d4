/** Which failures are for good. */
import type { ReasonCode } from "../../errors.ts";

/** Reasons that another try, by whatever path, does not change: the search ends, and streams that wait are told. */
export const FINAL: ReadonlySet<ReasonCode> = new Set<ReasonCode>([
  "CERT_UNTRUSTED",
  "CERT_EXPIRED",
  "REVOKED",
  "NODE_KEY_MISMATCH",
  "VERSION",
  "UNKNOWN_NODE",
  "NOT_ALLOWED",
]);
