/** What every source of metadata is to the composition root: started, stopped, asked how it is. */
import type { Problem } from "./problems.ts";

export type SourceState =
  /** Nothing was learned yet. */
  | "starting"
  /** Follows its origin. */
  | "synced"
  /** Serves what it learned; the origin cannot be reached or part of it is refused. */
  | "degraded"
  | "stopped";

export interface SourceStatus {
  /** `files`, `kube`, `metaserver`, `server`, `disk`. */
  readonly kind: string;
  /** Where: folder or address. */
  readonly from: string;
  readonly state: SourceState;
  /** Monotonic time at which the state was entered. */
  readonly since: number;
  /** What went wrong last, if the state is not `synced`. */
  readonly lastError?: string;
  readonly problems: readonly Problem[];
}

export interface MetaSource {
  /** Begins to follow the origin. Returns at once or after a first quick look; never throws for a bad origin. */
  start(): Promise<void>;
  /** Ends; nothing is written to the layer afterwards. */
  stop(): Promise<void>;
  status(): SourceStatus;
  /** The policy of the guard has changed, where the source has one: what is known is judged anew. */
  revise?(): void;
}
