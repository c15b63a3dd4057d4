/** The sockets of one punch port: listeners and connections that share a local port, made by the loop. */
import { familyOf, hostPort } from "../../addr.ts";
import { MeshError } from "../../errors.ts";
import { type IpPort, type Listener, type Loop, type MeshStream, WOULD_BLOCK } from "../../net.ts";
import type { ObserveEvents, PunchSockets } from "./punch_round.ts";
import { ANSWER_BYTES, decodeAnswer, encodeRequest, REQUEST_BYTES } from "./sighting.ts";

/** A sighting takes two round trips. */
const OBSERVE_MS = 3_000;
const ANY = { 4: "0.0.0.0", 6: "::" } as const;

/** Listens on the port in both families; undefined when somebody has it. */
export function openPunchSockets(
  loop: Loop,
  port: number,
  onIncoming: (stream: MeshStream, from: IpPort) => void,
): PunchSockets | undefined {
  const listeners: Listener[] = [];
  for (const family of [4, 6] as const) {
    try {
      const at = { ip: ANY[family], port };
      listeners.push(loop.listenTcp(at, ({ stream, remote }) => onIncoming(stream, remote), { reusePort: true }));
    } catch {
      // Without IPv6 on this host IPv4 is all there is.
      if (family === 4) return undefined;
    }
  }
  const observed = new Set<MeshStream>();
  const from = (to: IpPort) => ({ ip: ANY[familyOf(to.ip)], port });
  return {
    port,
    observe(server, nonce, events) {
      observed.add(ask(loop, server, { from: from(server), reusePort: true, timeoutMs: OBSERVE_MS }, nonce, events));
    },
    dial(to, timeoutMs, done) {
      let over = false;
      const stream = loop.dialTcp(to, {
        onOpen: () => {
          over = true;
          done(stream);
        },
        onReadable() {},
        onWritable() {},
        onClose: (reason) => {
          if (!over) done(reason ?? "PEER_GONE");
          over = true;
        },
      }, { from: from(to), reusePort: true, timeoutMs });
      return () => {
        if (!over) stream.reset("SHUTDOWN");
        over = true;
      };
    },
    close() {
      for (const listener of listeners) listener.close();
      for (const stream of observed) stream.reset("SHUTDOWN");
    },
  };
}

/** Connects to an observation port and asks where it sees us. The connection stays open until it is reset. */
export function ask(
  loop: Loop,
  server: IpPort,
  options: { readonly from?: IpPort; readonly reusePort?: boolean; readonly timeoutMs: number },
  nonce: string,
  events: ObserveEvents,
): MeshStream {
  const answer = new Uint8Array(ANSWER_BYTES);
  let have = 0;
  let told = false;
  const tell = (result: IpPort | MeshError) => {
    if (told) return;
    told = true;
    events.onAnswer(result);
  };
  const stream = loop.dialTcp(server, {
    onOpen: () => {
      stream.write(encodeRequest(nonce), 0, REQUEST_BYTES);
      events.onAsked();
    },
    onReadable: () => {
      while (have < ANSWER_BYTES) {
        const n = stream.read(answer.subarray(have));
        if (n === WOULD_BLOCK) return;
        if (n === 0) return tell(new MeshError("PEER_GONE", `${hostPort(server)} hung up without an answer`));
        have += n;
      }
      tell(decodeAnswer(nonce, answer) ?? new MeshError("PROTOCOL", `${hostPort(server)} answered something else`));
    },
    onWritable() {},
    onClose: (reason) =>
      tell(new MeshError(reason ?? "PEER_GONE", `${hostPort(server)} does not tell where it sees us`)),
  }, options);
  return stream;
}
