/**
 * Every number of the session protocol, each with its reason. Those marked *wire* are part of PROTOCOL.md: both ends
 * must agree on them, so they change only with the protocol version. The others are this implementation's policy.
 */
import { MAX_BATCH } from "./carrier.ts";

/** Wire. The protocol versions this build speaks. */
export const VERSION_MIN = 1;
export const VERSION_MAX = 1;

/** Wire. u8 type, u24 length, u32 id. */
export const FRAME_HEADER = 8;
/** Wire. Most payload bytes of one frame: a stream holds the carrier for at most this long before others have a turn. */
export const MAX_PAYLOAD = 16384;
/** Wire. Credit each direction of a stream has without being told: an HTTP request travels with its OPEN (no round trip). */
export const FLOOR_CREDIT = 16384;
/** Wire. Largest datagram: what UDP over IPv4 can carry (65 535 − 20 − 8). */
export const MAX_DATAGRAM = 65507;
/** Wire. Longest namespace or service name: a DNS name. */
export const MAX_NAME = 253;
/** Wire. Longest build text in HELLO. */
export const MAX_BUILD = 64;
/** Wire. Offsets are u64 but stay below 2^53: exact in a double, and 285 years at 1 GB/s. */
export const MAX_OFFSET = Number.MAX_SAFE_INTEGER;

/** What a stream may add to one batch while others wait. One frame: small streams never wait for more than that. */
export const QUANTUM = MAX_PAYLOAD;
/** Bytes kept free in front of each retained batch so that an ACK can ride in it without a copy. */
export const ACK_ROOM = FRAME_HEADER + 8;
/**
 * What a full batch may have as ciphertext: what a socket of Linux sends as one packet to the network card (45 segments
 * of 1448 bytes, on a link of 1500 with timestamps). A few bytes more are a second packet through the whole stack.
 */
const FULL_PACKET = 45 * 1448;
/** Header, content type and tag of the four TLS records of a full batch (RFC 8446 §5.2), and its WebSocket header. */
const FULL_BATCH_OVERHEAD = 4 * (5 + 1 + 16) + 4;
/** Most retained bytes in one batch; with the ACK in front a full one is one packet. */
export const BATCH_ROOM = FULL_PACKET - FULL_BATCH_OVERHEAD - ACK_ROOM;
/** Retention is allocated in segments of four full batches: few enough to pool, small enough for an idle peer. */
export const SEGMENT = 4 * MAX_BATCH;

/** Carriers that may wait for their handshake at once: LAN, direct, relay and one spare. */
export const MAX_CANDIDATES = 4;
/** A carrier that does not deliver its HELLO in this time is closed: TLS is done, so one round trip is left. */
export const HELLO_TIMEOUT_MS = 10_000;
/** An ACK waits this long for a batch to ride in: it only frees memory, so it is in no hurry. */
export const ACK_DELAY_MS = 25;
/** An ACK goes alone when this much is unacknowledged: one 24-byte batch per 256 KiB is 0.01 %. */
export const ACK_BYTES = 256 * 1024;
/** Between pings while streams carry bytes, and how long an answer may take before it counts as missed. */
export const PING_ACTIVE_MS = 1_500;
/** Between pings while nothing moves: below the 60 s that common proxies and load balancers allow. */
export const PING_IDLE_MS = 15_000;
/** Without bytes for this long a session counts as idle. */
export const ACTIVE_MS = 10_000;
/** Missed answers in a row, with no batch received meanwhile, after which a carrier is dead. */
export const PINGS_MISSED = 3;
/** A carrier that delivered anything this recently is not dead: one full batch takes 5.2 s at 100 kbit/s. */
export const DEAD_MS = 6_000;
/** Round trips below this count as this when windows grow: on a LAN the event loop is the delay, not the wire. */
export const MIN_TUNE_RTT_MS = 0.5;
/** Datagrams that waited longer for a carrier are dropped: whoever sent them has asked again by then. */
export const DATAGRAM_STALE_MS = 2_000;

/**
 * A carrier that the session has left for another is read for so long: as old as a datagram may be that waited for a
 * carrier. Both sides have moved on one round trip after each other; the rest is for what the old way still holds.
 */
export const RETIRED_MS: number = DATAGRAM_STALE_MS;
/** Carriers left behind at once: a channel for legs, and legs for a direct path, in one moment. */
export const MAX_RETIRED = 2;

/** What one session may hold. All are per peer. */
export interface SessionLimits {
  /** Streams the peer may have open towards us; told in HELLO. Beyond: refused with LIMIT. */
  readonly maxStreams: number;
  /** Streams the peer may have waiting for accept: endpoints that do not answer must not take every place. */
  readonly maxPending: number;
  /** Flows the peer may have open towards us; told in HELLO. */
  readonly maxFlows: number;
  /** Receive window a stream starts with when memory is free; less when many streams are open. */
  readonly initialWindow: number;
  /** Largest receive window of one stream: 4 MiB is 320 Mbit/s at 100 ms. */
  readonly maxWindow: number;
  /** Sum of all windows above {@link FLOOR_CREDIT} each: the unread bytes a peer can make us hold. */
  readonly windowSum: number;
  /** Sent bytes kept until acknowledged; writes stop beyond. 8 MiB is 640 Mbit/s at 100 ms. */
  readonly retention: number;
  /** Datagram bytes that wait per flow while the carrier is busy; the oldest are dropped. */
  readonly flowQueue: number;
  /** Sum over all flows. */
  readonly flowQueueSum: number;
  /** Datagram bytes kept for a flow that is not accepted yet. */
  readonly flowEarly: number;
  /** Milliseconds a session without any carrier keeps its streams. */
  readonly holdMs: number;
}

export const DEFAULT_LIMITS: SessionLimits = {
  maxStreams: 4096,
  maxPending: 2048,
  maxFlows: 4096,
  initialWindow: 256 * 1024,
  maxWindow: 4 * 1024 * 1024,
  windowSum: 32 * 1024 * 1024,
  retention: 8 * 1024 * 1024,
  flowQueue: 256 * 1024,
  flowQueueSum: 4 * 1024 * 1024,
  flowEarly: 64 * 1024,
  holdMs: 60_000,
};
