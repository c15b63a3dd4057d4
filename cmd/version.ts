/** `edgemesh version`. */
import { buildInfo, VERSION } from "../lib/version.ts";
import { type Format, printDocument } from "./output.ts";

export async function versionCommand(flags: { output: Format }): Promise<number> {
  const { commit, form } = buildInfo();
  const document = {
    version: VERSION,
    commit,
    form,
    target: Deno.build.target,
    deno: Deno.version.deno,
    v8: Deno.version.v8,
  };
  await printDocument(
    document,
    flags.output,
    () => `edgemesh ${VERSION} (commit ${commit}, ${form}, ${Deno.build.target}, Deno ${Deno.version.deno})`,
  );
  return 0;
}
