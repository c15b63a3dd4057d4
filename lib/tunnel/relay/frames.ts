/**
 * Channel frames of the relay: the part of a control connection that carries other agents' bytes. Written and read in
 * place, because a server does this for every batch that passes it.
 *
 *     type u8 | channel u32 | body
 *
 * Numbers are big-endian. A channel has a number of its own on each of its two connections; the server rewrites the
 * four bytes in place. An agent numbers the channels it opens odd and rising; the server numbers those it announces
 * even and rising. Layouts, limits and reasons: PROTOCOL.md, "Control connection and relay".
 */
import { isNodeName } from "../../addr.ts";
import { MeshError, type ReasonCode, reasonCode, reasonNumber } from "../../errors.ts";

export const CHANNEL = {
  /** Body: name length u8 | node name. To the server: whom we want. From the server: who wants us. */
  OPEN: 0x10,
  /** Body: 1 … {@link MAX_CHANNEL_DATA} bytes. */
  DATA: 0x11,
  /** Body: u32, bytes the receiver of this frame may send beyond what it was granted so far. */
  CREDIT: 0x12,
  /** Body: u16 reason number, 0 = on purpose. The last frame of a channel in each direction. */
  CLOSE: 0x13,
} as const;

/** Type and channel. */
export const CHANNEL_HEADER = 5;
/** Four full TLS records with their headers; more in one message would only make others wait. */
export const MAX_CHANNEL_DATA = 65_536;
/** Largest channel frame. */
export const MAX_CHANNEL_FRAME = CHANNEL_HEADER + MAX_CHANNEL_DATA;
/** What each side may send on a new channel before any CREDIT: a TLS handshake and the first requests fit many times. */
export const INITIAL_WINDOW = 262_144;
/** Most a side may be granted beyond what it has sent: 100 ms at 335 Mbit/s. */
export const MAX_WINDOW = 4_194_304;

/** Whether a control connection's message belongs to the relay. */
export function isChannelFrame(message: Uint8Array): boolean {
  return (message[0]! & 0xf0) === 0x10;
}

/** The channel of a frame that has at least its header. */
export function channelOf(frame: Uint8Array): number {
  return ((frame[1]! << 24) | (frame[2]! << 16) | (frame[3]! << 8) | frame[4]!) >>> 0;
}

/** Writes the channel into a frame in place. */
export function setChannel(frame: Uint8Array, channel: number): void {
  frame[1] = channel >>> 24;
  frame[2] = channel >>> 16;
  frame[3] = channel >>> 8;
  frame[4] = channel;
}

/**
 * Checks a frame's form: known type, a length that fits it. Throws MeshError PROTOCOL. Says nothing about whether the
 * channel exists.
 */
export function checkFrame(frame: Uint8Array): void {
  const length = frame.length;
  switch (frame[0]) {
    case CHANNEL.OPEN:
      if (length > CHANNEL_HEADER && length === CHANNEL_HEADER + 1 + frame[CHANNEL_HEADER]!) return;
      break;
    case CHANNEL.DATA:
      if (length > CHANNEL_HEADER && length <= MAX_CHANNEL_FRAME) return;
      break;
    case CHANNEL.CREDIT:
      if (length === CHANNEL_HEADER + 4) return;
      break;
    case CHANNEL.CLOSE:
      if (length === CHANNEL_HEADER + 2) return;
      break;
    default:
      throw new MeshError("PROTOCOL", `Relay got a frame of type 0x${frame[0]?.toString(16)}`);
  }
  throw new MeshError("PROTOCOL", `Relay got a frame 0x${frame[0]!.toString(16)} of ${length} bytes`);
}

export function encodeOpen(channel: number, node: string): Uint8Array {
  const frame = new Uint8Array(CHANNEL_HEADER + 1 + node.length);
  frame[0] = CHANNEL.OPEN;
  setChannel(frame, channel);
  frame[CHANNEL_HEADER] = node.length;
  for (let i = 0; i < node.length; i++) frame[CHANNEL_HEADER + 1 + i] = node.charCodeAt(i);
  return frame;
}

/** The name in a checked OPEN frame. Throws MeshError PROTOCOL when it is not a node's name. */
export function openedNode(frame: Uint8Array): string {
  let name = "";
  for (let i = CHANNEL_HEADER + 1; i < frame.length; i++) name += String.fromCharCode(frame[i]!);
  if (!isNodeName(name)) throw new MeshError("PROTOCOL", "Relay was asked for a name that is not a node's");
  return name;
}

export function encodeCredit(channel: number, bytes: number): Uint8Array {
  const frame = new Uint8Array(CHANNEL_HEADER + 4);
  frame[0] = CHANNEL.CREDIT;
  setChannel(frame, channel);
  frame[5] = bytes >>> 24;
  frame[6] = bytes >>> 16;
  frame[7] = bytes >>> 8;
  frame[8] = bytes;
  return frame;
}

/** The grant in a checked CREDIT frame. */
export function creditOf(frame: Uint8Array): number {
  return ((frame[5]! << 24) | (frame[6]! << 16) | (frame[7]! << 8) | frame[8]!) >>> 0;
}

export function encodeClose(channel: number, reason: ReasonCode | undefined): Uint8Array {
  const n = reason === undefined ? 0 : reasonNumber(reason);
  const frame = new Uint8Array(CHANNEL_HEADER + 2);
  frame[0] = CHANNEL.CLOSE;
  setChannel(frame, channel);
  frame[5] = n >>> 8;
  frame[6] = n;
  return frame;
}

/** The reason in a checked CLOSE frame. */
export function closedWith(frame: Uint8Array): ReasonCode | undefined {
  const n = (frame[5]! << 8) | frame[6]!;
  return n === 0 ? undefined : reasonCode(n);
}
