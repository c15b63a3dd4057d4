/** The manager with everything around it in the test's hands. */
import assert from "node:assert/strict";
import { FakeClock } from "../clock.ts";
import type { ReasonCode } from "../errors.ts";
import { nullLogger } from "../log.ts";
import type { DatagramFlow, MeshStream, ServiceTarget, StreamHandler } from "../net.ts";
import { idleHandler } from "../net_memory.ts";
import type { Carrier, PathKind } from "./carrier.ts";
import type { PathAgent, PathAttempt, PathSink } from "./legs/path_agent.ts";
import { TunnelManager, type TunnelManagerOptions } from "./peer/manager.ts";
import type { PeerSession, SessionParts } from "./peer/peer_types.ts";
import type { SessionStats } from "./session/session_types.ts";

/** A session that does what the test says. */
export class FakeSession implements PeerSession {
  readonly carriers: Carrier[] = [];
  readonly streams: FakeStream[] = [];
  closed: ReasonCode | undefined;
  counts = { streams: 0, flows: 0 };
  pings: { resolve(ms: number): void; reject(error: Error): void }[] = [];

  constructor(readonly parts: SessionParts) {}

  attach(carrier: Carrier): void {
    assert.equal(carrier.peer.keyHash, this.parts.peer.keyHash, "the session knows the key when it gets a carrier");
    this.carriers.push(carrier);
  }

  openStream(_target: ServiceTarget, _first: Uint8Array | undefined, handler: StreamHandler): MeshStream {
    const stream = new FakeStream(handler);
    this.streams.push(stream);
    return stream;
  }

  openFlow(): DatagramFlow {
    return { send: () => true, close() {} };
  }

  ping(): Promise<number> {
    return new Promise((resolve, reject) => this.pings.push({ resolve, reject }));
  }

  close(reason: ReasonCode): void {
    this.closed = reason;
    for (const stream of this.streams) stream.fail(reason);
  }

  stats(): SessionStats {
    return { ...this.counts, rttMs: 7, bytes: 100, received: 200 } as unknown as SessionStats;
  }

  up(): void {
    this.parts.events.onUp(this.carriers.at(-1)!);
  }
}

export class FakeStream implements MeshStream {
  state: "opening" | "open" | "over" = "opening";
  resets: ReasonCode[] = [];

  constructor(public handler: StreamHandler) {}

  read(): number {
    return -1;
  }

  write(): number {
    return 0;
  }

  closeWrite(): void {}

  reset(code: ReasonCode): void {
    this.resets.push(code);
    this.state = "over";
  }

  fail(reason: ReasonCode): void {
    if (this.state === "over") return;
    this.state = "over";
    this.handler.onClose(reason);
  }
}

export class FakePaths implements PathAgent {
  readonly attempts: { peer: string; sink: PathSink; cancelled: boolean }[] = [];

  connect(peer: string, sink: PathSink): PathAttempt {
    const attempt = { peer, sink, cancelled: false };
    this.attempts.push(attempt);
    return { cancel: () => void (attempt.cancelled = true) };
  }

  get last() {
    return this.attempts.at(-1)!;
  }
}

export class FakeCarrier implements Carrier {
  readonly peer;
  handler = { onBatch() {}, onDrain() {}, onClose() {} };
  closed: ReasonCode | undefined;

  constructor(node: string, readonly path: PathKind = "relay", keyHash = "key of " + node) {
    this.peer = { node, keyHash };
  }

  send(): boolean {
    return true;
  }

  close(reason: ReasonCode): void {
    this.closed = reason;
  }
}

/** The manager of `self` with everything around it in the test's hands. */
export class ManagerRig {
  readonly clock = new FakeClock();
  readonly paths = new FakePaths();
  readonly sessions: FakeSession[] = [];
  readonly manager: TunnelManager;

  constructor(self: string, parts: Partial<TunnelManagerOptions> = {}) {
    this.manager = new TunnelManager({
      node: self,
      clock: this.clock,
      log: nullLogger,
      paths: this.paths,
      random: () => 1,
      makeSession: (session) => {
        this.sessions.push(new FakeSession(session));
        return this.sessions.at(-1)!;
      },
      onStream() {},
      onFlow() {},
      ...parts,
    });
  }

  get session(): FakeSession {
    return this.sessions.at(-1)!;
  }

  dial(node: string | undefined): { stream: MeshStream; closes: (ReasonCode | undefined)[] } {
    const closes: (ReasonCode | undefined)[] = [];
    const stream = this.manager.dial(target(node), undefined, {
      ...idleHandler,
      onClose: (reason) => void closes.push(reason),
    });
    return { stream, closes };
  }

  /** A session with a carrier of ours, up. */
  connected(node: string): FakeSession {
    this.dial(node).stream.reset("RESET");
    this.paths.last.sink.onCarrier(new FakeCarrier(node));
    this.session.up();
    return this.session;
  }

  status(node: string) {
    return this.manager.status().peers.find((peer) => peer.node === node)!;
  }
}

function target(node: string | undefined): ServiceTarget {
  return { namespace: "a", service: "b", protocol: "TCP", port: 1, node, endpoint: { ip: "10.0.0.1", port: 1 } };
}
