import "./preload.ts";
import { strict as assert } from "node:assert";
import { errno, libc } from "./ffi.ts";
import { Memory, memoryHeld } from "./memory.ts";
import { hasCapability, missingCapabilities, raiseFileLimit, readSysctl } from "./privileges.ts";
import { memoryUse, notifyReady, notifyStopping } from "./process.ts";
import { AF_UNIX, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK, STRUCT } from "./structs.ts";

Deno.test("memory is what the kernel says, in this process and in another", async () => {
  const { privateMb, rssMb } = memoryUse();
  assert(privateMb > 5 && rssMb > privateMb, `${privateMb} private, ${rssMb} resident`);
  const child = new Deno.Command("sh", { args: ["-c", "echo; read -r wait"], stdin: "piped", stdout: "piped" }).spawn();
  const output = child.stdout.getReader();
  await output.read();
  const status = await Deno.readTextFile(`/proc/${child.pid}/status`);
  const resident = Number(/VmRSS:\s+(\d+) kB/.exec(status)![1]) * 1024 / 1e6;
  const use = memoryUse(child.pid);
  // VmRSS is summed from per-CPU counters and may lag by some pages.
  assert(Math.abs(use.rssMb - resident) < 0.5, `${use.rssMb} and ${resident}`);
  assert(use.privateMb > 0 && use.privateMb < use.rssMb);
  await child.stdin.close();
  await child.status;
  await output.cancel();
  assert.deepEqual(memoryUse(2 ** 30), { privateMb: 0, rssMb: 0 });
});

/** A datagram socket of a pretended service manager. */
function receiver(path: string) {
  const c = libc();
  const address = Memory.allocate(STRUCT.sockaddr_un.size);
  const name = new TextEncoder().encode(path);
  address.view.setUint16(0, AF_UNIX, true);
  address.bytes.set(name, STRUCT.sockaddr_un.at.path);
  if (path[0] === "@") address.bytes[STRUCT.sockaddr_un.at.path] = 0;
  const fd = c.socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  const length = STRUCT.sockaddr_un.at.path + name.length + (path[0] === "@" ? 0 : 1);
  assert.equal(c.bind(fd, address.pointer, length), 0, `errno ${errno()}`);
  address.free();
  return {
    next(): string | undefined {
      const into = new Uint8Array(new ArrayBuffer(1024));
      const n = c.recvInto(fd, into, into.length, 0);
      return n < 0 ? undefined : new TextDecoder().decode(into.subarray(0, n));
    },
    close: () => c.close(fd),
  };
}

Deno.test("the service manager hears of readiness and stop, on a path and in the abstract name space", async () => {
  const dir = await Deno.makeTempDir();
  const held = memoryHeld();
  for (const path of [`${dir}/notify`, `@edgemesh-test-${Deno.pid}`]) {
    const manager = receiver(path);
    notifyReady("serving", path);
    notifyStopping(path);
    assert.equal(manager.next(), "READY=1\nSTATUS=serving");
    assert.equal(manager.next(), "STOPPING=1");
    assert.equal(manager.next(), undefined);
    manager.close();
    // Nobody listens any more: the service goes on.
    notifyStopping(path);
  }
  notifyStopping("relative");
  notifyStopping("");
  assert.equal(memoryHeld(), held);
  await Deno.remove(dir, { recursive: true });
});

Deno.test("capabilities are those of the process", () => {
  const script = `import { hasCapability } from "${import.meta.resolve("./privileges.ts")}";
    Deno.stdout.writeSync(new TextEncoder().encode(String(hasCapability("CAP_NET_ADMIN"))));`;
  const asked = (...wrapper: string[]) => {
    const args = [...wrapper, Deno.execPath(), "eval", script];
    return new TextDecoder().decode(new Deno.Command(args[0]!, { args: args.slice(1) }).outputSync().stdout);
  };
  assert.equal(asked("env"), String(hasCapability("CAP_NET_ADMIN")));
  if (hasCapability("CAP_NET_ADMIN")) {
    assert.equal(asked("setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"), "false");
    assert(!missingCapabilities(["CAP_NET_ADMIN"]).includes("CAP_NET_ADMIN"));
  }
});

Deno.test("kernel settings are read; one that does not exist is undefined", () => {
  assert.match(readSysctl("net/ipv4/ip_forward")!, /^[01]$/);
  assert.equal(readSysctl("net/ipv4/no_such_setting"), undefined);
});

Deno.test("the limit of open files is raised to the hard limit", () => {
  const script = `import { raiseFileLimit } from "${import.meta.resolve("./privileges.ts")}";
    const said = raiseFileLimit();
    const inForce = /Max open files\\s+(\\d+)\\s+(\\d+)/.exec(Deno.readTextFileSync("/proc/self/limits"));
    Deno.stdout.writeSync(new TextEncoder().encode(JSON.stringify([said.soft, said.hard, Number(inForce[1]), Number(inForce[2])])));`;
  const command = `ulimit -Sn 200; ulimit -Hn 300; exec "$0" eval "$1"`;
  const { stdout, stderr } = new Deno.Command("bash", { args: ["-c", command, Deno.execPath(), script] }).outputSync();
  assert.deepEqual(
    JSON.parse(new TextDecoder().decode(stdout) || "0"),
    [300, 300, 300, 300],
    new TextDecoder().decode(stderr),
  );
  const { soft, hard } = raiseFileLimit();
  assert.equal(soft, hard);
});
