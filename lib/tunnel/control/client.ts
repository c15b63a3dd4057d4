/**
 * The agent's side of one control connection: connects, stays connected, and hands on what comes. One client per
 * configured server; they know nothing of each other.
 */
import type { CancelTimer, MonoMs } from "../../clock.ts";
import { codeOf, describe, MeshError, type ReasonCode } from "../../errors.ts";
import type { Logger } from "../../log.ts";
import type { ChannelDuplex } from "../legs/channel_duplex.ts";
import { connectControl, type ConnectOptions, type Ends } from "./connect.ts";
import { CONNECT_MS, ControlLink } from "./control_link.ts";
import { AUTHORITIES_FEATURE, type AuthoritiesMessage } from "./authority_message.ts";
import { type LegMessage, LEGS_FEATURE } from "./leg_message.ts";
import type { ControlMessage, Welcome } from "./message.ts";
import { type PathMessage, PATHS_FEATURE } from "./path_message.ts";
import { Presence } from "./presence.ts";

/** First wait after a failure; doubles up to a limit; the real wait is a random half to whole of it. */
const BACKOFF_MS = 100;
/** Limit while the server answers and something is wrong: each attempt costs it a TLS handshake, and it may be overloaded. */
const REFUSED_MAX_MS = 30_000;
/**
 * Limit while nothing answers at all: an attempt is one SYN of 60 bytes that costs nobody any work, and a server that is
 * back after a night must be noticed within two seconds. Should it then have too much to do, the other limit applies.
 */
const SILENT_MAX_MS = 1_000;
/**
 * Limit after a connection that stood was lost without a word of the server: that was the network, or the server's end.
 * A host that moves about loses many in a row, each after seconds, and its streams wait for the next one.
 */
const LOST_MAX_MS = 1_000;
/** The same while the host itself refuses: it is up and its server is not, which is a restart more often than not. */
const CLOSED_MAX_MS = 500;
/** A connection that lasted this long was good: the next failure starts at the beginning again. */
const STABLE_MS = 10_000;

export interface ControlClientOptions extends Omit<ConnectOptions, "timeoutMs" | "signal" | "onAnswer"> {
  readonly log: Logger;
  /** This node's name and the product's version. */
  readonly node: string;
  readonly version: string;
  /** Random per start of the agent. */
  readonly boot: string;
  /** Numbers from 0 to 1, for the jitter of reconnects. */
  random(): number;
  /** Optional parts of the protocol that we speak. */
  readonly features?: readonly string[];
  onUp(welcome: Welcome): void;
  onDown(reason: ReasonCode): void;
  /** An attempt failed; the next one waits. */
  onRetry?(): void;
  /** Somebody came or went; {@link ControlClient.online} is up to date. */
  onPeers(online: readonly string[], offline: readonly string[]): void;
  onMeta(message: Uint8Array): void;
  /** The metadata queue towards the server is empty again. */
  onMetaDrain(): void;
  /** The server's whole revocation list, as it came. */
  onRevocations(list: unknown): void;
  /** The server's time over the authenticated connection, asked at `sentAt` of the monotonic clock. */
  onTime(server: number, sentAt: MonoMs): void;
  /** The server's part in finding direct paths; comes only to who named the feature. */
  onPath?(message: PathMessage): void;
  /** The server's part in relay legs; comes only to who named the feature. */
  onLeg?(message: LegMessage): void;
  /** Which authorities the server trusts; comes only to who named the feature. */
  onAuthorities?(message: AuthoritiesMessage): void;
  /** Another agent opened a channel to us. */
  onChannel(leg: ChannelDuplex): void;
}

/** Nothing answered; the host itself refused; something answered, and it came to nothing; a connection that stood is gone. */
type Failure = "silent" | "closed" | "refused" | "lost";

/** What `status` shows of one server. */
export type ControlState =
  | { readonly phase: "stopped" }
  | { readonly phase: "connecting"; readonly attempt: number }
  | { readonly phase: "waiting"; readonly attempt: number; readonly untilMs: MonoMs; readonly code: ReasonCode }
  | { readonly phase: "up"; readonly sinceMs: MonoMs; readonly welcome: Welcome };

export class ControlClient {
  readonly url: string;
  readonly #options: ControlClientOptions;
  readonly #presence = new Presence();
  #state: ControlState = { phase: "stopped" };
  #live: ControlLink | undefined;
  #attempt = 0;
  /** Attempts in a row that nothing answered, and failures since the last good connection in which something did. */
  #silent = 0;
  #refused = 0;
  /** Connections in a row that did not last. */
  #lost = 0;
  #abort: AbortController | undefined;
  #cancelWait: CancelTimer | undefined;
  #lastError = "";
  #retired = false;

  constructor(options: ControlClientOptions) {
    this.#options = options;
    this.url = options.url;
  }

  /** Starts connecting; never gives up until {@link close}. */
  start(): void {
    if (this.#state.phase === "stopped") void this.#connect();
  }

  /** Ends the connection and stops trying. */
  close(): void {
    const { phase } = this.#state;
    this.#state = { phase: "stopped" };
    this.#cancelWait?.();
    this.#abort?.abort(new MeshError("SHUTDOWN", "The agent is stopping"));
    if (phase === "up") this.#live?.stop("SHUTDOWN", true);
  }

  /** Ends the connection like one that is lost, telling everybody, and stops trying: the server is not ours any more. */
  retire(): void {
    this.#retired = true;
    if (this.#state.phase === "up") this.#live!.stop("SHUTDOWN", true);
    this.close();
  }

  /** Tries at once instead of waiting on, and doubts a connection that stands: the network has changed. */
  retryNow(): void {
    this.#live?.probe();
    if (this.#state.phase !== "waiting") return;
    this.#cancelWait?.();
    void this.#connect();
  }

  /** A peer fell silent: finds out soon whether the connection to the server lives, which the relay will need. */
  probe(): void {
    this.#live?.probe();
  }

  /** The connection runs from an address that this host has no more: what TCP has not noticed yet is over at once. */
  moved(): void {
    if (this.#state.phase === "up") this.#live!.stop("PEER_GONE", false);
  }

  get state(): ControlState {
    return this.#state;
  }

  /** Being connected to, and the attempt before did get an answer: whoever needs a server may wait for the outcome. */
  get promising(): boolean {
    return this.#state.phase === "connecting" && this.#silent === 0;
  }

  /** One sentence about the last failure; empty while there was none. */
  get lastError(): string {
    return this.#lastError;
  }

  /** Nodes connected to this server that we may see; ours not among them. */
  get online(): ReadonlySet<string> {
    return this.#presence.online;
  }

  /** Milliseconds in which a node that is not there now may be expected back; 0 when it is not, or we are not connected. */
  returnsWithin(node: string): number {
    const state = this.#state;
    return state.phase === "up" ? this.#presence.returnsWithin(node, this.#options.clock.now(), state.sinceMs) : 0;
  }

  /** Round trip to the server in milliseconds; undefined while it is not known. */
  get rttMs(): number | undefined {
    return this.#live?.offset.rttMs;
  }

  /** Shortest round trip of late: the way itself, without its queues. */
  get leastRttMs(): number | undefined {
    return this.#live?.offset.leastRttMs;
  }

  /** Server's wall clock minus ours in milliseconds; undefined while it is not known. */
  get clockOffsetMs(): number | undefined {
    return this.#live?.offset.offsetMs;
  }

  /** Channels open on this connection. */
  get channels(): number {
    return this.#live?.channels.size ?? 0;
  }

  /** Opens a channel to a node; undefined while not connected. A refusal arrives as the duplex's error. */
  openChannel(node: string): ChannelDuplex | undefined {
    return this.#state.phase === "up" ? this.#live!.channels.open(node) : undefined;
  }

  /** Queues a metadata message. False: not connected, or wait for `onMetaDrain`. Throws MeshError LIMIT. */
  sendMeta(message: Uint8Array): boolean {
    return this.#state.phase === "up" && this.#live!.sendMeta(message);
  }

  /** Whether the server helps to find direct paths. */
  get helpsPaths(): boolean {
    return this.#state.phase === "up" && this.#state.welcome.features.includes(PATHS_FEATURE);
  }

  /** Sends a message about paths; false when not connected, or to a server that does not help with them. */
  sendPath(message: PathMessage): boolean {
    if (!this.helpsPaths) return false;
    this.#live!.tell(message);
    return true;
  }

  /** Sends a message about relay legs; false when not connected, or to a server that has none. */
  sendLeg(message: LegMessage): boolean {
    if (this.#state.phase !== "up" || !this.#state.welcome.features.includes(LEGS_FEATURE)) return false;
    this.#live!.tell(message);
    return true;
  }

  /** Tells the server which authorities we trust, if it wants to know. */
  sendAuthorities(told: Omit<AuthoritiesMessage, "type">): void {
    if (this.#state.phase !== "up" || !this.#state.welcome.features.includes(AUTHORITIES_FEATURE)) return;
    this.#live!.tell({ type: "authorities", ...told });
  }

  /** Measures the server's clock anew; the answer comes a round trip later. */
  askTime(): void {
    if (this.#state.phase === "up") this.#live!.ping();
  }

  /** The two ends of the connection; undefined while there is none. */
  get ends(): Ends | undefined {
    return this.#live?.ends;
  }

  /** Sends a renewal request and gives its answer; both texts are the identity module's. Rejects with TIMEOUT, SERVER_UNREACHABLE. */
  renew(body: string): Promise<string> {
    if (this.#state.phase === "up") return this.#live!.renew(body);
    return Promise.reject(new MeshError("SERVER_UNREACHABLE", `Not connected to ${this.url}`));
  }

  async #connect(): Promise<void> {
    this.#state = { phase: "connecting", attempt: ++this.#attempt };
    const abort = this.#abort = new AbortController();
    let answered = false;
    try {
      const connection = await connectControl({
        ...this.#options,
        timeoutMs: CONNECT_MS,
        signal: abort.signal,
        onAnswer: () => answered = true,
      });
      if (abort.signal.aborted) return connection.ws.terminate();
      this.#live = new ControlLink(this.#options, connection, {
        onWelcome: (welcome) => this.#up(welcome),
        onEnd: (error) => this.#down(error),
        onMessage: (message) => this.#message(message),
      });
    } catch (error) {
      this.#retry(error, answered ? "refused" : isClosed(error) ? "closed" : "silent");
    }
  }

  #up(welcome: Welcome): void {
    this.#state = { phase: "up", sinceMs: this.#options.clock.now(), welcome };
    this.#options.log.info("connected to server", { server: welcome.server, url: this.url });
    this.#options.onUp(welcome);
  }

  #down(error: MeshError): void {
    const state = this.#state;
    this.#live = undefined;
    if (state.phase === "up") {
      const gone = this.#presence.clear(this.#options.clock.now());
      if (this.#options.clock.now() - state.sinceMs >= STABLE_MS) this.#attempt = this.#refused = this.#lost = 0;
      // The way fell silent: that took a while to find out, and nothing is wrong with the server.
      if (error.code === "TIMEOUT") this.#lost = 0;
      this.#options.onDown(error.code);
      if (gone.length > 0) this.#options.onPeers([], gone);
    }
    if (this.#retired) return;
    const lost = state.phase === "up" && (error.code === "PEER_GONE" || error.code === "TIMEOUT");
    this.#retry(error, lost ? "lost" : "refused");
  }

  #retry(error: unknown, how: Failure): void {
    if (this.#state.phase === "stopped") return;
    const { clock, random, log } = this.#options;
    const code = codeOf(error);
    this.#lastError = describe(error);
    const wait = this.#backoff(code, how) * (0.5 + random() / 2);
    this.#state = { phase: "waiting", attempt: this.#attempt, untilMs: clock.now() + wait, code };
    log[this.#attempt <= 1 ? "warn" : "debug"]("no connection to server", {
      url: this.url,
      reason: code,
      error: this.#lastError,
      retry_ms: Math.round(wait),
    });
    this.#cancelWait = clock.timer(wait, () => void this.#connect());
    this.#options.onRetry?.();
  }

  #backoff(code: ReasonCode, how: Failure): number {
    const doubled = (failures: number, max: number) => Math.min(max, BACKOFF_MS * 2 ** Math.min(failures - 1, 20));
    if (how === "silent") return doubled(++this.#silent, SILENT_MAX_MS);
    if (how === "closed") return doubled(++this.#silent, CLOSED_MAX_MS);
    this.#silent = 0;
    if (how === "lost") return doubled(++this.#lost, LOST_MAX_MS);
    // Somebody else has our name: pulling the connection back and forth helps nobody.
    return code === "REPLACED" ? REFUSED_MAX_MS : doubled(++this.#refused, REFUSED_MAX_MS);
  }

  #message(m: ControlMessage): void {
    switch (m.type) {
      case "peers": {
        const { online, offline } = this.#presence.take(m, this.#options.node, this.#options.clock.now());
        if (online.length + offline.length > 0) this.#options.onPeers(online, offline);
        return;
      }
      case "revocations":
        return this.#options.onRevocations(m.list);
      case "observe":
      case "addresses":
      case "unmet":
      case "punch":
        return this.#options.onPath?.(m);
      case "leg":
        return this.#options.onLeg?.(m);
      case "authorities":
        return this.#options.onAuthorities?.(m);
      default:
        throw new MeshError("PROTOCOL", `${m.type} is for servers only`);
    }
  }
}

/** The port is closed: the host answered, at no cost to anybody. */
function isClosed(error: unknown): boolean {
  const { cause } = error as { cause?: { code?: unknown } };
  return cause?.code === "ECONNREFUSED";
}
