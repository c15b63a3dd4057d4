/** What all lab tests share: when they run, and which executable they start. */
import { MeshError } from "../../lib/errors.ts";
import { exec } from "../../lib/lab/exec.ts";

const ROOT = new URL("../..", import.meta.url).pathname;

/**
 * A test that needs network namespaces. A machine that cannot have them fails it: a lab that was skipped must not look
 * green. Only EDGEMESH_LAB=skip skips, and says so.
 */
export function labTest(name: string, fn: (t: Deno.TestContext) => Promise<void>): void {
  const skip = Deno.env.get("EDGEMESH_LAB") === "skip";
  if (skip) say(`skipped because EDGEMESH_LAB=skip: ${name}`);
  Deno.test({
    name,
    ignore: skip,
    fn: async (t) => {
      await requireNamespaces();
      await fn(t);
    },
  });
}

/** A lab test that takes minutes: runs with `scripts/test.sh --full` (EDGEMESH_TEST=full) only, and says so otherwise. */
export function longLabTest(name: string, fn: (t: Deno.TestContext) => Promise<void>): void {
  if (Deno.env.get("EDGEMESH_TEST") === "full") return labTest(name, fn);
  say(`skipped because it takes minutes; EDGEMESH_TEST=full runs it: ${name}`);
  Deno.test({ name, ignore: true, fn });
}

/** A line for whoever reads the run: a number that was measured, a reason why something was not done. */
export function say(line: string): void {
  Deno.stdout.writeSync(new TextEncoder().encode(`${line}\n`));
}

/**
 * The built executable: dist/edgemesh, or the file EDGEMESH_BINARY names. Throws where it has not been built: the lab
 * never tests something else instead.
 */
export function builtCommand(): readonly [string] {
  const path = Deno.env.get("EDGEMESH_BINARY") ?? `${ROOT}dist/edgemesh`;
  try {
    Deno.statSync(path);
  } catch {
    throw new MeshError("STATE_INVALID", `${path} is missing`, { hint: "./scripts/deno task build" });
  }
  return [path];
}

/** The program as it stands in the checkout: for tests of the lab itself, which need nothing of it but `lab-delay`. */
export function sourceCommand(): readonly string[] {
  return [`${ROOT}scripts/deno`, "run", "-A", "--quiet", `${ROOT}main.ts`];
}

/** A program of the tests, run by the pinned Deno. */
export function fixture(name: string): readonly string[] {
  return [`${ROOT}scripts/deno`, "run", "-A", "--quiet", `${ROOT}tests/lab/fixtures/${name}.ts`];
}

/** What a run of ping saw; times in ms. */
export interface Rtt {
  readonly sent: number;
  readonly received: number;
  readonly min: number;
}

/** Reads what `ping -q` prints (iputils). */
export function parsePing(output: string): Rtt {
  const counts = /(\d+) packets transmitted, (\d+) received/.exec(output);
  const times = /= ([\d.]+)\/[\d.]+\/[\d.]+\/[\d.]+ ms/.exec(output);
  if (!counts) throw new MeshError("INTERNAL", `Cannot read ping's output: ${output}`);
  return { sent: Number(counts[1]), received: Number(counts[2]), min: Number(times?.[1] ?? Infinity) };
}

let namespaces: Promise<void> | undefined;

/** Asked once per file: a machine that cannot have namespaces says so in one sentence, not in the words of its tools. */
function requireNamespaces(): Promise<void> {
  return namespaces ??= exec(["unshare", "--net", "--mount", "true"]).then(({ code, stderr }) => {
    if (code === 0) return;
    throw new MeshError("KERNEL", `The lab cannot make network and mount namespaces here: ${stderr.trim()}`, {
      hint: "run as root, in a container with --privileged; or EDGEMESH_LAB=skip to leave the lab out",
    });
  });
}
