/**
 * TCP connections between two agents up to the point where TLS takes over: made or accepted by the loop, opened with a
 * knock, handed over as a leg.
 */
import type { Duplex } from "node:stream";
import { StreamLeg } from "../carriers/stream_leg.ts";
import { hostPort } from "../../addr.ts";
import { MeshError, type ReasonCode } from "../../errors.ts";
import {
  type DialOptions,
  type IpPort,
  type Loop,
  type MeshStream,
  type StreamHandler,
  WOULD_BLOCK,
} from "../../net.ts";
import { isKnock, KNOCK_BYTES, makeKnock } from "./knock.ts";

/** What an engine runs on: a socket of node:net for the portable one, a stream of the loop for the fast one. */
export type PathLeg = Duplex | StreamLeg;

/** What paths need of the kernel. */
export interface PathSockets {
  readonly loop: Loop;
  /** Takes an open connection out of the loop, as a leg for the carrier engine. Throws MeshError if it just broke. */
  leg(stream: MeshStream): PathLeg;
}

/** Stops what is under way; afterwards nothing is told. Safe at any time. */
export type Cancel = () => void;

/** Told once: the leg, or why there is none. */
export type LegDone = (result: PathLeg | MeshError) => void;

export interface LegDial extends DialOptions {
  readonly to: IpPort;
  /** The node that is meant, and a key of the mesh: for the knock. */
  readonly node: string;
  readonly key: Uint8Array;
}

/** Our own address on a leg, and what is called once it is over. */
export function watchLeg(leg: PathLeg, onOver: () => void): string | undefined {
  if (leg instanceof StreamLeg) leg.onOver(onOver);
  else leg.once("close", onOver);
  return (leg as { readonly localAddress?: string }).localAddress;
}

/** Connects, knocks and hands over the connection. `done` is never called from inside this call. */
export function dialLeg(sockets: PathSockets, dial: LegDial, done: LegDone): Cancel {
  const { to, node, key, ...options } = dial;
  const stream = sockets.loop.dialTcp(to, {
    onOpen: () => takeLeg(sockets, stream, { node, key }, done),
    onReadable() {},
    onWritable() {},
    onClose: (reason = "PEER_GONE") => done(new MeshError(reason, `Cannot connect to ${hostPort(to)}: ${reason}`)),
  }, options);
  return () => stream.reset("SHUTDOWN");
}

/** Knocks on an open connection and hands it over, from inside this call; a failure is told later. */
export function takeLeg(
  sockets: PathSockets,
  stream: MeshStream,
  knockFor: { readonly node: string; readonly key: Uint8Array },
  done: LegDone,
): Cancel {
  const knock = makeKnock(knockFor.key, knockFor.node);
  // The buffer of a fresh socket takes it whole.
  if (stream.write(knock, 0, KNOCK_BYTES) === KNOCK_BYTES) handOver(sockets, stream, done);
  else {
    stream.reset("PEER_GONE");
    queueMicrotask(() => done(new MeshError("PEER_GONE", "The connection ended at once")));
  }
  return () => stream.reset("SHUTDOWN");
}

/** Ends a leg with RST where it can: a FIN would hold its ports for a later attempt. */
export function abortLeg(leg: PathLeg): void {
  if (leg instanceof StreamLeg) return leg.abort();
  const reset = (leg as { resetAndDestroy?: () => void }).resetAndDestroy;
  leg.on("error", () => {});
  if (reset && !leg.destroyed) reset.call(leg);
  else leg.destroy();
}

export interface LegAccept {
  /** Our own name and the keys of the mesh: for the knock. */
  readonly node: string;
  readonly keys: readonly Uint8Array[];
}

/**
 * Waits for the knock on an accepted or simultaneously opened connection and hands it over. Anything else than the
 * knock ends in RST without a byte from us, told as CERT_UNTRUSTED; the caller has the deadline.
 */
export function acceptLeg(sockets: PathSockets, stream: MeshStream, accept: LegAccept, done: LegDone): Cancel {
  const knock = new Uint8Array(KNOCK_BYTES);
  let have = 0;
  const refuse = (code: ReasonCode, what: string) => {
    stream.reset(code);
    done(new MeshError(code, what));
  };
  const handler: StreamHandler = {
    onOpen() {},
    onWritable() {},
    onReadable: () => {
      while (have < KNOCK_BYTES) {
        const n = stream.read(knock.subarray(have));
        if (n === WOULD_BLOCK) return;
        if (n === 0) return refuse("PEER_GONE", "The connection ended before the knock");
        have += n;
      }
      if (!isKnock(accept.keys, knock, accept.node)) return refuse("CERT_UNTRUSTED", "No agent of this mesh knocked");
      handOver(sockets, stream, done);
    },
    onClose: () => done(new MeshError("PEER_GONE", "The connection ended before the knock")),
  };
  stream.handler = handler;
  return () => stream.reset("SHUTDOWN");
}

function handOver(sockets: PathSockets, stream: MeshStream, done: LegDone): void {
  let leg: PathLeg;
  try {
    leg = sockets.leg(stream);
  } catch (cause) {
    stream.reset("PEER_GONE");
    return queueMicrotask(() => done(new MeshError("PEER_GONE", "The connection ended at once", { cause })));
  }
  done(leg);
}
