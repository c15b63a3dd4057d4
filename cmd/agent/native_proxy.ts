/**
 * Whether this node's own service proxy works: kube-proxy (k3s and replacements alike) answers a health check on a
 * fixed port, and only while its rules are current. Looked at from time to time, for as long as the agent runs.
 */
import { systemClock } from "../../lib/clock.ts";
import type { Logger } from "../../lib/log.ts";
import { portOwners } from "../daemon/port_owners.ts";

/** kube-proxy's `--healthz-bind-address` by default. */
const HEALTHZ = { ip: "127.0.0.1", port: 10256 };
const LOOK_MS = 15_000;
/** The agent's start waits for the first answer. */
const ANSWER_MS = 500;
/** Looks without a good answer until it counts as gone: a proxy that restarts answers again in seconds. */
const MISSES = 3;

export interface NativeProxy {
  /** As last seen. */
  readonly works: boolean;
  close(): void;
}

/** Looks once before it returns, then again and again; `changed` is called when the answer is another. */
export async function watchNativeProxy(log: Logger, changed: () => void): Promise<NativeProxy> {
  let works = await looksHealthy();
  let misses = 0;
  let closed = false;
  let cancel = systemClock.timer(LOOK_MS, look);
  if (works) log.info("kube-proxy works here: the API server and the cluster's DNS are left to it");
  function look(): void {
    void looksHealthy().then((healthy) => {
      if (closed) return;
      misses = healthy ? 0 : misses + 1;
      const now = healthy || (works && misses < MISSES);
      if (now !== works) {
        works = now;
        log.info(works ? "kube-proxy works here now" : "kube-proxy does not answer any more");
        changed();
      }
      cancel = systemClock.timer(LOOK_MS, look);
    });
  }
  return {
    get works() {
      return works;
    },
    close() {
      closed = true;
      cancel();
    },
  };
}

/** Root's, and content with itself: any user may bind the port while kube-proxy is not there. */
async function looksHealthy(): Promise<boolean> {
  const owners = await portOwners(HEALTHZ);
  if (owners.length === 0 || owners.some((uid) => uid !== 0)) return false;
  try {
    const url = `http://${HEALTHZ.ip}:${HEALTHZ.port}/healthz`;
    const answer = await fetch(url, { redirect: "manual", signal: AbortSignal.timeout(ANSWER_MS) });
    await answer.body?.cancel();
    return answer.status === 200;
  } catch {
    return false;
  }
}
