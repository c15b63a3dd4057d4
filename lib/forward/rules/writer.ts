/** The one interface between plans and the kernel's packet rules, whatever back end writes them. */
import { diffRulesets, diffState } from "./diff.ts";
import type { Conntrack, KernelRules, Operation, RulesState } from "./kernel.ts";
import { AGENT_TABLE, type Grammar, type Ruleset, TABLE } from "./ruleset.ts";

export interface ApplyResult {
  /** Changes sent to the kernel; 0 when nothing had to change. */
  readonly operations: number;
}

/** Calls must not overlap: whoever uses a writer waits for one call before the next. */
export class RuleWriter {
  readonly #kernel: KernelRules;
  #applied: Ruleset | undefined;

  constructor(kernel: KernelRules) {
    this.#kernel = kernel;
  }

  get kind(): KernelRules["kind"] {
    return this.#kernel.kind;
  }

  get ownsTables(): boolean {
    return this.#kernel.ownsTables;
  }

  get conntrack(): Conntrack | undefined {
    return this.#kernel.conntrack;
  }

  /** What {@link compileRules} wants to know of the back end. */
  get grammar(): Grammar {
    return this.#kernel.grammar;
  }

  /**
   * Makes the kernel hold exactly this ruleset, in one transaction. The first time, and when somebody else has changed
   * our tables meanwhile, the difference is taken from the kernel's own listing, so that what is right stays untouched.
   * Throws MeshError KERNEL; the kernel then holds what it held before.
   */
  async apply(ruleset: Ruleset): Promise<ApplyResult> {
    if (this.#applied) {
      const operations = diffRulesets(this.#applied, ruleset);
      try {
        return await this.#commit(operations, ruleset);
      } catch {
        // A change that does not fit what the kernel holds: the listing below tells what it does hold.
      }
    }
    return await this.#commit(diffState(await this.list(ruleset), ruleset), ruleset);
  }

  /** Reads our tables back. Throws MeshError KERNEL. */
  list(ruleset: Ruleset | undefined = this.#applied): Promise<RulesState> {
    const declared = (name: string) => ruleset?.tables.find((t) => t.name === name)?.sets ?? [];
    return this.#kernel.list(new Map([TABLE, AGENT_TABLE].map((name) => [name, declared(name)])));
  }

  /** Compares the kernel with what was applied last and undoes foreign changes. Throws MeshError KERNEL. */
  async repair(): Promise<ApplyResult> {
    if (!this.#applied) return { operations: 0 };
    if (this.#kernel.changedByOthers?.(this.#applied.tables.map((t) => t.name)) === false) return { operations: 0 };
    return await this.#commit(diffState(await this.list(), this.#applied), this.#applied);
  }

  /**
   * Deletes what packets taught a learned map and `stale` says is wrong by now (key and value as text). Elements that
   * end meanwhile are no error. Throws MeshError KERNEL.
   */
  forget(table: string, map: string, stale: (key: string, value: string) => boolean): Promise<number> {
    const spec = this.#applied?.tables.find((t) => t.name === table)?.sets.find((s) => s.name === map);
    return spec ? this.#kernel.forget(table, spec, stale) : Promise.resolve(0);
  }

  /** Deletes our tables: all, or only the agent-bound one. A table that is absent already is no error. */
  async remove(which: "all" | "agent"): Promise<void> {
    const names = which === "all" ? [AGENT_TABLE, TABLE] : [AGENT_TABLE];
    this.#applied = undefined;
    await this.#kernel.commit(names.map((name) => ({ op: "delete-table", name })));
  }

  /** Lets go of descriptors; rules of persistent tables stay. */
  close(): void {
    this.#kernel.close();
  }

  async #commit(operations: readonly Operation[], ruleset: Ruleset): Promise<ApplyResult> {
    if (operations.length > 0) await this.#kernel.commit(operations);
    this.#applied = ruleset;
    return { operations: operations.length };
  }
}
