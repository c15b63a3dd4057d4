/** All rounds of hole punching of this agent: the shell around punch_round.ts. */
import type { Clock } from "../../clock.ts";
import { MeshError } from "../../errors.ts";
import type { IpPort, MeshStream } from "../../net.ts";
import type { Carrier } from "../carrier.ts";
import type { CarrierEngine } from "../carriers/engine.ts";
import type { ControlClient } from "../control/client.ts";
import type { PunchMessage } from "../control/path_message.ts";
import { abortLeg, acceptLeg, type Cancel, type PathLeg, type PathSockets, takeLeg } from "./legs.ts";
import { type PunchPrepare, PunchRound } from "./punch_round.ts";
import { openPunchSockets } from "./punch_sockets.ts";
import type { PunchResult } from "./pursuit.ts";

/** Rounds at once: each holds a port, two listeners and a few connections. */
const MAX_ROUNDS = 8;

export interface PuncherOptions {
  readonly node: string;
  readonly clock: Clock;
  random(): number;
  readonly engine: CarrierEngine<PathLeg>;
  readonly sockets: PathSockets;
  readonly ports: readonly [number, number];
  keys(): readonly Uint8Array[];
  allowed(target: IpPort): boolean;
  /** Whether a path by punching would be better than what there is. */
  wanted(peer: string): boolean;
  onResult(peer: string, result: PunchResult): void;
}

/** The server that coordinates a round. */
export type PunchServer = Pick<ControlClient, "sendPath" | "ends" | "leastRttMs" | "clockOffsetMs" | "askTime">;

export interface PunchOutcome {
  /** `same`, `steps`, `varies` or `unknown`. */
  readonly ours: string;
  readonly theirs: string;
  readonly ok: boolean;
  readonly rounds: number;
}

export class Puncher {
  readonly #options: PuncherOptions;
  readonly #rounds = new Map<PunchServer, Map<number, PunchRound>>();
  /** `ours theirs result` → rounds; at most 4 × 4 × 2 keys. */
  readonly #outcomes = new Map<string, number>();
  #size = 0;

  constructor(options: PuncherOptions) {
    this.#options = options;
  }

  /** A message of a server about a round. */
  message(server: PunchServer, m: PunchMessage): void {
    if (m.step === "prepare") return this.#prepare(server, m);
    this.#rounds.get(server)?.get(m.id)?.message(m);
  }

  /** Rounds under way. */
  get size(): number {
    return this.#size;
  }

  /** How rounds went, by how the two NATs map. */
  get outcomes(): readonly PunchOutcome[] {
    return [...this.#outcomes].map(([key, rounds]) => {
      const [ours, theirs, result] = key.split(" ") as [string, string, PunchResult["kind"]];
      return { ours, theirs, ok: result === "carrier", rounds };
    });
  }

  /** Ends the rounds with a peer. */
  forget(peer: string): void {
    for (const [server, rounds] of this.#rounds) {
      for (const [id, round] of rounds) {
        if (round.peer !== peer) continue;
        round.cancel();
        this.#over(server, id);
      }
    }
  }

  close(): void {
    for (const rounds of [...this.#rounds.values()]) for (const round of rounds.values()) round.cancel();
    this.#rounds.clear();
    this.#size = 0;
  }

  #prepare(server: PunchServer, m: PunchPrepare): void {
    const { id, peer } = m;
    const stop = (code: "LIMIT" | "SHUTDOWN", message: string) =>
      void server.sendPath({ type: "punch", step: "stop", id, code, message });
    if (!this.#options.wanted(peer)) return stop("SHUTDOWN", "there is a direct path already");
    if (this.#size >= MAX_ROUNDS) return stop("LIMIT", `${MAX_ROUNDS} rounds of hole punching are under way`);
    // The start is given by the server's clock: a fresh look at it is worth a message.
    server.askTime();
    const { clock, random, sockets, ports, allowed, engine } = this.#options;
    const round = new PunchRound({
      clock,
      random,
      open: (port, onIncoming) => openPunchSockets(sockets.loop, port, onIncoming),
      ports,
      server: server.ends?.remote?.ip,
      allowed,
      get rttMs() {
        return server.leastRttMs ?? 0;
      },
      get offsetMs() {
        return server.clockOffsetMs;
      },
      send: (message) => void server.sendPath(message),
      warm: () => engine.warm?.(),
      secure: (stream, done) => this.#secure(peer, stream, done),
      done: (result, { ours, theirs }) => {
        const key = `${ours} ${theirs} ${result.kind}`;
        this.#outcomes.set(key, (this.#outcomes.get(key) ?? 0) + 1);
        this.#over(server, id);
        this.#options.onResult(peer, result);
      },
    }, m);
    const rounds = this.#rounds.get(server) ?? new Map<number, PunchRound>();
    this.#rounds.set(server, rounds);
    rounds.get(id)?.cancel();
    rounds.set(id, round);
    this.#size++;
    round.start();
  }

  #over(server: PunchServer, id: number): void {
    const rounds = this.#rounds.get(server);
    if (!rounds?.delete(id)) return;
    this.#size--;
    if (rounds.size === 0) this.#rounds.delete(server);
  }

  /** The smaller name is the TLS client. */
  #secure(peer: string, stream: MeshStream, done: (result: Carrier | MeshError) => void): Cancel {
    const { sockets, node, keys, engine } = this.#options;
    const client = node < peer;
    let over = false;
    let leg: PathLeg | undefined;
    const onLeg = (result: PathLeg | MeshError) => {
      if (over) return void (result instanceof MeshError || abortLeg(result));
      if (result instanceof MeshError) return done(result);
      leg = result;
      const carrier = client ? engine.connect(leg, { peer, path: "direct" }) : engine.accept(leg, { path: "direct" });
      carrier.then(
        (carrier) => {
          if (over) return carrier.close("SHUTDOWN");
          if (carrier.peer.node === peer) return done(carrier);
          carrier.close("NOT_ALLOWED");
          done(new MeshError("CERT_UNTRUSTED", `${carrier.peer.node} came to the port that was made for ${peer}`));
        },
        (error) =>
          over || done(error instanceof MeshError ? error : new MeshError("INTERNAL", "TLS failed", { cause: error })),
      );
    };
    const cancel = client
      ? takeLeg(sockets, stream, { node: peer, key: keys()[0]! }, onLeg)
      : acceptLeg(sockets, stream, { node, keys: keys() }, onLeg);
    return () => {
      over = true;
      if (leg) abortLeg(leg);
      else cancel();
    };
  }
}
