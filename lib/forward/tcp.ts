/**
 * Takes the TCP connections that the kernel hands to the agent: finds the Service by the address the client meant,
 * picks an endpoint, dials it here or through the tunnel, and joins the two streams. An endpoint that does not answer
 * is followed by the next one while no byte has reached any.
 */
import { cidrContains, hostPort } from "../addr.ts";
import type { CancelTimer, Clock, MonoMs } from "../clock.ts";
import type { ReasonCode } from "../errors.ts";
import type { Logger } from "../log.ts";
import type { Accepted, Dialer, MeshStream, ServiceTarget, StreamHandler } from "../net.ts";
import { type Connections, type Tracked } from "./connections.ts";
import { count, type Counters } from "./counters.ts";
import type { NodeFacts } from "./facts.ts";
import { type Found, type FrontendIndex, verdictFor } from "./frontends.ts";
import type { Picker } from "./picker.ts";
import { join, type Joined, type SocketLoop } from "./join.ts";
import type { PipeKit } from "./pipe.ts";
import type { Slot, Verdict } from "./plan_model.ts";

/** Endpoints tried for one connection; a client that waits longer than a few attempts has given up itself. */
export const MAX_ATTEMPTS = 4;
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

export class TcpForwarder {
  readonly #deps: TcpDeps;

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
    new Connection(this.#deps, accepted, found).next();
  }

  #admit({ original, local, remote }: Accepted): Found | ReasonCode {
    const { index, connections } = this.#deps;
    const facts = this.#deps.facts();
    // Somebody connected to the listener itself: it is no service of its own.
    if (original.ip === local.ip && original.port === local.port) return "NOT_ALLOWED";
    const found = index.find("TCP", original, facts.addresses);
    if (!found) return "NO_SERVICE";
    // Cluster addresses serve this host and its pods, whoever else can route packets here.
    if (found.frontend.kind === "cluster-ip" && !isOurs(remote.ip, facts)) return "NOT_ALLOWED";
    if (connections.full) return "LIMIT";
    return found;
  }
}

/** Whether an address belongs to this host or to a pod on it. */
export function isOurs(ip: string, facts: NodeFacts): boolean {
  return facts.addresses.includes(ip) || facts.podCidrs.some((cidr) => cidrContains(cidr, ip));
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

/** From accept to the pipe's end. Its handlers serve both stages: the client while it waits, the endpoint while it is dialled. */
class Connection implements Tracked {
  readonly #deps: TcpDeps;
  readonly #accepted: Accepted;
  readonly #found: Found;
  readonly #started: MonoMs;
  readonly #failed = new Set<string>();
  #attempts = 0;
  #slot: Slot | undefined;
  #dialled: MeshStream | undefined;
  #pipe: Joined | undefined;
  #deadline: CancelTimer | undefined;
  #over = false;

  constructor(deps: TcpDeps, accepted: Accepted, found: Found) {
    this.#deps = deps;
    this.#accepted = accepted;
    this.#found = found;
    this.#started = deps.clock.now();
    accepted.stream.handler = {
      onOpen: () => {},
      onReadable: () => {},
      onWritable: () => {},
      onClose: (reason) => this.#clientGone(reason ?? "RESET"),
    };
    deps.connections.add(this);
  }

  get bytes(): number {
    return this.#pipe ? this.#pipe.forward + this.#pipe.backward : 0;
  }

  get halfClosed(): boolean {
    return this.#pipe?.halfClosed ?? false;
  }

  reset(code: ReasonCode): void {
    if (this.#over) return;
    if (this.#pipe) return this.#pipe.reset(code);
    this.#dialled?.reset(code);
    this.#accepted.stream.reset(code);
    this.#end(code);
  }

  /** Dials the next endpoint, or gives up. */
  next(last: ReasonCode = "NO_ENDPOINT"): void {
    const { picker, clock, connectTimeoutMs, counters } = this.#deps;
    const { port } = this.#found;
    const slots = agentSlots(verdictFor(this.#found));
    const untried = slots.length - this.#failed.size;
    const spent = clock.now() - this.#started;
    if (untried <= 0 || this.#attempts >= MAX_ATTEMPTS || spent >= connectTimeoutMs * BUDGET_ATTEMPTS) {
      count(counters.of(port.id).failed, last);
      return this.reset(last);
    }
    const slot = picker.pick(port, slots, { ip: this.#accepted.remote.ip, now: clock.now() }, this.#failed);
    this.#slot = slot;
    this.#attempts++;
    this.#dial(slot, Math.min(connectTimeoutMs, connectTimeoutMs * BUDGET_ATTEMPTS - spent));
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
    const dialer = slot.way === "tunnel" ? this.#deps.tunnel : this.#deps.local;
    this.#deadline = this.#deps.clock.timer(timeoutMs, () => {
      this.#dialled?.reset("DIAL_TIMEOUT");
      this.#attemptFailed(slot, "DIAL_TIMEOUT");
    });
    const handler: StreamHandler = {
      onOpen: () => this.#join(),
      onReadable: () => {},
      onWritable: () => {},
      onClose: (reason) => this.#attemptFailed(slot, reason ?? "PEER_GONE"),
    };
    this.#dialled = dialer.dial(target, undefined, handler);
  }

  #attemptFailed(slot: Slot, reason: ReasonCode): void {
    if (this.#over || slot !== this.#slot) return;
    this.#deadline?.();
    this.#dialled = undefined;
    this.#slot = undefined;
    this.#failed.add(slot.key);
    if (saysDown(reason)) this.#deps.picker.failed(this.#found.port, slot, this.#deps.clock.now());
    this.#way(slot).dialFailures++;
    this.#deps.log.debug("Endpoint did not answer", {
      service: this.#found.port.id,
      endpoint: slot.key,
      reason,
      attempt: this.#attempts,
    });
    this.next(reason);
  }

  #join(): void {
    this.#deadline?.();
    const way = this.#way(this.#slot!);
    way.opened++;
    way.active++;
    this.#deps.picker.opened(this.#found.port, this.#slot!);
    this.#pipe = join(this.#deps, this.#accepted.stream, this.#dialled!, (reason) => this.#end(reason));
  }

  #clientGone(reason: ReasonCode): void {
    if (this.#over) return;
    this.#dialled?.reset(reason);
    this.#end(reason);
  }

  #end(reason: ReasonCode | undefined): void {
    if (this.#over) return;
    this.#over = true;
    this.#deadline?.();
    this.#deps.connections.delete(this);
    if (this.#pipe) {
      const way = this.#way(this.#slot!);
      way.active--;
      this.#deps.picker.closed(this.#found.port, this.#slot!);
      way.bytesOut += this.#pipe.forward;
      way.bytesIn += this.#pipe.backward;
    }
    if (this.#deps.accessLog) this.#accessLine(reason);
  }

  #way(slot: Slot) {
    return this.#deps.counters.of(this.#found.port.id).ways[slot.way === "tunnel" ? "tunnel" : "proxy"];
  }

  /** Fixed fields in a fixed order: programs read this line. */
  #accessLine(reason: ReasonCode | undefined): void {
    this.#deps.log.info("access", {
      from: hostPort(this.#accepted.remote),
      to: hostPort(this.#accepted.original),
      service: `${this.#found.port.namespace}/${this.#found.port.service}`,
      endpoint: this.#slot ? hostPort(this.#slot.endpoint) : "-",
      node: this.#slot?.node ?? "-",
      way: this.#slot?.way ?? "-",
      ms: Math.round(this.#deps.clock.now() - this.#started),
      out: this.#pipe?.forward ?? 0,
      in: this.#pipe?.backward ?? 0,
      attempts: this.#attempts,
      result: reason ?? "OK",
    });
  }
}
