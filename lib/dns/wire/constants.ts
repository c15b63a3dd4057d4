/** Numbers of the DNS protocol and the limits of this server, each with its source or reason. */

/** Record types (IANA registry; RFC 1035, 2782, 3596, 6891, 8482). */
export const TYPE = {
  A: 1,
  NS: 2,
  CNAME: 5,
  SOA: 6,
  PTR: 12,
  HINFO: 13,
  MX: 15,
  TXT: 16,
  AAAA: 28,
  SRV: 33,
  DNAME: 39,
  OPT: 41,
  DS: 43,
  RRSIG: 46,
  NSEC: 47,
  IXFR: 251,
  AXFR: 252,
  ANY: 255,
} as const;

/** Response codes (RFC 1035 §4.1.1, RFC 6891 §9). */
export const RCODE = {
  NOERROR: 0,
  FORMERR: 1,
  SERVFAIL: 2,
  NXDOMAIN: 3,
  NOTIMP: 4,
  REFUSED: 5,
  /** Extended: its upper eight bits travel in the OPT record. */
  BADVERS: 16,
} as const;

export const CLASS_IN = 1;

/** Bits of the second 16-bit word of the header. */
export const FLAG = {
  QR: 0x8000,
  AA: 0x0400,
  TC: 0x0200,
  RD: 0x0100,
  RA: 0x0080,
  AD: 0x0020,
  CD: 0x0010,
} as const;

export const HEADER_BYTES = 12;
/** RFC 1035 §2.3.4. */
export const MAX_LABEL_BYTES = 63;
/** RFC 1035 §2.3.4: length bytes and the root included. */
export const MAX_NAME_BYTES = 255;
/** RFC 1035 §4.2.1: what a client without EDNS can take over UDP. */
export const MIN_UDP_BYTES = 512;
/** DNS flag day 2020: the largest UDP message that passes every path unfragmented; also the size we advertise. */
export const MAX_UDP_BYTES = 1232;
/** RFC 1035 §4.2.2: the length prefix over TCP has 16 bits. */
export const MAX_TCP_BYTES = 65535;
/** An OPT record without options: root, type, size, extended flags, length. */
export const OPT_BYTES = 11;

/** Schema version answered at `dns-version.<zone>` (Kubernetes DNS specification). */
export const DNS_SCHEMA_VERSION = "1.1.0";
/** TTL of `dns-version`, as the specification's example has it. */
export const DNS_VERSION_TTL = 28800;
/** TTL of answers from the snapshot, seconds: CoreDNS's default; short, because endpoints move. */
export const CLUSTER_TTL = 5;
/** TTL of the HINFO that answers ANY (RFC 8482 §4.2 leaves it open; its own number is the custom). */
export const ANY_TTL = 8482;
/** CNAME links followed in one answer before giving up: as CoreDNS. */
export const MAX_CHASE = 8;

const NAMES = new Map<number, string>(Object.entries(TYPE).map(([name, n]) => [n, name]));
const RCODES = new Map<number, string>(Object.entries(RCODE).map(([name, n]) => [n, name]));
const NUMBERS = new Map<string, number>(Object.entries(TYPE));
/** Types people ask for by name and this server only passes on. */
for (
  const [name, n] of Object.entries({
    NAPTR: 35,
    SSHFP: 44,
    DNSKEY: 48,
    NSEC3: 50,
    TLSA: 52,
    SVCB: 64,
    HTTPS: 65,
    URI: 256,
    CAA: 257,
  })
) {
  NAMES.set(n, name);
  NUMBERS.set(name, n);
}

/** `A`, or `TYPE1234` as RFC 3597 writes types without a name. */
export function typeName(type: number): string {
  return NAMES.get(type) ?? `TYPE${type}`;
}

/** The number of `A`, `aaaa` or `TYPE65`; undefined when it is none. */
export function typeNumber(text: string): number | undefined {
  const upper = text.toUpperCase();
  const known = NUMBERS.get(upper);
  if (known !== undefined) return known;
  const m = /^TYPE(\d{1,5})$/.exec(upper);
  const n = m ? Number(m[1]) : NaN;
  return n >= 1 && n <= 65535 ? n : undefined;
}

/** `NOERROR`, or `RCODE23`. */
export function rcodeName(rcode: number): string {
  return RCODES.get(rcode) ?? `RCODE${rcode}`;
}
