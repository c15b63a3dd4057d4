/**
 * A layer-3 TUN device, read and written without allocating: packets travel between the kernel and one {@link Memory}.
 * Documented in the kernel's `Documentation/networking/tuntap.rst` and `include/uapi/linux/if_tun.h`.
 */
import { MeshError } from "../errors.ts";
import { sysError } from "./errno.ts";
import { errno, type Fd, libc } from "./ffi.ts";
import { Memory } from "./memory.ts";

/** Length of `struct virtio_net_hdr`, which stands before each packet. */
const VNET_HEADER_BYTES = 10;
/** The largest unit a device can deliver: one 64 KiB segment-offloaded packet and its header. */
export const MAX_TUN_READ = VNET_HEADER_BYTES + 65_535;

const TUNSETIFF = 0x400454ca;
const TUNSETOFFLOAD = 0x400454d0;
const IFF_TUN = 0x0001;
const IFF_NO_PI = 0x1000;
const IFF_VNET_HDR = 0x4000;
const TUN_F_CSUM = 0x01;
const TUN_F_TSO4 = 0x02;
const TUN_F_TSO6 = 0x04;
const O_RDWR_NONBLOCK_CLOEXEC = 0x2 | 0o4000 | 0o2000000;
/** Bytes for a device name in `struct ifreq`, its terminating zero included. */
const IFNAMSIZ = 16;
const IFREQ_BYTES = 40;
const POLLIN = 0x001;
const POLLERR = 0x008;
const POLLHUP = 0x010;
const POLLNVAL = 0x020;

// Vectored calls take the address from memory, not as an argument: a plain pointer argument would have to be made anew
// for each place in the ring, which allocates. They are not in ffi.ts because the agent's start should not pay for them.
const SYMBOLS = {
  readv: { parameters: ["i32", "pointer", "i32"], result: "i32" },
  writev: { parameters: ["i32", "pointer", "i32"], result: "i32" },
  ppoll: { parameters: ["pointer", "u32", "pointer", "pointer"], result: "i32" },
} as const satisfies Deno.ForeignLibraryInterface;

/** What {@link Tun.wait} woke up for; none is a timeout. */
export interface TunWake {
  /** Packets wait to be read. */
  readonly packets: boolean;
  /** The other descriptor has data, or its writer closed it. */
  readonly other: boolean;
  /** The device is gone: its link or its network namespace was removed. */
  readonly gone: boolean;
}

/** A TUN device in the calling process's network namespace. */
export class Tun {
  readonly #lib: Deno.DynamicLibrary<typeof SYMBOLS>;
  readonly #fd: Fd;
  readonly #vector = Memory.allocate(16);
  readonly #poll = Memory.allocate(16);
  readonly #timeout = Memory.allocate(16);
  readonly #wake = { packets: false, other: false, gone: false };

  /**
   * Opens or creates the device `name`. Every packet read or written carries a `virtio_net_hdr` in front.
   * @throws MeshError KERNEL without `/dev/net/tun`, without CAP_NET_ADMIN, or for a name in use
   */
  constructor(name: string) {
    const encoded = new TextEncoder().encode(name);
    if (encoded.length === 0 || encoded.length >= IFNAMSIZ) {
      throw new MeshError("CONFIG_INVALID", `Device name "${name}" must have 1 to ${IFNAMSIZ - 1} bytes`);
    }
    const path = Memory.text("/dev/net/tun");
    this.#fd = libc().open(path.pointer, O_RDWR_NONBLOCK_CLOEXEC, 0);
    path.free();
    if (this.#fd < 0) {
      throw sysError("open /dev/net/tun", errno(), "modprobe tun; in a container, pass the device /dev/net/tun in");
    }
    const request = Memory.allocate(IFREQ_BYTES);
    request.bytes.set(encoded);
    request.view.setInt16(IFNAMSIZ, IFF_TUN | IFF_NO_PI | IFF_VNET_HDR, true);
    const failed = libc().ioctl(this.#fd, BigInt(TUNSETIFF), request.pointer) < 0 ? errno() : 0;
    request.free();
    if (failed !== 0) {
      libc().close(this.#fd);
      throw sysError(`attach to TUN device ${name}`, failed);
    }
    this.#lib = Deno.dlopen("libc.so.6", SYMBOLS);
    this.#poll.i32[0] = this.#fd;
  }

  /**
   * Whether the kernel may hand over unsegmented TCP packets with unfinished checksums (TSO). On: few large reads.
   * Off: each packet is one packet on the wire, as loss and jitter per packet need it.
   */
  setOffload(on: boolean): void {
    const flags = on ? TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 : 0;
    if (libc().ioctl(this.#fd, BigInt(TUNSETOFFLOAD), Deno.UnsafePointer.create(BigInt(flags))) < 0) {
      throw sysError(`set the offloads of a TUN device to ${flags}`, errno());
    }
  }

  /** Reads one packet to `offset` of `memory`, which has {@link MAX_TUN_READ} bytes there; its length, 0 for none. */
  read(memory: Memory, offset: number): number {
    this.#vector.putAddress(0, memory, offset);
    this.#vector.u32[2] = MAX_TUN_READ;
    // Failed: nothing waits, or the device is gone. The next wait() tells which.
    return Math.max(0, this.#lib.symbols.readv(this.#fd, this.#vector.pointer, 1));
  }

  /** Writes one packet; false when the kernel did not take it (malformed, link down, or out of memory). */
  write(memory: Memory, offset: number, length: number): boolean {
    this.#vector.putAddress(0, memory, offset);
    this.#vector.u32[2] = length;
    return this.#lib.symbols.writev(this.#fd, this.#vector.pointer, 1) === length;
  }

  /**
   * Blocks the thread until packets wait, `otherFd` is readable, or `timeoutMs` (fractions count) have passed; a
   * negative timeout waits for ever. The result is the same object each time.
   */
  wait(timeoutMs: number, otherFd: Fd): TunWake {
    const poll = this.#poll;
    poll.i32[1] = POLLIN;
    poll.i32[2] = otherFd;
    poll.i32[3] = POLLIN;
    // struct timespec in 32-bit halves: both values stay far below 2^32, and no BigInt is made.
    const seconds = Math.floor(timeoutMs / 1000);
    this.#timeout.u32[0] = seconds;
    this.#timeout.u32[2] = Math.min(999_999_999, Math.round((timeoutMs - seconds * 1000) * 1e6));
    const timeout = timeoutMs < 0 ? null : this.#timeout.pointer;
    const n = this.#lib.symbols.ppoll(poll.pointer, 2, timeout, null);
    // `revents` is the upper half of the word that starts with `events`.
    const events = n > 0 ? poll.u32[1]! >>> 16 : 0;
    this.#wake.gone = (events & (POLLERR | POLLHUP | POLLNVAL)) !== 0;
    this.#wake.packets = (events & POLLIN) !== 0;
    this.#wake.other = n > 0 && poll.u32[3]! >>> 16 !== 0;
    return this.#wake;
  }

  close(): void {
    libc().close(this.#fd);
    this.#lib.close();
    for (const memory of [this.#vector, this.#poll, this.#timeout]) memory.free();
  }
}
