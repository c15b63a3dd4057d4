/**
 * A byte stream of the loop (or a channel through the server) as what the fast engine runs on. The engine owns the
 * stream; whoever watches over legs can still end it from outside.
 */
import { idleHandler, type MeshStream } from "../../net.ts";

export class StreamLeg {
  readonly stream: MeshStream;
  /** Our own address on it; undefined where it has none. */
  readonly localAddress: string | undefined;
  readonly #watchers: (() => void)[] = [];
  #over = false;

  constructor(stream: MeshStream, localAddress?: string) {
    this.stream = stream;
    this.localAddress = localAddress;
    stream.handler = idleHandler;
  }

  get destroyed(): boolean {
    return this.#over;
  }

  /** Calls `watcher` once when the leg is over, whoever ended it; not from inside this call. */
  onOver(watcher: () => void): void {
    if (this.#over) queueMicrotask(watcher);
    else this.#watchers.push(watcher);
  }

  /** Ends it at once with RST; whoever runs on it hears PEER_GONE. */
  abort(): void {
    if (this.#over) return;
    const { handler } = this.stream;
    this.stream.reset("PEER_GONE");
    queueMicrotask(() => handler.onClose("PEER_GONE"));
    this.over();
  }

  /** Its stream has ended: told by who runs on it. */
  over(): void {
    if (this.#over) return;
    this.#over = true;
    for (const watcher of this.#watchers.splice(0)) watcher();
  }
}
