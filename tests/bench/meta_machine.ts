/** The processes of meta_scale.ts as one machine: a server with 5 000 Services, an empty process, a follower. */
import type { Measured, Turn } from "./meta_scale.ts";

const SCRIPT = new URL("./meta_scale.ts", import.meta.url).pathname;

/** V8 as the executable runs it: nothing is tuned for the measurement. */
const BUILD = await Deno.readTextFile(new URL("../../scripts/build.ts", import.meta.url));
const V8_FLAGS = /"(--v8-flags=[^"]+)"/.exec(BUILD)![1]!;

/** One stop of the follower's main thread for its garbage. */
export interface Collection {
  /** End, in milliseconds since the process began; V8 tells whole ones. */
  readonly at: number;
  readonly name: string;
  readonly ms: number;
  /** Milliseconds of the marking before, in small steps between the program's own work. */
  readonly steps: number;
}

export class MetaMachine implements AsyncDisposable {
  readonly #server: Process;
  readonly #client: Process;
  /** Memory of a process that has learned nothing. */
  readonly empty: Measured;

  private constructor(server: Process, client: Process, empty: Measured) {
    this.#server = server;
    this.#client = client;
    this.empty = empty;
  }

  /** Starts all; the follower is synced. */
  static async start(): Promise<MetaMachine> {
    const server = new Process(["server"]);
    const address = await server.line();
    const none = new Process(["empty"]);
    const empty = JSON.parse(await none.line()) as Measured;
    await none.close();
    const client = new Process(["client", address], ["--trace-gc"]);
    const line = await client.line();
    if (line !== "synced") throw new Error(`the follower said ${line}`);
    return new MetaMachine(server, client, empty);
  }

  /** What the follower measured since the time before. */
  async measured(): Promise<Measured> {
    return JSON.parse(await this.#client.ask()) as Measured;
  }

  /** Everything expires, is listed anew and compared with what is known. */
  async relist(): Promise<Measured> {
    await this.#server.ask();
    return await this.measured();
  }

  /** Ends the follower; what V8 said about its collections, on the follower's clock. */
  async collections(collectedAt: number): Promise<Collection[]> {
    const all = (await this.#client.close()).split("\n").flatMap(collectionOf);
    const asked = all.find((c) => c.name.endsWith("Mark-Compact"));
    if (!asked) throw new Error("V8 told of no collection");
    return all.map((c) => ({ ...c, at: c.at - asked.at + collectedAt }));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([this.#client.close(), this.#server.close()]);
  }
}

/** The longest turn by processor time. */
export function longest(turns: readonly Turn[]): Turn {
  return turns.reduce((a, b) => b.cpu > a.cpu ? b : a, { at: 0, cpu: 0, wall: 0 });
}

/**
 * Whether the machine let the program work: a turn that lasted several times its processor time was one in which others
 * had the processors (a hypervisor among them), and what cold caches and stolen time added to it says nothing here.
 */
export function undisturbed(turn: Turn): boolean {
  return turn.wall <= 3 * turn.cpu;
}

/** Memory above the empty process, for people. */
export function above(m: Measured, empty: Measured): string {
  return `${(m.rss - empty.rss).toFixed(1)} MB RSS, ${(m.private - empty.private).toFixed(1)} MB private ` +
    `(${(m.busyRss - empty.rss).toFixed(1)} MB RSS while busy)`;
}

/** `[pid:isolate]  123 ms: Scavenge 4.5 (5.0) -> 4.2 (5.8) MB, pooled: 0.0 MB, 4.10 / 0.00 ms (+ 11.3 ms in 120 steps …` */
function collectionOf(line: string): Collection[] {
  const m = /^\[[^\]]+\]\s+(\d+) ms: (.+?) [\d.]+ \(.*? MB, ([\d.]+) \/ [\d.]+ ms (?:\(\+ ([\d.]+) ms in)?/.exec(line);
  return m ? [{ at: Number(m[1]), name: m[2]!, ms: Number(m[3]), steps: Number(m[4] ?? 0) }] : [];
}

class Process {
  readonly #child: Deno.ChildProcess;
  readonly #lines: AsyncIterator<string>;
  readonly #input: WritableStreamDefaultWriter<Uint8Array>;
  readonly #output: Promise<string>;

  constructor(args: readonly string[], v8: readonly string[] = []) {
    this.#child = new Deno.Command(Deno.execPath(), {
      args: ["run", "-A", "--quiet", "--no-check", [V8_FLAGS, ...v8].join(","), SCRIPT, ...args],
      stdin: "piped",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    this.#lines = lines(this.#child.stderr);
    this.#input = this.#child.stdin.getWriter();
    this.#output = new Response(this.#child.stdout).text();
  }

  async line(): Promise<string> {
    const next = await this.#lines.next();
    if (next.done) throw new Error("the process ended");
    return next.value;
  }

  /** Writes a line and reads one. */
  async ask(): Promise<string> {
    await this.#input.write(new TextEncoder().encode("\n"));
    return await this.line();
  }

  /** Lets the process end; what it wrote on stdout. */
  async close(): Promise<string> {
    await this.#input.close().catch(() => {});
    await this.#child.status;
    await this.#lines.return?.();
    return await this.#output;
  }
}

async function* lines(stream: ReadableStream<Uint8Array>): AsyncIterableIterator<string> {
  let rest = "";
  for await (const text of stream.pipeThrough(new TextDecoderStream())) {
    const parts = (rest + text).split("\n");
    rest = parts.pop()!;
    yield* parts;
  }
}
