import "./preload.ts";
import { strict as assert } from "node:assert";
import { MeshError } from "../errors.ts";
import { appendFile, makePrivateDir, readIfThere, removeFile, writeAtomic } from "./files.ts";
import { lockFile } from "./lock.ts";

async function inTempDir(body: (dir: string) => Promise<void>): Promise<void> {
  const dir = await Deno.makeTempDir({ prefix: "edgemesh-files-" });
  try {
    await body(dir);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}

const mode = (path: string) => Deno.statSync(path).mode! & 0o777;
const names = (dir: string) => [...Deno.readDirSync(dir)].map((e) => e.name).sort();

Deno.test("what is written is read back, private, without leftovers", () =>
  inTempDir(async (dir) => {
    const path = `${dir}/key.pem`;
    assert.equal(await readIfThere(path), undefined);
    await writeAtomic(path, "first");
    await writeAtomic(path, "second, longer");
    await writeAtomic(path, new TextEncoder().encode("3rd"));
    assert.equal(await readIfThere(path), "3rd");
    assert.equal(mode(path), 0o600);
    assert.deepEqual(names(dir), ["key.pem"]);
    await removeFile(path);
    await removeFile(path);
    assert.deepEqual(names(dir), []);
  }));

Deno.test("a reader sees the old content or the new one, never a part, and the last write of many stays", () =>
  inTempDir(async (dir) => {
    const path = `${dir}/snapshot.json`;
    const contents = Array.from({ length: 20 }, (_, i) => `${i}`.repeat(200_000));
    await writeAtomic(path, contents[0]!);
    let writing = true;
    const writes = Promise.all(contents.map((text) => writeAtomic(path, text))).finally(() => writing = false);
    let reads = 0;
    while (writing) {
      const text = (await readIfThere(path))!;
      assert(contents.includes(text), `a mixture of ${text.length} bytes`);
      reads++;
    }
    await writes;
    assert(reads > 0);
    assert.equal(await readIfThere(path), contents.at(-1));
  }));

Deno.test("a leftover of a crash, even one that leads elsewhere, is replaced and not followed", () =>
  inTempDir(async (dir) => {
    await Deno.writeTextFile(`${dir}/victim`, "untouched");
    await Deno.symlink(`${dir}/victim`, `${dir}/state.tmp`);
    await writeAtomic(`${dir}/state`, "new");
    assert.equal(await Deno.readTextFile(`${dir}/victim`), "untouched");
    assert.equal(await Deno.readTextFile(`${dir}/state`), "new");
    assert.equal(mode(`${dir}/state`), 0o600);
  }));

Deno.test("a failed write keeps the old content and says which file", () =>
  inTempDir(async (dir) => {
    await assert.rejects(writeAtomic(`${dir}/none/state`, "x"), (e) => {
      assert(e instanceof MeshError);
      assert.equal(e.code, "KERNEL");
      assert.match(e.message, /none\/state cannot be written/);
      return true;
    });
    // A directory cannot be replaced by a file: the rename fails after the content was written.
    await Deno.mkdir(`${dir}/state`);
    await assert.rejects(writeAtomic(`${dir}/state`, "x"), /cannot be written/);
    assert.deepEqual(names(dir), ["state"]);
  }));

Deno.test("a private directory is closed to others, also when it was open before", () =>
  inTempDir(async (dir) => {
    await makePrivateDir(`${dir}/a/b`);
    assert.equal(mode(`${dir}/a/b`), 0o700);
    await Deno.chmod(`${dir}/a/b`, 0o755);
    await makePrivateDir(`${dir}/a/b`);
    assert.equal(mode(`${dir}/a/b`), 0o700);
  }));

Deno.test("appended lines follow each other", () =>
  inTempDir(async (dir) => {
    await appendFile(`${dir}/log`, "one\n");
    await appendFile(`${dir}/log`, "two\n");
    assert.equal(await Deno.readTextFile(`${dir}/log`), "one\ntwo\n");
    assert.equal(mode(`${dir}/log`), 0o600);
  }));

Deno.test("a lock has one holder at a time, and ends with its process", () =>
  inTempDir(async (dir) => {
    const path = `${dir}/lock`;
    const first = lockFile(path)!;
    assert.notEqual(first, undefined);
    assert.equal(lockFile(path), undefined);
    first.close();
    // flock(1) holds the lock until its command ends: here until its input is closed.
    const holder = new Deno.Command("flock", {
      args: ["-x", path, "-c", "echo locked; cat"],
      stdin: "piped",
      stdout: "piped",
    }).spawn();
    const reader = holder.stdout.getReader();
    assert.equal(new TextDecoder().decode((await reader.read()).value), "locked\n");
    assert.equal(lockFile(path), undefined);
    await holder.stdin.close();
    await holder.status;
    await reader.cancel();
    const again = lockFile(path)!;
    assert.notEqual(again, undefined);
    again.close();
    await Deno.symlink("/etc/hostname", `${dir}/link`);
    assert.throws(() => lockFile(`${dir}/link`), /Cannot open .*link/);
  }));
