/** The engines of one agent: each leg goes to the one that can run on it. */
import type { Duplex } from "node:stream";
import { MeshError } from "../../errors.ts";
import type { Carrier, PathKind } from "../carrier.ts";
import type { CarrierEngine } from "./engine.ts";
import { FastEngine, type FastEngineOptions } from "./fast.ts";
import { StreamLeg } from "./stream_leg.ts";
import { PortableEngine, type PortableEngineOptions } from "./tls.ts";

/** What the fast engine needs of this host. */
export type FastParts = Pick<FastEngineOptions, "tls" | "defer">;

/** For `status`. */
export interface EnginesStatus {
  readonly name: "fast" | "portable";
  /** The library in use, or why the fast engine is not. */
  readonly detail: string;
}

export class Engines implements CarrierEngine<Duplex | StreamLeg> {
  readonly #portable: PortableEngine;
  readonly #options: PortableEngineOptions;
  readonly #parts: () => FastParts | string;
  #fast: FastEngine | undefined;

  /** `fast` is asked at the first use, because looking for the library takes time; a string says why there is none. */
  constructor(options: PortableEngineOptions, fast: () => FastParts | string = () => "not asked for") {
    this.#options = options;
    this.#portable = new PortableEngine(options);
    this.#parts = fast;
  }

  get name(): "fast" | "portable" {
    return this.status().name;
  }

  connect(leg: Duplex | StreamLeg, options: { readonly peer: string; readonly path: PathKind }): Promise<Carrier> {
    return leg instanceof StreamLeg ? this.#need(leg).connect(leg, options) : this.#portable.connect(leg, options);
  }

  accept(leg: Duplex | StreamLeg, options: { readonly path: PathKind }): Promise<Carrier> {
    return leg instanceof StreamLeg ? this.#need(leg).accept(leg, options) : this.#portable.accept(leg, options);
  }

  warm(): void {
    this.#parts();
  }

  status(): EnginesStatus {
    const parts = this.#parts();
    return typeof parts === "string"
      ? { name: "portable", detail: `node:tls; ${parts}` }
      : { name: "fast", detail: parts.tls.name };
  }

  #need(leg: StreamLeg): FastEngine {
    if (this.#fast) return this.#fast;
    const parts = this.#parts();
    if (typeof parts !== "string") return this.#fast = new FastEngine({ ...this.#options, ...parts });
    leg.abort();
    throw new MeshError("INTERNAL", `A leg of the fast engine, which is not there: ${parts}`);
  }
}
