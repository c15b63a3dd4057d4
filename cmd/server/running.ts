/** A server that runs, as its admin routes, metrics and warnings see it. `startServer` makes it. */
import type { ServerConfig } from "../../lib/config.ts";
import type { IdentityServer } from "../../lib/identity/server.ts";
import type { VerifiedPeer } from "../../lib/identity/trust.ts";
import type { MetaSource } from "../../lib/meta/source.ts";
import type { MetaStore } from "../../lib/meta/store/store.ts";
import type { Readiness } from "../../lib/readiness.ts";
import type { ControlServer } from "../../lib/tunnel/control/server.ts";

export interface RunningServer extends AsyncDisposable {
  readonly config: ServerConfig;
  readonly url: string;
  readonly pin: string;
  readonly identity: IdentityServer;
  readonly control: ControlServer<VerifiedPeer>;
  readonly store: MetaStore;
  readonly sources: readonly MetaSource[];
  readonly readiness: Readiness;
  readonly startedAt: number;
}
