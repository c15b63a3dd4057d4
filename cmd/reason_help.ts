/** What to do about a reason code when the way to a node fails: one sentence, for a person on this node. */
import type { ReasonCode } from "../lib/errors.ts";

/** The step to take next; undefined where the message itself says all there is. */
export function fixFor(code: ReasonCode, node: string): string | undefined {
  switch (code) {
    case "SERVER_UNREACHABLE":
      return "edgemesh netcheck shows which step to the server fails";
    case "PEER_OFFLINE":
    case "PEER_GONE":
      return `on ${node}: edgemesh status; systemctl start edgemesh-agent`;
    case "UNKNOWN_NODE":
      return "names are exact: edgemesh node list, on the server host";
    case "TIMEOUT":
    case "DIAL_TIMEOUT":
      return `edgemesh status --peers shows each step towards ${node}; on ${node}: edgemesh check`;
    case "CERT_UNTRUSTED":
    case "NODE_KEY_MISMATCH":
      return `if ${node} was re-imaged: edgemesh node reset ${node}, on the server host, and join again`;
    case "CERT_EXPIRED":
      return `on ${node}: edgemesh check; its certificate is renewed as soon as it reaches a server with the right time`;
    case "REVOKED":
      return `edgemesh node list, on the server host; edgemesh node reset ${node} lets it join again`;
    case "VERSION":
      return `upgrade the older of the two: edgemesh version, here and on ${node}`;
    case "CLOCK_SKEW":
      return "set the clock, or run an NTP client";
    case "LIMIT":
      return "edgemesh status shows what is in use; the message names the cap";
    default:
      return undefined;
  }
}
