/** A tar archive in memory: plain files of the ustar format (POSIX.1-1988), which every tar reads. */

const BLOCK = 512;
const encoder = new TextEncoder();

export interface TarFile {
  /** Relative, at most 100 bytes, no `..`. */
  readonly name: string;
  readonly text: string;
}

/** One archive; `mtime` in seconds since 1970 stands on every file. */
export function tar(files: readonly TarFile[], mtime: number): Uint8Array<ArrayBuffer> {
  const parts = files.flatMap(({ name, text }) => {
    const body = encoder.encode(text);
    return [header(name, body.length, mtime), body, new Uint8Array(-body.length & (BLOCK - 1))];
  });
  // Two empty blocks end the archive.
  parts.push(new Uint8Array(2 * BLOCK));
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

function header(name: string, size: number, mtime: number): Uint8Array {
  const block = new Uint8Array(BLOCK);
  const put = (at: number, text: string) => block.set(encoder.encode(text), at);
  const octal = (at: number, width: number, value: number) => put(at, value.toString(8).padStart(width - 1, "0"));
  if (encoder.encode(name).length > 100) throw new RangeError(`${name} is too long for a tar header`);
  put(0, name);
  octal(100, 8, 0o600);
  octal(108, 8, 0);
  octal(116, 8, 0);
  octal(124, 12, size);
  octal(136, 12, mtime);
  put(148, " ".repeat(8));
  put(156, "0");
  put(257, "ustar\x0000");
  octal(148, 7, block.reduce((sum, byte) => sum + byte, 0));
  return block;
}
