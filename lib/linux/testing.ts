/** What tests of this folder share: a network namespace of their own, and a handler that records. */
import { describe, type ReasonCode } from "../errors.ts";
import type { StreamHandler } from "../net.ts";
import { sysError } from "./errno.ts";
import { errno, type Fd, libc } from "./ffi.ts";
import { Links } from "./links.ts";
import { Memory } from "./memory.ts";
import { CLONE_NEWNET, O_CLOEXEC, O_RDONLY } from "./structs.ts";

/** A handler that records, and resolves when the stream is over. */
export class Recorder implements StreamHandler {
  readonly calls: string[] = [];
  readonly over = Promise.withResolvers<ReasonCode | undefined>();
  readonly opened = Promise.withResolvers<void>();
  onReadableDo: () => void = () => {};

  onOpen(): void {
    this.calls.push("open");
    this.opened.resolve();
  }
  onReadable(): void {
    this.calls.push("readable");
    this.onReadableDo();
  }
  onWritable(): void {
    this.calls.push("writable");
  }
  onClose(reason: ReasonCode | undefined): void {
    this.calls.push(`close ${reason}`);
    this.over.resolve(reason);
  }
}

/** Whether this process may make network namespaces; if not (a plain container), says that `tests` are skipped. */
export function mayMakeNamespaces(tests: string): boolean {
  try {
    const home = enter();
    leave(home);
    return true;
  } catch (error) {
    Deno.stderr.writeSync(new TextEncoder().encode(`${tests}: skipped, ${describe(error)}\n`));
    return false;
  }
}

/**
 * Runs `body` in a fresh network namespace with loopback up. Sockets and child processes made meanwhile on this thread
 * belong to it; the kernel removes it with the last of them, also after a crash.
 */
export async function inNamespace(body: () => Promise<void> | void): Promise<void> {
  const home = enter();
  try {
    const links = new Links();
    links.setUp(links.find("lo")!.index);
    links.close();
    await body();
  } finally {
    leave(home);
  }
}

/** Runs a program and returns what it prints; fails with what it complains about. */
export function run(command: string, ...args: string[]): string {
  const { success, stdout, stderr } = new Deno.Command(command, { args }).outputSync();
  if (!success) throw new Error(`${command} ${args.join(" ")}: ${new TextDecoder().decode(stderr)}`);
  return new TextDecoder().decode(stdout);
}

function enter(): Fd {
  // A namespace belongs to a thread: /proc/self would be the first thread's.
  const path = Memory.text("/proc/thread-self/ns/net");
  const home = libc().open(path.pointer, O_RDONLY | O_CLOEXEC, 0);
  path.free();
  if (home < 0) throw sysError("open the own network namespace", errno());
  if (libc().unshare(CLONE_NEWNET) === 0) return home;
  const e = errno();
  libc().close(home);
  throw sysError("make a network namespace", e);
}

function leave(home: Fd): void {
  const failed = libc().setns(home, CLONE_NEWNET) === 0 ? 0 : errno();
  libc().close(home);
  if (failed !== 0) throw sysError("return to the own network namespace", failed);
}
