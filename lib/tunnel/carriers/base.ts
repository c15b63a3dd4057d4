/** What the carriers of all engines have in common: who is there, and what was heard before a session listens. */
import type { ReasonCode } from "../../errors.ts";
import type { Carrier, CarrierHandler, PathKind, PeerIdentity } from "../carrier.ts";
import { Inbox } from "./inbox.ts";
import { batchPool } from "./pool.ts";
import { FrameReader } from "./ws_frame.ts";

/** Between an engine's wire and the session; the engine adds how bytes move. */
export abstract class CarrierBase implements Carrier {
  readonly peer: PeerIdentity;
  readonly path: PathKind;
  protected readonly inbox = new Inbox();
  protected readonly reader = new FrameReader(batchPool);
  /** Nothing is sent, read or told any more. */
  protected over = false;
  /** A send said stop: the session waits for `onDrain`. */
  protected blocked = false;

  constructor({ peer, path }: { readonly peer: PeerIdentity; readonly path: PathKind }) {
    this.peer = peer;
    this.path = path;
  }

  get handler(): CarrierHandler {
    return this.inbox.handler;
  }

  set handler(handler: CarrierHandler) {
    this.inbox.handler = handler;
  }

  abstract send(batch: Uint8Array): boolean;

  /** Ends it on our side: the other one is told `reason`, ours hears nothing. */
  close(reason: ReasonCode): void {
    if (this.over) return;
    this.stop();
    this.inbox.stop();
    this.lastWords(reason);
  }

  /** The reason of the other side's close frame; SHUTDOWN is an orderly end, to the session an end without a fault. */
  protected closedByPeer(reason: ReasonCode | undefined): void {
    this.lost(reason === "SHUTDOWN" ? undefined : reason);
  }

  /** Something is wrong with what came: the other side is told, then ours. */
  protected fault(code: ReasonCode): void {
    if (this.over) return;
    this.stop();
    this.lastWords(code);
    this.inbox.end(code);
  }

  /** The connection is gone. */
  protected lost(reason: ReasonCode | undefined): void {
    if (this.over) return;
    this.stop();
    this.abort();
    this.inbox.end(reason);
  }

  /** Tells the other side why, then ends the leg. */
  protected abstract lastWords(reason: ReasonCode): void;

  /** Ends the leg at once. */
  protected abstract abort(): void;

  private stop(): void {
    this.over = true;
    this.reader.end();
  }
}
