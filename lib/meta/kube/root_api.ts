/**
 * An API on a loopback port, over a connection that proves nothing: believed only while the port is root's. Any process
 * of the host may bind a port of its own while edgecore is away, and who answers there would own the node.
 */
import { MeshError } from "../../errors.ts";
import type { Logger } from "../../log.ts";
import type { ApiAnswer, KubeApi } from "./kube_api.ts";

/** User ids of everybody with a socket at the API's port; empty: nobody listens. */
export type PortOwners = () => Promise<readonly number[]>;

const ROOT = 0;

export class RootApi implements KubeApi {
  readonly #inner: KubeApi;
  readonly #owners: PortOwners;
  readonly #log: Logger;
  #problem: string | undefined;

  constructor(inner: KubeApi, options: { readonly owners: PortOwners; readonly log: Logger }) {
    this.#inner = inner;
    this.#owners = options.owners;
    this.#log = options.log;
  }

  get address(): string {
    return this.#inner.address;
  }

  get problem(): string | undefined {
    return this.#problem;
  }

  /** Rejects with META_REFUSED, without having sent a token or read an answer, when the port is not root's. */
  async get(pathAndQuery: string, signal: AbortSignal): Promise<ApiAnswer> {
    await this.#check();
    const answer = await this.#inner.get(pathAndQuery, signal);
    try {
      // Whoever answered holds his end of the connection now; a change of hands since the first look shows here.
      await this.#check();
    } catch (error) {
      await answer.body?.cancel();
      throw error;
    }
    return answer;
  }

  reauthenticate(): Promise<void> {
    return this.#inner.reauthenticate();
  }

  close(): void {
    this.#inner.close();
  }

  async #check(): Promise<void> {
    const owners = await this.#owners();
    const stranger = owners.find((uid) => uid !== ROOT);
    if (owners.length > 0 && stranger === undefined) {
      if (this.#problem !== undefined) this.#log.info("the API's port is root's again", { from: this.address });
      this.#problem = undefined;
      return;
    }
    // A connection that is kept open could be the stranger's.
    this.#inner.close();
    if (stranger === undefined) {
      this.#problem = undefined;
      throw new MeshError("META_REFUSED", `Nobody listens at ${this.address}`);
    }
    const problem = `${this.address} is held by user ${stranger}, not by root, and is not believed`;
    if (this.#problem !== problem) {
      this.#log.warn(problem, { hint: "run it as root, or let it prove itself: metaServer.security with tlsCaFile" });
    }
    this.#problem = problem;
    throw new MeshError("META_REFUSED", problem);
  }
}
