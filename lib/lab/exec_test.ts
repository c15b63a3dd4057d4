import assert from "node:assert/strict";
import { exec, execOk, TIMED_OUT, until } from "./exec.ts";
import { stat } from "./proc.ts";

Deno.test("exec gives code, both outputs and the input through", async () => {
  const result = await exec(["sh", "-c", "cat; echo problem >&2; exit 3"], { stdin: "given\n" });
  assert.deepEqual([result.code, result.stdout, result.stderr], [3, "given\n", "problem\n"]);
  assert.ok(result.ms > 0);
});

Deno.test("exec reports a program that does not read its input", async () => {
  const result = await exec(["true"], { stdin: "x".repeat(1_000_000) });
  assert.equal(result.code, 0);
});

Deno.test("exec kills a program and its children at the deadline", async () => {
  const result = await exec(["sh", "-c", "sleep 1000 & echo $!; wait"], { timeoutMs: 200 });
  assert.equal(result.code, TIMED_OUT);
  const grandchild = Number(result.stdout);
  assert.ok(grandchild > 1);
  await until("the grandchild's end", () => {
    const now = stat(grandchild);
    return now === undefined || now.state === "Z" ? true : undefined;
  });
});

Deno.test("exec runs with nothing but the given environment when asked to", async () => {
  const result = await exec(["/usr/bin/env"], { clearEnv: true, env: { ONLY: "this" } });
  assert.equal(result.stdout, "ONLY=this\n");
});

Deno.test("execOk throws what the program said", async () => {
  await assert.rejects(execOk(["sh", "-c", "echo the reason >&2; exit 7"]), /exit code 7: the reason/);
  await assert.rejects(execOk(["/nonexistent/program"]), { code: "KERNEL" });
});

Deno.test("until gives up at its deadline and says what it waited for", async () => {
  let asked = 0;
  assert.equal(await until("a value", () => ++asked === 3 ? "found" : undefined), "found");
  await assert.rejects(until("the end of time", () => undefined, 5), /5 ms in vain for the end of time/);
});
