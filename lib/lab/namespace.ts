/**
 * Network namespaces and the links between them. Links are made inside the namespaces, so the host's own namespace
 * never has one, not even for a moment; rules, addresses and sysctls are set inside only.
 */
import { MeshError } from "../errors.ts";
import { exec, execOk, type ExecOptions, type ExecResult, until } from "./exec.ts";
import { keep, type LabRecord, netnsName, register, removeLab, sweep } from "./registry.ts";
import { requireTools } from "./tools.ts";

/** One end of a veth pair. */
export interface LinkEnd {
  readonly ns: Namespace;
  /** Interface name, at most 15 bytes. */
  readonly ifname: string;
}

/** Several settings of one namespace, applied in this order. */
export interface NamespaceSetup {
  /** `net.ipv4.ip_forward` → `1`. Names the kernel does not have are an error. */
  readonly sysctl?: Readonly<Record<string, string | number>>;
  /** Lines for {@link Namespace.ip}. */
  readonly ip?: readonly string[];
  /** A file for `nft -f`. */
  readonly nft?: string;
}

const IFNAME_MAX = 15;
/**
 * The state a new namespace is put into; links made later inherit it. No duplicate-address detection, which delays each
 * IPv6 address by a second: the lab gives no address twice. No router is asked for: the lab's routers do not advertise.
 */
const NEW_NAMESPACE = `if [ -d /proc/sys/net/ipv6/conf/default ]; then cd /proc/sys/net/ipv6/conf/default
  echo 0 >accept_dad; echo 0 >accept_ra; echo 0 >router_solicitations
fi
ip link set lo up`;

/** A lab run: the owner of its namespaces, processes and files. */
export class Lab implements AsyncDisposable {
  readonly id: string;
  /** Folder for logs and files, removed with the lab. */
  readonly dir: string;
  readonly #record: LabRecord;
  readonly #children = new Set<Promise<unknown>>();
  readonly #names = new Set<string>();
  #closed = false;

  private constructor(record: LabRecord) {
    this.id = record.id;
    this.dir = record.dir;
    this.#record = record;
  }

  /**
   * Starts a run: checks the machine, removes what dead runs left, registers itself.
   * @throws MeshError KERNEL when the machine cannot have network namespaces, TOOL_MISSING without ip or nft
   */
  static async open(): Promise<Lab> {
    if (Deno.build.os !== "linux" || Deno.uid() !== 0) {
      throw new MeshError("KERNEL", "The lab makes network namespaces, which needs Linux and root", { hint: "sudo" });
    }
    await requireTools(["ip", "nft", "nsenter"]);
    await sweep();
    const id = [...crypto.getRandomValues(new Uint8Array(3))].map((b) => b.toString(16).padStart(2, "0")).join("");
    const dir = await Deno.makeTempDir({ prefix: `edgemesh-lab-${id}-` });
    // Programs in the lab drop their privileges and must still reach their own files.
    await Deno.chmod(dir, 0o755);
    return new Lab(await register(id, dir));
  }

  /** Makes namespaces with their loopback up. Names: unique in the lab, at most 20 of a–z, 0–9 and `-`. */
  async namespaces<const N extends readonly string[]>(names: N): Promise<{ [K in keyof N]: Namespace }> {
    for (const name of names) {
      if (!/^[a-z0-9][a-z0-9-]{0,19}$/.test(name) || this.#names.has(name)) {
        throw new MeshError("CONFIG_INVALID", `Lab namespace name "${name}" is malformed or taken`);
      }
      this.#names.add(name);
    }
    const lines = names.map((name) => `netns add ${netnsName(this.id, name)}\n`);
    await execOk(["ip", "-batch", "-"], { stdin: lines.join("") });
    const made = names.map((name) => new Namespace(this, name));
    await Promise.all(made.map((ns) => execOk(ns.enter(["sh", "-c", NEW_NAMESPACE]))));
    return made as { [K in keyof N]: Namespace };
  }

  /** Makes one namespace; see {@link namespaces}. */
  async namespace(name: string): Promise<Namespace> {
    return (await this.namespaces([name]))[0];
  }

  /** Makes veth pairs, both ends in their namespaces and up. */
  async link(...pairs: readonly (readonly [LinkEnd, LinkEnd])[]): Promise<void> {
    const lines = pairs.map(([a, b]) => {
      for (const { ifname } of [a, b]) {
        if (ifname.length > IFNAME_MAX) throw new MeshError("CONFIG_INVALID", `Interface name ${ifname} is too long`);
      }
      // Only the first can be up from the start: the kernel refuses it for a peer whose other end does not exist yet.
      const peer = `type veth peer name ${b.ifname} netns ${b.ns.netns}`;
      return `link add ${a.ifname} netns ${a.ns.netns} up ${peer}\n`;
    });
    await execOk(["ip", "-batch", "-"], { stdin: lines.join("") });
    await Promise.all(pairs.map(([, b]) => b.ns.ip(`link set ${b.ifname} up`)));
  }

  /**
   * Takes charge of a child: {@link close} waits for its end and calls `release`, which gives back what this process
   * holds of it (pipes).
   */
  adopt(child: Deno.ChildProcess, release: () => Promise<unknown> = () => Promise.resolve()): void {
    const ended = child.status.then(release).catch(() => {}).finally(() => this.#children.delete(ended));
    this.#children.add(ended);
  }

  /** Leaves everything standing when this process ends; `removeLab` removes it. */
  keep(): Promise<void> {
    return keep(this.#record);
  }

  /** Kills everything in the lab and removes it. Calling it again does nothing. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await removeLab(this.#record);
    await Promise.all(this.#children);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** One network namespace of a lab. */
export class Namespace {
  readonly lab: Lab;
  /** Name within the lab: `edge-1`. */
  readonly name: string;
  /** Name for `ip netns exec`: `em-3fa9c1-edge-1`. */
  readonly netns: string;

  constructor(lab: Lab, name: string) {
    this.lab = lab;
    this.name = name;
    this.netns = netnsName(lab.id, name);
  }

  /** Applies several settings. */
  async configure(setup: NamespaceSetup): Promise<void> {
    const values = Object.entries(setup.sysctl ?? {});
    if (values.length > 0) {
      const script = values.map(([key, value]) => `echo ${value} >/proc/sys/${key.replaceAll(".", "/")}\n`);
      await execOk(this.enter(["sh", "-e", "-s"]), { stdin: script.join("") });
    }
    await this.ip(...setup.ip ?? []);
    if (setup.nft) await execOk(this.enter(["nft", "-f", "-"]), { stdin: setup.nft + "\n" });
  }

  /** Runs lines of `ip -batch` inside; those that start with `-6 ` follow as a batch of `ip -6`. */
  async ip(...lines: readonly string[]): Promise<void> {
    const v6 = lines.filter((line) => line.startsWith("-6 ")).map((line) => line.slice(3));
    const rest = lines.filter((line) => !line.startsWith("-6 "));
    const batch = (options: string[], batched: readonly string[]) =>
      execOk(["ip", "-n", this.netns, ...options, "-batch", "-"], { stdin: batched.join("\n") + "\n" });
    if (rest.length > 0) await batch([], rest);
    if (v6.length > 0) await batch(["-6"], v6);
  }

  /** Applies a file of `nft -f` inside, atomically. */
  nft(text: string): Promise<void> {
    return this.configure({ nft: text });
  }

  /** Waits until the kernel has acted on a change of an interface's carrier, which it may put off for up to a second. */
  async carrier(ifname: string, wanted: boolean): Promise<void> {
    await until(`${ifname} in ${this.name} to ${wanted ? "come up" : "go down"}`, async () => {
      const { stdout } = await this.exec(["cat", `/sys/class/net/${ifname}/operstate`]);
      return (stdout.trim() === "up") === wanted ? true : undefined;
    });
  }

  /** Like {@link command} for programs that need no /sys of their own: without a new mount namespace, twice as fast. */
  enter(argv: readonly string[]): string[] {
    return ["nsenter", `--net=/run/netns/${this.netns}`, "--", ...argv];
  }

  /** `argv` as it must be started from the host to run inside. The program replaces `ip`, so the pid stays. */
  command(argv: readonly string[]): string[] {
    return ["ip", "netns", "exec", this.netns, ...argv];
  }

  /** Runs a program inside to its end. */
  exec(argv: readonly string[], options?: ExecOptions): Promise<ExecResult> {
    return exec(this.command(argv), options);
  }

  /** Like {@link exec}; an exit code other than 0 is an error. */
  execOk(argv: readonly string[], options?: ExecOptions): Promise<ExecResult> {
    return execOk(this.command(argv), options);
  }
}
