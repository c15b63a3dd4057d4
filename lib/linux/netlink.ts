/**
 * A netlink socket: requests with their acknowledgement, dumps, batches, and notifications. Calls are synchronous: the
 * kernel answers rtnetlink and nf_tables requests before send(2) returns.
 */
import { MeshError } from "../errors.ts";
import { EAGAIN, EINTR, ENOBUFS, errnoText, sysError } from "./errno.ts";
import { errno, type Fd, type Libc, libc } from "./ffi.ts";
import { Memory } from "./memory.ts";
import {
  attrText,
  type MessageBuilder,
  type NetlinkMessage,
  NLM_F_ACK_TLVS,
  NLM_F_CAPPED,
  NLM_F_DUMP_INTR,
  NLMSG_DONE,
  NLMSG_ERROR,
  NLMSG_OVERRUN,
  parseAttributes,
  parseMessages,
} from "./netlink_message.ts";
import {
  AF_NETLINK,
  MSG_TRUNC,
  SO_RCVBUFFORCE,
  SO_SNDBUFFORCE,
  SOCK_CLOEXEC,
  SOCK_NONBLOCK,
  SOCK_RAW,
  SOL_NETLINK,
  SOL_SOCKET,
  STRUCT,
} from "./structs.ts";

export const NETLINK_ROUTE = 0;
export const NETLINK_NETFILTER = 12;

const NETLINK_ADD_MEMBERSHIP = 1;
const NETLINK_DROP_MEMBERSHIP = 2;
const NETLINK_CAP_ACK = 10;
const NETLINK_EXT_ACK = 11;
const NLMSGERR_ATTR_MSG = 1;
const POLLIN = 1;

/** The kernel fills at most 32 KiB per receive of a dump; batches of nf_tables errors are far below it. */
const RECEIVE_BYTES = 64 * 1024;
/** For a batch of 20 000 nf_tables elements (2 MB), and for bursts of notifications. */
const SOCKET_BUFFER = 16 << 20;
/** Answers are there at once; only a kernel bug could make us wait for ever. */
const ANSWER_MS = 5_000;
/** A table that changes during every dump is read as it is after so many tries. */
const DUMP_TRIES = 5;

/** What the kernel said to one request: `errno` 0 is success; `detail` is its own explanation where it gave one. */
export interface Outcome {
  readonly seq: number;
  readonly errno: number;
  readonly detail: string | undefined;
}

export class NetlinkSocket {
  readonly fd: Fd;
  readonly #c: Libc = libc();
  readonly #in = Memory.allocate(RECEIVE_BYTES);
  readonly #value = Memory.allocate(8);
  readonly #poll = Memory.allocate(STRUCT.pollfd.size);
  #seq = 1;

  /** `groups` are multicast group numbers to listen to. Throws MeshError KERNEL. */
  constructor(protocol: number, groups: readonly number[] = []) {
    this.fd = this.#c.socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, protocol);
    if (this.fd < 0) throw sysError(`open a netlink socket of protocol ${protocol}`, errno());
    const address = Memory.allocate(STRUCT.sockaddr_nl.size);
    address.bytes[0] = AF_NETLINK;
    const bound = this.#c.bind(this.fd, address.pointer, STRUCT.sockaddr_nl.size) === 0 ? 0 : errno();
    address.free();
    // Buffers and explanations are niceties: without CAP_NET_ADMIN or on an old kernel the socket works without them.
    this.#option(SOL_SOCKET, SO_SNDBUFFORCE, SOCKET_BUFFER);
    this.#option(SOL_SOCKET, SO_RCVBUFFORCE, SOCKET_BUFFER);
    this.#option(SOL_NETLINK, NETLINK_CAP_ACK, 1);
    this.#option(SOL_NETLINK, NETLINK_EXT_ACK, 1);
    const refused = groups.find((group) => this.#option(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group) !== 0);
    if (bound === 0 && refused === undefined) return;
    const e = bound === 0 ? errno() : bound;
    this.close();
    throw sysError(`bind a netlink socket of protocol ${protocol}`, e);
  }

  /** The number the next request must start with: `new MessageBuilder(socket.nextSeq)`. */
  get nextSeq(): number {
    return this.#seq;
  }

  /** The kernel's number for this socket: what notifications carry as the cause of a change made through it. */
  get port(): number {
    const name = Memory.allocate(STRUCT.sockaddr_nl.size);
    this.#value.i32[0] = STRUCT.sockaddr_nl.size;
    const e = this.#c.getsockname(this.fd, name.pointer, this.#value.pointer) === 0 ? 0 : errno();
    const port = name.u32[STRUCT.sockaddr_nl.at.pid >> 2]!;
    name.free();
    if (e !== 0) throw sysError("read the address of a netlink socket", e);
    return port;
  }

  /** Sends one message that has NLM_F_ACK and returns what the kernel said. Throws only when there is no answer. */
  request(message: MessageBuilder): Outcome {
    const seq = this.nextSeq;
    return this.transact(message).find((outcome) => outcome.seq === seq)!;
  }

  /**
   * Sends a batch and returns the outcome of each message that the kernel acknowledged or refused, up to the last
   * message, which must have NLM_F_ACK unless the batch is refused.
   */
  transact(batch: MessageBuilder, last = batch.nextSeq - 1): Outcome[] {
    this.#send(batch);
    const outcomes: Outcome[] = [];
    for (;;) {
      for (const message of this.#receive()) {
        if (message.type !== NLMSG_ERROR) continue;
        outcomes.push(readOutcome(message));
      }
      // nf_tables reports every refused message of a batch before it returns from send, the last one included or not.
      if (outcomes.some((o) => o.seq === last || o.errno !== 0) && !this.#hasMore()) return outcomes;
    }
  }

  /**
   * Sends a dump request, or a request for one object with NLM_F_ACK, and returns all answers. `action` is for the error:
   * `list links`. Throws MeshError KERNEL.
   */
  dump(action: string, build: (seq: number) => MessageBuilder): NetlinkMessage[] {
    for (let attempt = 1;; attempt++) {
      const messages: NetlinkMessage[] = [];
      const changed = this.#dumpOnce(action, build(this.nextSeq), messages);
      if (!changed || attempt === DUMP_TRIES) return messages;
    }
  }

  /** Starts or stops hearing a multicast group. Throws MeshError KERNEL. */
  listen(group: number, on: boolean): void {
    if (this.#option(SOL_NETLINK, on ? NETLINK_ADD_MEMBERSHIP : NETLINK_DROP_MEMBERSHIP, group) !== 0) {
      throw sysError(`${on ? "join" : "leave"} netlink group ${group}`, errno());
    }
  }

  /**
   * Notifications that are there now. `lost` is true when the kernel had to drop some: the caller lists everything anew.
   */
  notifications(): { messages: NetlinkMessage[]; lost: boolean } {
    const messages: NetlinkMessage[] = [];
    let lost = false;
    for (;;) {
      const n = this.#c.recv(this.fd, this.#in.pointer, RECEIVE_BYTES, MSG_TRUNC);
      if (n > 0) {
        lost ||= n > RECEIVE_BYTES;
        messages.push(...parseMessages(this.#in.bytes.subarray(0, Math.min(n, RECEIVE_BYTES))));
        continue;
      }
      const e = errno();
      if (e === ENOBUFS) lost = true;
      else if (e !== EINTR) return { messages, lost };
    }
  }

  close(): void {
    this.#c.close(this.fd);
    for (const memory of [this.#in, this.#value, this.#poll]) memory.free();
  }

  #dumpOnce(action: string, request: MessageBuilder, into: NetlinkMessage[]): boolean {
    this.#send(request);
    let changed = false;
    for (;;) {
      for (const message of this.#receive()) {
        if ((message.flags & NLM_F_DUMP_INTR) !== 0) changed = true;
        if (message.type === NLMSG_DONE) return changed;
        if (message.type === NLMSG_ERROR) {
          const { errno: e, detail } = readOutcome(message);
          // The end of a request for one object that asked for an acknowledgement.
          if (e === 0) return changed;
          throw netlinkError(action, { seq: message.seq, errno: e, detail });
        }
        into.push(message);
      }
    }
  }

  #send(message: MessageBuilder): void {
    const bytes = message.bytes;
    this.#seq = message.nextSeq;
    const n = this.#c.sendFrom(this.fd, bytes, bytes.length, 0);
    if (n !== bytes.length) throw sysError(`send ${bytes.length} bytes to netlink`, errno());
  }

  #receive(): NetlinkMessage[] {
    for (;;) {
      const n = this.#c.recv(this.fd, this.#in.pointer, RECEIVE_BYTES, 0);
      if (n > 0) {
        const messages = parseMessages(this.#in.bytes.subarray(0, n));
        if (messages.some((m) => m.type === NLMSG_OVERRUN)) throw sysError("read from netlink", ENOBUFS);
        return messages;
      }
      const e = errno();
      if (e === EAGAIN) {
        if (!this.#wait(ANSWER_MS)) throw new MeshError("KERNEL", `No answer from netlink within ${ANSWER_MS} ms`);
      } else if (e !== EINTR) {
        throw sysError("read from netlink", e);
      }
    }
  }

  #hasMore(): boolean {
    return this.#wait(0);
  }

  #wait(ms: number): boolean {
    this.#poll.i32[STRUCT.pollfd.at.fd >> 2] = this.fd;
    this.#poll.view.setInt16(STRUCT.pollfd.at.events, POLLIN, true);
    return this.#c.poll(this.#poll.pointer, 1, ms) > 0;
  }

  #option(level: number, name: number, value: number): number {
    this.#value.i32[0] = value;
    return this.#c.setsockopt(this.fd, level, name, this.#value.pointer, 4);
  }
}

/** The error of a refused request: `Cannot add route 10.96.0.0/12: exists already (EEXIST), <the kernel's words>`. */
export function netlinkError(action: string, outcome: Outcome): MeshError {
  const plain = sysError(action, outcome.errno);
  if (!outcome.detail) return plain;
  const message = `Cannot ${action}: ${errnoText(outcome.errno)}, ${outcome.detail}`;
  return new MeshError("KERNEL", message, plain.hint === undefined ? {} : { hint: plain.hint });
}

function readOutcome(message: NetlinkMessage): Outcome {
  const { body, flags } = message;
  const view = new DataView(body.buffer, body.byteOffset, body.byteLength);
  const e = -view.getInt32(STRUCT.nlmsgerr.at.error, true);
  if ((flags & NLM_F_ACK_TLVS) === 0) return { seq: message.seq, errno: e, detail: undefined };
  // Behind the error stands the request's header, and its content too unless the answer is capped.
  const header = STRUCT.nlmsgerr.at.msg;
  const echoed = (flags & NLM_F_CAPPED) !== 0 ? STRUCT.nlmsghdr.size : view.getUint32(header, true);
  return { seq: message.seq, errno: e, detail: attrText(parseAttributes(body, header + echoed), NLMSGERR_ATTR_MSG) };
}
