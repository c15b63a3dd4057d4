/** Runs the `nft` program: the second way to the kernel's packet rules, where netlink over FFI is refused. */
import type { Clock } from "../clock.ts";
import { MeshError } from "../errors.ts";

/** A transaction of thousands of rules takes a second; a process that needs longer is stuck. */
const PATIENCE_MS = 30_000;

/** What one run of `nft` said. */
export interface NftOutput {
  readonly code: number;
  readonly stdout: string;
  /** Of a refused transaction: one line per problem, with the rule it is about. */
  readonly stderr: string;
}

/**
 * Makes the function that runs `nft` once with these arguments and this standard input (one transaction). It returns
 * refusals; it throws MeshError KERNEL when the program cannot run or does not end.
 */
export function nftRunner(
  clock: Clock,
  program = "nft",
): (args: readonly string[], stdin: string) => Promise<NftOutput> {
  return async (args, stdin) => {
    const stop = new AbortController();
    const cancel = clock.timer(PATIENCE_MS, () => stop.abort());
    try {
      const child = new Deno.Command(program, {
        args: [...args],
        stdin: "piped",
        stdout: "piped",
        stderr: "piped",
        env: { LC_ALL: "C" },
        signal: stop.signal,
      }).spawn();
      const fed = feed(child.stdin, stdin);
      const { code, stdout, stderr } = await child.output();
      await fed;
      if (stop.signal.aborted) throw new MeshError("KERNEL", `nft ${args.join(" ")} did not end in ${PATIENCE_MS} ms`);
      const text = new TextDecoder();
      return { code, stdout: text.decode(stdout), stderr: nftProblems(text.decode(stderr), stdin) };
    } catch (cause) {
      if (!(cause instanceof Deno.errors.NotFound)) throw cause;
      throw new MeshError("KERNEL", `Cannot run ${program}: not found`, {
        cause,
        hint: "install the nftables package, or allow netlink (--allow-ffi and CAP_NET_ADMIN)",
      });
    } finally {
      cancel();
    }
  };
}

/**
 * The problems nft reports about its standard input, each with the line it is about:
 * `syntax error, unexpected newline (line 2: add rule …)`. Other output is returned as it is.
 */
export function nftProblems(stderr: string, stdin: string): string {
  const lines = stdin.split("\n");
  const problems = [...stderr.matchAll(/^\/dev\/stdin:(\d+):[\d-]+: (?:Error: )?(.*)$/gm)].map((m) => {
    const line = lines[Number(m[1]) - 1]?.trim() ?? "";
    return `${m[2]} (line ${m[1]}: ${line.length > 200 ? line.slice(0, 200) + "…" : line})`;
  });
  return problems.length > 0 ? problems.join("\n") : stderr;
}

/** A child that ends early closes its input: what it then says about it is the answer, not the broken pipe. */
async function feed(input: WritableStream<Uint8Array>, text: string): Promise<void> {
  try {
    const writer = input.getWriter();
    await writer.write(new TextEncoder().encode(text));
    await writer.close();
  } catch {
    // See above.
  }
}
