/**
 * The agent's side of relay legs: when a channel to a peer turns out to be busy, both agents get a connection of their
 * own to the server, which it joins in the kernel; the session moves over to it as to any better carrier. Where such a
 * connection cannot be made (a proxy, a firewall that wants TLS), the channel simply goes on.
 */
import type { CancelTimer, Clock } from "../../clock.ts";
import { codeOf, describe, MeshError, type ReasonCode } from "../../errors.ts";
import type { Logger } from "../../log.ts";
import type { IpPort } from "../../net.ts";
import type { Carrier } from "../carrier.ts";
import type { CarrierEngine } from "../carriers/engine.ts";
import { legHead, type LegMessage } from "../control/leg_message.ts";
import { abortLeg, type PathLeg, type PathSockets } from "../path/legs.ts";

/** The server is near as far as TCP goes: a control connection to the same address stands. */
const DIAL_MS = 5_000;
/** Legs that are being made at once; more of them can wait for the next busy channel. */
const MAX_MAKING = 64;

/** From a leg that could not be made to the next attempt. */
const RETRY_MS = 60_000;

/** A server that can relay legs. */
export interface LegServer {
  /** `remote` is undefined behind a proxy, which takes nothing but TLS. */
  readonly ends: { readonly remote: IpPort | undefined } | undefined;
  readonly url: string;
  /** False when not connected, or to a server without legs. */
  sendLeg(message: LegMessage): boolean;
}

export interface RelayLegsOptions {
  readonly node: string;
  readonly clock: Clock;
  readonly log: Logger;
  readonly engine: CarrierEngine<PathLeg>;
  readonly sockets: PathSockets;
  /** Connected servers, best first for a peer. */
  servers(peer: string): readonly LegServer[];
  /** Whether a session with the peer runs over something better than the relay. */
  direct(peer: string): boolean;
  onCarrier(carrier: Carrier): void;
}

export class RelayLegs {
  readonly #options: RelayLegsOptions;
  /** What is being made, to be ended with the agent. */
  readonly #making = new Set<() => void>();
  /** Peers that are asked for again after a failure. */
  readonly #retries = new Map<string, CancelTimer>();
  #over = false;

  constructor(options: RelayLegsOptions) {
    this.#options = options;
  }

  /** A channel to the peer has carried a lot. Both sides notice; the one whose name sorts first asks. */
  busy(peer: string): void {
    const { node, servers, direct } = this.#options;
    if (this.#over || node > peer || direct(peer)) return;
    // Those that see the peer come first; one that does not says nothing.
    for (const server of servers(peer)) {
      if (server.ends?.remote !== undefined && server.sendLeg({ type: "leg-ask", peer })) return;
    }
  }

  /** What a server says about legs. Throws MeshError PROTOCOL for what only servers are told. */
  message(server: LegServer, m: LegMessage): void {
    if (m.type !== "leg") throw new MeshError("PROTOCOL", `${m.type} is for servers only`);
    const at = server.ends?.remote;
    if (this.#over || at === undefined || this.#making.size >= MAX_MAKING || this.#options.direct(m.peer)) return;
    const { sockets } = this.#options;
    const stop = () => stream.reset("SHUTDOWN");
    const stream = sockets.loop.dialTcp(at, {
      onOpen: () => {
        this.#making.delete(stop);
        const head = legHead(m.ticket);
        // The buffer of a fresh socket takes it whole.
        if (stream.write(head, 0, head.length) !== head.length) return stream.reset("PEER_GONE");
        void this.#secure(sockets.leg(stream), server, m);
      },
      onReadable() {},
      onWritable() {},
      onClose: (reason) => {
        this.#making.delete(stop);
        this.#failed(server, m.peer, reason ?? "PEER_GONE");
      },
    }, { timeoutMs: DIAL_MS });
    this.#making.add(stop);
  }

  close(): void {
    this.#over = true;
    for (const cancel of this.#retries.values()) cancel();
    this.#retries.clear();
    for (const stop of [...this.#making]) stop();
    this.#making.clear();
  }

  /** The channel goes on; the next attempt waits. */
  #failed(server: LegServer, peer: string, reason: ReasonCode, error?: string): void {
    const { log, clock, node } = this.#options;
    log.debug("no relay leg", { server: server.url, peer, reason, ...(error === undefined ? {} : { error }) });
    if (this.#over || node > peer || this.#retries.has(peer) || this.#retries.size >= MAX_MAKING) return;
    this.#retries.set(
      peer,
      clock.timer(RETRY_MS, () => {
        this.#retries.delete(peer);
        this.busy(peer);
      }),
    );
  }

  async #secure(leg: PathLeg, server: LegServer, m: LegMessage & { readonly type: "leg" }): Promise<void> {
    const { engine, direct, onCarrier } = this.#options;
    const { peer } = m;
    const stop = () => abortLeg(leg);
    this.#making.add(stop);
    try {
      const carrier = m.client
        ? await engine.connect(leg, { peer, path: "relay" })
        : await engine.accept(leg, { path: "relay" });
      if (carrier.peer.node !== peer) carrier.close("CERT_UNTRUSTED");
      // Something better may have been found meanwhile.
      else if (this.#over || direct(peer)) carrier.close("SHUTDOWN");
      else onCarrier(carrier);
    } catch (error) {
      this.#failed(server, peer, codeOf(error), describe(error));
    } finally {
      this.#making.delete(stop);
    }
  }
}
