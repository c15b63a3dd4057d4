/** Which back end writes the kernel's rules on this host. */
import { MeshError } from "../lib/errors.ts";
import { NftTextRules, type RunNft } from "../lib/forward/rules/nft_text.ts";
import { RuleWriter } from "../lib/forward/rules/writer.ts";
import type { Logger } from "../lib/log.ts";

/** Opens the writer that the configuration names. Throws KERNEL when it cannot work here. */
export async function openRules(backend: "auto" | "netlink" | "nft", log: Logger): Promise<RuleWriter> {
  if (backend === "netlink") {
    throw new MeshError("CONFIG_INVALID", "forward.backend netlink is not in this build", {
      hint: "forward.backend: nft",
    });
  }
  const probe = await runNft(["--version"], "").catch((cause) => {
    throw new MeshError("KERNEL", "The program nft cannot be run", { cause, hint: "apt-get install nftables" });
  });
  log.debug("kernel rules are written with nft", { version: probe.stdout.trim() });
  return new RuleWriter(new NftTextRules(runNft));
}

export const runNft: RunNft = async (args, stdin) => {
  const child = new Deno.Command("nft", { args: [...args], stdin: "piped", stdout: "piped", stderr: "piped" }).spawn();
  const writer = child.stdin.getWriter();
  const sent = writer.write(new TextEncoder().encode(stdin)).then(() => writer.close()).catch(() => {});
  const [{ code, stdout, stderr }] = await Promise.all([child.output(), sent]);
  const decoder = new TextDecoder();
  return { code, stdout: decoder.decode(stdout), stderr: decoder.decode(stderr) };
};
