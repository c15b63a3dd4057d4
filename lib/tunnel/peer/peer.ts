/**
 * One other agent: the session with it, the search for a way to it, and what to do when either fails.
 *
 *     idle ──dial / carrier──→ connecting ──session up──→ up ──carrier lost──→ down ──→ up …
 *       ↑                          │ failed, deadline      │ idle, revoked       │ failed for good, held too long
 *       └──────────────────────────┴───────────────────────┴─────────────────────┘   (session closed)
 *
 * Both agents may look for each other at the same moment. Every carrier that comes up is given to the session, which
 * settles on one by generation (PROTOCOL.md §5) without losing a byte. So that not both throw away the one the other
 * keeps, only the acceptor (roleOf) stops its own search once it is up; after a loss the initiator searches at once
 * and the acceptor a moment later.
 */
import { assertNever, describe, MeshError, type ReasonCode } from "../../errors.ts";
import type { CancelTimer, MonoMs } from "../../clock.ts";
import type { DatagramFlow, FlowHandler, MeshStream, ServiceTarget, StreamHandler } from "../../net.ts";
import type { Carrier, PathKind, PeerIdentity } from "../carrier.ts";
import { deadFlow, deadStream } from "./dead.ts";
import { FINAL } from "./final.ts";
import { RANK } from "../path/candidates.ts";
import type { PathAttempt } from "../legs/path_agent.ts";
import { PathEvents } from "./path_events.ts";
import type { PeerOptions, PeerSession, PeerStateKind, PeerStatus } from "./peer_types.ts";
import { roleOf, type SessionRole } from "../session/session_types.ts";
import type { Stream } from "../session/stream.ts";
import { WaitingList } from "./waiting.ts";

/** A dial that has no way by then fails; see {@link PeerOptions.establishMs}. */
export const ESTABLISH_MS = 5_000;
/** A failed dial answers for this long for the dials that follow it: a retry loop must not become a load on the server. */
const FAILURE_MS = 1_000;
/** First wait between searches of a session that lost its way; doubles up to {@link RETRY_MAX_MS}. */
const RETRY_MS = 100;
const RETRY_MAX_MS = 10_000;
/** A worse carrier that comes this soon after a better one began its way before it. */
const RACE_MS = 2_000;
/** Head start of the initiator after a loss. */
const ACCEPTOR_DELAY_MS = 300;

type State =
  | { readonly kind: "idle" }
  | { readonly kind: "connecting"; readonly session: PeerSession }
  | { readonly kind: "up"; readonly session: PeerSession; readonly carrier: Carrier }
  | { readonly kind: "down"; readonly session: PeerSession };

/** Who is at the other end; the key is empty until the first carrier proves it. */
interface ProvenIdentity extends PeerIdentity {
  keyHash: string;
}

export class Peer {
  readonly node: string;
  readonly #options: PeerOptions;
  readonly #role: SessionRole;
  readonly #events: PathEvents;
  readonly #waiting: WaitingList;
  #state: State = { kind: "idle" };
  #since: MonoMs;
  #identity: ProvenIdentity | undefined;
  #attempt: PathAttempt | undefined;
  /** A carrier was given to the session and may still come up. */
  #hopeful = false;
  #failures = 0;
  #failed: { readonly at: MonoMs; readonly error: MeshError } | undefined;
  /** Why carriers broke before the session was up. */
  #trouble: MeshError | undefined;
  #lastError: string | undefined;
  #cancelDeadline: CancelTimer | undefined;
  #cancelRetry: CancelTimer | undefined;
  #idleSince: MonoMs | undefined;
  /** The best carrier of late. */
  #best: { readonly rank: number; readonly at: MonoMs } | undefined;

  constructor(options: PeerOptions) {
    this.node = options.node;
    this.#options = options;
    this.#role = roleOf(options.self, options.node);
    this.#events = new PathEvents(options.clock);
    this.#waiting = new WaitingList(options.clock, options.establishMs, () => this.#failed?.error.code ?? "TIMEOUT");
    this.#since = options.clock.now();
  }

  get state(): PeerStateKind {
    return this.#state.kind;
  }

  /** Who is at the other end, once it was proven. */
  get identity(): PeerIdentity | undefined {
    return this.#identity?.keyHash === "" ? undefined : this.#identity;
  }

  openStream(target: ServiceTarget, first: Uint8Array | undefined, handler: StreamHandler): MeshStream {
    const session = this.#sessionFor();
    if (session instanceof MeshError) return deadStream(session.code, handler);
    const stream = session.openStream(target, first, handler);
    if (this.#state.kind === "up") return stream;
    this.#waiting.add("stream", (reason) => {
      // Its owner may have given it up meanwhile, and wants to hear nothing then.
      if ((stream as Partial<Pick<Stream, "state">>).state === "over") return;
      const owner = stream.handler;
      stream.reset(reason);
      owner.onClose(reason);
    });
    return stream;
  }

  openFlow(target: ServiceTarget, handler: FlowHandler): DatagramFlow {
    const session = this.#sessionFor();
    if (session instanceof MeshError) return deadFlow(session.code, handler);
    // A flow waits for a carrier without a deadline of its own: datagrams that wait too long are dropped anyway.
    return session.openFlow(target, handler);
  }

  /** Measures the way, making it first where needed. Rejects with MeshError. */
  ping(): Promise<{ readonly rttMs: number; readonly path: PathKind }> {
    return new Promise((resolve, reject) => {
      const fail = (reason: ReasonCode) => {
        reject(new MeshError(reason, this.#lastError ?? `Node ${this.node} does not answer`));
      };
      const ask = () => {
        const state = this.#state;
        if (state.kind !== "up") return fail("PEER_GONE");
        const { path } = state.carrier;
        state.session.ping().then((rttMs) => resolve({ rttMs, path }), reject);
      };
      const session = this.#sessionFor();
      if (session instanceof MeshError) return reject(session);
      if (this.#state.kind === "up") ask();
      else this.#waiting.add("ping", fail, ask);
    });
  }

  /** A carrier that the peer made, or one of ours. */
  attach(carrier: Carrier): void {
    const { node, keyHash } = carrier.peer;
    if (node !== this.node) return carrier.close("CERT_UNTRUSTED");
    // The node was enrolled anew, with another key: whoever has the old session's state is not the one we talk to now.
    if (this.#identity !== undefined && this.#identity.keyHash !== "" && this.#identity.keyHash !== keyHash) {
      this.close("PEER_GONE");
    }
    const state = this.#state;
    // Carriers of one race cross: the relay's may be finished after a better one, and would win by being the newer.
    const now = this.#options.clock.now();
    const better = this.#best !== undefined && now - this.#best.at < RACE_MS ? this.#best.rank : -1;
    if (RANK[carrier.path] < better) return carrier.close("SHUTDOWN");
    this.#best = { rank: RANK[carrier.path], at: now };
    const session = state.kind === "idle" ? this.#begin() : state.session;
    this.#identity!.keyHash = keyHash;
    this.#events.ready(carrier.path);
    this.#hopeful = true;
    session.attach(carrier);
  }

  /** Something worth remembering in the ring of path events. */
  note(path: PathKind, text: string): void {
    this.#events.add("note", { path, text });
  }

  /** The peer or a server came back: no reason to wait on. */
  hint(): void {
    this.#failed = undefined;
    // A search lasts as long as its slowest part; what failed at its beginning must not wait for that.
    this.#attempt?.again?.();
    const { kind } = this.#state;
    if (this.#attempt || this.#hopeful || (kind !== "down" && kind !== "connecting")) return;
    this.#failures = 0;
    this.#search();
  }

  /** Ends the session, its streams and the search. */
  close(reason: ReasonCode): void {
    const state = this.#state;
    if (state.kind === "idle") return;
    state.session.close(reason);
    this.#ended(reason, undefined);
  }

  /** Closes the session when nothing used it for so long. The initiator goes first, so that rarely both do. */
  closeIfIdle(now: MonoMs, idleMs: number): void {
    const state = this.#state;
    if (state.kind !== "up") return void (this.#idleSince = undefined);
    const { streams, flows } = state.session.stats();
    if (streams + flows > 0) return void (this.#idleSince = undefined);
    this.#idleSince ??= now;
    const limit = this.#role === "initiator" ? idleMs : 2 * idleMs;
    if (now - this.#idleSince >= limit) this.close("SHUTDOWN");
  }

  status(): PeerStatus {
    const state = this.#state;
    const stats = state.kind === "idle" ? undefined : state.session.stats();
    return {
      node: this.node,
      state: state.kind,
      path: state.kind === "up" ? state.carrier.path : undefined,
      sinceMs: this.#age,
      keyHash: this.identity?.keyHash,
      rttMs: stats?.rttMs,
      streams: stats?.streams ?? 0,
      flows: stats?.flows ?? 0,
      bytesSent: stats?.bytes ?? 0,
      bytesReceived: stats?.received ?? 0,
      lastError: this.#lastError,
      events: this.#events.list(),
      carriers: this.#events.carriers,
    };
  }

  /** The session to open on, with a search running where it has no way; or why there is none. */
  #sessionFor(): PeerSession | MeshError {
    const state = this.#state;
    switch (state.kind) {
      case "idle": {
        const failed = this.#recentFailure();
        if (failed) return failed;
        const session = this.#begin();
        this.#search();
        return session;
      }
      case "down": {
        const failed = this.#attempt ? undefined : this.#recentFailure();
        if (!this.#attempt && !failed) this.#search();
        return failed ?? state.session;
      }
      case "connecting":
      case "up":
        return state.session;
      default:
        return assertNever(state);
    }
  }

  #recentFailure(): MeshError | undefined {
    const failed = this.#failed;
    return failed && this.#options.clock.now() - failed.at < FAILURE_MS ? failed.error : undefined;
  }

  #begin(): PeerSession {
    const { node, makeSession, onStream, onFlow, clock, establishMs } = this.#options;
    const guard = (then: (current: State & { readonly session: PeerSession }) => void) => {
      const state = this.#state;
      if (state.kind !== "idle" && state.session === session) then(state);
    };
    // The session learns the key with its first carrier; before that nobody can have sent it anything.
    const identity = this.#identity = { node, keyHash: "" };
    const session = makeSession({
      role: this.#role,
      peer: identity,
      events: {
        onStream,
        onFlow,
        onUp: (carrier) => guard(() => this.#up(session, carrier)),
        onSilent: (still) =>
          guard((state) => state.kind === "up" && this.#options.paths.onSilent?.(node, state.carrier.path, still)),
        onDown: (reason) => guard(() => this.#down(session, reason)),
        onClosed: (reason, detail) => guard(() => this.#ended(reason, detail)),
        onCarrierLost: (carrier, reason) => {
          this.#best = undefined;
          guard(() =>
            this.#events.add("note", { path: carrier.path, text: "carrier lost", ...(reason ? { reason } : {}) })
          );
        },
      },
    });
    this.#enter({ kind: "connecting", session });
    this.#trouble = undefined;
    this.#cancelDeadline = clock.timer(establishMs, () => {
      guard((state) => state.kind === "connecting" && this.#giveUp(this.#trouble ?? timedOut(node, establishMs)));
    });
    return session;
  }

  #search(): void {
    this.#cancelRetry?.();
    const { paths, log } = this.#options;
    this.#events.add("dial");
    const attempt = this.#attempt = paths.connect(this.node, {
      onCarrier: (carrier) => {
        if (this.#attempt !== attempt) return carrier.close("SHUTDOWN");
        this.attach(carrier);
      },
      onFailed: (error) => {
        if (this.#attempt !== attempt) return;
        this.#attempt = undefined;
        log.debug("no way to peer", { node: this.node, reason: error.code, error: describe(error) });
        this.#searchFailed(error);
      },
      onNote: (path, text) => {
        if (this.#attempt === attempt) this.#events.add("note", { path, text });
      },
    });
  }

  #searchFailed(error: MeshError): void {
    this.#failed = { at: this.#options.clock.now(), error };
    this.#lastError = describe(error);
    this.#events.add("failed", { reason: error.code, text: error.message });
    const state = this.#state;
    switch (state.kind) {
      case "connecting":
        // The peer's own carrier may have come meanwhile; then the deadline decides.
        return this.#hopeful ? undefined : this.#giveUp(error);
      case "down":
        if (FINAL.has(error.code)) return this.#giveUp(error);
        this.#waiting.fail(error.code);
        return this.#retryLater();
      case "idle":
      case "up":
        return;
      default:
        assertNever(state);
    }
  }

  /** Ends the session because of an error; what waits on it is told that error. */
  #giveUp(error: MeshError): void {
    this.#failed = { at: this.#options.clock.now(), error };
    this.#lastError = describe(error);
    this.close(error.code);
  }

  #up(session: PeerSession, carrier: Carrier): void {
    this.#enter({ kind: "up", session, carrier });
    this.#hopeful = false;
    this.#cancelDeadline?.();
    this.#cancelRetry?.();
    this.#failures = 0;
    this.#failed = undefined;
    if (this.#role === "acceptor") this.#stopSearch();
    this.#events.add("up", { path: carrier.path });
    this.#options.log.info("peer connected", { node: this.node, path: carrier.path });
    this.#waiting.ready();
  }

  #down(session: PeerSession, reason: ReasonCode): void {
    this.#best = undefined;
    const before = this.#state.kind;
    this.#hopeful = false;
    this.#stopSearch();
    this.#events.add("down", { reason });
    const error = new MeshError(reason, `Node ${this.node} ended the connection: ${reason}`);
    if (FINAL.has(reason)) return this.#giveUp(error);
    if (before === "connecting") {
      // A carrier broke before the session was up: the deadline decides how often that is tried.
      this.#trouble = error;
      this.#lastError = describe(error);
      return this.#retryLater();
    }
    const { streams, flows } = session.stats();
    this.#enter({ kind: "down", session });
    this.#lastError = describe(error);
    this.#options.log.info("peer lost", { node: this.node, reason });
    if (streams + flows === 0) return this.close("PEER_GONE");
    if (this.#role === "initiator") this.#search();
    else this.#cancelRetry = this.#options.clock.timer(ACCEPTOR_DELAY_MS, () => this.#search());
  }

  #retryLater(): void {
    const { clock, random } = this.#options;
    const full = Math.min(RETRY_MAX_MS, RETRY_MS * 2 ** Math.min(this.#failures++, 20));
    this.#cancelRetry?.();
    this.#cancelRetry = clock.timer(full * (0.5 + random() / 2), () => this.#search());
  }

  #ended(reason: ReasonCode, detail: string | undefined): void {
    if (this.#state.kind === "idle") return;
    this.#enter({ kind: "idle" });
    this.#hopeful = false;
    this.#cancelDeadline?.();
    this.#cancelRetry?.();
    this.#stopSearch();
    this.#events.add("closed", { reason, ...(detail === undefined ? {} : { text: detail }) });
    if (detail !== undefined) {
      this.#lastError = detail;
      this.#options.log.warn("session ended", { node: this.node, reason, error: detail });
    }
    this.#waiting.sessionEnded(reason);
  }

  #stopSearch(): void {
    this.#attempt?.cancel();
    this.#attempt = undefined;
  }

  #enter(state: State): void {
    this.#state = state;
    this.#since = this.#options.clock.now();
    this.#idleSince = undefined;
    this.#options.paths.onState?.(this.node, state.kind, state.kind === "up" ? state.carrier.path : undefined);
  }

  /** Milliseconds in this state. */
  get #age(): number {
    return this.#options.clock.now() - this.#since;
  }
}

function timedOut(node: string, ms: number): MeshError {
  return new MeshError("TIMEOUT", `No connection to node ${node} within ${ms} ms`);
}
