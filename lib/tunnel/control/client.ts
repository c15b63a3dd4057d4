/**
 * The agent's side of one control connection: connects, stays connected, and hands on what comes. One client per
 * configured server; they know nothing of each other.
 */
import type { CancelTimer, MonoMs } from "../../clock.ts";
import { codeOf, describe, MeshError, type ReasonCode } from "../../errors.ts";
import type { Logger } from "../../log.ts";
import type { ChannelDuplex } from "../legs/channel_duplex.ts";
import { ChannelTable } from "../legs/channel_table.ts";
import { isChannelFrame } from "../relay/frames.ts";
import { ClockOffset } from "./clock_offset.ts";
import { connectControl, type ConnectOptions, type ControlConnection } from "./connect.ts";
import { CONTROL_VERSION, type ControlMessage, decodeControl, encodeControl, type Welcome } from "./message.ts";
import { MetaReceiver, MetaSender } from "./meta_pipe.ts";
import { ControlSocket } from "./socket.ts";

/** First wait after a failure; doubles up to {@link BACKOFF_MAX_MS}; the real wait is a random half to whole of it. */
const BACKOFF_MS = 100;
const BACKOFF_MAX_MS = 30_000;
/** A connection that lasted this long was good: the next failure starts at the beginning again. */
const STABLE_MS = 10_000;
/** From the first packet to WELCOME. */
const CONNECT_MS = 10_000;
/** Between pings while all is well: below the 60 s that common proxies and load balancers allow. */
const PING_MS = 15_000;
/** An answer that takes longer counts as missed, and the next ping follows at this pace. */
const PONG_MS = 5_000;
/** Missed answers, with nothing else heard, after which the connection is dead: 30 s after the last sign of life at most. */
const MISSED = 3;
/** A renewal that takes longer is given up; the next one is tried by whoever asked. */
const RENEW_MS = 10_000;

export interface ControlClientOptions extends Omit<ConnectOptions, "timeoutMs" | "signal"> {
  readonly log: Logger;
  /** This node's name and the product's version. */
  readonly node: string;
  readonly version: string;
  /** Random per start of the agent. */
  readonly boot: string;
  /** Numbers from 0 to 1, for the jitter of reconnects. */
  random(): number;
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
  /** Another agent opened a channel to us. */
  onChannel(leg: ChannelDuplex): void;
}

/** What `status` shows of one server. */
export type ControlState =
  | { readonly phase: "stopped" }
  | { readonly phase: "connecting"; readonly attempt: number }
  | { readonly phase: "waiting"; readonly attempt: number; readonly untilMs: MonoMs; readonly code: ReasonCode }
  | { readonly phase: "up"; readonly sinceMs: MonoMs; readonly welcome: Welcome };

export class ControlClient {
  readonly url: string;
  readonly #options: ControlClientOptions;
  readonly #online = new Set<string>();
  #state: ControlState = { phase: "stopped" };
  #live: Live | undefined;
  #attempt = 0;
  #abort: AbortController | undefined;
  #cancelWait: CancelTimer | undefined;
  #lastError = "";

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

  /** Tries at once instead of waiting on: the network has changed. */
  retryNow(): void {
    if (this.#state.phase !== "waiting") return;
    this.#cancelWait?.();
    void this.#connect();
  }

  get state(): ControlState {
    return this.#state;
  }

  /** One sentence about the last failure; empty while there was none. */
  get lastError(): string {
    return this.#lastError;
  }

  /** Nodes connected to this server that we may see; ours not among them. */
  get online(): ReadonlySet<string> {
    return this.#online;
  }

  /** Round trip to the server in milliseconds; undefined while it is not known. */
  get rttMs(): number | undefined {
    return this.#live?.offset.rttMs;
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

  /** Sends a renewal request and gives its answer; both texts are the identity module's. Rejects with TIMEOUT, SERVER_UNREACHABLE. */
  renew(body: string): Promise<string> {
    if (this.#state.phase === "up") return this.#live!.renew(body);
    return Promise.reject(new MeshError("SERVER_UNREACHABLE", `Not connected to ${this.url}`));
  }

  async #connect(): Promise<void> {
    this.#state = { phase: "connecting", attempt: ++this.#attempt };
    const abort = this.#abort = new AbortController();
    try {
      const connection = await connectControl({ ...this.#options, timeoutMs: CONNECT_MS, signal: abort.signal });
      if (abort.signal.aborted) return connection.ws.terminate();
      this.#live = new Live(this.#options, connection, {
        onWelcome: (welcome) => this.#up(welcome),
        onEnd: (error) => this.#down(error),
        onMessage: (message) => this.#message(message),
      });
    } catch (error) {
      this.#retry(error);
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
      const gone = [...this.#online];
      this.#online.clear();
      if (this.#options.clock.now() - state.sinceMs >= STABLE_MS) this.#attempt = 0;
      this.#options.onDown(error.code);
      if (gone.length > 0) this.#options.onPeers([], gone);
    }
    this.#retry(error);
  }

  #retry(error: unknown): void {
    if (this.#state.phase === "stopped") return;
    const { clock, random, log } = this.#options;
    const code = codeOf(error);
    this.#lastError = describe(error);
    // Somebody else has our name: pulling the connection back and forth helps nobody.
    const full = code === "REPLACED"
      ? BACKOFF_MAX_MS
      : Math.min(BACKOFF_MAX_MS, BACKOFF_MS * 2 ** Math.min(this.#attempt - 1, 20));
    const wait = full * (0.5 + random() / 2);
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

  #message(m: ControlMessage): void {
    switch (m.type) {
      case "peers": {
        const mine = (node: string) => node !== this.#options.node;
        const online = m.online.filter((node) => mine(node) && !this.#online.has(node));
        const offline = m.full
          ? [...this.#online].filter((node) => !m.online.includes(node))
          : m.offline.filter((node) => this.#online.has(node));
        for (const node of online) this.#online.add(node);
        for (const node of offline) this.#online.delete(node);
        if (online.length + offline.length > 0) this.#options.onPeers(online, offline);
        return;
      }
      case "revocations":
        return this.#options.onRevocations(m.list);
      default:
        throw new MeshError("PROTOCOL", `${m.type} is for servers only`);
    }
  }
}

interface LiveEvents {
  onWelcome(welcome: Welcome): void;
  onMessage(message: ControlMessage): void;
  onEnd(error: MeshError): void;
}

/** One connection from open to end. */
class Live {
  readonly channels: ChannelTable;
  readonly offset = new ClockOffset();
  readonly #options: ControlClientOptions;
  readonly #events: LiveEvents;
  readonly #socket: ControlSocket;
  readonly #metaOut: MetaSender;
  readonly #metaIn = new MetaReceiver();
  readonly #renewals = new Map<number, { resolve(answer: string): void; reject(error: MeshError): void }>();
  #lastRenewal = 0;
  #cancel: CancelTimer;
  #welcomed = false;
  #missed = 0;
  #heard = false;
  #goAway: MeshError | undefined;
  #metaFirst = false;
  #over = false;

  constructor(options: ControlClientOptions, connection: ControlConnection, events: LiveEvents) {
    this.#options = options;
    this.#events = events;
    const { clock } = options;
    this.#socket = new ControlSocket(connection.ws, clock, {
      onMessage: (message) => this.#received(message),
      onDrain: () => this.#drained(),
      onClose: (reason) => this.stop(reason, false),
    });
    this.#metaOut = new MetaSender((frame) => this.#socket.send(frame));
    this.channels = new ChannelTable({
      send: (frame) => this.#socket.send(frame),
      onChannel: (leg) => options.onChannel(leg),
      now: () => clock.now(),
    });
    const { node, version, boot } = options;
    this.#tell({ type: "hello", protocol: CONTROL_VERSION, node, version, boot });
    this.#ping();
    this.#cancel = clock.timer(CONNECT_MS, () => this.#fail(new MeshError("TIMEOUT", "The server sent no WELCOME")));
  }

  sendMeta(message: Uint8Array): boolean {
    this.#metaOut.push(message);
    return this.#pumpMeta();
  }

  /** Sends metadata while there is room; true when none waits. */
  #pumpMeta(): boolean {
    let done = this.#metaOut.empty;
    while (!done && !this.#socket.congested) done = this.#metaOut.pump();
    return done;
  }

  renew(body: string): Promise<string> {
    const id = ++this.#lastRenewal;
    return new Promise((resolve, reject) => {
      const cancel = this.#options.clock.timer(RENEW_MS, () => {
        this.#renewals.delete(id);
        reject(new MeshError("TIMEOUT", "The server did not answer the renewal"));
      });
      this.#renewals.set(id, {
        resolve: (answer) => {
          cancel();
          resolve(answer);
        },
        reject: (error) => {
          cancel();
          reject(error);
        },
      });
      this.#tell({ type: "renew", id, body });
    });
  }

  /** Ends it; `tell`: also the server. */
  stop(reason: ReasonCode, tell: boolean): void {
    const said = this.#goAway;
    this.#fail(said ?? new MeshError(reason, `The connection to ${this.#options.url} ended: ${reason}`), tell);
  }

  #fail(error: MeshError, tell = true): void {
    if (this.#over) return;
    this.#over = true;
    this.#cancel();
    if (error.code === "TIMEOUT" || !tell) this.#socket.terminate();
    else this.#socket.close(error.code);
    this.channels.close("SERVER_UNREACHABLE");
    for (const renewal of [...this.#renewals.values()]) {
      renewal.reject(new MeshError("SERVER_UNREACHABLE", "The connection ended before the renewal was answered"));
    }
    this.#events.onEnd(error);
  }

  #received(bytes: Uint8Array): void {
    if (this.#over) return;
    this.#heard = true;
    try {
      if (!isChannelFrame(bytes)) this.#message(decodeControl(bytes));
      else if (this.#welcomed) this.channels.receive(bytes);
      else throw new MeshError("PROTOCOL", "A channel frame came before WELCOME");
    } catch (error) {
      this.#fail(error instanceof MeshError ? error : new MeshError("INTERNAL", "Message failed", { cause: error }));
    }
  }

  #message(m: ControlMessage): void {
    switch (m.type) {
      case "welcome":
        return this.#welcome(m);
      case "pong":
        return this.#pong(m.stamp, m.time);
      case "meta": {
        const message = this.#metaIn.push(m.bytes, m.last);
        if (message) this.#options.onMeta(message);
        return;
      }
      case "renewed":
        return this.#takeRenewal(m.id)?.resolve(m.body);
      case "goaway":
        // The close that follows ends it; this only knows better why.
        this.#goAway = new MeshError(m.code, `Server said: ${m.message}`);
        return;
      default:
        return this.#events.onMessage(m);
    }
  }

  #welcome(m: Welcome): void {
    if (this.#welcomed) throw new MeshError("PROTOCOL", "WELCOME came twice");
    if (m.protocol !== CONTROL_VERSION) {
      throw new MeshError("VERSION", `Server speaks control version ${m.protocol}, this agent ${CONTROL_VERSION}`);
    }
    this.#welcomed = true;
    this.#cancel();
    this.#cancel = this.#options.clock.timer(PING_MS, () => this.#beat());
    this.#events.onWelcome(m);
  }

  #pong(stamp: number, time: number): void {
    const { clock } = this.#options;
    this.#missed = 0;
    if (this.offset.sample({ sentAt: stamp, now: clock.now(), wall: clock.wall(), server: time })) {
      this.#options.onTime(time, stamp);
    }
  }

  #beat(): void {
    if (this.#heard) this.#missed = 0;
    else if (++this.#missed >= MISSED) {
      return this.#fail(new MeshError("TIMEOUT", `The server was silent for ${this.#missed} pings`));
    }
    this.#heard = false;
    this.#ping();
    const { clock } = this.#options;
    this.#cancel = clock.timer(PONG_MS, () => {
      if (!this.#heard) return this.#beat();
      this.#cancel = clock.timer(PING_MS - PONG_MS, () => this.#beat());
    });
  }

  #ping(): void {
    this.#tell({ type: "ping", stamp: this.#options.clock.now() });
  }

  #tell(message: ControlMessage): void {
    this.#socket.send(encodeControl(message));
  }

  #takeRenewal(id: number) {
    const renewal = this.#renewals.get(id);
    this.#renewals.delete(id);
    return renewal;
  }

  #drained(): void {
    // By turns, so that neither metadata nor a bulk transfer keeps the other waiting.
    this.#metaFirst = !this.#metaFirst;
    for (const meta of [this.#metaFirst, !this.#metaFirst]) {
      if (this.#socket.congested || this.#over) return;
      if (!meta) this.channels.drained();
      else if (!this.#metaOut.empty && this.#pumpMeta()) this.#options.onMetaDrain();
    }
  }
}
