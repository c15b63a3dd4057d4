/** One agent's control connection on the server: decodes what comes, paces what goes. */
import type { WebSocket } from "ws";
import type { CancelTimer, Clock, MonoMs } from "../../clock.ts";
import { codeOf, MeshError, type ReasonCode } from "../../errors.ts";
import type { IpPort } from "../../net.ts";
import type { PeerIdentity } from "../carrier.ts";
import { isChannelFrame } from "../relay/frames.ts";
import { AUTHORITIES_FEATURE, type AuthoritiesMessage } from "./authority_message.ts";
import { LEGS_FEATURE } from "./leg_message.ts";
import { CONTROL, type ControlMessage, decodeControl, encodeControl, type Hello } from "./message.ts";
import { MAX_META_FROM_AGENT, MetaReceiver, MetaSender } from "./meta_pipe.ts";
import { TokenBucket } from "../path/token_bucket.ts";
import { type PathMessage, PATHS_FEATURE } from "./path_message.ts";
import { ControlSocket } from "./socket.ts";

/** Time for HELLO after the connection opened: the agent sends it with its first packet. */
const HELLO_MS = 5_000;
/** Bytes that may wait for an agent that does not read, metadata aside, before it is cut off. */
const MAX_BACKLOG = 8 * 1024 * 1024;

/**
 * Messages an agent may send at once, and then per second, channels and metadata aside, which are paced otherwise: a busy
 * one sends a ping in four a second and, at the start, what it has to say about each peer.
 */
const MESSAGE_BURST = 2_000;
const MESSAGES_PER_SECOND = 100;
/** Renewals: each costs a signature and a line of the log. One a day is usual, two a step while the authority rotates. */
const RENEWAL_BURST = 10;
const RENEWALS_PER_SECOND = 1 / 60;

export interface AgentLinkOptions {
  readonly clock: Clock;
  readonly ws: WebSocket;
  readonly peer: PeerIdentity;
  readonly observed: IpPort;
  onHello(hello: Hello): void;
  /** A channel frame; the receiver owns it. Throws MeshError to end the connection. */
  onChannel(frame: Uint8Array): void;
  /** Answers a renewal; must not reject. */
  onRenew(body: string): Promise<string>;
  /** About direct paths; only from agents that named the feature. */
  onPath(message: PathMessage): void;
  /** It wants relay legs to a peer; only from agents that named the feature. */
  onLegAsk(peer: string): void;
  /** Which authorities it trusts; only from agents that named the feature. */
  onAuthorities(message: AuthoritiesMessage): void;
  onMeta(message: Uint8Array): void;
  onMetaDrain(): void;
  onRelayDrain(): void;
  /** The connection is over, once, whoever ended it. `error`: the agent broke a rule. */
  onClose(reason: ReasonCode, error: unknown): void;
}

export interface AgentStats {
  readonly node: string;
  readonly version: string;
  readonly boot: string;
  readonly from: IpPort;
  /** Milliseconds since it connected and since it was heard. */
  readonly upMs: number;
  readonly silentMs: number;
  readonly backlog: number;
}

export class AgentLink {
  readonly peer: PeerIdentity;
  readonly observed: IpPort;
  readonly #options: AgentLinkOptions;
  readonly #socket: ControlSocket;
  readonly #metaOut: MetaSender;
  readonly #metaIn = new MetaReceiver(MAX_META_FROM_AGENT);
  readonly #since: MonoMs;
  readonly #cancelHello: CancelTimer;
  #heardAt: MonoMs;
  #hello: Hello | undefined;
  readonly #messages: TokenBucket;
  readonly #renewals: TokenBucket;
  #renewing = false;
  #metaFirst = false;
  #over = false;

  constructor(options: AgentLinkOptions) {
    this.#options = options;
    this.peer = options.peer;
    this.observed = options.observed;
    this.#since = this.#heardAt = options.clock.now();
    this.#messages = new TokenBucket(MESSAGE_BURST, MESSAGES_PER_SECOND, this.#since);
    this.#renewals = new TokenBucket(RENEWAL_BURST, RENEWALS_PER_SECOND, this.#since);
    this.#socket = new ControlSocket(options.ws, options.clock, {
      onMessage: (message) => this.#received(message),
      onDrain: () => this.#drained(),
      onClose: (reason) => this.#end(reason),
    });
    this.#metaOut = new MetaSender((frame) => this.#socket.send(frame));
    this.#cancelHello = options.clock.timer(HELLO_MS, () => this.goAway("TIMEOUT", "no HELLO came"));
  }

  /** Whether HELLO was accepted. */
  get ready(): boolean {
    return this.#hello !== undefined;
  }

  /** Whether the agent looks for direct paths. */
  get findsPaths(): boolean {
    return this.#hello?.features.includes(PATHS_FEATURE) ?? false;
  }

  /** Whether the agent can have relay legs. */
  get takesLegs(): boolean {
    return this.#hello?.features.includes(LEGS_FEATURE) ?? false;
  }

  /** Whether the agent speaks of authorities. */
  get tellsAuthorities(): boolean {
    return this.#hello?.features.includes(AUTHORITIES_FEATURE) ?? false;
  }

  /** Puts encoded bytes on the connection; false = congested. */
  send(frame: Uint8Array): boolean {
    const free = this.#socket.send(frame);
    if (!free && this.#socket.backlog > MAX_BACKLOG) {
      this.#cut(new MeshError("LIMIT", `Node ${this.peer.node} does not read: ${this.#socket.backlog} bytes wait`));
    }
    return free;
  }

  tell(message: ControlMessage): void {
    this.send(encodeControl(message));
  }

  /** Queues metadata; false when some of it has to wait. */
  sendMeta(message: Uint8Array): boolean {
    this.#metaOut.push(message);
    return this.#pumpMeta();
  }

  /** Ends the connection with a reason and a sentence for the agent's log. */
  goAway(code: ReasonCode, message: string): void {
    if (this.#over) return;
    this.#socket.send(encodeControl({ type: "goaway", code, message }));
    this.#socket.close(code);
    this.#end(code);
  }

  /** Cuts the connection when nothing was heard for too long. */
  checkSilence(now: MonoMs, limitMs: number): void {
    if (now - this.#heardAt < limitMs) return;
    this.#socket.terminate();
    this.#end("TIMEOUT");
  }

  stats(): AgentStats {
    const now = this.#options.clock.now();
    return {
      node: this.peer.node,
      version: this.#hello?.version ?? "",
      boot: this.#hello?.boot ?? "",
      from: this.observed,
      upMs: now - this.#since,
      silentMs: now - this.#heardAt,
      backlog: this.#socket.backlog + this.#metaOut.queued,
    };
  }

  #received(bytes: Uint8Array): void {
    if (this.#over) return;
    this.#heardAt = this.#options.clock.now();
    try {
      if (!isChannelFrame(bytes)) this.#counted(bytes);
      else if (this.ready) this.#options.onChannel(bytes);
      else throw new MeshError("PROTOCOL", "A channel frame came before HELLO");
    } catch (error) {
      this.#cut(error);
    }
  }

  #counted(bytes: Uint8Array): void {
    // Metadata is paced by what the server sends: an agent only acknowledges.
    if (bytes[0] !== CONTROL.META && !this.#messages.take(this.#heardAt)) {
      throw new MeshError("LIMIT", `Node ${this.peer.node} sends more than ${MESSAGES_PER_SECOND} messages a second`);
    }
    this.#message(decodeControl(bytes));
  }

  #message(m: ControlMessage): void {
    if (m.type === "hello") {
      if (this.ready) throw new MeshError("PROTOCOL", "HELLO came twice");
      if (m.node !== this.peer.node) {
        throw new MeshError("PROTOCOL", `HELLO names ${m.node}, the certificate ${this.peer.node}`);
      }
      this.#cancelHello();
      this.#hello = m;
      return this.#options.onHello(m);
    }
    if (!this.ready) throw new MeshError("PROTOCOL", `${m.type} came before HELLO`);
    switch (m.type) {
      case "ping":
        return this.tell({ type: "pong", stamp: m.stamp, time: this.#options.clock.wall() });
      case "meta": {
        const message = this.#metaIn.push(m.bytes, m.last);
        if (message) this.#options.onMeta(message);
        return;
      }
      case "renew":
        if (this.#renewing) throw new MeshError("PROTOCOL", "RENEW came while one is being answered");
        if (!this.#renewals.take(this.#heardAt)) {
          throw new MeshError("LIMIT", `Node ${this.peer.node} renews its certificate again and again`);
        }
        this.#renewing = true;
        return void this.#renew(m.id, m.body);
      case "candidates":
      case "meet":
      case "punch":
        if (!this.findsPaths) throw new MeshError("PROTOCOL", `${m.type} from an agent without that feature`);
        return this.#options.onPath(m);
      case "authorities":
        if (!this.tellsAuthorities) throw new MeshError("PROTOCOL", `${m.type} from an agent without that feature`);
        return this.#options.onAuthorities(m);
      case "leg-ask":
        if (!this.takesLegs) throw new MeshError("PROTOCOL", `${m.type} from an agent without that feature`);
        return this.#options.onLegAsk(m.peer);
      default:
        throw new MeshError("PROTOCOL", `${m.type} is for agents only`);
    }
  }

  async #renew(id: number, body: string): Promise<void> {
    const answer = await this.#options.onRenew(body);
    this.#renewing = false;
    if (!this.#over) this.tell({ type: "renewed", id, body: answer });
  }

  #drained(): void {
    // By turns, so that neither a large snapshot nor a bulk transfer keeps the other waiting.
    this.#metaFirst = !this.#metaFirst;
    for (const meta of [this.#metaFirst, !this.#metaFirst]) {
      if (this.#socket.congested || this.#over) return;
      if (!meta) this.#options.onRelayDrain();
      else if (!this.#metaOut.empty && this.#pumpMeta()) this.#options.onMetaDrain();
    }
  }

  /** Sends metadata while there is room; true when none waits. */
  #pumpMeta(): boolean {
    let done = this.#metaOut.empty;
    while (!done && !this.#socket.congested) done = this.#metaOut.pump();
    return done;
  }

  #cut(error: unknown): void {
    if (this.#over) return;
    this.#socket.close(codeOf(error));
    this.#end(codeOf(error), error);
  }

  #end(reason: ReasonCode, error?: unknown): void {
    if (this.#over) return;
    this.#over = true;
    this.#cancelHello();
    this.#options.onClose(reason, error);
  }
}
