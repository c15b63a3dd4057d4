/** Carriers through the servers: a channel on a control connection with our own mutual TLS inside. */
import type { CancelTimer, Clock } from "../../clock.ts";
import { codeOf, describe, MeshError, type ReasonCode } from "../../errors.ts";
import type { Logger } from "../../log.ts";
import type { Carrier } from "../carrier.ts";
import type { CarrierEngine } from "../carriers/engine.ts";
import type { ControlClient } from "../control/client.ts";
import type { Servers } from "../control/servers.ts";
import type { ChannelDuplex } from "./channel_duplex.ts";
import type { PathAgent, PathAttempt, PathSink } from "./path_agent.ts";

/** Channels from others whose handshake is not finished: more than that at once is an attack, or a restart to be paced. */
const MAX_ACCEPTING = 64;

/**
 * A peer that has not answered a call after so long puts the connection to the server in doubt, too: it may have died
 * without a word. A round trip through the relay is shorter but for satellites, and asking costs one ping.
 */
const DOUBT_MS = 1000;

/** Reasons another server would only repeat: the peer was reached, and it is not the one that was meant. */
const FINAL: ReadonlySet<ReasonCode> = new Set<ReasonCode>([
  "CERT_UNTRUSTED",
  "CERT_EXPIRED",
  "REVOKED",
  "NODE_KEY_MISMATCH",
]);

export interface RelayPathOptions {
  readonly engine: CarrierEngine<ChannelDuplex>;
  readonly clock: Clock;
  readonly servers: Pick<Servers, "candidates" | "connecting" | "lastError" | "returnsWithin">;
  readonly log: Logger;
  /** A peer connected to us. */
  onCarrier(carrier: Carrier): void;
  /** The channel to this peer carries a lot. */
  onBusy?(peer: string): void;
}

export class RelayPath implements PathAgent {
  readonly #options: RelayPathOptions;
  readonly #attempts = new Set<Attempt>();
  #accepting = 0;

  constructor(options: RelayPathOptions) {
    this.#options = options;
  }

  connect(peer: string, sink: PathSink): PathAttempt {
    const attempt: Attempt = new Attempt(this.#options, peer, sink, () => this.#attempts.delete(attempt));
    this.#attempts.add(attempt);
    queueMicrotask(() => attempt.start());
    return attempt;
  }

  /** A server came, went or could not be reached: attempts that wait for one look again. */
  serversChanged(): void {
    for (const attempt of [...this.#attempts]) attempt.serversChanged();
  }

  /** Nodes that are connected to a server again: attempts that hoped for one go on. */
  appeared(nodes: readonly string[]): void {
    for (const attempt of [...this.#attempts]) if (nodes.includes(attempt.peer)) attempt.appeared();
  }

  /** Another agent opened a channel to us. */
  accept(leg: ChannelDuplex): void {
    if (this.#accepting >= MAX_ACCEPTING) {
      leg.destroy(new MeshError("LIMIT", `${MAX_ACCEPTING} channels wait for their handshake already`));
      return;
    }
    this.#accepting++;
    void this.#accept(leg).finally(() => this.#accepting--);
  }

  async #accept(leg: ChannelDuplex): Promise<void> {
    const { engine, log, onCarrier } = this.#options;
    try {
      const carrier = await engine.accept(leg, { path: "relay" });
      leg.onBusy = () => this.#options.onBusy?.(carrier.peer.node);
      onCarrier(carrier);
    } catch (error) {
      log.warn("peer refused", { claims: leg.node, path: "relay", reason: codeOf(error), error: describe(error) });
    }
  }
}

class Attempt implements PathAttempt {
  readonly peer: string;
  readonly #options: RelayPathOptions;
  readonly #sink: PathSink;
  readonly #onEnd: () => void;
  readonly #tried = new Set<ControlClient>();
  #leg: ChannelDuplex | undefined;
  #last: MeshError | undefined;
  #cancelHope: CancelTimer | undefined;
  #hoped = false;
  #over = false;

  constructor(options: RelayPathOptions, peer: string, sink: PathSink, onEnd: () => void) {
    this.#options = options;
    this.peer = peer;
    this.#sink = sink;
    this.#onEnd = onEnd;
  }

  start(): void {
    if (this.#over || this.#leg) return;
    const { servers } = this.#options;
    const server = servers.candidates(this.peer).find((client) => !this.#tried.has(client));
    if (server) return void this.#through(server);
    // A server that is just coming up may be the one; the manager's deadline bounds the wait.
    if (servers.connecting) return;
    if (this.#last?.code === "PEER_OFFLINE" && this.#hope()) return;
    this.#end();
    this.#sink.onFailed(
      this.#last ?? new MeshError("SERVER_UNREACHABLE", `Not connected to any server: ${servers.lastError}`),
    );
  }

  serversChanged(): void {
    queueMicrotask(() => this.start());
  }

  /** The peer is there again. */
  appeared(): void {
    if (this.#leg) return;
    this.#tried.clear();
    this.serversChanged();
  }

  /** Whether the peer was there until a moment ago and may be back soon: then this attempt is worth keeping. */
  #hope(): boolean {
    const ms = this.#options.servers.returnsWithin(this.peer);
    if (ms <= 0) return false;
    // The node may be back before we are told so: asked again at the end at the latest.
    this.#cancelHope ??= this.#options.clock.timer(ms, () => {
      this.#hoped = true;
      this.#tried.clear();
      this.start();
    });
    return !this.#hoped;
  }

  cancel(): void {
    if (this.#over) return;
    this.#end();
    this.#leg?.destroy();
  }

  async #through(server: ControlClient): Promise<void> {
    this.#tried.add(server);
    const leg = server.openChannel(this.peer);
    if (!leg) return this.start();
    this.#leg = leg;
    const answered = this.#options.clock.timer(DOUBT_MS, () => server.probe());
    try {
      const carrier = await this.#options.engine.connect(leg, { peer: this.peer, path: "relay" }).finally(answered);
      if (this.#over) return carrier.close("SHUTDOWN");
      this.#end();
      leg.onBusy = () => this.#options.onBusy?.(this.peer);
      this.#sink.onCarrier(carrier);
    } catch (error) {
      this.#leg = undefined;
      if (!this.#over) this.#failed(server, error);
    }
  }

  #failed(server: ControlClient, error: unknown): void {
    const failure = explained(error, this.peer, server.url);
    this.#sink.onNote("relay", `${server.url}: ${failure.code}`);
    // What several servers say: the first is the best placed to know, unless it only lost us.
    if (this.#last === undefined || this.#last.code === "SERVER_UNREACHABLE") this.#last = failure;
    if (!FINAL.has(failure.code)) return this.start();
    this.#end();
    this.#sink.onFailed(failure);
  }

  #end(): void {
    this.#over = true;
    this.#cancelHope?.();
    this.#onEnd();
  }
}

/** The server answers with a code only; people get a sentence. */
function explained(error: unknown, peer: string, url: string): MeshError {
  const failure = error instanceof MeshError ? error : new MeshError("INTERNAL", "Relay failed", { cause: error });
  switch (failure.code) {
    case "PEER_OFFLINE":
      return new MeshError("PEER_OFFLINE", `Node ${peer} is not connected to ${url}`, {
        hint: `run \`edgemesh status\` on ${peer}`,
      });
    case "UNKNOWN_NODE":
      return new MeshError("UNKNOWN_NODE", `${url} knows no node named ${peer}`, {
        hint: "`edgemesh status` on the server lists the nodes that have joined",
      });
    case "SERVER_UNREACHABLE":
      return new MeshError("SERVER_UNREACHABLE", `The connection to ${url} ended while node ${peer} was being called`);
    default:
      return failure;
  }
}
