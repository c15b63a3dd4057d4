/** A TCP proxy that can swallow everything: a network that is cut without a word, and healed. */

export class CutProxy {
  readonly #listener: Deno.TcpListener;
  readonly #target: number;
  readonly #connections = new Set<Deno.Conn>();
  #healed: Promise<void> = Promise.resolve();
  #heal: () => void = () => {};
  #cut = false;
  #closed = false;

  constructor(targetPort: number) {
    this.#target = targetPort;
    this.#listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    void this.#accept();
  }

  get port(): number {
    return (this.#listener.addr as Deno.NetAddr).port;
  }

  /** From now on no byte passes in either direction, of old and new connections; none is closed. */
  cut(): void {
    this.#cut = true;
    this.#healed = new Promise((resolve) => this.#heal = resolve);
  }

  /** Bytes of new connections pass again; connections from before the cut stay dead, as behind a NAT that forgot them. */
  heal(): void {
    this.#cut = false;
    for (const conn of this.#connections) this.#dead.add(conn);
    this.#heal();
  }

  readonly #dead = new WeakSet<Deno.Conn>();

  close(): void {
    this.#closed = true;
    this.#listener.close();
    this.#heal();
    for (const conn of this.#connections) close(conn);
  }

  async #accept(): Promise<void> {
    try {
      for await (const inner of this.#listener) {
        this.#connections.add(inner);
        void this.#serve(inner);
      }
    } catch {
      // Closed.
    }
  }

  async #serve(inner: Deno.Conn): Promise<void> {
    let outer: Deno.Conn | undefined;
    try {
      // A connection made during the cut waits, as a SYN without answer would.
      await this.#healed;
      this.#dead.delete(inner);
      if (this.#closed) return;
      outer = await Deno.connect({ hostname: "127.0.0.1", port: this.#target });
      this.#connections.add(outer);
      await Promise.all([this.#pump(inner, outer), this.#pump(outer, inner)]);
    } catch {
      // Either side went away.
    } finally {
      for (const conn of [inner, outer]) {
        if (!conn) continue;
        this.#connections.delete(conn);
        close(conn);
      }
    }
  }

  async #pump(from: Deno.Conn, to: Deno.Conn): Promise<void> {
    const buffer = new Uint8Array(65536);
    for (;;) {
      const n = await from.read(buffer);
      if (n === null) return close(to);
      if (this.#cut || this.#dead.has(from) || this.#dead.has(to)) continue;
      for (let at = 0; at < n;) at += await to.write(buffer.subarray(at, n));
    }
  }
}

function close(conn: Deno.Conn): void {
  try {
    conn.close();
  } catch {
    // Closed already.
  }
}
