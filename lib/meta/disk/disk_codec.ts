/**
 * The disk form of a snapshot, schema 1: lines of JSON. First a header with version, time and origin; then one object
 * per line as `[kind, object]` in the form of wire_objects.ts; last a line with the count and the SHA-256 of all bytes
 * before it. Kinds are written by name, so the file can be read with `grep` and does not depend on the wire's numbers.
 */
import { createHash } from "node:crypto";
import { MeshError } from "../../errors.ts";
import { Interner } from "../convert/intern.ts";
import type { Kind, MetaVersion } from "../model.ts";
import { KINDS } from "../model.ts";
import type { ObjectChange } from "../objects.ts";
import { put } from "../objects.ts";
import type { Snapshot } from "../store/snapshot.ts";
import { decodeObject, encodeObject } from "../codec/wire_objects.ts";

export const DISK_FORMAT = "edgemesh-snapshot";
/** Version of the form. A reader takes exactly its own: a snapshot is a cache, and starting empty is always right. */
export const DISK_SCHEMA = 1;
/** Bytes encoded between two writes: about a millisecond of work. */
const CHUNK = 64 * 1024;
/** Largest file read back: hundred times what 5 000 Services need. */
export const MAX_DISK_BYTES = 512 * 1024 * 1024;

export interface DiskHeader {
  readonly version: MetaVersion;
  /** Wall-clock milliseconds of the save. */
  readonly savedAt: number;
  /** Where the metadata came from, for people: a server's address. */
  readonly from: string;
}

/** A snapshot as chunks of bytes, encoded as they are asked for. */
export function* encodeSnapshot(snapshot: Snapshot, header: DiskHeader): IterableIterator<Uint8Array> {
  const encoder = new TextEncoder();
  const hash = createHash("sha256");
  const flush = (text: string) => {
    const bytes = encoder.encode(text);
    hash.update(bytes);
    return bytes;
  };
  const { source, epoch, number } = header.version;
  const head = {
    format: DISK_FORMAT,
    schema: DISK_SCHEMA,
    source,
    epoch,
    number,
    saved: header.savedAt,
    from: header.from,
  };
  let text = JSON.stringify(head) + "\n";
  let count = 0;
  for (const kind of KINDS) {
    for (const [, object] of snapshot.entries(kind)) {
      text += JSON.stringify([kind, encodeObject(kind, object)]) + "\n";
      count++;
      if (text.length < CHUNK) continue;
      yield flush(text);
      text = "";
    }
  }
  yield flush(text);
  yield encoder.encode(JSON.stringify({ end: count, sha256: hash.digest("hex") }) + "\n");
}

/** A file that passed all checks; its objects are decoded as they are asked for. */
export interface DiskContent {
  readonly header: DiskHeader;
  /** Batches of objects; each object is checked like foreign input and left out when it is none. */
  batches(): IterableIterator<ObjectChange[]>;
}

/** Objects per batch of {@link DiskContent.batches}. */
const BATCH = 200;

/** Checks a file as a whole. Throws MeshError SNAPSHOT_INVALID with the reason. */
export function decodeSnapshot(bytes: Uint8Array): DiskContent {
  if (bytes.length === 0) throw invalid("the file is empty");
  if (bytes.length > MAX_DISK_BYTES) throw invalid(`the file is larger than ${MAX_DISK_BYTES} bytes`);
  const firstEnd = bytes.indexOf(10);
  const header = parseHeader(line(bytes, 0, firstEnd < 0 ? bytes.length : firstEnd));
  if (bytes[bytes.length - 1] !== 10) throw invalid("the file is truncated");
  const lastStart = bytes.lastIndexOf(10, bytes.length - 2) + 1;
  const trailer = parseLine(line(bytes, lastStart, bytes.length - 1));
  if (typeof trailer?.sha256 !== "string" || typeof trailer.end !== "number" || lastStart <= firstEnd) {
    throw invalid("the file is truncated");
  }
  const sum = createHash("sha256").update(bytes.subarray(0, lastStart)).digest("hex");
  if (sum !== trailer.sha256) throw invalid("the checksum does not match");
  return { header, batches: () => batches(bytes.subarray(firstEnd + 1, lastStart)) };
}

function* batches(bytes: Uint8Array): IterableIterator<ObjectChange[]> {
  const strings = new Interner();
  let batch: ObjectChange[] = [];
  for (let at = 0; at < bytes.length;) {
    const end = bytes.indexOf(10, at);
    const value = JSON.parse(line(bytes, at, end)) as unknown;
    at = end + 1;
    if (!Array.isArray(value) || !(KINDS as readonly unknown[]).includes(value[0])) continue;
    const kind = value[0] as Kind;
    const object = decodeObject(kind, value[1], strings);
    if (typeof object === "string") continue;
    batch.push(put(kind, object));
    if (batch.length < BATCH) continue;
    yield batch;
    batch = [];
  }
  yield batch;
}

function parseHeader(text: string): DiskHeader {
  const head = parseLine(text);
  if (!head || head.format !== DISK_FORMAT) throw invalid("the file is not a snapshot");
  if (head.schema !== DISK_SCHEMA) throw invalid(`the file has schema ${String(head.schema)}, this is ${DISK_SCHEMA}`);
  const { source, epoch, number, saved, from } = head;
  if (
    typeof source !== "string" || typeof epoch !== "string" || typeof number !== "number" ||
    typeof saved !== "number" || typeof from !== "string"
  ) throw invalid("the header is incomplete");
  return { version: { source, epoch, number }, savedAt: saved, from };
}

function parseLine(text: string): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === "object" && value !== null ? value as Record<string, unknown> : undefined;
  } catch {
    return undefined;
  }
}

function line(bytes: Uint8Array, from: number, to: number): string {
  return new TextDecoder().decode(bytes.subarray(from, to));
}

function invalid(reason: string): MeshError {
  return new MeshError("SNAPSHOT_INVALID", `Snapshot cannot be used, ${reason}`);
}
