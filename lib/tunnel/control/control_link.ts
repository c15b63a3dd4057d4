/** One control connection of an agent from its opening to its end: heartbeat, metadata, renewals, channels. */
import type { CancelTimer } from "../../clock.ts";
import { MeshError, type ReasonCode } from "../../errors.ts";
import { ChannelTable } from "../legs/channel_table.ts";
import { isChannelFrame } from "../relay/frames.ts";
import type { ControlClientOptions } from "./client.ts";
import { ClockOffset } from "./clock_offset.ts";
import type { ControlConnection } from "./connect.ts";
import { Heartbeat } from "./heartbeat.ts";
import { CONTROL_VERSION, type ControlMessage, decodeControl, encodeControl, type Welcome } from "./message.ts";
import { MetaReceiver, MetaSender } from "./meta_pipe.ts";
import { ControlSocket } from "./socket.ts";

/** From the first packet to WELCOME. */
export const CONNECT_MS = 10_000;
/** A renewal that takes longer is given up; the next one is tried by whoever asked. */
const RENEW_MS = 10_000;

export interface ControlLinkEvents {
  onWelcome(welcome: Welcome): void;
  onMessage(message: ControlMessage): void;
  onEnd(error: MeshError): void;
}

export class ControlLink {
  readonly channels: ChannelTable;
  readonly offset = new ClockOffset();
  readonly ends: ControlConnection["ends"];
  readonly #options: ControlClientOptions;
  readonly #events: ControlLinkEvents;
  readonly #socket: ControlSocket;
  readonly #metaOut: MetaSender;
  readonly #metaIn = new MetaReceiver();
  readonly #renewals = new Map<number, { resolve(answer: string): void; reject(error: MeshError): void }>();
  #lastRenewal = 0;
  #cancel: CancelTimer;
  readonly #heartbeat: Heartbeat;
  #welcomed = false;
  #goAway: MeshError | undefined;
  #metaFirst = false;
  #over = false;

  constructor(options: ControlClientOptions, connection: ControlConnection, events: ControlLinkEvents) {
    this.#options = options;
    this.#events = events;
    this.ends = connection.ends;
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
      rttMs: () => this.offset.leastRttMs ?? 0,
    });
    this.#heartbeat = new Heartbeat({
      clock,
      rttMs: () => this.offset.rttMs,
      ping: () => this.#ping(),
      onDead: (missed) => this.#fail(new MeshError("TIMEOUT", `The server was silent for ${missed} pings`)),
    });
    const { node, version, boot, features = [] } = options;
    this.#tell({ type: "hello", protocol: CONTROL_VERSION, node, version, boot, features });
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

  /** Sends one message. */
  tell(message: ControlMessage): void {
    this.#tell(message);
  }

  /** Asks for the server's time now; the answer improves {@link offset}. */
  ping(): void {
    this.#ping();
  }

  /** There is doubt: finds out soon whether the connection lives. */
  probe(): void {
    this.#heartbeat.doubt();
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
    this.#heartbeat.stop();
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
    this.#heartbeat.heard();
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
    this.#heartbeat.start();
    this.#events.onWelcome(m);
  }

  #pong(stamp: number, time: number): void {
    const { clock } = this.#options;
    if (this.offset.sample({ sentAt: stamp, now: clock.now(), wall: clock.wall(), server: time })) {
      this.#options.onTime(time, stamp);
    }
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
