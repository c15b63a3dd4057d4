/**
 * Layouts of the C structures this product passes to the kernel, for both machine types it runs on, and the constants
 * that go with them. One table, so that a second architecture is a column and not a hunt. All numbers are those of
 * the Linux UAPI headers (LP64, little endian); sizes and offsets in bytes.
 */

/** Machine types, as `Deno.build.arch` names them. */
export type Arch = "x86_64" | "aarch64";

/** Size of a structure and the offset of each field. */
export interface Layout<F extends string = string> {
  readonly size: number;
  readonly at: Readonly<Record<F, number>>;
}

type PerArch<F extends string> = Readonly<Record<Arch, Layout<F>>>;

function same<F extends string>(size: number, at: Readonly<Record<F, number>>): PerArch<F> {
  const layout = { size, at };
  return { x86_64: layout, aarch64: layout };
}

/** Every layout, by structure and machine type. Tests check both columns; code uses {@link STRUCT}. */
export const LAYOUTS = {
  /** <netinet/in.h> */
  sockaddr_in: same(16, { family: 0, port: 2, addr: 4 }),
  sockaddr_in6: same(28, { family: 0, port: 2, flowinfo: 4, addr: 8, scope: 24 }),
  /** <linux/netlink.h> */
  sockaddr_nl: same(12, { family: 0, pid: 4, groups: 8 }),
  nlmsghdr: same(16, { len: 0, type: 4, flags: 6, seq: 8, pid: 12 }),
  nlattr: same(4, { len: 0, type: 2 }),
  nlmsgerr: same(20, { error: 0, msg: 4 }),
  /** <linux/rtnetlink.h> */
  ifinfomsg: same(16, { family: 0, type: 2, index: 4, flags: 8, change: 12 }),
  ifaddrmsg: same(8, { family: 0, prefixlen: 1, flags: 2, scope: 3, index: 4 }),
  rtmsg: same(12, {
    family: 0,
    dstLen: 1,
    srcLen: 2,
    tos: 3,
    table: 4,
    protocol: 5,
    scope: 6,
    type: 7,
    flags: 8,
  }),
  /** <sys/un.h> */
  sockaddr_un: same(110, { family: 0, path: 2 }),
  /** <sys/epoll.h>: packed on x86-64 only, so that 32-bit programs see the same layout. */
  epoll_event: {
    x86_64: { size: 12, at: { events: 0, data: 4 } },
    aarch64: { size: 16, at: { events: 0, data: 8 } },
  },
  /** <sys/uio.h>, <sys/socket.h> of glibc (msg_iovlen and msg_controllen are size_t there). */
  iovec: same(16, { base: 0, len: 8 }),
  msghdr: same(56, { name: 0, namelen: 8, iov: 16, iovlen: 24, control: 32, controllen: 40, flags: 48 }),
  mmsghdr: same(64, { hdr: 0, len: 56 }),
  linger: same(8, { onoff: 0, linger: 4 }),
  /** <netinet/in.h> */
  ip_mreqn: same(12, { group: 0, address: 4, ifindex: 8 }),
  pollfd: same(8, { fd: 0, events: 4, revents: 6 }),
  /** <net/if.h> */
  ifreq: same(40, { name: 0, flags: 16, ifindex: 16, mtu: 16 }),
} as const;

type StructName = keyof typeof LAYOUTS;
type Here = { readonly [S in StructName]: (typeof LAYOUTS)[S]["x86_64" | "aarch64"] };

/** The machine type of this process. */
export const ARCH: Arch = Deno.build.arch === "aarch64" ? "aarch64" : "x86_64";

/** The layouts of this machine. */
export const STRUCT: Here = Object.fromEntries(
  Object.entries(LAYOUTS).map(([name, columns]) => [name, columns[ARCH]]),
) as Here;

// Flags of open(2) that differ between the two: arm64 kept the numbers of 32-bit ARM.
const OPEN_FLAGS = {
  x86_64: { O_DIRECTORY: 0o200000, O_NOFOLLOW: 0o400000 },
  aarch64: { O_DIRECTORY: 0o40000, O_NOFOLLOW: 0o100000 },
} as const;
export const { O_DIRECTORY, O_NOFOLLOW } = OPEN_FLAGS[ARCH];

export const O_RDONLY = 0;
export const O_RDWR = 2;
export const O_CREAT = 0o100;
export const O_NONBLOCK = 0o4000;
export const O_CLOEXEC = 0o2000000;

export const AF_UNIX = 1;
export const AF_INET = 2;
export const AF_INET6 = 10;
export const AF_NETLINK = 16;

export const SOCK_STREAM = 1;
export const SOCK_DGRAM = 2;
export const SOCK_RAW = 3;
export const SOCK_NONBLOCK = O_NONBLOCK;
export const SOCK_CLOEXEC = O_CLOEXEC;

export const SOL_IP = 0;
export const SOL_SOCKET = 1;
export const SOL_TCP = 6;
export const SOL_IPV6 = 41;
export const SOL_NETLINK = 270;

export const SO_REUSEADDR = 2;
export const SO_ERROR = 4;
export const SO_SNDBUF = 7;
export const SO_RCVBUF = 8;
export const SO_KEEPALIVE = 9;
export const SO_LINGER = 13;
export const SO_REUSEPORT = 15;
export const SO_SNDBUFFORCE = 32;
export const SO_RCVBUFFORCE = 33;
export const SO_MARK = 36;
/** Same number on level SOL_IP and (as IP6T_SO_ORIGINAL_DST) on SOL_IPV6. */
export const SO_ORIGINAL_DST = 80;
export const IP_FREEBIND = 15;
export const IP_MULTICAST_IF = 32;
export const IP_ADD_MEMBERSHIP = 35;
export const IP_DROP_MEMBERSHIP = 36;
/** Whether a socket hears groups that others on the host have joined. */
export const IP_MULTICAST_ALL = 49;
export const IPV6_V6ONLY = 26;
export const IPV6_FREEBIND = 78;

export const TCP_NODELAY = 1;
export const TCP_MAXSEG = 2;
export const TCP_KEEPIDLE = 4;
export const TCP_KEEPINTVL = 5;
export const TCP_KEEPCNT = 6;

export const SHUT_WR = 1;

export const MSG_PEEK = 0x2;
export const MSG_TRUNC = 0x20;
export const MSG_DONTWAIT = 0x40;
export const MSG_NOSIGNAL = 0x4000;
export const MSG_MORE = 0x8000;

export const MADV_DONTNEED = 4;

export const EPOLL_CTL_ADD = 1;
export const EPOLL_CTL_DEL = 2;
export const EPOLL_CTL_MOD = 3;
export const EPOLLIN = 0x1;
export const EPOLLPRI = 0x2;
export const EPOLLOUT = 0x4;
export const EPOLLERR = 0x8;
export const EPOLLHUP = 0x10;
export const EPOLLRDHUP = 0x2000;
export const EPOLLONESHOT = 0x40000000;
export const EPOLLET = 0x80000000;

export const F_SETPIPE_SZ = 1031;
export const SPLICE_F_MOVE = 1;
export const SPLICE_F_NONBLOCK = 2;

export const LOCK_EX = 2;
export const LOCK_NB = 4;

export const CLONE_NEWNET = 0x40000000;
