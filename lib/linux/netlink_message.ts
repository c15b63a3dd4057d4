/**
 * Netlink messages as bytes (netlink(7)): a header, a fixed structure, then attributes, each aligned to 4. Building and
 * reading only; nothing here talks to the kernel.
 */
import { STRUCT } from "./structs.ts";

export const NLM_F_REQUEST = 0x1;
export const NLM_F_MULTI = 0x2;
export const NLM_F_ACK = 0x4;
export const NLM_F_EXCL = 0x200;
export const NLM_F_CREATE = 0x400;
export const NLM_F_APPEND = 0x800;
/** NLM_F_ROOT | NLM_F_MATCH: everything there is. */
export const NLM_F_DUMP = 0x300;
/** In answers to a dump: the table changed meanwhile. */
export const NLM_F_DUMP_INTR = 0x10;
/** In acknowledgements: attributes with an explanation follow. */
export const NLM_F_ACK_TLVS = 0x200;
/** In acknowledgements: the request is not repeated behind its header. */
export const NLM_F_CAPPED = 0x100;

export const NLMSG_ERROR = 2;
export const NLMSG_DONE = 3;
export const NLMSG_OVERRUN = 4;

const NLA_F_NESTED = 0x8000;
const NLA_TYPE_MASK = 0x3fff;

const ENCODER = new TextEncoder();
const HDR = STRUCT.nlmsghdr;
const ATTR = STRUCT.nlattr;

/** One message as it came; `body` is everything behind the header. */
export interface NetlinkMessage {
  readonly type: number;
  readonly flags: number;
  readonly seq: number;
  /** The socket that asked: our own in answers, in notifications whoever made the change. */
  readonly port: number;
  readonly body: Uint8Array;
}

/** Attributes by type; of a type that repeats, the last. */
export type Attributes = ReadonlyMap<number, Uint8Array>;

/** Builds one message or a batch of them in a buffer that grows. */
export class MessageBuilder {
  #bytes = new Uint8Array(1024);
  #view = new DataView(this.#bytes.buffer);
  #length = 0;
  #seq: number;

  /** `seq` is the number of the first message; the following ones count on. */
  constructor(seq = 1) {
    this.#seq = seq;
  }

  /** The number the next message gets. */
  get nextSeq(): number {
    return this.#seq;
  }

  /** The finished messages; a view that the next call may move. */
  get bytes(): Uint8Array<ArrayBuffer> {
    return this.#bytes.subarray(0, this.#length);
  }

  /** One message: its fixed structure, then what `attributes` adds. Returns its number. */
  message(type: number, flags: number, fixed: Uint8Array, attributes: () => void = () => {}): number {
    const start = this.#grow(HDR.size);
    const seq = this.#seq++;
    this.#view.setUint16(start + HDR.at.type, type, true);
    this.#view.setUint16(start + HDR.at.flags, flags | NLM_F_REQUEST, true);
    this.#view.setUint32(start + HDR.at.seq, seq, true);
    this.#put(fixed);
    attributes();
    this.#view.setUint32(start + HDR.at.len, this.#length - start, true);
    return seq;
  }

  attr(type: number, value: Uint8Array): void {
    const at = this.#header(type, value.length);
    this.#bytes.set(value, at);
  }

  u8(type: number, value: number): void {
    const at = this.#header(type, 1);
    this.#bytes[at] = value;
  }

  /** In host order, as rtnetlink wants numbers. */
  u32(type: number, value: number): void {
    const at = this.#header(type, 4);
    this.#view.setUint32(at, value, true);
  }

  /** In network order, as nf_tables wants numbers. */
  be32(type: number, value: number): void {
    const at = this.#header(type, 4);
    this.#view.setUint32(at, value, false);
  }

  /** With a terminating zero byte. */
  text(type: number, value: string): void {
    // Most bytes UTF-8 can need for it; taken back below. Batches of thousands of rules are mostly names.
    const room = value.length * 3;
    const at = this.#header(type, room);
    const { written } = ENCODER.encodeInto(value, this.#bytes.subarray(at, at + room));
    const length = written + 1;
    this.#length = at + ((length + 3) & ~3);
    this.#reserve();
    this.#bytes.fill(0, at + written, this.#length);
    this.#view.setUint16(at - ATTR.size + ATTR.at.len, ATTR.size + length, true);
  }

  /** An attribute that holds attributes. */
  nest(type: number, attributes: () => void): void {
    const start = this.#grow(ATTR.size);
    attributes();
    this.#view.setUint16(start + ATTR.at.len, this.#length - start, true);
    this.#view.setUint16(start + ATTR.at.type, type | NLA_F_NESTED, true);
  }

  #put(value: Uint8Array): void {
    const at = this.#grow((value.length + 3) & ~3);
    this.#bytes.set(value, at);
  }

  /** The header of an attribute; returns where its value goes. Padding is zero. */
  #header(type: number, length: number): number {
    const start = this.#grow(ATTR.size + ((length + 3) & ~3));
    this.#view.setUint16(start + ATTR.at.len, ATTR.size + length, true);
    this.#view.setUint16(start + ATTR.at.type, type, true);
    if ((length & 3) !== 0) this.#bytes.fill(0, start + ATTR.size + length, this.#length);
    return start + ATTR.size;
  }

  #grow(by: number): number {
    const at = this.#length;
    this.#length += by;
    this.#reserve();
    return at;
  }

  #reserve(): void {
    if (this.#length <= this.#bytes.length) return;
    const larger = new Uint8Array(Math.max(this.#bytes.length * 2, this.#length));
    larger.set(this.#bytes);
    this.#bytes = larger;
    this.#view = new DataView(larger.buffer);
  }
}

/** Splits what one receive returned. Stops at the first message that does not fit: the rest was cut off. */
export function parseMessages(bytes: Uint8Array): NetlinkMessage[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const messages: NetlinkMessage[] = [];
  for (let at = 0; at + HDR.size <= bytes.length;) {
    const length = view.getUint32(at + HDR.at.len, true);
    if (length < HDR.size || at + length > bytes.length) break;
    messages.push({
      type: view.getUint16(at + HDR.at.type, true),
      flags: view.getUint16(at + HDR.at.flags, true),
      seq: view.getUint32(at + HDR.at.seq, true),
      port: view.getUint32(at + HDR.at.pid, true),
      body: bytes.slice(at + HDR.size, at + length),
    });
    at += (length + 3) & ~3;
  }
  return messages;
}

/** The attributes behind the first `offset` bytes of `body`. Stops at the first that does not fit. */
export function parseAttributes(body: Uint8Array, offset = 0): Attributes {
  const view = new DataView(body.buffer, body.byteOffset, body.byteLength);
  const attributes = new Map<number, Uint8Array>();
  for (let at = (offset + 3) & ~3; at + ATTR.size <= body.length;) {
    const length = view.getUint16(at + ATTR.at.len, true);
    if (length < ATTR.size || at + length > body.length) break;
    const type = view.getUint16(at + ATTR.at.type, true) & NLA_TYPE_MASK;
    attributes.set(type, body.subarray(at + ATTR.size, at + length));
    at += (length + 3) & ~3;
  }
  return attributes;
}

/** A number in host order; undefined when the attribute is missing or shorter. */
export function attrU32(attributes: Attributes, type: number): number | undefined {
  const value = attributes.get(type);
  if (value === undefined || value.length < 4) return undefined;
  return new DataView(value.buffer, value.byteOffset).getUint32(0, true);
}

/** A text without its terminating zero byte. */
export function attrText(attributes: Attributes, type: number): string | undefined {
  const value = attributes.get(type);
  if (value === undefined) return undefined;
  const end = value.indexOf(0);
  return new TextDecoder().decode(end < 0 ? value : value.subarray(0, end));
}
