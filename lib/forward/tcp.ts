/**
 * Takes the TCP connections that the kernel hands to the agent: finds the Service by the address the client meant,
 * picks an endpoint, dials it here or through the tunnel, and joins the two streams. An endpoint that does not answer
 * is followed by the next one while no byte can have reached any.
 */
import { hostPort } from "../addr.ts";
import type { CancelTimer, Clock, MonoMs } from "../clock.ts";
import type { ReasonCode } from "../errors.ts";
import type { Logger } from "../log.ts";
import type { Accepted, Dialer, IpPort, MeshStream, ServiceTarget, StreamHandler } from "../net.ts";
import { type Connections, type SeenConnection, type Tracked } from "./connections.ts";
import { count, countConnect, type Counters } from "./counters.ts";
import { EarlyBytes, unseen } from "./early.ts";
import { isOurs, type NodeFacts } from "./facts.ts";
import { FirstRequest } from "./first_request.ts";
import { type Found, type FrontendIndex, verdictFor } from "./frontends.ts";
import type { Picker } from "./picker.ts";
import { join, type Joined, type SocketLoop } from "./join.ts";
import type { PipeKit, PipeOwner } from "./pipe.ts";
import type { Slot, Verdict } from "./plan_model.ts";

/** Endpoints tried for one connection; a client that waits longer than a few attempts has given up itself. */
export const MAX_ATTEMPTS = 4;
/** Metadata reaches all agents within this, in nearly all cases: the server sends changes every 100 ms. */
const STALE_MS = 250;
/** All attempts together end after so many deadlines of one attempt. */
const BUDGET_ATTEMPTS = 2;

export interface TcpDeps {
  readonly clock: Clock;
  readonly log: Logger;
  readonly index: FrontendIndex;
  readonly picker: Picker;
  readonly counters: Counters;
  readonly connections: Connections;
  readonly kit: PipeKit;
  readonly loop: SocketLoop;
  readonly local: Dialer;
  readonly tunnel: Dialer;
  /** Facts change; the newest are asked for. */
  readonly facts: () => NodeFacts;
  readonly connectTimeoutMs: number;
  /** One line per finished connection, at level info. */
  readonly accessLog: boolean;
}

/** How often strangers are spoken of: an operator should see a pod network that was not declared, not each packet. */
const STRANGER_LOG_MS = 60_000;

export class TcpForwarder {
  readonly #deps: TcpDeps;
  #strangerLogged = -STRANGER_LOG_MS;

  constructor(deps: TcpDeps) {
    this.#deps = deps;
  }

  /** One connection from a listener that rules point at. */
  accept(accepted: Accepted): void {
    const found = this.#admit(accepted);
    if (typeof found === "string") {
      count(this.#deps.counters.refused, found);
      this.#deps.log.debug("Connection refused", {
        from: hostPort(accepted.remote),
        to: hostPort(accepted.original),
        reason: found,
      });
      accepted.stream.reset(found);
      return;
    }
    new Connection(this.#deps, accepted, found).start();
  }

  #admit({ original, local, remote }: Accepted): Found | ReasonCode {
    const { index, connections } = this.#deps;
    const facts = this.#deps.facts();
    // Somebody connected to the listener itself: it is no service of its own.
    if (original.ip === local.ip && original.port === local.port) return "NOT_ALLOWED";
    const found = index.find(original, facts.addresses);
    if (!found) return "NO_SERVICE";
    // Cluster addresses serve this host and its pods, whoever else can route packets here.
    if (found.frontend.kind === "cluster-ip" && !isOurs(remote.ip, facts)) {
      this.#speakOf(remote.ip, found);
      return "NOT_ALLOWED";
    }
    if (connections.full) return "LIMIT";
    return found;
  }

  #speakOf(stranger: string, { port }: Found): void {
    const now = this.#deps.clock.now();
    if (now - this.#strangerLogged < STRANGER_LOG_MS) return;
    this.#strangerLogged = now;
    this.#deps.log.warn("Refused a client that is neither this host nor in its pod networks", {
      client: stranger,
      service: port.id,
      try: "add its network to mesh.podCIDRs if it is a pod's",
    });
  }
}

/**
 * The endpoints that connections in the agent's hands may get. When the plan changed between the rule and the accept
 * there may be kernel-way ones only: then the agent brings this one connection there.
 */
export function agentSlots(verdict: Verdict): readonly Slot[] {
  if (verdict.verdict !== "forward") return [];
  const bound = verdict.slots.filter((slot) => slot.way !== "kernel");
  return bound.length > 0 ? bound : verdict.slots;
}

/** Whether a failed dial says something about the endpoint, and not about us. */
function saysDown(reason: ReasonCode): boolean {
  return reason !== "LIMIT" && reason !== "SHUTDOWN" && reason !== "KERNEL" && reason !== "INTERNAL";
}

/**
 * From accept to the end. It is its own handler while an endpoint is dialled (one dial at a time, and none speaks after
 * it has failed), so that an open connection keeps few objects alive: there may be thousands that do nothing.
 */
class Connection implements Tracked, StreamHandler, PipeOwner {
  readonly #deps: TcpDeps;
  #found: Found;
  readonly #started: MonoMs;
  readonly #client: IpPort;
  /** Until the streams are joined, and for the access line. */
  #accepted: Accepted | undefined;
  #failed: Set<string> | undefined;
  #attempts = 0;
  #slot: Slot | undefined;
  #dialled: MeshStream | undefined;
  #joined: Joined | undefined;
  #deadline: CancelTimer | undefined;
  /** For Services balanced by request: what reads it, and what it says. */
  #first: FirstRequest | undefined;
  #key: string | undefined;
  /** What the client said before its endpoint was there. */
  #early: EarlyBytes | undefined;
  #over = false;

  constructor(deps: TcpDeps, accepted: Accepted, found: Found) {
    this.#deps = deps;
    this.#accepted = accepted;
    this.#client = accepted.remote;
    this.#found = found;
    this.#started = deps.clock.now();
    accepted.stream.handler = new WaitingClient(this);
    deps.connections.add(this);
  }

  get bytes(): number {
    return this.#joined ? this.#joined.aToB + this.#joined.bToA : 0;
  }

  get halfClosed(): boolean {
    return this.#joined?.halfClosed ?? false;
  }

  seen(): SeenConnection | undefined {
    const slot = this.#slot;
    const { port } = this.#found;
    if (!slot || !this.#joined) return undefined;
    return {
      client: hostPort(this.#client),
      service: `${port.namespace}/${port.service}:${port.port}`,
      protocol: "TCP",
      endpoint: hostPort(slot.endpoint),
      ...(slot.node === undefined ? {} : { node: slot.node }),
      way: slot.way,
      ageSeconds: Math.floor((this.#deps.clock.now() - this.#started) / 1000),
      bytesOut: this.#joined.aToB,
      bytesIn: this.#joined.bToA,
    };
  }

  /** Dials at once, unless the client's request has to say where. */
  start(): void {
    const on = this.#found.port.hashOn;
    if (on === undefined) return this.next("NO_ENDPOINT", this.#started);
    const client = this.#accepted!.stream;
    this.#first = new FirstRequest({
      client,
      on,
      clock: this.#deps.clock,
      onKnown: (key, head) => {
        this.#first = undefined;
        this.#key = key;
        if (head.length > 0) this.#early = new EarlyBytes(head);
        client.handler = new WaitingClient(this);
        this.next();
      },
      onGone: (reason) => this.clientGone(reason),
    });
    this.#first.start();
  }

  reset(code: ReasonCode): void {
    if (this.#over) return;
    if (this.#joined) this.#joined.reset(code);
    else {
      this.#first?.cancel();
      this.#dialled?.reset(code);
      this.#accepted!.stream.reset(code);
    }
    this.onEnd(code);
  }

  /** Dials the next endpoint, or gives up. */
  next(last: ReasonCode = "NO_ENDPOINT", now: MonoMs = this.#deps.clock.now()): void {
    const { picker, connectTimeoutMs, counters } = this.#deps;
    const { port } = this.#found;
    const client = this.#accepted!.remote.ip;
    const slots = agentSlots(verdictFor(this.#found, isOurs(client, this.#deps.facts())));
    const untried = slots.length - (this.#failed?.size ?? 0);
    const left = connectTimeoutMs * BUDGET_ATTEMPTS - (now - this.#started);
    if (untried <= 0 && last === "ENDPOINT_REMOVED" && this.#attempts < MAX_ATTEMPTS && left > STALE_MS) {
      return this.#lookAgain();
    }
    if (untried <= 0 || this.#attempts >= MAX_ATTEMPTS || left <= 0) {
      count(counters.of(port.id).failed, last);
      return this.reset(last);
    }
    const slot = picker.pick(port, slots, { ip: client, now, key: this.#key }, this.#failed);
    this.#slot = slot;
    this.#attempts++;
    this.#dial(slot, Math.min(connectTimeoutMs, left));
  }

  /** An endpoint's own node knows better than we do where the Service is: soon we shall know too. */
  #lookAgain(): void {
    const { clock, index, facts } = this.#deps;
    this.#deadline = clock.timer(STALE_MS, () => {
      this.#deadline = undefined;
      const found = index.find(this.#accepted!.original, facts().addresses);
      if (!found) return this.reset("NO_SERVICE");
      this.#found = found;
      this.#failed = undefined;
      this.next("ENDPOINT_REMOVED");
    });
  }

  /** The endpoint answered. */
  onOpen(): void {
    this.#deadline?.();
    this.#deadline = undefined;
    const slot = this.#slot!;
    const way = this.#way(slot);
    way.opened++;
    way.active++;
    countConnect(way, this.#deps.clock.now() - this.#started);
    this.#deps.picker.opened(this.#found.port, slot);
    const client = this.#accepted!.stream;
    if (!this.#deps.accessLog) this.#accepted = undefined;
    const early = this.#early;
    this.#early = undefined;
    this.#joined = join(this.#deps, [client, this.#dialled!], this, early);
    this.#dialled = undefined;
  }

  onReadable(): void {}

  onWritable(): void {}

  /** The dial failed. */
  onClose(reason: ReasonCode | undefined): void {
    this.#attemptFailed(reason ?? "PEER_GONE");
  }

  /** The client speaks while its endpoint is dialled. Towards this host's own endpoints waiting costs nothing. */
  clientSpoke(): void {
    if (this.#over || this.#slot?.way !== "tunnel" || !this.#dialled) return;
    (this.#early ??= new EarlyBytes()).pass(this.#accepted!.stream, this.#dialled, this.#deps.kit.scratch);
  }

  /** The client left while it waited. */
  clientGone(reason: ReasonCode): void {
    if (this.#over) return;
    this.#dialled?.reset(reason);
    this.onEnd(reason);
  }

  #dial(slot: Slot, timeoutMs: number): void {
    const { port } = this.#found;
    const target: ServiceTarget = {
      namespace: port.namespace,
      service: port.service,
      protocol: "TCP",
      port: port.port,
      node: slot.node,
      endpoint: slot.endpoint,
    };
    // The loop has a deadline of its own for each dial; the tunnel waits as long as its peer may still come.
    if (slot.way === "tunnel") {
      this.#deadline = this.#deps.clock.timer(timeoutMs, () => {
        this.#dialled?.reset("DIAL_TIMEOUT");
        this.#attemptFailed("DIAL_TIMEOUT", "unknown");
      });
    }
    const dialer = slot.way === "tunnel" ? this.#deps.tunnel : this.#deps.local;
    this.#dialled = dialer.dial(target, this.#early?.again(), this);
  }

  /** `fate`: whether the endpoint can have seen what the client said. */
  #attemptFailed(reason: ReasonCode, fate: "unknown" | "told" = "told"): void {
    const slot = this.#slot;
    if (this.#over || !slot) return;
    this.#deadline?.();
    this.#deadline = undefined;
    this.#dialled = undefined;
    this.#slot = undefined;
    (this.#failed ??= new Set()).add(slot.key);
    if (saysDown(reason)) this.#deps.picker.failed(this.#found.port, slot, this.#deps.clock.now());
    this.#way(slot).dialFailures++;
    this.#deps.log.debug("Endpoint did not answer", {
      service: this.#found.port.id,
      endpoint: slot.key,
      reason,
      attempt: this.#attempts,
    });
    if (!this.#early?.sent || (fate === "told" && unseen(reason))) return this.next(reason);
    count(this.#deps.counters.of(this.#found.port.id).failed, reason);
    this.reset(reason);
  }

  /** Both streams are over, or no endpoint could be had. */
  onEnd(reason: ReasonCode | undefined): void {
    if (this.#over) return;
    this.#over = true;
    this.#deadline?.();
    this.#deps.connections.delete(this);
    if (this.#joined) {
      const way = this.#way(this.#slot!);
      way.active--;
      this.#deps.picker.closed(this.#found.port, this.#slot!);
      way.bytesOut += this.#joined.aToB;
      way.bytesIn += this.#joined.bToA;
    }
    // Switched on meanwhile: who the client was is not known any more.
    if (this.#deps.accessLog && this.#accepted) this.#accessLine(reason);
  }

  #way(slot: Slot) {
    return this.#deps.counters.of(this.#found.port.id).ways[slot.way === "tunnel" ? "tunnel" : "proxy"];
  }

  /** Fixed fields in a fixed order: programs read this line. */
  #accessLine(reason: ReasonCode | undefined): void {
    const { remote, original } = this.#accepted!;
    this.#deps.log.info("access", {
      from: hostPort(remote),
      to: hostPort(original),
      service: `${this.#found.port.namespace}/${this.#found.port.service}`,
      endpoint: this.#slot ? hostPort(this.#slot.endpoint) : "-",
      node: this.#slot?.node ?? "-",
      way: this.#slot?.way ?? "-",
      ms: Math.round(this.#deps.clock.now() - this.#started),
      out: this.#joined?.aToB ?? 0,
      in: this.#joined?.bToA ?? 0,
      attempts: this.#attempts,
      result: reason ?? "OK",
    });
  }
}

/** The client while its endpoint is dialled. */
class WaitingClient implements StreamHandler {
  readonly #connection: Connection;

  constructor(connection: Connection) {
    this.#connection = connection;
  }

  onOpen(): void {}

  onReadable(): void {
    this.#connection.clientSpoke();
  }

  onWritable(): void {}

  onClose(reason: ReasonCode | undefined): void {
    this.#connection.clientGone(reason ?? "RESET");
  }
}
