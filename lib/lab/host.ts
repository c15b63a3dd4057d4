/**
 * A machine of the lab: a network namespace with its own view of `/etc`, `/run`, `/var/lib` and its own host name, so
 * that a program behaves there as on a machine of its own and never reads or changes the real one's files.
 */
import { MeshError } from "../errors.ts";
import { exec, execOk, type ExecOptions, type ExecResult } from "./exec.ts";
import type { Namespace } from "./namespace.ts";
import { HostProcess, type StartOptions } from "./process.ts";
import { type LabRecord, netnsName, processesIn } from "./registry.ts";

export interface HostOptions {
  /** Name the kernel reports as host name. Default: the namespace's name in the lab. */
  readonly hostname?: string;
  /** Content of /etc/resolv.conf. Default: no resolver. */
  readonly resolvConf?: string;
}

/** Environment of this process that programs in the lab may see: what finds programs and caches, nothing that steers. */
const PASSED_ENV = [
  "PATH",
  "HOME",
  "LANG",
  "TERM",
  "TMPDIR",
  "DENO_DIR",
  "XDG_CACHE_HOME",
  "EDGEMESH_CACHE",
  "EDGEMESH_RUNTIME_DIR",
];

/** Where the executable unpacks itself when root starts it (scripts/self_extract.sh). */
export const RUNTIME_DIR = "/var/lib/edgemesh/runtime";

/**
 * Runs in the namespace: `ip netns exec` has made a private mount namespace before. Everything new lives in a tmpfs that
 * goes with the last process. The real machine may be an edgemesh node itself: its state and configuration are hidden,
 * only the unpacked runtime of the executable is shared, so that 100 MB are not unpacked once per lab host.
 */
const BUILD_ROOT = `set -e
dir=$1 name=$2
mount -t tmpfs -o mode=755,size=1g edgemesh-lab "$dir"
mkdir "$dir/etc" "$dir/etc.work" "$dir/lib" "$dir/lib.work" "$dir/runtime"
cat >"$dir/etc/resolv.conf"
printf '%s\\n' "$name" >"$dir/etc/hostname"
printf '127.0.0.1 localhost\\n::1 localhost\\n127.0.1.1 %s\\n' "$name" >"$dir/etc/hosts"
if [ -d ${RUNTIME_DIR} ]; then mount --bind ${RUNTIME_DIR} "$dir/runtime"; shared=1; else shared=; fi
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$dir/etc,workdir=$dir/etc.work" /etc
mount -t overlay overlay -o "lowerdir=/var/lib,upperdir=$dir/lib,workdir=$dir/lib.work" /var/lib
rm -rf /etc/edgemesh
mkdir -p /var/lib/edgemesh
mount -t tmpfs -o mode=755 edgemesh-lab /var/lib/edgemesh
if [ -n "$shared" ]; then
  mkdir -m 700 ${RUNTIME_DIR}
  mount --bind "$dir/runtime" ${RUNTIME_DIR}
fi
mount -t tmpfs -o mode=755 edgemesh-lab /run
echo "$name" >/proc/sys/kernel/hostname
echo ready
exec sleep infinity
`;

/** A machine of the lab. */
export class Host {
  readonly ns: Namespace;
  readonly name: string;
  /** Folder of the host's logs on the real machine. */
  readonly logDir: string;
  /** The process that keeps the machine's mounts: it does nothing. */
  readonly #holder: number;
  #starts = 0;

  private constructor(ns: Namespace, name: string, logDir: string, holder: number) {
    this.ns = ns;
    this.name = name;
    this.logDir = logDir;
    this.#holder = holder;
  }

  /** Turns a namespace into a machine. Throws MeshError KERNEL when the kernel refuses a mount. */
  static async create(ns: Namespace, options: HostOptions = {}): Promise<Host> {
    const name = options.hostname ?? ns.name;
    const root = `${ns.lab.dir}/${ns.name}.root`;
    const logDir = `${ns.lab.dir}/${ns.name}`;
    await Deno.mkdir(root);
    await Deno.mkdir(logDir);
    const [program, ...args] = ns.command(["unshare", "--uts", "sh", "-c", BUILD_ROOT, "sh", root, name]);
    const child = new Deno.Command(program!, {
      args,
      stdin: "piped",
      stdout: "piped",
      stderr: "piped",
      detached: true,
    }).spawn();
    ns.lab.adopt(child);
    const writer = child.stdin.getWriter();
    await writer.write(new TextEncoder().encode(options.resolvConf ?? ""));
    await writer.close();
    const reader = child.stdout.getReader();
    const first = await reader.read();
    await reader.cancel();
    if (first.done) {
      const said = (await new Response(child.stderr).text()).trim();
      throw new MeshError("KERNEL", `Cannot build the lab host ${name}: ${said}`, {
        hint: "the kernel needs overlayfs and tmpfs, and root must be allowed to mount",
      });
    }
    await child.stderr.cancel();
    await Deno.writeTextFile(`${root}.holder`, String(child.pid));
    return new Host(ns, name, logDir, child.pid);
  }

  /**
   * `argv` as it must be started from the real machine to run on this one; the pid stays. The working directory is this
   * process's own, so that relative paths of programs keep their meaning.
   */
  command(argv: readonly string[], options: { readonly cwd?: string } = {}): string[] {
    return enter(this.#holder, argv, options.cwd);
  }

  /** Runs a program on the machine to its end, with a clean environment plus `env`. */
  exec(argv: readonly string[], options: ExecOptions = {}): Promise<ExecResult> {
    return exec(this.command(argv, options), this.#clean(options));
  }

  /** Like {@link exec}; an exit code other than 0 is an error. */
  execOk(argv: readonly string[], options: ExecOptions = {}): Promise<ExecResult> {
    return execOk(this.command(argv, options), this.#clean(options));
  }

  /** Starts a long-running program; resolves when it is ready as `options.ready` says. Its output goes to a file. */
  start(name: string, argv: readonly string[], options: StartOptions = {}): Promise<HostProcess> {
    const logPath = `${this.logDir}/${name}.${++this.#starts}.log`;
    return HostProcess.start(this, { ...options, name, argv, logPath, env: hostEnv(options.env) });
  }

  /** Where a file of this machine is seen from the real one: `host.path("/run/edgemesh/agent.sock")`. */
  path(path: string): string {
    return `/proc/${this.#holder}/root${path}`;
  }

  /** Replaces /etc/resolv.conf, as DHCP would. */
  async setResolvConf(content: string): Promise<void> {
    await Deno.writeTextFile(this.path("/etc/resolv.conf"), content);
  }

  #clean(options: ExecOptions): ExecOptions {
    const { cwd: _inside, ...rest } = options;
    return { ...rest, env: hostEnv(options.env), clearEnv: true };
  }
}

/**
 * `argv` as it is started on a machine of a lab that another process built: what `Host.command` gives. Undefined where
 * the lab has no machine of that name.
 */
export async function enterCommand(
  lab: LabRecord,
  machine: string,
  argv: readonly string[],
): Promise<string[] | undefined> {
  const holder = Number(await Deno.readTextFile(`${lab.dir}/${machine}.root.holder`).catch(() => "0"));
  return holder > 0 && (await processesIn([netnsName(lab.id, machine)])).includes(holder)
    ? enter(holder, argv)
    : undefined;
}

/** Names of a lab's machines, in order. */
export async function machines(lab: LabRecord): Promise<string[]> {
  const names: string[] = [];
  for await (const { name } of Deno.readDir(lab.dir)) {
    if (name.endsWith(".root.holder")) names.push(name.slice(0, -".root.holder".length));
  }
  return names.sort();
}

function enter(holder: number, argv: readonly string[], cwd = Deno.cwd()): string[] {
  return ["nsenter", "-t", String(holder), "-m", "-n", "-u", "--", "env", "-C", cwd, ...argv];
}

function hostEnv(extra: Readonly<Record<string, string>> = {}): Record<string, string> {
  const env: Record<string, string> = {};
  for (const name of PASSED_ENV) {
    const value = Deno.env.get(name);
    if (value !== undefined) env[name] = value;
  }
  return { ...env, ...extra };
}
