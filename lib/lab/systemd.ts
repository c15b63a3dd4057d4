/**
 * A lab host that is run by systemd: Debian's own, unpacked, as PID 1 of its own PID, mount, IPC and cgroup namespaces
 * on the host's network. What a package or an installer does with `systemctl` there is what it does on a real machine;
 * the machine the lab runs on is not touched.
 */
import { systemClock } from "../clock.ts";
import { MeshError } from "../errors.ts";
import { exec, execOk, type ExecOptions, type ExecResult, until } from "./exec.ts";
import type { Host } from "./host.ts";
import type { HostProcess } from "./process.ts";

export interface SystemdOptions {
  /** Folder with an unpacked systemd (scripts/fetch_systemd.sh prints it). */
  readonly unpacked: string;
  /** Folders of the real machine to be seen on this one, read-only: `{ "/srv/edgemesh": ROOT }`. */
  readonly show?: Readonly<Record<string, string>>;
}

/** Units of systemd itself that are enough for services with the default dependencies. All others do not exist. */
const UNITS = [
  "basic.target",
  "emergency.target",
  "exit.target",
  "final.target",
  "local-fs.target",
  "local-fs-pre.target",
  "multi-user.target",
  "network.target",
  "network-online.target",
  "paths.target",
  "rescue.target",
  "shutdown.target",
  "slices.target",
  "sockets.target",
  "swap.target",
  "sysinit.target",
  "systemd-journald-dev-log.socket",
  "systemd-journald.service",
  "systemd-journald.socket",
  "timers.target",
  "umount.target",
];

/**
 * Runs as PID 1 of the new namespaces, with the host's view of the files. `/usr` gets systemd on top and takes changes in
 * memory; `/dev`, `/tmp`, `/var/log`, `/var/cache`, `/srv` are new; kernel settings beyond the host's own network cannot be written.
 */
const BECOME_INIT = `set -e
unpacked=$1 group=$2
shift 2
# Asked of the outer /proc: the number by which the real machine knows this process.
read -r pid _ </proc/self/stat
fail() { echo "cannot: $1" >&2; exit 1; }
mount -t cgroup2 none /sys/fs/cgroup || fail "mount a cgroup2 file system"
mkdir "/sys/fs/cgroup/$group" || fail "make a cgroup"
echo 0 >"/sys/fs/cgroup/$group/cgroup.procs" || fail "enter a cgroup"
umount /sys/fs/cgroup
while [ $# -gt 0 ]; do
  mkdir -p "/run/lab/show$1"
  mount --bind "$2" "/run/lab/show$1"
  shown="$shown $1"
  shift 2
done
mkdir -p /run/lab/upper /run/lab/work /run/lab/dev
mount -t overlay overlay -o "lowerdir=$unpacked/usr:/usr,upperdir=/run/lab/upper,workdir=/run/lab/work" /usr || fail "put systemd over /usr"
for place in /tmp /var/tmp; do mount -t tmpfs -o mode=1777 none $place; done
for place in /var/log /var/cache /srv; do mount -t tmpfs -o mode=755 none $place; done
mount -t tmpfs -o mode=755 none /etc/systemd
mkdir -p /etc/systemd/system /run/systemd/lab-units /run/lock
for place in $shown; do
  mkdir -p "$place"
  mount --move "/run/lab/show$place" "$place"
  mount -o remount,bind,ro "$place"
done
printf '[Journal]\\nStorage=volatile\\nReadKMsg=no\\nRateLimitIntervalSec=0\\n' >/etc/systemd/journald.conf
for unit in ${UNITS.join(" ")}; do cp "/usr/lib/systemd/system/$unit" /run/systemd/lab-units/; done
# Other targets pull in nothing: what is enabled on the machine stays out.
mkdir /run/systemd/lab-units/sysinit.target.wants
ln -s ../systemd-journald.service /run/systemd/lab-units/sysinit.target.wants/
cd /run/lab/dev
mount -t tmpfs -o mode=755 none .
cd /run/lab/dev
for node in null zero full random urandom tty net/tun; do
  [ -e /dev/$node ] || continue
  mkdir -p "$(dirname $node)"
  : >$node
  mount --bind /dev/$node $node
done
mkdir pts shm mqueue
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 none pts
mount -t tmpfs -o mode=1777 none shm
ln -s pts/ptmx ptmx
ln -s /proc/self/fd fd
cd /
mount --move /run/lab/dev /dev
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys
mount --bind /proc/sys/net /proc/sys/net
mount -o remount,bind,ro /proc/sys
echo "pid $pid"
exec unshare --cgroup sh -ec 'mount -t cgroup2 none /sys/fs/cgroup
exec env -i container=edgemesh-lab PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \\
  SYSTEMD_UNIT_PATH=/etc/systemd/system:/run/systemd/system:/run/systemd/lab-units \\
  /usr/lib/systemd/systemd --system --unit=multi-user.target --log-target=journal --show-status=no'
`;

/** Removes a cgroup with all below it, which has to be empty of processes. */
const REMOVE_GROUP = `mount -t cgroup2 none /sys/fs/cgroup
find "/sys/fs/cgroup/$0" -depth -type d -exec rmdir {} +`;

const BOOT_TIMEOUT_MS = 30_000;

/** A running systemd. */
export class Systemd implements AsyncDisposable {
  readonly host: Host;
  /** How long it took until the host was up, in milliseconds. */
  readonly bootMs: number;
  readonly #process: HostProcess;
  readonly #pid: number;
  readonly #group: string;

  private constructor(host: Host, process: HostProcess, init: { pid: number; group: string; bootMs: number }) {
    this.host = host;
    this.#process = process;
    this.#pid = init.pid;
    this.#group = init.group;
    this.bootMs = init.bootMs;
  }

  /** Boots a lab host. Throws MeshError KERNEL, with what the kernel refused, where this machine cannot do it. */
  static async boot(host: Host, options: SystemdOptions): Promise<Systemd> {
    const group = `edgemesh-lab-${host.ns.netns}`;
    const show = Object.entries(options.show ?? {}).flat();
    const started = systemClock.now();
    const namespaces = ["unshare", "--mount", "--pid", "--ipc", "--fork", "--kill-child"];
    const process = await host.start("systemd", [
      ...namespaces,
      ...["sh", "-c", BECOME_INIT, "sh", options.unpacked, group, ...show],
    ], { ready: { log: /^pid \d+$/m } }).catch((cause) => {
      throw new MeshError("KERNEL", `systemd cannot run as PID 1 of a namespace on this machine`, { cause });
    });
    const pid = Number(/^pid (\d+)$/m.exec(await process.log())![1]);
    const systemd = new Systemd(host, process, { pid, group, bootMs: 0 });
    await until(`systemd on ${host.name} to be up`, async () => {
      if (!process.running) throw new MeshError("KERNEL", `systemd on ${host.name} ended: ${await process.log()}`);
      const { stdout } = await systemd.exec(["systemctl", "is-system-running"]);
      return /^(running|degraded)$/.test(stdout.trim()) ? true : undefined;
    }, BOOT_TIMEOUT_MS);
    return new Systemd(host, process, { pid, group, bootMs: systemClock.now() - started });
  }

  /** Runs a program on the host to its end, as from a shell of root. */
  exec(argv: readonly string[], options: ExecOptions = {}): Promise<ExecResult> {
    return exec(this.command(argv, options.env), { ...options, env: {}, clearEnv: false });
  }

  /** Like {@link exec}; an exit code other than 0 is an error. */
  execOk(argv: readonly string[], options: ExecOptions = {}): Promise<ExecResult> {
    return execOk(this.command(argv, options.env), { ...options, env: {}, clearEnv: false });
  }

  /** `argv` as it must be started from the real machine. */
  command(argv: readonly string[], env: Readonly<Record<string, string>> = {}): string[] {
    const path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    const values = Object.entries({ HOME: "/root", ...env }).map(([name, value]) => `${name}=${value}`);
    const enter = ["nsenter", "-t", String(this.#pid), "-m", "-n", "-u", "-i", "-p", "-C", "--"];
    return [...enter, "env", "-i", "-C", "/", path, ...values, ...argv];
  }

  /** Where a file of this host is seen from the real machine. */
  path(path: string): string {
    return `/proc/${this.#pid}/root${path}`;
  }

  /** One property of a unit: `property("edgemesh-agent", "ActiveState")`. */
  async property(unit: string, name: string): Promise<string> {
    return (await this.execOk(["systemctl", "show", `--property=${name}`, "--value", unit])).stdout.trim();
  }

  /** Cuts the power. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#process.kill();
    await until("its processes to be gone", () => Deno.stat(`/proc/${this.#pid}`).then(() => undefined, () => true));
    await execOk(["unshare", "--mount", "sh", "-ec", REMOVE_GROUP, this.#group]);
  }
}
