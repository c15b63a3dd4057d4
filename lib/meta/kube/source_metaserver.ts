/**
 * KubeEdge's MetaServer as a source. Used only when it is named in the configuration: whoever binds 127.0.0.1:10550
 * must not own the node. Behaviour as recorded from KubeEdge 1.23; the rules are in meta_reflector.ts and
 * resource_sink.ts, here is what tells when the cloud is away and when it is back.
 */
import type { KubeApi } from "./kube_api.ts";
import { chunksOf } from "./kube_api.ts";
import { ListSplitter } from "./list_splitter.ts";
import { META_ANSWER_MS, MetaReflector } from "./meta_reflector.ts";
import type { MetaSource, SourceStatus } from "../source.ts";
import type { KubeSourceOptions } from "./source_kube.ts";
import { KubeSource } from "./source_kube.ts";

/** How often the cloud is looked for: a list of one object. */
const PROBE_MS = 20_000;
/** While it is away: the edge itself answers that, in milliseconds. */
const PROBE_AWAY_MS = 5_000;
const PROBE_PATH = "/api/v1/services?limit=1";

export class MetaServerSource implements MetaSource {
  readonly #options: KubeSourceOptions;
  readonly #inner: KubeSource;
  #timer: (() => void) | undefined;
  #probing: Promise<void> | undefined;
  readonly #stop = new AbortController();
  #away = false;

  constructor(options: Omit<KubeSourceOptions, "machine" | "keepUnknown" | "byVersion">) {
    this.#options = options;
    const machine = (random: () => number) => new MetaReflector(random);
    this.#inner = new KubeSource({ ...options, machine, keepUnknown: true, byVersion: true }, "metaserver");
  }

  async start(): Promise<void> {
    await this.#inner.start();
    this.#probeLater();
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    this.#timer?.();
    this.#timer = undefined;
    await this.#probing;
    await this.#inner.stop();
  }

  status(): SourceStatus {
    const status = this.#inner.status();
    return this.#away && this.#options.api.problem === undefined
      ? { ...status, lastError: "the cloud does not answer; the edge's own store does" }
      : status;
  }

  revise(): void {
    this.#inner.revise();
  }

  resources(): { readonly name: string; readonly health: string }[] {
    return this.#inner.resources();
  }

  #probeLater(): void {
    if (this.#stop.signal.aborted) return;
    this.#timer = this.#options.clock.timer(this.#away ? PROBE_AWAY_MS : PROBE_MS, () => {
      this.#timer = undefined;
      this.#probing = this.#probe().then((there) => {
        this.#probing = undefined;
        if (there && this.#away) {
          this.#options.log.info("the cloud answers again", { from: this.#options.api.address });
          this.#inner.nudge();
        } else if (!there && !this.#away && !this.#stop.signal.aborted) {
          this.#options.log.info("the cloud does not answer; what is known stays", { from: this.#options.api.address });
        }
        this.#away = !there;
        this.#probeLater();
      });
    });
  }

  /** Whether the cloud answers a list. */
  async #probe(): Promise<boolean> {
    const abort = new AbortController();
    const cancel = () => abort.abort();
    this.#stop.signal.addEventListener("abort", cancel, { once: true });
    const expire = this.#options.clock.timer(META_ANSWER_MS, cancel);
    try {
      return await isFromCloud(this.#options.api, abort.signal);
    } catch {
      return false;
    } finally {
      expire();
      this.#stop.signal.removeEventListener("abort", cancel);
    }
  }
}

async function isFromCloud(api: KubeApi, signal: AbortSignal): Promise<boolean> {
  const answer = await api.get(PROBE_PATH, signal);
  const splitter = new ListSplitter({ item: () => {}, oversized: () => {} });
  for await (const chunk of chunksOf(answer.body, signal)) splitter.push(chunk);
  const metadata = splitter.finish()?.metadata as { resourceVersion?: unknown; selfLink?: unknown } | undefined;
  return answer.status === 200 && typeof metadata?.resourceVersion === "string" && !metadata.selfLink;
}
