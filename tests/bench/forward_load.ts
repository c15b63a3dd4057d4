/**
 * Load and servers for tests/bench/forward_bench.ts, each in a process of its own inside a namespace. The first
 * argument is a {@link LoadJob} in JSON; the result is one JSON line.
 */
// deno-lint-ignore-file no-console -- a bench prints its results
import { setImmediate } from "node:timers";
import { pause, systemClock } from "../../lib/clock.ts";
import { EpollLoop } from "../../lib/linux/loop.ts";
import { nullLogger } from "../../lib/log.ts";
import { idleHandler, type IpPort, type MeshStream, type UdpSocket, WOULD_BLOCK } from "../../lib/net.ts";

export type LoadJob =
  /** HTTP requests at a fixed rate over open connections, whether or not answers are late. */
  | {
    readonly do: "paced";
    readonly to: IpPort;
    readonly rate: number;
    readonly connections: number;
    readonly ms: number;
  }
  /** Opens connections and keeps them until stdin ends. */
  | { readonly do: "idle"; readonly to: IpPort; readonly connections: number }
  /** One connection after the other, so many at a time: a request, an answer, the end. */
  | { readonly do: "short"; readonly to: IpPort; readonly connections: number; readonly parallel: number }
  | { readonly do: "udp"; readonly to: IpPort; readonly clients: number; readonly rate: number; readonly ms: number }
  | { readonly do: "udp-echo"; readonly at: IpPort };

/** Quantiles in microseconds. */
export interface Paced {
  readonly sent: number;
  readonly answered: number;
  readonly p50: number;
  readonly p99: number;
}

const REQUEST = new TextEncoder().encode("GET / HTTP/1.1\r\nHost: bench\r\n\r\n");
const LAST_REQUEST = new TextEncoder().encode("GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n");
const into = new Uint8Array(65_536);

if (import.meta.main) await main(JSON.parse(Deno.args[0]!) as LoadJob);

async function main(job: LoadJob): Promise<void> {
  const loop = EpollLoop.open({ clock: systemClock, log: nullLogger });
  console.log(JSON.stringify(await run(loop, job)));
  if (job.do === "udp-echo") await new Promise(() => {});
  if (job.do === "idle") { for await (const _ of Deno.stdin.readable) continue; }
  loop.close();
}

async function run(loop: EpollLoop, job: LoadJob): Promise<unknown> {
  switch (job.do) {
    case "paced":
      return await paced(loop, job);
    case "idle":
      return (await Promise.all(Array.from({ length: job.connections }, () => open(loop, job.to)))).length;
    case "short":
      return await short(loop, job);
    case "udp":
      return await udp(loop, job);
    case "udp-echo": {
      const socket: UdpSocket = loop.bindUdp(job.at, (bytes, length, from) => void socket.send(bytes, length, from));
      return true;
    }
  }
}

function open(loop: EpollLoop, to: IpPort, onData: (stream: MeshStream) => void = drain): Promise<MeshStream> {
  return new Promise((resolve, reject) => {
    const stream = loop.dialTcp(to, {
      ...idleHandler,
      onOpen: () => resolve(stream),
      onReadable: () => onData(stream),
      onClose: (reason) => reject(new Error(String(reason))),
    }, { timeoutMs: 20_000 });
  });
}

function drain(stream: MeshStream): boolean {
  let any = false;
  for (let n = stream.read(into); n !== WOULD_BLOCK && n !== 0; n = stream.read(into)) any = true;
  return any;
}

async function paced(loop: EpollLoop, job: LoadJob & { do: "paced" }): Promise<Paced> {
  const due: number[][] = Array.from({ length: job.connections }, () => []);
  const latencies: number[] = [];
  const streams = await Promise.all(due.map((queue) =>
    open(loop, job.to, (stream) => {
      // An answer is one segment; those of a slow moment may come together, and count from when each was due.
      if (drain(stream)) {
        const now = systemClock.now();
        for (const at of queue.splice(0)) latencies.push((now - at) * 1000);
      }
    })
  ));
  const started = systemClock.now();
  const total = Math.floor(job.rate * job.ms / 1000);
  let sent = 0;
  const breath = () => new Promise<void>((resolve) => void setImmediate(resolve));
  while (sent < total) {
    const at = started + sent * 1000 / job.rate;
    const wait = at - systemClock.now();
    if (wait > 2) await pause(wait - 1);
    else if (wait > 0) await breath();
    else {
      const i = sent++ % streams.length;
      due[i]!.push(systemClock.now());
      streams[i]!.write(REQUEST, 0, REQUEST.length);
    }
  }
  await pause(200);
  latencies.sort((a, b) => a - b);
  const at = (q: number) => Math.round(latencies[Math.floor(q * (latencies.length - 1))] ?? NaN);
  return { sent, answered: latencies.length, p50: at(0.5), p99: at(0.99) };
}

async function short(
  loop: EpollLoop,
  job: LoadJob & { do: "short" },
): Promise<{ ok: number; failed: number; ms: number }> {
  let left = job.connections;
  let ok = 0;
  let failed = 0;
  const started = systemClock.now();
  const one = () =>
    new Promise<void>((resolve) => {
      let answered = false;
      const stream = loop.dialTcp(job.to, {
        ...idleHandler,
        onOpen: () => void stream.write(LAST_REQUEST, 0, LAST_REQUEST.length),
        onReadable: () => {
          for (let n = stream.read(into); n !== WOULD_BLOCK; n = stream.read(into)) {
            if (n === 0) return stream.closeWrite();
            answered = true;
          }
        },
        onClose: (reason) => {
          if (reason === undefined && answered) ok++;
          else failed++;
          resolve();
        },
      }, { timeoutMs: 20_000 });
    });
  await Promise.all(Array.from({ length: job.parallel }, async () => {
    while (left-- > 0) await one();
  }));
  return { ok, failed, ms: systemClock.now() - started };
}

/** Each client sends 200 bytes at its share of the rate; what comes back is counted. */
async function udp(loop: EpollLoop, job: LoadJob & { do: "udp" }): Promise<{ sent: number; received: number }> {
  let received = 0;
  const wildcard = job.to.ip.includes(":") ? "::" : "0.0.0.0";
  const sockets = Array.from(
    { length: job.clients },
    () => loop.bindUdp({ ip: wildcard, port: 0 }, () => void received++),
  );
  const bytes = new Uint8Array(200);
  const started = systemClock.now();
  const total = Math.floor(job.rate * job.ms / 1000);
  for (let sent = 0; sent < total;) {
    const due = Math.min(total, Math.floor((systemClock.now() - started) * job.rate / 1000));
    while (sent < due) sockets[sent++ % sockets.length]!.send(bytes, bytes.length, job.to);
    await new Promise<void>((resolve) => void setImmediate(resolve));
  }
  await pause(300);
  for (const socket of sockets) socket.close();
  return { sent: total, received };
}
