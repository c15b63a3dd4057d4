import assert from "node:assert/strict";
import { MeshError } from "./errors.ts";
import { leadsOutside, readReferenced } from "./file_reference.ts";

Deno.test("T41: a link in a file reference may lead within its folder, not out of it", async () => {
  const root = await Deno.realPath(await Deno.makeTempDir());
  try {
    await Deno.mkdir(`${root}/conf/..2026/deep`, { recursive: true });
    await Deno.mkdir(`${root}/conf2`);
    await Deno.writeTextFile(`${root}/secret`, "secret");
    await Deno.writeTextFile(`${root}/conf2/token`, "beside");
    await Deno.writeTextFile(`${root}/conf/..2026/token`, "inside");
    const link = (target: string, name: string) => Deno.symlink(target, `${root}/conf/${name}`);
    // What Kubernetes mounts: token → ..data/token, ..data → ..2026.
    await link("..2026", "..data");
    await link("..data/token", "token");
    assert.equal(await readReferenced(`${root}/conf/token`), "inside");
    await Deno.symlink(`${root}/conf`, `${root}/named`);
    assert.equal(await readReferenced(`${root}/named/token`), "inside", "the folder itself may be a link");

    await link("../secret", "relative");
    await link(`${root}/secret`, "absolute");
    await link("relative", "twice");
    // A name that only begins like the folder's.
    await link("../conf2/token", "prefix");
    await link(`${root}/conf`, "itself");
    for (const name of ["relative", "absolute", "twice", "prefix", "itself"]) {
      await assert.rejects(
        readReferenced(`${root}/conf/${name}`),
        (e) => e instanceof MeshError && e.code === "CONFIG_INVALID" && /leads out of its folder, to /.test(e.message),
        name,
      );
    }
    await link("nowhere", "dangling");
    assert.equal(leadsOutside(`${root}/conf/dangling`), undefined);
    await assert.rejects(readReferenced(`${root}/conf/missing`), Deno.errors.NotFound);
  } finally {
    await Deno.remove(root, { recursive: true });
  }
});
