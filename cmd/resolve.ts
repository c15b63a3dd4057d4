/** `edgemesh resolve`: what the agent's DNS answers to a name, and why. */
import type { Explanation } from "../lib/dns/explain/explain.ts";
import { explainText } from "../lib/dns/explain/text.ts";
import { adminCall } from "./admin_client.ts";
import { type Format, printDocument } from "./output.ts";

/** No answer could be had, as dig's exit code 9 means it. */
const EXIT_NO_ANSWER = 9;

export async function resolveCommand(
  name: string,
  type: string,
  flags: { runDir: string; output: Format },
): Promise<number> {
  const query = new URLSearchParams({ name, type });
  const answer = await adminCall({ role: "agent", runDir: flags.runDir }, "GET", `/v1/resolve?${query}`) as Explanation;
  await printDocument(answer, flags.output, () => explainText(answer));
  return answer.origin === "failed" ? EXIT_NO_ANSWER : 0;
}
