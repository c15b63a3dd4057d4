/** A lock file: one process at a time, released by the kernel when the process ends in whatever way. */
import { MeshError } from "../errors.ts";
import { EAGAIN, sysError } from "./errno.ts";
import { errno, ffiProblem, libc } from "./ffi.ts";
import { Memory } from "./memory.ts";
import { LOCK_EX, LOCK_NB, O_CLOEXEC, O_CREAT, O_NOFOLLOW, O_RDWR } from "./structs.ts";

export interface Lock {
  close(): void;
}

/** Takes the lock; undefined when another process has it. The file stays: removing it would let two hold "the" lock. */
export function lockFile(path: string): Lock | undefined {
  if (ffiProblem() !== undefined) return lockWithoutFfi(path);
  const c = libc();
  const name = Memory.text(path);
  try {
    const fd = c.open(name.pointer, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0o600);
    if (fd < 0) throw sysError(`open ${path}`, errno());
    if (c.flock(fd, LOCK_EX | LOCK_NB) === 0) return { close: () => void c.close(fd) };
    const failed = errno();
    c.close(fd);
    if (failed === EAGAIN) return undefined;
    throw sysError(`lock ${path}`, failed);
  } finally {
    name.free();
  }
}

/** The runtime's own lock is the same flock(2), so both kinds exclude each other; it would follow a link, so none may be there. */
function lockWithoutFfi(path: string): Lock | undefined {
  let file: Deno.FsFile | undefined;
  try {
    if (isLink(path)) throw new Error("it is a symbolic link");
    file = Deno.openSync(path, { read: true, write: true, create: true, mode: 0o600 });
    if (file.tryLockSync(true)) return file;
    file.close();
    return undefined;
  } catch (cause) {
    file?.close();
    throw new MeshError("KERNEL", `Cannot lock ${path}`, { cause });
  }
}

function isLink(path: string): boolean {
  try {
    return Deno.lstatSync(path).isSymlink;
  } catch {
    return false;
  }
}
