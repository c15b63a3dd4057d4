/** One large download by curl through a ClusterIP while the network changes under it. */
import { pause, systemClock } from "../../../lib/clock.ts";
import { startNginx } from "../../../lib/lab/backends.ts";
import type { Mesh } from "../../../lib/lab/mesh.ts";
import type { Pod } from "../../../lib/lab/pod.ts";
import { curl, webService } from "../fixture.ts";
import { fixture, say } from "../support.ts";

export interface Stall {
  readonly atMs: number;
  readonly ms: number;
  readonly bytes: number;
}

export interface Transferred {
  /** Of curl: 0 = it saw nothing of it all. */
  readonly code: number;
  readonly bytes: number;
  readonly sha256: string;
  /** Of what was served. */
  readonly expected: string;
  readonly seconds: number;
  readonly longestMs: number;
  readonly stalls: readonly Stall[];
  /** Changes that were made before it ended. */
  readonly changes: number;
}

export interface Change {
  readonly name: string;
  act(): Promise<void>;
}

const WEB = "10.96.0.10";
/** Longest wait for a megabyte, a change of path included, before the transfer counts as stuck. */
const STUCK_MS = 60_000;
const POLL_MS = 20;

/** A file of random bytes behind a Service, and a pod that fetches it. */
export class Download {
  readonly #mesh: Mesh;
  readonly #from: Pod;
  readonly #to: Pod;
  #expected = "";

  constructor(mesh: Mesh, from: Pod, to: Pod) {
    this.#mesh = mesh;
    this.#from = from;
    this.#to = to;
  }

  /** Before the server is started. */
  async serve(bytes: number): Promise<void> {
    const { host } = this.#to;
    await startNginx(host, { port: 8080, text: "" });
    const file = `${host.logDir}/nginx-8080/answer.txt`;
    const random =
      `head -c ${bytes} /dev/zero | openssl enc -aes-128-ctr -nosalt -pass pass:x 2>/dev/null >"$0" && sha256sum "$0"`;
    const { stdout } = await host.execOk(["sh", "-c", random, file], { timeoutMs: 60_000 });
    this.#expected = stdout.split(" ")[0]!;
    await this.#mesh.writeManifest("web.yaml", webService("web", WEB, [this.#to]));
  }

  /** Starts a session with a small request, so that the download begins on whatever path there is by then. */
  async first(): Promise<void> {
    const { code, stderr } = await curl(this.#from, `http://${WEB}/`, ["-r", "0-0", "-o", "/dev/null", "--retry", "5"]);
    if (code !== 0) throw new Error(`the first request failed: ${stderr}`);
  }

  /** Fetches the file, with a change each time so many bytes have come. */
  async run(every: number, changes: readonly Change[]): Promise<Transferred> {
    const { host } = this.#from;
    const command = `curl -sS --max-time 1000 http://${WEB}/ | ${
      fixture("digest_watch").join(" ")
    }; echo "code \${PIPESTATUS[0]}"`;
    const process = await host.start("download", ["bash", "-c", command], { ready: { log: /^reading/m } });
    const started = systemClock.now();
    let made = 0;
    for (const [i, change] of changes.entries()) {
      if (!await reached(process, (i + 1) * every)) break;
      say(
        `  ${((systemClock.now() - started) / 1000).toFixed(1)} s, after ${(i + 1) * every >> 20} MiB: ${change.name}`,
      );
      await change.act();
      made++;
    }
    await process.ended;
    const log = (await process.log()).trim().split("\n");
    const result = JSON.parse(log.find((line) => line.startsWith("{"))!) as Omit<Transferred, "code" | "expected">;
    const code = Number(/^code (\d+)$/.exec(log.at(-1)!)?.[1] ?? NaN);
    return { ...result, code, expected: this.#expected, changes: made };
  }
}

/** Waits until so many bytes have come; false when the download ended before. */
async function reached(
  process: { readonly running: boolean; log(): Promise<string> },
  bytes: number,
): Promise<boolean> {
  const deadline = systemClock.now() + STUCK_MS;
  while (systemClock.now() < deadline) {
    const at = [...(await process.log()).matchAll(/^at (\d+)$/gm)].at(-1)?.[1] ?? 0;
    if (Number(at) >= bytes) return true;
    if (!process.running) return false;
    await pause(POLL_MS);
  }
  throw new Error(`no ${bytes} bytes within ${STUCK_MS / 1000} s`);
}
