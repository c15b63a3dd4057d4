/** Streams and flows that failed before they began: the reason is told as with any other, from outside the call. */
import type { ReasonCode } from "../../errors.ts";
import { type DatagramFlow, type FlowHandler, type MeshStream, type StreamHandler, WOULD_BLOCK } from "../../net.ts";

/** A stream whose `onClose(reason)` comes soon, unless its owner resets it before. */
export function deadStream(reason: ReasonCode, handler: StreamHandler): MeshStream {
  let over = false;
  const stream: MeshStream = {
    handler,
    read: () => WOULD_BLOCK,
    write: () => 0,
    closeWrite() {},
    reset: () => void (over = true),
  };
  queueMicrotask(() => {
    if (!over) stream.handler.onClose(reason);
    over = true;
  });
  return stream;
}

/** A flow whose `onClose(reason)` comes soon, unless its owner closes it before. */
export function deadFlow(reason: ReasonCode, handler: FlowHandler): DatagramFlow {
  let over = false;
  queueMicrotask(() => {
    if (!over) handler.onClose(reason);
    over = true;
  });
  return { send: () => false, close: () => void (over = true) };
}
