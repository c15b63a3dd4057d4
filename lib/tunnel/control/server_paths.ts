/** The server's help with direct paths as part of its control connections: the coordinator, its clock and its port. */
import { randomBytes } from "node:crypto";
import type { CancelTimer, Clock } from "../../clock.ts";
import type { ReasonCode } from "../../errors.ts";
import type { Logger } from "../../log.ts";
import type { IpPort } from "../../net.ts";
import { Coordinator, type CoordinatorStats } from "../path/coordinator.ts";
import { ObservePort } from "./observe_port.ts";
import { NONCE_BYTES, type PathMessage } from "./path_message.ts";

export interface ServerPathsOptions {
  /** Where the observation port listens; undefined: there is none, and no hole punching. */
  readonly observe: IpPort | undefined;
  /** The server's own public addresses, told to agents beside the one they are connected to. */
  readonly servers: readonly string[];
}

export interface ServerPathsHost {
  readonly clock: Clock;
  readonly log: Logger;
  send(node: string, message: PathMessage): void;
  /** Why `from` may not meet `to`, if so. */
  refusal(from: string, to: string): ReasonCode | undefined;
}

export class ServerPaths {
  readonly #host: ServerPathsHost;
  readonly #options: ServerPathsOptions;
  readonly #port: ObservePort;
  #coordinator: Coordinator;
  #cancel: CancelTimer | undefined;
  #armedFor = Infinity;

  constructor(host: ServerPathsHost, options: ServerPathsOptions) {
    this.#host = host;
    this.#options = options;
    this.#coordinator = this.#make(0);
    this.#port = new ObservePort({
      clock: host.clock,
      log: host.log,
      seen: (nonce, from, at) => this.#coordinator.seen(nonce, from, at, host.clock.now()),
    });
  }

  /** Binds the observation port, before agents come. Rejects with MeshError KERNEL. */
  async listen(): Promise<void> {
    const { observe } = this.#options;
    if (observe) this.#coordinator = this.#make((await this.#port.listen(observe)).port);
  }

  async close(): Promise<void> {
    this.#cancel?.();
    await this.#port.close();
  }

  connected(node: string, observed: IpPort): void {
    this.#do((now) => this.#coordinator.connected(node, observed, now));
  }

  gone(node: string): void {
    this.#do((now) => this.#coordinator.gone(node, now));
  }

  message(node: string, message: PathMessage): void {
    this.#do((now) => this.#coordinator.message(node, message, now));
  }

  stats(): CoordinatorStats {
    return this.#coordinator.stats();
  }

  #make(port: number): Coordinator {
    return new Coordinator({
      emit: (node, message) => this.#host.send(node, message),
      nonce: () => randomBytes(NONCE_BYTES).toString("hex"),
      wall: () => this.#host.clock.wall(),
      refusal: (from, to) => this.#host.refusal(from, to),
    }, { observe: { port, servers: this.#options.servers } });
  }

  #do(act: (now: number) => void): void {
    act(this.#host.clock.now());
    this.#arm();
  }

  #arm(): void {
    const at = this.#coordinator.nextAt;
    if (at === this.#armedFor) return;
    this.#cancel?.();
    this.#armedFor = at;
    if (at === Infinity) return;
    this.#cancel = this.#host.clock.timer(Math.max(0, at - this.#host.clock.now()), () => {
      this.#armedFor = Infinity;
      this.#do((now) => this.#coordinator.tick(now));
    });
  }
}
