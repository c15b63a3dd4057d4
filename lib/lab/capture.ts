/** Records packets in a namespace, for assertions on what was on the wire. */
import { MeshError } from "../errors.ts";
import { execOk } from "./exec.ts";
import type { Namespace } from "./namespace.ts";
import { requireTools } from "./tools.ts";

export interface CaptureOptions {
  /** Default `any`. */
  readonly iface?: string;
  /** pcap-filter(7). */
  readonly filter?: string;
}

/** A running tcpdump that writes to a file. */
export class Capture {
  /** The recording, readable by Wireshark. */
  readonly file: string;
  readonly #child: Deno.ChildProcess;
  readonly #tcpdump: string;
  #stopped = false;

  private constructor(file: string, child: Deno.ChildProcess, tcpdump: string) {
    this.file = file;
    this.#child = child;
    this.#tcpdump = tcpdump;
  }

  /** Resolves when packets are being recorded. */
  static async start(ns: Namespace, options: CaptureOptions = {}): Promise<Capture> {
    const { tcpdump } = await requireTools(["tcpdump"]);
    const file = await Deno.makeTempFile({ dir: ns.lab.dir, prefix: `${ns.name}-`, suffix: ".pcap" });
    const flags = ["-i", options.iface ?? "any", "-nn", "-U", "--immediate-mode", "-Z", "root", "-w", file];
    const [program, ...args] = ns.command([tcpdump, ...flags, ...(options.filter ? [options.filter] : [])]);
    const child = new Deno.Command(program!, {
      args,
      stdin: "null",
      stdout: "null",
      stderr: "piped",
      detached: true,
    }).spawn();
    ns.lab.adopt(child, () => child.stderr.cancel());
    const reader = child.stderr.getReader();
    const decoder = new TextDecoder();
    let said = "";
    while (!said.includes("listening on")) {
      const { done, value } = await reader.read();
      if (done) throw new MeshError("KERNEL", `Cannot record packets in ${ns.name}: ${said.trim()}`);
      said += decoder.decode(value, { stream: true });
    }
    reader.releaseLock();
    return new Capture(file, child, tcpdump);
  }

  /** Ends the recording; every packet seen until now is in the file. */
  async stop(): Promise<void> {
    if (this.#stopped) return;
    this.#stopped = true;
    this.#child.kill("SIGINT");
    await this.#child.status;
  }

  /** The recorded packets that match a filter, one line of tcpdump each. Ends the recording. */
  async packets(filter?: string): Promise<string[]> {
    await this.stop();
    const argv = [this.#tcpdump, "-nn", "-tt", "-r", this.file, ...(filter ? [filter] : [])];
    const { stdout } = await execOk(argv);
    return stdout.split("\n").filter((line) => line !== "");
  }
}
