import "./preload.ts";
import { strict as assert } from "node:assert";
import { systemClock } from "../clock.ts";
import { MeshError } from "../errors.ts";
import { nftProblems, nftRunner } from "./nft_exec.ts";
import { inNamespace, mayMakeNamespaces } from "./testing.ts";

const run = nftRunner(systemClock);

function hasNft(): boolean {
  try {
    return new Deno.Command("nft", { args: ["--version"], stdout: "null" }).outputSync().success;
  } catch {
    return false;
  }
}

const ignore = !mayMakeNamespaces("lib/linux/nft_exec_test.ts") || !hasNft();

Deno.test({
  name: "nft applies a transaction and lists it as JSON; a refused one changes nothing and names its line",
  ignore,
  fn: () =>
    inNamespace(async () => {
      const applied = await run(["-f", "-"], "add table inet t\nadd set inet t s { type ipv4_addr; }\n");
      assert.deepEqual(applied, { code: 0, stdout: "", stderr: "" });
      const refused = await run(["-f", "-"], "add element inet t s { 10.0.0.1 }\nadd rule inet t nochain counter\n");
      assert.equal(refused.code, 1);
      assert.match(refused.stderr, /No such file or directory.* \(line 2: add rule inet t nochain counter\)/);
      const { stdout } = await run(["-j", "list", "table", "inet", "t"], "");
      const sets = (JSON.parse(stdout) as { nftables: { set?: { name: string; elem?: unknown } }[] }).nftables
        .map((o) => o.set).filter((s) => s !== undefined);
      assert.equal(sets[0]!.name, "s");
      assert.equal(sets[0]!.elem, undefined);
    }),
});

Deno.test({
  name: "a large transaction that is refused at its first line is answered, although its input is not read to the end",
  ignore,
  fn: async () => {
    const { code, stderr } = await run(["--no-such-option"], "add table inet t\n".repeat(100_000));
    assert.notEqual(code, 0);
    assert.match(stderr, /no-such-option/);
  },
});

Deno.test("a missing nft program is an error with a hint", async () => {
  await assert.rejects(nftRunner(systemClock, "/nonexistent/nft")(["-f", "-"], ""), (e) => {
    assert(e instanceof MeshError);
    assert.equal(e.code, "KERNEL");
    assert.match(e.hint!, /nftables package/);
    return true;
  });
});

Deno.test("problems of nft keep their rule; other output stays as it is", () => {
  const stderr = "/dev/stdin:2:37-37: Error: syntax error, unexpected newline\nadd rule\n   ^\n";
  assert.equal(nftProblems(stderr, "one\n  two  \n"), "syntax error, unexpected newline (line 2: two)");
  assert.equal(
    nftProblems("netlink: Error: cache initialization failed\n", ""),
    "netlink: Error: cache initialization failed\n",
  );
});
