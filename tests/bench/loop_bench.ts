/**
 * What the loop costs: a TCP proxy (accept, dial, splice) in a process of its own between wrk or iperf3 and a backend.
 * Prints one line per measurement, with the proxy's own CPU time.
 *
 *   scripts/deno run -A tests/bench/loop_bench.ts [seconds] [proxy-port-to-compare …]
 *
 * Needs wrk and iperf3. Further ports are measured the same way: start a peer proxy to the printed backend ports first.
 */
import { sleep, systemClock } from "../../lib/clock.ts";
import { EpollLoop } from "../../lib/linux/loop.ts";
import { nullLogger } from "../../lib/log.ts";
import { idleHandler, type IpPort, type MeshStream, WOULD_BLOCK } from "../../lib/net.ts";

const HTTP_BACKEND = 18_800;
const BULK_BACKEND = 18_801;
const HTTP_PROXY = 18_802;
const BULK_PROXY = 18_803;
const UDP_ECHO = 18_804;

const HZ = 100;
const PAUSES_MS = [1, 10, 50] as const;
const WAKE_UPS = 100;
const IDLE_SECONDS = 5;

const WRK_RUNS: readonly (readonly [string, readonly string[]])[] = [
  ["c1", ["-t1", "-c1"]],
  ["c64", ["-t1", "-c64"]],
  ["close c64", ["-t1", "-c64", "-H", "Connection: close"]],
];

const [role, ...rest] = Deno.args;
if (role === "backend") backend();
else if (role === "proxy") proxy();
else await measure(Number(role ?? 4), rest.map(Number));

/** Answers each read with a fixed HTTP response: requests of wrk fit one segment. */
function backend(): void {
  const loop = EpollLoop.open({ clock: systemClock, log: nullLogger });
  const body = "x".repeat(64);
  const keep = new TextEncoder().encode(`HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\n${body}`);
  const close = new TextEncoder().encode(`HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 64\r\n\r\n${body}`);
  const buffer = new Uint8Array(65_536);
  loop.listenTcp(local(HTTP_BACKEND), ({ stream }) => {
    stream.handler = {
      ...idleHandler,
      onReadable() {
        for (;;) {
          const n = stream.read(buffer);
          if (n === WOULD_BLOCK) return;
          if (n === 0) return stream.closeWrite();
          // The only header wrk is ever told to add makes the request this long.
          const closing = n > 50;
          const response = closing ? close : keep;
          stream.write(response, 0, response.length);
          if (closing) stream.closeWrite();
        }
      },
    };
  });
  const echo = loop.bindUdp(local(UDP_ECHO), (bytes, length, from) => {
    echo.send(bytes, length, from);
  });
}

function proxy(): void {
  const loop = EpollLoop.open({ clock: systemClock, log: nullLogger });
  const forward = (from: number, to: number) =>
    loop.listenTcp(local(from), ({ stream }) => {
      const other: MeshStream = loop.dialTcp(local(to), {
        ...idleHandler,
        onOpen: () => void loop.splice(stream, other, { onEnd: () => {} }),
        onClose: (reason) => reason && stream.reset(reason),
      }, { timeoutMs: 1000 });
    });
  forward(HTTP_PROXY, HTTP_BACKEND);
  forward(BULK_PROXY, BULK_BACKEND);
}

async function measure(seconds: number, peers: readonly number[]): Promise<void> {
  const self = (name: string) =>
    new Deno.Command(Deno.execPath(), { args: ["run", "-A", import.meta.filename!, name], stdout: "null" }).spawn();
  const children = [
    self("backend"),
    self("proxy"),
    new Deno.Command("iperf3", { args: ["-s", "-B", "127.0.0.1", "-p", String(BULK_BACKEND)], stdout: "null" }).spawn(),
  ];
  const proxyPid = children[1]!.pid;
  try {
    await sleep(systemClock, 1500);
    for (const port of [HTTP_BACKEND, HTTP_PROXY, ...peers]) {
      const pid = port === HTTP_PROXY ? proxyPid : undefined;
      for (const [title, args] of WRK_RUNS) {
        const before = cpu(pid);
        const out = await output("wrk", [...args, "-d", `${seconds}s`, "--latency", `http://127.0.0.1:${port}/`]);
        const requests = Number(/(\d+) requests in/.exec(out)?.[1] ?? 0);
        const p = (q: string) => new RegExp(`${q}%\\s+(\\S+)`).exec(out)?.[1];
        const errors = /Socket errors: (.*)/.exec(out)?.[1] ?? "none";
        const used = pid ? ` ${((cpu(pid) - before) / requests * 10_000).toFixed(3)} CPU s/10k` : "";
        print(
          `${port} ${title}: ${Math.round(requests / seconds)}/s p50 ${p("50")} p99 ${p("99")}${used} errors ${errors}`,
        );
      }
    }
    for (const port of [BULK_BACKEND, BULK_PROXY]) {
      for (const streams of [1, 4]) {
        const pid = port === BULK_PROXY ? proxyPid : undefined;
        const before = cpu(pid);
        const out = await output("iperf3", [
          "-c",
          "127.0.0.1",
          "-p",
          `${port}`,
          "-t",
          `${seconds}`,
          "-P",
          `${streams}`,
          "-J",
        ]);
        const { bytes, bits_per_second } = JSON.parse(out).end.sum_received;
        const used = pid ? ` ${((cpu(pid) - before) / (bytes / 1e9)).toFixed(3)} CPU s/GB` : "";
        print(`${port} iperf3 ${streams} streams: ${(bits_per_second / 1e9).toFixed(1)} Gbit/s${used}`);
      }
    }
    print(`proxy private MB ${privateMb(proxyPid)}`);
    await datagrams(seconds);
    await wakeUps(children[0]!.pid);
    const before = processorMs(proxyPid);
    await sleep(systemClock, IDLE_SECONDS * 1000);
    print(`idle for ${IDLE_SECONDS} s: ${(processorMs(proxyPid) - before).toFixed(2)} ms of CPU`);
  } finally {
    for (const child of children) child.kill();
    for (const child of children) await child.status;
  }
}

/** A window of 200-byte datagrams to the echo and back. */
async function datagrams(seconds: number): Promise<void> {
  await using loop = EpollLoop.open({ clock: systemClock, log: nullLogger });
  for (const window of [1, 64]) {
    let received = 0;
    const bytes = new Uint8Array(200);
    const to = local(UDP_ECHO);
    const socket = loop.bindUdp(local(0), () => {
      received++;
      socket.send(bytes, 200, to);
    });
    for (let i = 0; i < window; i++) socket.send(bytes, 200, to);
    const before = cpu(Deno.pid);
    await sleep(systemClock, seconds * 1000);
    const rate = (cpu(Deno.pid) - before) / received * 100_000;
    print(
      `udp echo window ${window}: ${Math.round(received / seconds)}/s, ${rate.toFixed(2)} CPU s/100k in the client`,
    );
    socket.close();
  }
}

/** One datagram and its answer after each pause: both ends are woken from their idle wait. */
async function wakeUps(echoPid: number): Promise<void> {
  await using loop = EpollLoop.open({ clock: systemClock, log: nullLogger });
  let answered = () => {};
  const socket = loop.bindUdp(local(0), () => answered());
  for (const pause of PAUSES_MS) {
    const times: number[] = [];
    const before = processorMs(echoPid);
    for (let i = 0; i < WAKE_UPS; i++) {
      await sleep(systemClock, pause);
      const answer = new Promise<void>((resolve) => answered = resolve);
      const start = performance.now();
      socket.send(new Uint8Array(200), 200, local(UDP_ECHO));
      await answer;
      times.push((performance.now() - start) * 1000);
    }
    const used = (processorMs(echoPid) - before) / WAKE_UPS * 1000;
    times.sort((a, b) => a - b);
    const at = (q: number) => Math.round(times[Math.floor(q * times.length)]!);
    const mean = Math.round(times.reduce((sum, t) => sum + t, 0) / times.length);
    print(
      `round trip after ${pause} ms of rest: mean ${mean} p50 ${at(0.5)} p99 ${at(0.99)} us, ` +
        `${Math.round(used)} us of CPU per answer`,
    );
  }
  socket.close();
}

/** Processor time of all threads, to the microsecond. */
function processorMs(pid: number): number {
  let ns = 0;
  for (const { name } of Deno.readDirSync(`/proc/${pid}/task`)) {
    ns += Number(Deno.readTextFileSync(`/proc/${pid}/task/${name}/schedstat`).split(" ")[0]);
  }
  return ns / 1e6;
}

function local(port: number): IpPort {
  return { ip: "127.0.0.1", port };
}

async function output(command: string, args: readonly string[]): Promise<string> {
  const { stdout } = await new Deno.Command(command, { args: [...args], stderr: "null" }).output();
  return new TextDecoder().decode(stdout);
}

/** User and system CPU seconds of a process. */
function cpu(pid: number | undefined): number {
  if (pid === undefined) return 0;
  const fields = Deno.readTextFileSync(`/proc/${pid}/stat`).split(") ")[1]!.split(" ");
  return (Number(fields[11]) + Number(fields[12])) / HZ;
}

function privateMb(pid: number): string {
  const text = Deno.readTextFileSync(`/proc/${pid}/smaps_rollup`);
  const kb = Number(/Private_Dirty:\s+(\d+)/.exec(text)?.[1] ?? 0);
  return (kb / 1024).toFixed(1);
}

function print(line: string): void {
  Deno.stdout.writeSync(new TextEncoder().encode(line + "\n"));
}
