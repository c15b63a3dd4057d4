/** Which back end writes the kernel's rules on this host. */
import { systemClock } from "../../lib/clock.ts";
import { describe } from "../../lib/errors.ts";
import { NetlinkRules } from "../../lib/forward/rules/netlink.ts";
import { NftTextRules } from "../../lib/forward/rules/nft_text.ts";
import { RuleWriter } from "../../lib/forward/rules/writer.ts";
import { nftRunner } from "../../lib/linux/nft_exec.ts";
import type { Logger } from "../../lib/log.ts";

/** Opens the back end that the configuration names; `auto` takes netlink where it works, else the nft program. Throws KERNEL. */
export function openRules(backend: "auto" | "netlink" | "nft", log: Logger): RuleWriter {
  if (backend === "nft") return new RuleWriter(new NftTextRules(nftRunner(systemClock)));
  try {
    return new RuleWriter(NetlinkRules.open());
  } catch (error) {
    if (backend === "netlink") throw error;
    log.warn("kernel rules are written with the nft program, because netlink does not work here", {
      error: describe(error),
    });
    return new RuleWriter(new NftTextRules(nftRunner(systemClock)));
  }
}
