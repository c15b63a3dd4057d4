/**
 * A Kubernetes API as a source: one follower per resource, EndpointSlices with Endpoints as fallback, CRDs that may be
 * missing. The layer is synced when every resource was listed once or is known to be missing or forbidden; what one
 * resource lacks never holds up the others.
 */
import type { Clock } from "../../clock.ts";
import { codeOf, describe } from "../../errors.ts";
import type { Logger } from "../../log.ts";
import { ConvertContext } from "../convert/convert.ts";
import type { FollowerOptions } from "./follower.ts";
import { Follower } from "./follower.ts";
import type { Guard } from "../guard.ts";
import type { KubeApi } from "./kube_api.ts";
import type { Resource } from "./kube_resources.ts";
import {
  ENDPOINT_SLICES,
  ENDPOINTS,
  NAMESPACES,
  NODES,
  PODS,
  resourceName,
  ROUTE_RESOURCES,
  SERVICES,
} from "./kube_resources.ts";
import type { MetaVersion } from "../model.ts";
import type { Changes } from "../objects.ts";
import { Pacer } from "../pace.ts";
import type { Problem } from "../problems.ts";
import { ProblemBook } from "../problems.ts";
import type { Health } from "./reflector.ts";
import type { SinkTarget } from "./resource_sink.ts";
import { ResourceSink } from "./resource_sink.ts";
import type { MetaSource, SourceState, SourceStatus } from "../source.ts";
import type { Batch, MetaLayer } from "../store/store.ts";

export interface KubeSourceOptions {
  readonly api: KubeApi;
  readonly layer: MetaLayer;
  readonly clock: Clock;
  readonly log: Logger;
  /** Which pods to know: all (a server), those of one node, or none. */
  readonly pods: "all" | "none" | { readonly node: string };
  /** Only objects of these namespaces; works with rights in these namespaces only. Undefined: all. */
  readonly namespaces?: readonly string[];
  /** Read Istio and Gateway API objects; default true. */
  readonly routes?: boolean;
  readonly extraLabels?: readonly string[];
  readonly epoch?: string;
  /** Numbers in [0, 1) for jitter; default Math.random. */
  readonly random?: () => number;
  /** Objects of a resource the API does not know stay: not known is not gone. For the MetaServer. */
  readonly keepUnknown?: boolean;
  /** See {@link ResourceSink}. For the MetaServer. */
  readonly byVersion?: boolean;
  /** What the objects must pass; none: the source is trusted. */
  readonly guard?: Guard;
  /** What decides how a resource is followed. The MetaServer needs another than the default. */
  readonly machine?: FollowerOptions["machine"];
}

/** How long a resource must be unknown before its objects are. */
const FORGET_MS = 60_000;

interface Entry {
  readonly resource: Resource;
  readonly namespace: string | undefined;
  readonly sink: ResourceSink;
  readonly following: Follower;
  health: Health | undefined;
  forget?: () => void;
  /** Started on its own; fallbacks are only when needed. */
  active: boolean;
}

export class KubeSource implements MetaSource {
  readonly #options: KubeSourceOptions;
  readonly #context: ConvertContext;
  readonly #book = new ProblemBook();
  readonly #entries: Entry[] = [];
  readonly #kind: string;
  readonly #epoch: string;
  #number = 0;
  readonly #listed = new Set<Entry>();
  /** Whether Services were listed completely. */
  #followed = false;
  readonly #pacer: Pacer;
  /** Changes gathered before anything was synced. */
  #first: Batch | undefined;
  readonly #target: SinkTarget;
  /** Why the last request that got no answer got none, or none that can be read. */
  #broke: unknown;
  /** Answers that cannot be read are told once each: a program that gives such gives them again and again. */
  readonly #unreadable = new Set<string>();
  #state: SourceState = "starting";
  #since: number;

  constructor(options: KubeSourceOptions, kind = "kube") {
    this.#options = options;
    this.#kind = kind;
    this.#context = new ConvertContext(options.extraLabels);
    this.#epoch = options.epoch ?? crypto.randomUUID().slice(0, 8);
    this.#since = options.clock.now();
    this.#pacer = new Pacer(options.clock);
    this.#target = {
      apply: (changes) => this.#apply(changes),
      publish: () => this.#publish(),
      hasSlice: (key) => (this.#first ?? options.layer.snapshot).get("slice", key) !== undefined,
      *keys(kind) {
        for (const [key] of options.layer.snapshot.entries(kind)) yield key;
        for (const refused of options.guard?.refused() ?? []) if (refused.kind === kind) yield refused.key;
      },
    };
    const namespaced: Resource[] = [SERVICES, ENDPOINT_SLICES, ENDPOINTS];
    if (options.pods !== "none") namespaced.push(PODS);
    const resources = [...namespaced, NODES, NAMESPACES, ...(options.routes === false ? [] : ROUTE_RESOURCES)];
    for (const resource of resources) {
      for (const namespace of this.#namespacesFor(resource)) this.#add(resource, namespace);
    }
  }

  start(): Promise<void> {
    for (const entry of this.#entries) {
      entry.active = entry.resource !== ENDPOINTS;
      if (entry.active) entry.following.start();
    }
    return Promise.resolve();
  }

  async stop(): Promise<void> {
    this.#enter("stopped");
    for (const entry of this.#entries) entry.forget?.();
    await Promise.all(this.#entries.map((e) => e.following.stop()));
    this.#options.api.close();
  }

  status(): SourceStatus {
    const failing = this.#entries.find((e) => e.active && e.health?.name === "failing")?.health;
    const error = failing?.name !== "failing"
      ? undefined
      : this.#options.api.problem !== undefined
      ? this.#options.api.problem
      : failing.status === undefined
      ? codeOf(this.#broke) === "PROTOCOL"
        ? describe(this.#broke)
        : `the API cannot be reached${this.#broke === undefined ? "" : `: ${describe(this.#broke)}`}`
      : `the API answers with status ${failing.status}`;
    return {
      kind: this.#kind,
      from: this.#options.api.address,
      state: this.#state,
      since: this.#since,
      ...(error === undefined ? {} : { lastError: error }),
      problems: [...this.#missing(), ...this.#book.all(), ...this.#options.guard?.book.all() ?? []],
    };
  }

  revise(): void {
    const { guard, layer } = this.#options;
    if (!guard || this.#state === "stopped") return;
    this.#publish();
    const changes = guard.revise(layer.snapshot);
    if (changes.length > 0) layer.apply(changes, { version: this.#nextVersion() });
  }

  /** Everything is looked at anew: the API, or what is behind it, was away. */
  nudge(): void {
    for (const entry of this.#entries) if (entry.active) entry.following.nudge();
  }

  /** Health of each resource, for `status`: name → following, failing, forbidden, unknown, waiting. */
  resources(): { readonly name: string; readonly health: string }[] {
    return this.#entries.filter((e) => e.active).map((e) => ({
      name: resourceName(e.resource) + (e.namespace === undefined ? "" : ` in ${e.namespace}`),
      health: e.health?.name ?? "waiting",
    }));
  }

  #namespacesFor(resource: Resource): readonly (string | undefined)[] {
    return resource.clusterScoped || !this.#options.namespaces ? [undefined] : this.#options.namespaces;
  }

  #add(resource: Resource, namespace: string | undefined): void {
    const { api, clock, log, pods } = this.#options;
    const at = namespace === undefined ? {} : { namespace };
    const sink = new ResourceSink({
      resource,
      ...at,
      context: this.#context,
      book: this.#book,
      into: this.#target,
      byVersion: this.#options.byVersion ?? false,
      settled: (health) => this.#settled(entry, health),
      broke: (error) => this.#noAnswer(error),
    });
    const following = new Follower({
      api,
      resource,
      sink,
      clock,
      log,
      random: this.#options.random ?? Math.random,
      ...(this.#options.machine ? { machine: this.#options.machine } : {}),
      pacer: this.#pacer,
      ...at,
      ...(resource === PODS && typeof pods === "object" ? { fieldSelector: `spec.nodeName=${pods.node}` } : {}),
    });
    const entry: Entry = { resource, namespace, sink, following, health: undefined, active: false };
    this.#entries.push(entry);
  }

  #noAnswer(error: unknown): void {
    this.#broke = error;
    if (codeOf(error) !== "PROTOCOL" || this.#unreadable.has(describe(error))) return;
    this.#unreadable.add(describe(error));
    this.#options.log.warn("the API cannot be understood; what is known stays", { error: describe(error) });
  }

  #publish(): void {
    if (this.#state === "stopped" || !this.#first) return;
    const batch = this.#first;
    this.#first = undefined;
    batch.publish({ version: this.#nextVersion() });
  }

  #apply(given: Changes): void {
    if (this.#state === "stopped" || given.length === 0) return;
    const changes = this.#options.guard ? this.#options.guard.filter(given) : given;
    // First lists are gathered per resource: publishing thousands of states on the way would cost far more than them.
    if (this.#state === "starting") {
      this.#first ??= this.#options.layer.batch();
      this.#first.add(changes);
    } else this.#options.layer.apply(changes, { version: this.#nextVersion() });
  }

  #nextVersion(): MetaVersion {
    return { source: `${this.#kind}:${this.#options.api.address}`, epoch: this.#epoch, number: ++this.#number };
  }

  #settled(entry: Entry, health: Health): void {
    if (this.#state === "stopped") return;
    const before = entry.health;
    entry.health = health;
    if (before?.name !== health.name) this.#tell(entry, before, health);
    const back = before?.name === "failing" && health.name !== "failing";
    // The MetaServer's own source knows better when its cloud is back.
    if (back && !this.#options.byVersion) {
      for (const other of this.#entries) if (other !== entry && other.active) other.following.nudge();
    }
    if (entry.resource === ENDPOINT_SLICES) this.#fallBack(entry);
    // What slices of another time are still there would be a second truth beside the Endpoints.
    if (entry.resource === ENDPOINTS && health.name === "following") this.#slicesOf(entry).sink.clear();
    if (health.name === "unknown" && entry.resource !== ENDPOINT_SLICES) this.#forgetLater(entry);
    this.#judge();
  }

  #slicesOf(endpoints: Entry): Entry {
    return this.#entries.find((e) => e.resource === ENDPOINT_SLICES && e.namespace === endpoints.namespace)!;
  }

  /**
   * Objects of a resource the API does not have any more are gone, but an API server that has just started does not
   * have its CRDs for a moment either.
   */
  #forgetLater(entry: Entry): void {
    if (this.#options.keepUnknown) return;
    entry.forget?.();
    entry.forget = this.#options.clock.timer(FORGET_MS, () => {
      if (entry.health?.name === "unknown" && this.#state !== "stopped") entry.sink.clear();
    });
  }

  /** Endpoints are followed while EndpointSlices cannot be: old servers, and the original's RBAC. */
  #fallBack(slices: Entry): void {
    const endpoints = this.#entries.find((e) => e.resource === ENDPOINTS && e.namespace === slices.namespace)!;
    const needed = slices.health?.name === "unknown" || slices.health?.name === "forbidden";
    if (needed && !endpoints.active) {
      endpoints.active = true;
      endpoints.following.start();
    } else if (slices.health?.name === "following" && endpoints.active) {
      endpoints.active = false;
      endpoints.health = undefined;
      void endpoints.following.stop();
      endpoints.sink.clear();
    }
  }

  #judge(): void {
    const active = this.#entries.filter((e) => e.active);
    const answered = active.every((e) =>
      e.health !== undefined && (e.health.name !== "failing" || this.#listed.has(e))
    );
    // Where "not known" may only mean "not now", Services must have been listed before names can be said not to exist.
    const settled = answered && (!this.#options.keepUnknown || this.#followed);
    const failing = active.some((e) => e.health?.name === "failing");
    const { layer } = this.#options;
    if (settled) this.#publish();
    if (settled && !layer.snapshot.synced) layer.apply([], { synced: true });
    if (settled) this.#enter(failing ? "degraded" : "synced");
    else if (this.#state === "synced") this.#enter("degraded");
  }

  #tell(entry: Entry, before: Health | undefined, health: Health): void {
    const name = resourceName(entry.resource);
    if (health.name !== "failing") this.#listed.add(entry);
    if (health.name === "following" && entry.resource === SERVICES) this.#followed = true;
    switch (health.name) {
      case "forbidden":
        return this.#options.log.warn("no right to read a resource; the rest goes on", { resource: name });
      case "unknown":
        return this.#options.log.info("the API does not have a resource; the rest goes on", { resource: name });
      case "failing":
        return this.#options.log.debug("resource cannot be read", { resource: name, status: health.status });
      case "following":
        if (before?.name === "forbidden" || before?.name === "unknown") {
          this.#options.log.info("a resource can be read now", { resource: name });
        }
    }
  }

  *#missing(): IterableIterator<Problem> {
    for (const { active, health, resource, namespace } of this.#entries) {
      if (!active || (health?.name !== "forbidden" && health?.name !== "unknown")) continue;
      const where = namespace === undefined ? "" : ` in namespace ${namespace}`;
      yield {
        object: resourceName(resource) + where,
        field: "",
        value: "",
        ...(health.name === "forbidden"
          ? { reason: "no right to list and watch", code: "SOURCE_FORBIDDEN" as const }
          : { reason: "the API does not have this resource", code: "SOURCE_UNKNOWN" as const }),
      };
    }
  }

  #enter(state: SourceState): void {
    if (this.#state === state || this.#state === "stopped") return;
    if (state === "synced" && this.#state === "starting") {
      const { api, layer, log } = this.#options;
      log.info("metadata synced", { from: api.address, services: layer.snapshot.count("service") });
    }
    this.#state = state;
    this.#since = this.#options.clock.now();
  }
}
