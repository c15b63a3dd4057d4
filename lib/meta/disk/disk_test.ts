import assert from "node:assert/strict";
import { FakeClock } from "../../clock.ts";
import { createLogger, memorySink } from "../../log.ts";
import type { SnapshotFiles } from "./disk.ts";
import { DiskSnapshot, PREVIOUS_FILE, SNAPSHOT_FILE } from "./disk.ts";
import { decodeSnapshot, encodeSnapshot } from "./disk_codec.ts";
import { openSnapshotFiles } from "./disk_files.ts";
import { put } from "../objects.ts";
import { KINDS } from "../model.ts";
import { MetaStore } from "../store/store.ts";
import { aNode, aPod, aService, aSlice, bigCluster, snapshotOf } from "../testing.ts";

/** A folder in memory that fails when it is told to. */
class MemoryFiles implements SnapshotFiles {
  readonly files = new Map<string, Uint8Array>();
  failWrite: Error | undefined;
  failRead: Error | undefined;

  read(name: string): Promise<Uint8Array | undefined> {
    return this.failRead ? Promise.reject(this.failRead) : Promise.resolve(this.files.get(name));
  }

  write(name: string, chunks: Iterable<Uint8Array>): Promise<void> {
    if (this.failWrite) return Promise.reject(this.failWrite);
    this.files.set(name, Uint8Array.from([...chunks].flatMap((c) => [...c])));
    return Promise.resolve();
  }

  rename(from: string, to: string): Promise<void> {
    this.files.set(to, this.files.get(from)!);
    this.files.delete(from);
    return Promise.resolve();
  }
}

function setup(files: SnapshotFiles, clock = new FakeClock()) {
  const store = new MetaStore({ clock });
  const sink = memorySink("info");
  const disk = new DiskSnapshot({ files, layer: store.layer("base"), clock, log: createLogger(sink) });
  const change = (n: number) => {
    store.layer("base").apply([put("service", aService({ clusterIPs: [`10.96.0.${n}`] }))], {
      synced: true,
      version: { source: "srv", epoch: "e", number: n },
    });
    disk.changed("srv.example");
  };
  return { store, disk, clock, sink, change, ip: () => store.snapshot.service("shop", "web")?.clusterIPs[0] };
}

/** Lets promise chains of a save run out. */
async function turn(): Promise<void> {
  for (let i = 0; i < 20; i++) await Promise.resolve();
}

Deno.test("disk: what was saved is loaded, with version, age and origin", async () => {
  const files = new MemoryFiles();
  const first = setup(files);
  first.store.layer("base").apply([put("slice", aSlice()), put("node", aNode()), put("pod", aPod())]);
  first.change(7);
  await first.disk.stop();
  const second = setup(files);
  second.clock.advance(3_600_000);
  assert.equal(await second.disk.load(), true);
  for (const kind of KINDS) {
    assert.deepEqual(
      new Map(second.store.snapshot.entries(kind)),
      new Map(first.store.snapshot.entries(kind)),
    );
  }
  assert.ok(second.store.snapshot.synced, "cached names are answered, unknown ones are 'no'");
  assert.deepEqual(second.store.snapshot.version, { source: "srv", epoch: "e", number: 7 });
  assert.equal(second.disk.status().loaded?.from, "srv.example");
  assert.match(second.sink.lines.join(), /loaded from disk from=srv\.example ageMinutes=60/);
  second.change(8);
  assert.equal(second.disk.status().loaded, undefined, "something newer is known");
  await second.disk.stop();
});

Deno.test("disk: a burst is saved once, then at most every 30 s, the copy before is kept", async () => {
  const files = new MemoryFiles();
  const { clock, change, disk } = setup(files);
  change(1);
  change(2);
  clock.advance(999);
  await turn();
  assert.equal(files.files.size, 0);
  clock.advance(1);
  await turn();
  assert.equal(decodeSnapshot(files.files.get(SNAPSHOT_FILE)!).header.version.number, 2);
  change(3);
  clock.advance(29_999);
  await turn();
  assert.equal(decodeSnapshot(files.files.get(SNAPSHOT_FILE)!).header.version.number, 2);
  clock.advance(1);
  await turn();
  assert.equal(decodeSnapshot(files.files.get(SNAPSHOT_FILE)!).header.version.number, 3);
  assert.equal(decodeSnapshot(files.files.get(PREVIOUS_FILE)!).header.version.number, 2);
  assert.equal(files.files.size, 2, "no temporary file is left");
  await disk.stop();
  assert.equal(clock.pending, 0);
});

const good = () =>
  Uint8Array.from([...encodeSnapshot(snapshotOf([put("service", aService())], 5), {
    version: { source: "srv", epoch: "e", number: 5 },
    savedAt: 0,
    from: "x",
  })].flatMap((c) => [...c]));

function edited(change: (text: string) => string): Uint8Array {
  return new TextEncoder().encode(change(new TextDecoder().decode(good())));
}

const DAMAGED: [string, Uint8Array, RegExp][] = [
  ["empty", new Uint8Array(), /the file is empty/],
  ["truncated in the middle", good().subarray(0, 150), /truncated/],
  ["without its last byte", good().subarray(0, -1), /truncated/],
  ["without its last line", edited((t) => t.slice(0, t.lastIndexOf("\n", t.length - 2) + 1)), /truncated/],
  ["with a flipped bit", good().map((b, i) => i === 140 ? b ^ 1 : b), /checksum|truncated|not a snapshot/],
  ["with an edited address", edited((t) => t.replace("10.96.0.10", "10.96.0.66")), /checksum does not match/],
  ["of another schema", edited((t) => t.replace('"schema":1', '"schema":2')), /schema 2, this is 1/],
  ["of another format", edited((t) => t.replace("edgemesh-snapshot", "other")), /not a snapshot/],
  ["of zeros", new Uint8Array(4096), /not a snapshot/],
  ["only a header", edited((t) => t.slice(0, t.indexOf("\n") + 1)), /truncated/],
];

for (const [name, bytes, expected] of DAMAGED) {
  Deno.test(`disk: a file ${name}: the copy before serves, else an empty start, with one clear line`, async () => {
    const files = new MemoryFiles();
    files.files.set(SNAPSHOT_FILE, bytes);
    files.files.set(PREVIOUS_FILE, good());
    const withCopy = setup(files);
    assert.equal(await withCopy.disk.load(), true);
    assert.equal(withCopy.ip(), "10.96.0.10");
    assert.equal(withCopy.disk.status().loaded?.previous, true);
    const warnings = withCopy.sink.lines.filter((l) => l.includes("WARN"));
    assert.equal(warnings.length, 1);
    assert.match(warnings[0]!, expected);

    // The next save must not put the damaged file in the place of the good copy.
    withCopy.change(6);
    await withCopy.disk.stop();
    assert.equal(decodeSnapshot(files.files.get(PREVIOUS_FILE)!).header.version.number, 5);
    assert.equal(decodeSnapshot(files.files.get(SNAPSHOT_FILE)!).header.version.number, 6);

    const alone = new MemoryFiles();
    alone.files.set(SNAPSHOT_FILE, bytes);
    const empty = setup(alone);
    assert.equal(await empty.disk.load(), false);
    assert.ok(!empty.store.snapshot.synced);
    assert.match(empty.disk.status().loadError!, expected);
    assert.equal(empty.disk.status().lastError, undefined, "nothing is wrong with writing");
  });
}

Deno.test("disk: an unreadable, then full, then read-only disk: one line per cause, saved again when it can be", async () => {
  const files = new MemoryFiles();
  files.failRead = new Error("Input/output error (os error 5)");
  const { disk, clock, sink, change } = setup(files);
  assert.equal(await disk.load(), false);
  files.failWrite = new Error("No space left on device (os error 28)");
  change(1);
  for (let i = 0; i < 5; i++) {
    clock.advance(30_000);
    await turn();
  }
  assert.equal(sink.lines.filter((l) => l.includes("No space left")).length, 1);
  assert.match(disk.status().lastError!, /No space left/);
  files.failWrite = new Error("Read-only file system (os error 30)");
  for (let i = 0; i < 5; i++) {
    clock.advance(30_000);
    await turn();
  }
  assert.equal(sink.lines.filter((l) => l.includes("Read-only")).length, 1);
  assert.match(disk.status().lastError!, /Read-only/);
  files.failWrite = undefined;
  clock.advance(30_000);
  await turn();
  assert.equal(disk.status().lastError, undefined);
  assert.ok(files.files.has(SNAPSHOT_FILE));
  await disk.stop();
});

Deno.test("disk: an object that is none any more is left out, the rest is used", () => {
  const bytes = [...encodeSnapshot(snapshotOf([put("service", aService()), put("service", aService({ name: "b" }))]), {
    version: { source: "s", epoch: "e", number: 1 },
    savedAt: 0,
    from: "",
  })].flatMap((c) => [...c]);
  const content = decodeSnapshot(Uint8Array.from(bytes));
  assert.equal([...content.batches()].flat().length, 2);
});

Deno.test("disk: real files: mode 0600, no temporary file left, a power cut between the renames is survived", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const files = openSnapshotFiles(folder);
    const { disk, change } = setup(files);
    assert.equal(await disk.load(), false, "an empty folder is no error");
    assert.equal(disk.status().lastError, undefined);
    change(1);
    await disk.stop();
    change(2);
    await disk.stop();
    const names = (await Array.fromAsync(Deno.readDir(folder))).map((e) => e.name).sort();
    assert.deepEqual(names, [SNAPSHOT_FILE, PREVIOUS_FILE].sort());
    assert.equal((await Deno.stat(`${folder}/${SNAPSHOT_FILE}`)).mode! & 0o777, 0o600);
    await Deno.remove(`${folder}/${SNAPSHOT_FILE}`);
    const after = setup(files);
    assert.equal(await after.disk.load(), true);
    assert.equal(after.ip(), "10.96.0.1");
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("disk: a folder that is not there is a failed save with a line, nothing worse", async () => {
  const { disk, change } = setup(openSnapshotFiles("/proc/no-such-folder"));
  assert.equal(await disk.load(), false);
  change(1);
  await disk.stop();
  assert.match(disk.status().lastError!, /No such file/);
});

Deno.test("disk: 5 000 Services are encoded and loaded in small pieces", () => {
  const snapshot = snapshotOf([...bigCluster(5000, 10)].flat());
  const chunks = [...encodeSnapshot(snapshot, { version: snapshot.version, savedAt: 0, from: "" })];
  assert.ok(chunks.length > 50 && chunks.every((c) => c.length < 100_000));
  const bytes = new Uint8Array(chunks.reduce((n, c) => n + c.length, 0));
  let at = 0;
  for (const c of chunks) at = (bytes.set(c, at), at + c.length);
  const batches = [...decodeSnapshot(bytes).batches()];
  assert.equal(batches.reduce((n, b) => n + b.length, 0), 10_000);
  assert.ok(batches.every((b) => b.length <= 200));
});
