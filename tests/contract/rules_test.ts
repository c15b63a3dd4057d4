import { MeshError } from "../../lib/errors.ts";
import { FakeKernel } from "../../lib/forward/rules/fake.ts";
import { type Grammar, TABLE } from "../../lib/forward/rules/ruleset.ts";
import { Tracer } from "../../lib/forward/rules/trace.ts";
import { RuleWriter } from "../../lib/forward/rules/writer.ts";
import { hostPort } from "../../lib/addr.ts";
import { type Ask, type Listing, MACHINE, type RulesBench, SERVERS } from "./rules_bench.ts";
import { rulesContract } from "./rules_contract.ts";
import { KernelBench } from "./rules_kernel.ts";

for (const grammar of ["full", "nft"] as const) {
  rulesContract(`in memory, ${grammar}`, () => Promise.resolve(new FakeBench(grammar)));
}
for (const backend of ["netlink", "nft"] as const) rulesContract(`kernel, ${backend}`, () => KernelBench.open(backend));

/** The fake kernel, asked through its tracer. */
class FakeBench implements RulesBench {
  readonly ownsTables = true;
  readonly grammar: Grammar;
  readonly #kernel: FakeKernel;
  readonly #tracer: Tracer;
  #writer: RuleWriter;

  constructor(grammar: Grammar) {
    this.grammar = grammar;
    this.#kernel = new FakeKernel(grammar);
    this.#writer = new RuleWriter(this.#kernel);
    this.#tracer = new Tracer(this.#kernel, { hostAddresses: [MACHINE.host4, MACHINE.mesh4, MACHINE.mesh6] });
  }

  apply(ruleset: Parameters<RuleWriter["apply"]>[0]) {
    return this.#writer.apply(ruleset);
  }

  repair() {
    return this.#writer.repair();
  }

  async list(): Promise<Listing> {
    const state = await this.#writer.list();
    return JSON.parse(JSON.stringify(state, (_, v) => v instanceof Map ? Object.fromEntries(v) : v));
  }

  remove(which: "all" | "agent") {
    return this.#writer.remove(which);
  }

  forget(targets: readonly string[]) {
    return this.#writer.forget(TABLE, "affinity4", (_, value) => targets.includes(value));
  }

  pass(ms: number): Promise<void> {
    this.#kernel.now += ms;
    return Promise.resolve();
  }

  ask({ from, protocol, to }: Ask): Promise<string> {
    const six = to.ip.includes(":");
    const client = from === "outside"
      ? MACHINE.outside4
      : from === "host"
      ? (six ? MACHINE.mesh6 : MACHINE.mesh4)
      : (six ? MACHINE.pod6 : MACHINE.pod4);
    const traced = this.#tracer.trace({
      protocol,
      from: { ip: client, port: 40000 },
      to,
      ...(from === "host" ? {} : { via: from === "pod" ? "pod0" : "wan0" }),
    });
    if (traced.fate === "reject") return Promise.resolve("reject");
    if (traced.fate !== "forwarded") return Promise.resolve("silent");
    const known = SERVERS.some((s) => s.ip === traced.to.ip && s.port === traced.to.port);
    if (!known) throw new MeshError("INTERNAL", `Traced to ${hostPort(traced.to)}, where nobody is`);
    return Promise.resolve(`${traced.to.ip}:${traced.to.port} ${client}`);
  }

  crash(): Promise<void> {
    this.#kernel.agentDied();
    this.#writer = new RuleWriter(this.#kernel);
    return Promise.resolve();
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}
