import assert from "node:assert/strict";
import { completionScript, levels } from "./completion.ts";
import { buildProgram } from "./program.ts";

const program = () => buildProgram(() => {});

/** What bash would offer after the words, the last one being typed. */
async function offered(words: readonly string[]): Promise<readonly string[]> {
  const script = `${completionScript("bash", program())}
COMP_WORDS=(${words.map((w) => `'${w}'`).join(" ")}); COMP_CWORD=${
    words.length - 1
  }; _edgemesh; printf '%s\\n' "\${COMPREPLY[@]}"`;
  const { code, stdout, stderr } = await new Deno.Command("bash", { args: ["--norc", "-c", script] }).output();
  assert.equal(code, 0, new TextDecoder().decode(stderr));
  return new TextDecoder().decode(stdout).split("\n").filter((line) => line !== "");
}

Deno.test("completion: bash offers commands, subcommands, options and choices", async () => {
  const top = await offered(["edgemesh", ""]);
  for (const word of ["agent", "server", "status", "check", "config", "ping", "completion"]) {
    assert.ok(top.includes(word), word);
  }
  assert.ok(!top.includes("lab-delay"), "hidden commands stay hidden");
  assert.deepEqual(await offered(["edgemesh", "sta"]), ["status"]);
  assert.deepEqual((await offered(["edgemesh", "config", ""])).slice(0, 4), ["validate", "show", "convert", "schema"]);
  assert.deepEqual(await offered(["edgemesh", "config", "schema", "s"]), ["server"]);
  assert.deepEqual(await offered(["edgemesh", "status", "-o", ""]), ["text", "json", "yaml"]);
  assert.deepEqual(await offered(["edgemesh", "ping", "--no"]), ["--no-until-direct"]);
  assert.deepEqual(await offered(["edgemesh", "log", "level", "w"]), ["warn"]);
});

Deno.test("completion: every visible command and option of the tree is in all three scripts", () => {
  const scripts = (["bash", "zsh", "fish"] as const).map((shell) => completionScript(shell, program()));
  const all = levels(program());
  assert.ok(all.length > 20);
  for (const { path, commands, options } of all) {
    for (const [i, script] of scripts.entries()) {
      for (const { name } of commands) assert.ok(script.includes(name), `${path} ${name}`);
      for (const { name } of options) {
        const text = i === 2 ? (name.startsWith("--") ? `-l ${name.slice(2)}` : `-s ${name.slice(1)}`) : name;
        assert.ok(script.includes(text), `${path} ${name} in script ${i}`);
      }
    }
  }
});

Deno.test("completion: the bash script is read by bash without complaint", async () => {
  const child = new Deno.Command("bash", { args: ["-n"], stdin: "piped", stderr: "piped" }).spawn();
  const writer = child.stdin.getWriter();
  await writer.write(new TextEncoder().encode(completionScript("bash", program())));
  await writer.close();
  const { code, stderr } = await child.output();
  assert.equal(code, 0, new TextDecoder().decode(stderr));
});
