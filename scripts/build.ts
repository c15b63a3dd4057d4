/**
 * Builds the one file `dist/edgemesh`, in one of two forms with the same flags, output and exit codes:
 *
 * - `compiled`: `deno compile`. Needs Deno's runtime base (`denort`), from `DENORT_BIN` or from Deno's download site.
 * - `self-extracting`: a shell header (scripts/self_extract.sh) followed by an archive of the Deno binary and the bundle.
 *
 * `--runtime FILE --target TRIPLE` makes the self-extracting form for another machine type, around that one's Deno
 * binary; `--out FILE` puts it elsewhere. Without `--form`, compiled is taken when its base can be had. When it cannot, the compile step is still run against
 * the Deno binary itself as the base: that result is thrown away, but it proves that module graph and packages are complete.
 */
import { createHash } from "node:crypto";
import { VERSION } from "../lib/version.ts";

const ROOT = new URL("..", import.meta.url).pathname;
const DIST = `${ROOT}dist`;
const STAGE = `${DIST}/.stage`;
/**
 * Heap growth is capped early: an agent's live heap is a few MB, and edge hosts have little memory. The collector can be
 * called, because V8 has no reason of its own to run it once traffic has ended (lib/linux/idle_memory.ts).
 */
const V8_FLAGS = "--v8-flags=--max-semi-space-size=2,--max-old-space-size=256,--expose-gc";

type Form = "compiled" | "self-extracting";

async function main(): Promise<void> {
  const foreign = flag("--runtime");
  const wanted = foreign === undefined ? flag("--form") ?? "auto" : "self-extracting";
  if (wanted !== "auto" && wanted !== "compiled" && wanted !== "self-extracting") {
    fail(`--form must be auto, compiled or self-extracting, not ${wanted}`);
  }
  const started = performance.now();
  await Deno.mkdir(STAGE, { recursive: true });
  const commit = (await capture(["git", "-C", ROOT, "rev-parse", "--short=12", "HEAD"])).trim() || "unknown";

  const base = await runtimeBase(wanted);
  const form: Form = base ? "compiled" : "self-extracting";
  const app = await bundle(commit, form);
  const out = flag("--out") ?? `${DIST}/edgemesh`;
  if (base) {
    await compile(app, base, out);
  } else {
    if (foreign === undefined) await proveCompile(app);
    const runtime = { binary: foreign ?? Deno.execPath(), target: flag("--target") ?? Deno.build.target };
    await selfExtracting(app, commit, { out, ...runtime });
  }
  await Deno.remove(STAGE, { recursive: true });
  const { size } = await Deno.stat(out);
  say(
    `built ${relative(out)} (${form}, ${(size / 1e6).toFixed(1)} MB) in ${
      ((performance.now() - started) / 1000).toFixed(1)
    } s`,
  );
}

/** The bundle: one entry and lazily loaded chunks, with what `edgemesh version` prints put in front. */
async function bundle(commit: string, form: Form): Promise<string> {
  const app = `${STAGE}/app`;
  await Deno.remove(app, { recursive: true }).catch(() => {});
  await run([Deno.execPath(), "bundle", "--quiet", "--code-splitting", "--outdir", app, `${ROOT}main.ts`]);
  await minify(app);
  const entry = `${app}/main.js`;
  const head = `globalThis.edgemeshBuild=${JSON.stringify({ commit, form })};\n`;
  await Deno.writeTextFile(entry, head + await Deno.readTextFile(entry));
  return app;
}

/**
 * Shortens names and white space, which saves every agent 4 MB. Not with `deno bundle --minify`: its rewriting of
 * expressions inlines a `using` variable that is read once, and what it held is then never disposed of.
 */
async function minify(app: string): Promise<void> {
  const { stop, transform } = await import("esbuild");
  try {
    for await (const entry of Deno.readDir(app)) {
      const path = `${app}/${entry.name}`;
      const { code } = await transform(await Deno.readTextFile(path), {
        format: "esm",
        target: "esnext",
        minifyWhitespace: true,
        minifyIdentifiers: true,
        minifySyntax: false,
        legalComments: "none",
      });
      await Deno.writeTextFile(path, code);
    }
  } finally {
    await stop();
  }
}

/** Path of `denort`, or undefined when it cannot be had. */
async function runtimeBase(wanted: string): Promise<string | undefined> {
  if (wanted === "self-extracting") return undefined;
  const given = Deno.env.get("DENORT_BIN");
  if (given) return given;
  const probe = `${STAGE}/probe.ts`;
  await Deno.writeTextFile(probe, "0;\n");
  const result = await output([
    Deno.execPath(),
    "compile",
    "--quiet",
    "--no-check",
    "--no-config",
    "-o",
    `${STAGE}/probe`,
    probe,
  ]);
  if (result.success) return "download";
  if (wanted === "compiled") {
    fail("Deno's runtime base cannot be downloaded; set DENORT_BIN to a denort binary of Deno " + Deno.version.deno);
  }
  say("runtime base (denort) cannot be had here: building the self-extracting form");
  return undefined;
}

async function compile(app: string, base: string, out: string): Promise<void> {
  await run(compileArgs(app, out), base === "download" ? {} : { DENORT_BIN: base });
}

async function proveCompile(app: string): Promise<void> {
  const out = `${STAGE}/proof`;
  await run(compileArgs(app, out), { DENORT_BIN: Deno.execPath() });
  const { size } = await Deno.stat(out);
  say(`compiled form proven complete against a stand-in base (${(size / 1e6).toFixed(1)} MB, not runnable here)`);
}

function compileArgs(app: string, out: string): string[] {
  // Chunks are reached by dynamic import only; including the folder keeps the graph complete.
  return [
    Deno.execPath(),
    "compile",
    "--quiet",
    "--no-check",
    "--no-config",
    "-A",
    V8_FLAGS,
    "--include",
    app,
    "-o",
    out,
    `${app}/main.js`,
  ];
}

interface SelfExtracting {
  readonly out: string;
  /** Deno for the machine type it is made for. */
  readonly binary: string;
  readonly target: string;
}

async function selfExtracting(app: string, commit: string, { out, binary, target }: SelfExtracting): Promise<void> {
  const payload = `${STAGE}/payload`;
  await Deno.remove(payload, { recursive: true }).catch(() => {});
  await Deno.mkdir(payload);
  await Deno.rename(app, `${payload}/app`);
  // The runtime carries our name so that `ps`, `pgrep` and `top` show what runs.
  await Deno.copyFile(binary, `${payload}/edgemesh`);
  await Deno.chmod(`${payload}/edgemesh`, 0o755);
  const archive = `${STAGE}/payload.tar.gz`;
  // Sorted and without times or owners: the same sources make the same file.
  await run([
    "sh",
    "-c",
    `tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C '${payload}' -cf - app edgemesh | gzip -n -${
      Deno.env.get("EDGEMESH_GZIP_LEVEL") ?? "6"
    } >'${archive}'`,
  ]);
  const bytes = await Deno.readFile(archive);
  const hash = createHash("sha256").update(bytes).digest("hex").slice(0, 32);
  let head = (await Deno.readTextFile(`${ROOT}scripts/self_extract.sh`))
    .replaceAll("@VERSION@", VERSION).replaceAll("@COMMIT@", commit).replaceAll("@TARGET@", target)
    .replaceAll("@HASH@", hash).replaceAll("@V8FLAGS@", V8_FLAGS);
  // The header's length contains its own digits: a fixed width makes it known beforehand.
  const width = 8;
  const size = new TextEncoder().encode(head.replaceAll("@SKIP@", "0".repeat(width))).length;
  head = head.replaceAll("@SKIP@", String(size + 1).padStart(width, " ").trimStart().padEnd(width, " "));
  const tmp = `${out}.tmp`;
  const file = await Deno.open(tmp, { write: true, create: true, truncate: true, mode: 0o755 });
  const headBytes = new TextEncoder().encode(head);
  if (headBytes.length !== size) fail("The header changed its length");
  for (const part of [headBytes, bytes]) {
    for (let at = 0; at < part.length;) at += await file.write(part.subarray(at));
  }
  file.close();
  await Deno.chmod(tmp, 0o755);
  await Deno.rename(tmp, out);
}

function flag(name: string): string | undefined {
  return Deno.args.includes(name) ? Deno.args[Deno.args.indexOf(name) + 1] : undefined;
}

async function run(argv: readonly string[], env: Record<string, string> = {}): Promise<void> {
  const result = await output(argv, env);
  if (!result.success) fail(`${argv[0]} ${argv[1] ?? ""} failed:\n${result.text}`);
}

async function capture(argv: readonly string[]): Promise<string> {
  const result = await output(argv);
  return result.success ? result.text : "";
}

async function output(
  argv: readonly string[],
  env: Record<string, string> = {},
): Promise<{ success: boolean; text: string }> {
  const child = new Deno.Command(argv[0]!, {
    args: argv.slice(1),
    env: { NO_COLOR: "1", ...env },
    stdout: "piped",
    stderr: "piped",
  });
  const { success, stdout, stderr } = await child.output();
  const decoder = new TextDecoder();
  return { success, text: success ? decoder.decode(stdout) : decoder.decode(stderr) + decoder.decode(stdout) };
}

function relative(path: string): string {
  return path.startsWith(ROOT) ? path.slice(ROOT.length) : path;
}

function say(line: string): void {
  Deno.stdout.writeSync(new TextEncoder().encode(line + "\n"));
}

function fail(message: string): never {
  Deno.stderr.writeSync(new TextEncoder().encode(`error: ${message}\n`));
  Deno.exit(1);
}

if (import.meta.main) await main();
