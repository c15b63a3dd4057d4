/**
 * What the documents and the product's own hints tell people to type exists: commands, flags, settings, variables,
 * tasks, scripts, files and links. A reader who copies a line must never meet "unknown command".
 */
import assert from "node:assert/strict";
import type { Command } from "commander";
import { buildProgram } from "../cmd/program.ts";
import { configPaths } from "../lib/config.ts";
import { envName } from "../lib/config_load.ts";
import { snippets } from "./snippets.ts";

const ROOT = new URL("..", import.meta.url).pathname;
const PROGRAM = buildProgram(() => {});
const SETTINGS = new Set([...configPaths("agent"), ...configPaths("server")]);

const INSTALLER = await Deno.readTextFile(`${ROOT}scripts/install.sh`);

interface Line {
  readonly where: string;
  readonly text: string;
}

Deno.test("docs: every command and flag of edgemesh that a document shows exists", async () => {
  const wrong: string[] = [];
  let seen = 0;
  for (const { where, text } of await shown()) {
    for (const words of calls(text)) {
      seen++;
      const problem = checkCall(words);
      if (problem) wrong.push(`${where}: edgemesh ${words.join(" ")}: ${problem}`);
    }
    const problem = checkInstall(text);
    if (problem) wrong.push(`${where}: ${text}: ${problem}`);
  }
  assert.ok(seen > 15, `only ${seen} calls were found: this test reads the documents wrongly`);
  assert.deepEqual(wrong, []);
});

Deno.test("docs: every command that a hint, a help text or a message names exists", async () => {
  const wrong: string[] = [];
  let seen = 0;
  for (const file of await files(["cmd", "lib", "scripts"], /\.(ts|sh)$/)) {
    if (/_test\.ts$|\/testing/.test(file)) continue;
    const lines = (await Deno.readTextFile(ROOT + file)).split("\n");
    lines.forEach((line, i) => {
      // In backticks it is a command. In quotes it is one where nothing else stands there: prose has more words.
      const calls = [
        ...[...line.matchAll(/`(?:sudo )?edgemesh ((?:[a-z]+|--)[^`\\,:;$]*)(?=[`\\,:;])/g)].map(([, call]) => call!),
        ...[...line.matchAll(/"(?:sudo )?edgemesh ((?:[a-z-]+ ?){1,4})"/g)].map(([, call]) => call!),
      ];
      for (const call of calls) {
        seen++;
        const problem = checkCall(call.trim().split(/\s+/));
        if (problem) wrong.push(`${file}:${i + 1}: edgemesh ${call}: ${problem}`);
      }
    });
  }
  assert.ok(seen > 10, `only ${seen} calls were found: this test reads the sources wrongly`);
  assert.deepEqual(wrong, []);
});

Deno.test("docs: every setting, variable, task, script and file that a document names exists", async () => {
  const config = JSON.parse(await Deno.readTextFile(`${ROOT}deno.json`)) as { tasks: Record<string, string> };
  // Sources that may read a variable which is no setting: the launcher, the installer, the tests.
  const readers = await text(["scripts", "cmd", "lib", "tests"], /(\.(ts|sh)|\/deno)$/);
  const wrong: string[] = [];
  const check = (where: string, what: string, exists: boolean) => {
    if (!exists) wrong.push(`${where}: ${what} does not exist`);
  };
  for (const { where, text } of await shown()) {
    for (const [, path] of text.matchAll(/--set[ =]([A-Za-z0-9.]+)=/g)) {
      check(where, `the setting ${path}`, SETTINGS.has(path!));
    }
    for (const [name] of text.matchAll(/\b(?:INSTALL_)?EDGEMESH_[A-Z0-9_]+\b/g)) {
      check(where, `the variable ${name}`, [...SETTINGS].some((s) => envName(s) === name) || readers.includes(name));
    }
    for (const [, task] of text.matchAll(/scripts\/deno task (?:-q |--quiet )?([a-z:]+)/g)) {
      check(where, `the task ${task}`, task! in config.tasks);
    }
    for (const [path] of text.matchAll(/(?<![\w/.])(?:\.\/)?(?:scripts|cmd|lib|tests)\/[\w./-]*\w(?![\w*{<…])/g)) {
      check(where, `the file ${path}`, await anywhere(path, where));
    }
  }
  for (const [task, run] of Object.entries(config.tasks)) {
    for (const [path] of run.matchAll(/(?<=\s)(?:scripts|cmd|lib|tests)\/[\w./]*\w/g)) {
      check(`deno.json task ${task}`, `the file ${path}`, await exists(path));
    }
  }
  assert.deepEqual(wrong, []);
});

Deno.test("docs: every link leads to a file and a headline", async () => {
  const wrong: string[] = [];
  for (const file of await documents()) {
    for (const { where, text } of await prose(file)) {
      for (const [, target] of text.matchAll(/\[[^\]]+\]\(([^)\s]+)\)/g)) {
        if (/^[a-z]+:/.test(target!)) continue;
        const [path, anchor] = target!.split("#") as [string, string | undefined];
        const at = path === "" ? file : new URL(path, `file:///${file}`).pathname.slice(1);
        if (!await exists(at)) wrong.push(`${where}: ${target}`);
        else if (anchor !== undefined && !(await headlines(at)).includes(anchor)) wrong.push(`${where}: ${target}`);
      }
    }
  }
  assert.deepEqual(wrong, []);
});

/** Documents whose blocks are run in this order by tests/lab/readme_test.ts, on these hosts. */
const RUN = ["README.md", "docs/getting-started.md", "docs/operations.md"];

Deno.test("docs: every block that can be pasted is run by a test, or says why not; few say so", async () => {
  const all = (await Promise.all(RUN.map(snippets))).flat();
  assert.deepEqual(all.filter(({ how }) => how === undefined).map(({ where }) => where), []);
  const run = all.flatMap(({ how }) => how && "run" in how ? [how.run] : []);
  assert.deepEqual([...new Set(run)].sort(), ["edge", "server"]);
  const lines = (runs: boolean) =>
    all.filter(({ how }) => how !== undefined && "run" in how === runs).flatMap(({ code }) => code.split("\n")).length;
  assert.ok(lines(true) >= 5 * lines(false), `${lines(true)} lines are run, ${lines(false)} are not`);
  for (const file of RUN) {
    const fences = (await Deno.readTextFile(ROOT + file)).match(/^ *```.*$/gm)!;
    const plain = fences.filter((fence) => fence.trim() === "```").length - fences.length / 2;
    assert.equal(plain, file === "README.md" ? 1 : 0, `${file}: only the drawing is a block without a language`);
  }
});

/** Undefined if the command line tree has it all; `words` follow `edgemesh`. */
function checkCall(words: readonly string[]): string | undefined {
  let command: Command = PROGRAM;
  for (const [i, raw] of words.entries()) {
    const word = raw.replace(/[.,:)]+$/, "");
    if (/^[|>&#]/.test(word) || word === "…") return undefined;
    if (word.startsWith("-")) {
      const flag = word.split("=")[0]!;
      const known = ["--help", "-h"].includes(flag) || command.options.some((o) => o.long === flag || o.short === flag);
      if (!known) return `${command.name()} has no flag ${flag}`;
      continue;
    }
    if (command.commands.length === 0) continue;
    if (word === "help") return undefined;
    const alternatives = word.split("|");
    const found = alternatives.map((name) => command.commands.find((c) => c.name() === name));
    if (found.includes(undefined)) return `there is no command ${words.slice(0, i + 1).join(" ")}`;
    command = found[0]!;
  }
  return undefined;
}

/** The calls of edgemesh in a line of code, each as the words after the name. */
function calls(line: string): string[][] {
  return [...line.matchAll(/(?:^\s*|[;($&]\s*|sudo )(?:\.\/)?(?:dist\/)?edgemesh ((?:[a-z]|--)[^;)]*)/g)]
    .map(([, rest]) => wordsOf(rest!));
}

/** The same for the installer: its own flags are those of its source, all others are the role's. */
function checkInstall(line: string): string | undefined {
  const [, role, rest] = /install\.sh (agent|server) (.*)/.exec(line) ?? [];
  if (role === undefined) return undefined;
  const flags = wordsOf(rest!).filter((word) => word.startsWith("--") && !INSTALLER.includes(`${word}) `));
  return checkCall([role, ...flags]);
}

/** What belongs to the call: not comments, explanations beside it, or what it is piped into. */
function wordsOf(text: string): string[] {
  return text.split(/\s(?:#|\||&&|>)|\s{3,}/)[0]!.trim().split(/\s+/);
}

/** Everything in documents that is meant to be typed or looked up: fenced lines and inline code. */
async function shown(): Promise<Line[]> {
  const out: Line[] = [];
  for (const file of await documents()) {
    let fence = false;
    (await Deno.readTextFile(ROOT + file)).split("\n").forEach((line, i) => {
      const where = `${file}:${i + 1}`;
      if (line.trimStart().startsWith("```")) fence = !fence;
      else if (fence) out.push({ where, text: line });
      else for (const [, code] of line.matchAll(/`([^`]+)`/g)) out.push({ where, text: code! });
    });
  }
  return out;
}

async function prose(file: string): Promise<Line[]> {
  let fence = false;
  return (await Deno.readTextFile(ROOT + file)).split("\n").flatMap((text, i) => {
    if (text.trimStart().startsWith("```")) fence = !fence;
    return fence ? [] : [{ where: `${file}:${i + 1}`, text: text.replace(/`[^`]*`/g, "``") }];
  });
}

/** GitHub's anchors: lower case, blanks to dashes, other punctuation gone. */
async function headlines(file: string): Promise<string[]> {
  return (await prose(file)).map(({ text }) => /^#+ (.*)$/.exec(text)?.[1]).filter((h) => h !== undefined)
    .map((h) => h.toLowerCase().replace(/[^\p{L}\p{N} _-]/gu, "").trim().replaceAll(" ", "-"));
}

async function documents(): Promise<string[]> {
  const top: string[] = [];
  for await (const entry of Deno.readDir(ROOT)) if (entry.name.endsWith(".md")) top.push(entry.name);
  return [...top, ...await files(["docs", "lib", "cmd", "tests", "scripts"], /\.md$/)].sort();
}

/** As named from the root, from the document's own folder, or with a folder's name left out. */
async function anywhere(path: string, where: string): Promise<boolean> {
  const plain = path.replace(/^\.\//, "");
  return await exists(plain) || await exists(where.replace(/[^/]*$/, "") + plain);
}

async function exists(path: string): Promise<boolean> {
  return await Deno.stat(ROOT + path).then(() => true, () => false);
}

async function files(dirs: readonly string[], wanted: RegExp): Promise<string[]> {
  const out: string[] = [];
  for (const dir of dirs) {
    for await (const entry of Deno.readDir(ROOT + dir)) {
      const path = `${dir}/${entry.name}`;
      if (entry.isDirectory) out.push(...await files([path], wanted));
      else if (wanted.test(path)) out.push(path);
    }
  }
  return out;
}

async function text(dirs: readonly string[], wanted: RegExp): Promise<string> {
  const parts = await Promise.all(
    (await files(dirs, wanted)).filter((f) => f !== "tests/docs_test.ts").map((f) => Deno.readTextFile(ROOT + f)),
  );
  return parts.join("\n");
}
