/** The second back end: one `nft` process per transaction, for hosts that refuse netlink over FFI. */
import { MeshError } from "../../errors.ts";
import { parseTable } from "./nft_parse.ts";
import { renderOperations } from "./nft_render.ts";
import type { SetSpec } from "./ruleset.ts";
import type { KernelRules, Operation, RulesState, TableState } from "./kernel.ts";

/** Runs `nft` once with these arguments and this standard input. */
export type RunNft = (
  args: readonly string[],
  stdin: string,
) => Promise<{ readonly code: number; readonly stdout: string; readonly stderr: string }>;

export class NftTextRules implements KernelRules {
  readonly kind = "nft";
  /** A table would belong to a process that has already ended; after a crash our closed listeners are what refuses. */
  readonly ownsTables = false;
  readonly grammar = "nft";
  readonly #run: RunNft;

  constructor(run: RunNft) {
    this.#run = run;
  }

  async commit(operations: readonly Operation[]): Promise<void> {
    const result = await this.#run(["-f", "-"], renderOperations(operations));
    if (result.code === 0) return;
    throw new MeshError("KERNEL", `nft refused ${operations.length} changes: ${firstLine(result.stderr)}`, {
      hint: "`nft list ruleset` shows what the kernel holds; `edgemesh cleanup` removes our tables",
    });
  }

  async list(tables: ReadonlyMap<string, readonly SetSpec[]>): Promise<RulesState> {
    const state = new Map<string, TableState>();
    for (const [name, sets] of tables) {
      const result = await this.#run(["-j", "list", "table", "inet", name], "");
      if (result.code === 0) state.set(name, parseTable(result.stdout, sets));
      else if (!/No such file or directory/.test(result.stderr)) {
        throw new MeshError("KERNEL", `nft cannot list table inet ${name}: ${firstLine(result.stderr)}`);
      }
    }
    return state;
  }

  async forget(table: string, map: SetSpec, stale: (key: string, value: string) => boolean): Promise<number> {
    const result = await this.#run(["-j", "list", "map", "inet", table, map.name], "");
    if (result.code !== 0) return 0;
    const elements = parseTable(result.stdout, []).sets.get(map.name) ?? new Map<string, string>();
    let count = 0;
    for (const [key, value] of elements) {
      if (!stale(key, value)) continue;
      // One by one: an element may end between listing and deletion, and a script fails as a whole.
      const deleted = await this.#run(["delete", "element", "inet", table, map.name, `{ ${key} }`], "");
      if (deleted.code === 0) count++;
    }
    return count;
  }

  close(): void {}
}

function firstLine(text: string): string {
  return text.split("\n").find((line) => line.trim() !== "")?.trim() ?? "no message";
}
