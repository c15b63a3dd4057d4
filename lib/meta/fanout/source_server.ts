/**
 * The joined server as a source: takes pushed metadata through the guard into a layer. One connection is followed at a
 * time; between connections the last state stays.
 */
import type { Clock } from "../../clock.ts";
import { describe } from "../../errors.ts";
import type { Logger } from "../../log.ts";
import { FanoutClient } from "./fanout_client.ts";
import type { Guard } from "../guard.ts";
import type { MetaVersion } from "../model.ts";
import type { Problem } from "../problems.ts";
import { problemText } from "../problems.ts";
import type { SourceState, SourceStatus } from "../source.ts";
import type { MetaLayer, Staging } from "../store/store.ts";

/** Problems kept for status; more are only counted. */
const MAX_PROBLEMS = 200;

export interface ServerSourceOptions {
  readonly layer: MetaLayer;
  readonly guard: Guard;
  readonly clock: Clock;
  readonly log: Logger;
}

/** One control connection that may carry metadata. */
export interface MetaLink {
  /** Name or address of the server, for status. */
  readonly from: string;
  /** Sends one message to the server. */
  send(message: Uint8Array): void;
  /** The server broke the protocol: close the connection. */
  fail(error: unknown): void;
}

export class ServerSource {
  readonly #layer: MetaLayer;
  readonly #guard: Guard;
  readonly #clock: Clock;
  readonly #log: Logger;
  #link: MetaLink | undefined;
  #client: FanoutClient | undefined;
  #staging: Staging | undefined;
  #problems: Problem[] = [];
  #state: SourceState = "starting";
  #since: number;
  #from = "";
  #lastError: string | undefined;
  #forget = false;

  constructor(options: ServerSourceOptions) {
    this.#layer = options.layer;
    this.#guard = options.guard;
    this.#clock = options.clock;
    this.#log = options.log;
    this.#since = options.clock.now();
  }

  /** Follows a connection from now on, instead of any other: says what is at hand and takes what comes. */
  attach(link: MetaLink): void {
    this.#link = link;
    this.#from = link.from;
    this.#abandon();
    const told = (key: string) => this.#guard.told("slice", key) ?? this.#layer.snapshot.get("slice", key);
    this.#client = new FanoutClient(this.#have(), told);
    link.send(this.#client.hello());
  }

  /** The connection is gone. Ignored for a connection that is not the one followed. */
  detach(link: MetaLink, error?: unknown): void {
    if (this.#link !== link) return;
    this.#link = undefined;
    this.#client = undefined;
    this.#abandon();
    this.#enter(this.#state === "starting" ? "starting" : "degraded");
    this.#lastError = error === undefined ? "not connected to a server" : describe(error);
  }

  /** Whether metadata comes over this connection now. */
  follows(link: MetaLink): boolean {
    return this.#link === link;
  }

  /** A message of the server. */
  receive(link: MetaLink, message: Uint8Array): void {
    if (this.#link !== link || !this.#client) return;
    try {
      for (const event of this.#client.receive(message)) {
        switch (event.type) {
          case "resumed":
            this.#arrived(event.version);
            break;
          case "begin":
            this.#staging = this.#layer.stage();
            this.#guard.reset();
            this.#problems = [];
            break;
          case "part":
            this.#staging!.add(this.#guard.filter(event.changes));
            this.#note(event.problems);
            break;
          case "commit":
            this.#staging!.commit({ version: event.version, synced: true });
            this.#staging = undefined;
            this.#arrived(event.version);
            this.revise();
            break;
          case "delta":
            this.#layer.apply(this.#guard.filter(event.changes), { version: event.version, synced: true });
            this.#note(event.problems);
            this.#arrived(event.version);
            break;
        }
      }
      const ack = this.#client.acknowledge();
      if (ack) link.send(ack);
    } catch (error) {
      this.#log.warn("metadata connection failed", { server: link.from, error: describe(error) });
      // Whatever was wrong, a complete state is the way out of it.
      this.#forget = true;
      this.detach(link, error);
      link.fail(error);
    }
  }

  /** The guard's policy has changed: what is known is judged anew, at once or after the complete state under way. */
  revise(): void {
    if (this.#staging) return;
    const changes = this.#guard.revise(this.#layer.snapshot);
    if (changes.length > 0) this.#layer.apply(changes);
  }

  status(): SourceStatus {
    return {
      kind: "server",
      from: this.#from,
      state: this.#state,
      since: this.#since,
      ...(this.#lastError === undefined ? {} : { lastError: this.#lastError }),
      problems: [...this.#guard.book.all(), ...this.#problems],
    };
  }

  #have(): MetaVersion | undefined {
    const { version, synced } = this.#layer.snapshot;
    return synced && !this.#forget && version.source !== "" ? version : undefined;
  }

  /** A complete state that breaks off leaves the one before; what that was told as, the guard does not know any more. */
  #abandon(): void {
    if (!this.#staging) return;
    this.#staging = undefined;
    this.#guard.reset();
    this.#forget = true;
  }

  #arrived(version: MetaVersion): void {
    this.#forget = false;
    this.#lastError = undefined;
    if (this.#state !== "synced") {
      this.#log.info("metadata synced", { server: this.#from, source: version.source, number: version.number });
    }
    this.#enter("synced");
  }

  #note(problems: readonly Problem[]): void {
    for (const problem of problems) {
      this.#log.debug("pushed object cannot be used", { problem: problemText(problem) });
      if (this.#problems.length < MAX_PROBLEMS) this.#problems.push(problem);
    }
  }

  #enter(state: SourceState): void {
    if (this.#state === state) return;
    this.#state = state;
    this.#since = this.#clock.now();
  }
}
