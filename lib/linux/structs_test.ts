import "./preload.ts";
import { strict as assert } from "node:assert";
import { errno, libc } from "./ffi.ts";
import { Memory } from "./memory.ts";
import { getSockaddr, putSockaddr, SOCKADDR_MAX } from "./sockaddr.ts";
import {
  AF_INET6,
  AF_UNIX,
  ARCH,
  EPOLL_CTL_ADD,
  EPOLLIN,
  EPOLLOUT,
  LAYOUTS,
  MSG_DONTWAIT,
  O_CLOEXEC,
  O_DIRECTORY,
  O_NOFOLLOW,
  O_RDONLY,
  SOCK_CLOEXEC,
  SOCK_DGRAM,
  SOCK_NONBLOCK,
  STRUCT,
} from "./structs.ts";

// sizeof and offsetof as gcc prints them on x86-64 with glibc 2.36. All members have the same size and alignment on arm64
// (LP64 too); what differs is epoll_event, whose packed attribute <bits/epoll.h> has on x86-64 only.
const COMMON: Record<string, readonly [size: number, ...offsets: number[]]> = {
  sockaddr_in: [16, 0, 2, 4],
  sockaddr_in6: [28, 0, 2, 4, 8, 24],
  sockaddr_nl: [12, 0, 4, 8],
  nlmsghdr: [16, 0, 4, 6, 8, 12],
  nlattr: [4, 0, 2],
  nlmsgerr: [20, 0, 4],
  ifinfomsg: [16, 0, 2, 4, 8, 12],
  ifaddrmsg: [8, 0, 1, 2, 3, 4],
  rtmsg: [12, 0, 1, 2, 3, 4, 5, 6, 7, 8],
  sockaddr_un: [110, 0, 2],
  iovec: [16, 0, 8],
  msghdr: [56, 0, 8, 16, 24, 32, 40, 48],
  mmsghdr: [64, 0, 56],
  linger: [8, 0, 4],
  ip_mreqn: [12, 0, 4, 8],
  pollfd: [8, 0, 4, 6],
  ifreq: [40, 0, 16, 16, 16],
};

Deno.test("layouts are those of the C headers, on both machine types", () => {
  const flat = (layout: { size: number; at: object }) => [layout.size, ...Object.values(layout.at)];
  for (const arch of ["x86_64", "aarch64"] as const) {
    const expected = { ...COMMON, epoll_event: arch === "x86_64" ? [12, 0, 4] : [16, 0, 8] };
    const actual = Object.fromEntries(Object.entries(LAYOUTS).map(([name, columns]) => [name, flat(columns[arch])]));
    assert.deepEqual(actual, expected);
  }
  assert.equal(STRUCT.epoll_event, LAYOUTS.epoll_event[ARCH]);
});

Deno.test("the running kernel agrees on epoll_event: two events keep their data apart", () => {
  const c = libc();
  const { size, at } = STRUCT.epoll_event;
  const pair = Memory.allocate(8);
  const control = Memory.allocate(size);
  const events = Memory.allocate(size * 2);
  assert.equal(c.socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, pair.pointer), 0);
  const epoll = c.epoll_create1(O_CLOEXEC);
  const marks = [0x1122334455667788n, 0x99aabbccddeeff00n];
  for (let i = 0; i < 2; i++) {
    control.view.setUint32(at.events, EPOLLOUT, true);
    control.view.setBigUint64(at.data, marks[i]!, true);
    assert.equal(c.epoll_ctl(epoll, EPOLL_CTL_ADD, pair.i32[i]!, control.pointer), 0);
  }
  assert.equal(c.epoll_wait(epoll, events.pointer, 2, 0), 2);
  const seen = [0, 1].map((i) => events.view.getBigUint64(i * size + at.data, true));
  assert.deepEqual(new Set(seen), new Set(marks));
  for (let i = 0; i < 2; i++) {
    assert.equal(events.view.getUint32(i * size + at.events, true) & (EPOLLOUT | EPOLLIN), EPOLLOUT);
  }
  for (const fd of [epoll, pair.i32[0]!, pair.i32[1]!]) c.close(fd);
  for (const memory of [pair, control, events]) memory.free();
});

Deno.test("the running kernel agrees on iovec, msghdr, mmsghdr and sockaddr_in6: a batch arrives with its senders", () => {
  const c = libc();
  const [from, to] = [0, 1].map(() => c.socket(AF_INET6, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)) as [
    number,
    number,
  ];
  const name = Memory.allocate(SOCKADDR_MAX);
  const length = Memory.allocate(4);
  const bind = (fd: number) => {
    assert.equal(c.bind(fd, name.pointer, putSockaddr(name.bytes, 0, { ip: "::1", port: 0 })), 0, `errno ${errno()}`);
    length.u32[0] = SOCKADDR_MAX;
    assert.equal(c.getsockname(fd, name.pointer, length.pointer), 0);
    assert.equal(length.u32[0], STRUCT.sockaddr_in6.size);
    return getSockaddr(name.bytes);
  };
  const source = bind(from);
  const target = bind(to);
  const data = Memory.allocate(512);
  const vectors = Memory.allocate(STRUCT.iovec.size * 2);
  const names = Memory.allocate(64);
  const headers = Memory.allocate(STRUCT.mmsghdr.size * 2);
  for (let i = 0; i < 2; i++) {
    vectors.putAddress(i * STRUCT.iovec.size + STRUCT.iovec.at.base, data, i * 100);
    vectors.view.setBigUint64(i * STRUCT.iovec.size + STRUCT.iovec.at.len, BigInt(10 + i), true);
    const at = i * STRUCT.mmsghdr.size;
    headers.putAddress(at + STRUCT.msghdr.at.name, names, i * 32);
    headers.view.setUint32(at + STRUCT.msghdr.at.namelen, putSockaddr(names.bytes, i * 32, target), true);
    headers.putAddress(at + STRUCT.msghdr.at.iov, vectors, i * STRUCT.iovec.size);
    headers.view.setBigUint64(at + STRUCT.msghdr.at.iovlen, 1n, true);
  }
  data.bytes.fill(1, 0, 10).fill(2, 100, 111);
  assert.equal(c.sendmmsg(from, headers.pointer, 2, MSG_DONTWAIT), 2, `errno ${errno()}`);
  data.bytes.fill(0);
  names.bytes.fill(0);
  assert.equal(c.recvmmsg(to, headers.pointer, 2, MSG_DONTWAIT, null), 2);
  for (let i = 0; i < 2; i++) {
    assert.equal(headers.view.getUint32(i * STRUCT.mmsghdr.size + STRUCT.mmsghdr.at.len, true), 10 + i);
    assert.deepEqual(getSockaddr(names.bytes, i * 32), source);
    assert.equal(data.bytes[i * 100 + 9 + i], i + 1);
  }
  for (const fd of [from, to]) c.close(fd);
  for (const memory of [name, length, data, vectors, names, headers]) memory.free();
});

Deno.test("the running kernel agrees on O_DIRECTORY and O_NOFOLLOW", async () => {
  const c = libc();
  const dir = await Deno.makeTempDir();
  await Deno.writeTextFile(`${dir}/file`, "");
  await Deno.symlink(`${dir}/file`, `${dir}/link`);
  const opens = (name: string, flags: number) => {
    const path = Memory.text(`${dir}/${name}`);
    const fd = c.open(path.pointer, O_RDONLY | O_CLOEXEC | flags, 0);
    path.free();
    if (fd >= 0) c.close(fd);
    return fd >= 0;
  };
  assert.deepEqual([opens("", O_DIRECTORY), opens("file", O_DIRECTORY)], [true, false]);
  assert.deepEqual([opens("file", O_NOFOLLOW), opens("link", O_NOFOLLOW), opens("link", 0)], [true, false, true]);
  await Deno.remove(dir, { recursive: true });
});
