/** What the contract of carriers is tested with: two agents, the wire between them, and what they heard. */
import assert from "node:assert/strict";
import { FakeClock, pause } from "../../lib/clock.ts";
import { MeshError, type ReasonCode } from "../../lib/errors.ts";
import type { Carrier, CarrierHandler } from "../../lib/tunnel/carrier.ts";
import type { CarrierEngine, EngineOptions, TlsCredentials } from "../../lib/tunnel/carriers/engine.ts";
import { TEST_NOW, type TestPki } from "./tunnel_pki.ts";

/** What happens to bytes on the way; both directions start open. */
export interface Wire {
  /** Sees each chunk; returns what goes on. `fromClient`: direction. */
  tamper: ((chunk: Uint8Array, fromClient: boolean) => Uint8Array) | undefined;
  /** While true nothing of the client's bytes is taken from it. */
  stalled: boolean;
  /** Ends both legs as a lost connection would. */
  cut(): void;
}

/** An engine over one kind of leg. */
export interface CarrierRig<Leg> {
  readonly name: string;
  engine(options: EngineOptions & { readonly clock: FakeClock }): CarrierEngine<Leg>;
  /** A fresh pair of connected legs (client's, server's) with the wire between them. */
  legs(): Promise<readonly [Leg, Leg, Wire]>;
  /** Bytes the legs and the wire may hold beyond the carrier's own bound: kernel buffers. */
  readonly slack: number;
  /** Makes what engines and legs of one test share. */
  setUp?(): void;
  /** Gives it back, and fails when a carrier left something. */
  tearDown?(): Promise<void>;
}

/** Hears nothing. */
export const nothing: CarrierHandler = { onBatch() {}, onDrain() {}, onClose() {} };

export function constant<T>(value: T): () => T {
  return () => value;
}

/** Keeps what a carrier delivers, and lets a test wait for it. */
export class Recorder implements CarrierHandler {
  readonly got: Uint8Array[] = [];
  ended = false;
  #reason: ReasonCode | undefined;
  #total = 0;
  #waiters: (() => void)[] = [];

  constructor(carrier: Carrier) {
    carrier.handler = this;
  }

  onBatch(batch: Uint8Array): void {
    assert.equal(this.ended, false, "nothing comes after the end");
    this.got.push(batch.slice());
    this.#total += batch.length;
    this.#wake();
  }

  onDrain(): void {}

  onClose(reason: ReasonCode | undefined): void {
    assert.equal(this.ended, false, "the end comes once");
    this.ended = true;
    this.#reason = reason;
    this.#wake();
  }

  batches(n: number): Promise<void> {
    return this.#until(() => this.got.length >= n);
  }

  bytes(n: number): Promise<void> {
    return this.#until(() => this.#total >= n);
  }

  async closed(): Promise<ReasonCode | undefined> {
    await this.#until(() => this.ended);
    return this.#reason;
  }

  async #until(done: () => boolean): Promise<void> {
    while (!done()) await new Promise<void>((resolve) => this.#waiters.push(resolve));
  }

  #wake(): void {
    for (const w of this.#waiters.splice(0)) w();
  }
}

interface Parties {
  readonly client?: TlsCredentials;
  readonly server?: TlsCredentials;
}

/** Two agents, edge-a asking for edge-b, on a clock that only moves when told to. */
export class Bench<Leg> {
  readonly clock = new FakeClock(0, TEST_NOW);
  readonly #wires: Wire[] = [];
  readonly #carriers: Carrier[] = [];

  constructor(readonly rig: CarrierRig<Leg>, readonly pki: TestPki) {}

  engine(options: EngineOptions): CarrierEngine<Leg> {
    return this.rig.engine({ ...options, clock: this.clock });
  }

  async pair(parties: Parties = {}): Promise<readonly [Carrier, Carrier, Wire]> {
    let wire: Wire | undefined;
    const [a, b] = await Promise.all(this.handshake(parties, (w) => (wire = w)));
    if (a instanceof Error) throw a;
    if (b instanceof Error) throw b;
    return [a!, b!, wire!];
  }

  /** Both sides' results: a carrier, or the error. `prepare` sets the wire up before a byte flows. */
  handshake(parties: Parties, prepare: (wire: Wire) => void): Promise<Carrier | Error>[] {
    const both = this.#start(parties, prepare);
    return [both.then(([a]) => a), both.then(([, b]) => b)];
  }

  async #start(parties: Parties, prepare: (wire: Wire) => void): Promise<readonly [Carrier | Error, Carrier | Error]> {
    const client = parties.client ?? await this.pki.issue("edge-a");
    const server = parties.server ?? await this.pki.issue("edge-b");
    const [x, y, wire] = await this.rig.legs();
    this.#wires.push(wire);
    prepare(wire);
    const { verifyNode: verify } = this.pki;
    const result = (end: Promise<Carrier>) => end.then((carrier) => this.#keep(carrier), (error: Error) => error);
    return await Promise.all([
      result(this.engine({ credentials: constant(client), verify }).connect(x, { peer: "edge-b", path: "lan" })),
      result(this.engine({ credentials: constant(server), verify }).accept(y, { path: "lan" })),
    ]);
  }

  #keep(carrier: Carrier): Carrier {
    this.#carriers.push(carrier);
    return carrier;
  }

  /** One side refuses with `code`; the other hears the same reason and never gets a byte through. */
  async refused(how: Parties & { readonly code: ReasonCode; readonly by: "client" | "server" }): Promise<void> {
    const [a, b] = await Promise.all(this.handshake(how, () => {}));
    const [refusing, refused] = how.by === "client" ? [a!, b!] : [b!, a!];
    assert.ok(refusing instanceof MeshError, "the handshake must fail where the certificate is judged");
    assert.equal(refusing.code, how.code);
    if (refused instanceof MeshError) return assert.ok(["PEER_GONE", "PROTOCOL", how.code].includes(refused.code));
    const recorder = new Recorder(refused as Carrier);
    (refused as Carrier).send(new TextEncoder().encode("must not be read"));
    assert.equal(await recorder.closed(), how.code);
    assert.deepEqual(recorder.got, []);
  }

  /** No carrier comes up on either side that lasts. */
  async fails(parties: Parties): Promise<void> {
    const ends = await Promise.all(this.handshake(parties, () => {}));
    assert.ok(ends.some((end) => end instanceof MeshError));
    for (const end of ends) if (!(end instanceof Error)) await new Recorder(end).closed();
  }

  signal(): Signal {
    return new Signal();
  }

  /** Lets everything that is on its way arrive. */
  async settled(): Promise<void> {
    for (let i = 0; i < 20; i++) await pause(1);
  }

  async passes(_carrier: Carrier, rounds: number): Promise<void> {
    for (let i = 0; i < rounds; i++) await this.settled();
  }

  /** Ends what the test left, and checks that no timer is armed any more. */
  finish(): void {
    for (const carrier of this.#carriers) carrier.close("SHUTDOWN");
    for (const wire of this.#wires) wire.cut();
    this.clock.advance(60_000);
    assert.equal(this.clock.pending, 0, "timers were left");
  }
}

class Signal {
  fire: () => void = () => {};
  readonly fired: Promise<void> = new Promise((resolve) => (this.fire = resolve));

  /** Whether it fires within `ms` of real time. */
  async within(ms: number): Promise<boolean> {
    let fired = false;
    void this.fired.then(() => (fired = true));
    for (let waited = 0; waited < ms && !fired; waited += 10) await pause(10);
    return fired;
  }
}
