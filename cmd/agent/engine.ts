/** Which TLS carries paths to other agents on this host: the system's OpenSSL where it works, else the built-in one. */
import type { AgentConfig } from "../../lib/config.ts";
import { describe } from "../../lib/errors.ts";
import type { AgentIdentity } from "../../lib/identity/agent.ts";
import type { EpollLoop } from "../../lib/linux/loop.ts";
import { openTlsLibrary } from "../../lib/linux/openssl.ts";
import type { Logger } from "../../lib/log.ts";
import type { FastParts } from "../../lib/tunnel/carriers/engines.ts";
import { selfTest } from "../../lib/tunnel/carriers/self_test.ts";

export interface EngineParts {
  readonly config: AgentConfig;
  readonly identity: AgentIdentity;
  /** Undefined where FFI is refused. */
  readonly loop: EpollLoop | undefined;
  readonly log: Logger;
}

/** The fast engine's parts, or why there are none; found out at the first call, because looking takes milliseconds. */
export function engineChoice({ config, identity, loop, log }: EngineParts): () => FastParts | string {
  let choice: FastParts | string | undefined;
  return () => choice ??= choose();

  function choose(): FastParts | string {
    const { engine } = config.tunnel;
    if (engine === "portable") return "tunnel.engine is portable";
    if (!loop) return "the system's TLS library needs FFI, which is refused here";
    try {
      const tls = openTlsLibrary();
      const { certPem, keyPem } = identity.tls();
      selfTest(tls, { cert: certPem, key: keyPem });
      log.debug("paths use the system's TLS library", { library: tls.name });
      return { tls, defer: (work) => loop.defer(work) };
    } catch (error) {
      const why = describe(error);
      if (engine === "fast") log.warn("tunnel.engine is fast, but the system's TLS library cannot be used", { why });
      else log.info("paths use the built-in TLS", { why });
      return why;
    }
  }
}
