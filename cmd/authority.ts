/** `edgemesh server ca …`, on a server host: which authority the mesh has, and its replacement by another. */
import type { RotationStatus } from "../lib/status.ts";
import { adminCall } from "./admin_client.ts";
import { type Format, printDocument } from "./output.ts";
import { parseDuration } from "./token.ts";

interface CaFlags {
  readonly runDir: string;
  readonly output: Format;
}

interface CaStepFlags extends CaFlags {
  readonly overlap?: string;
  readonly force?: boolean;
}

export async function caStatus(flags: CaFlags): Promise<number> {
  const target = { role: "server", runDir: flags.runDir } as const;
  const status = await adminCall(target, "GET", "/v1/authority") as RotationStatus;
  await printDocument(status, flags.output, () => authorityText(status));
  return 0;
}

export async function caStep(step: "rotate" | "switch" | "finish" | "rollback", flags: CaStepFlags): Promise<number> {
  const target = { role: "server", runDir: flags.runDir } as const;
  const body = flags.overlap === undefined
    ? { force: flags.force ?? false }
    : { overlapSeconds: parseDuration(flags.overlap, "--overlap") };
  const status = await adminCall(target, "POST", `/v1/authority/${step}`, body) as RotationStatus;
  await printDocument(status, flags.output, () => authorityText(status));
  return 0;
}

/** The authority for a person: what is trusted, what comes next and when, and who would be left behind. */
export function authorityText(s: RotationStatus): string {
  const lines = [`authority ${s.pin}, generation ${s.generation}`];
  const { rotation } = s;
  if (!rotation) return lines.join("\n");
  const at = (ms: number) => new Date(ms).toISOString();
  switch (rotation.phase) {
    case "announced":
      lines.push(`announced since ${at(rotation.startedAt)}: ${rotation.next}; ${s.ready} of ${s.nodes} nodes know it`);
      lines.push(`nodes get its certificates when all know it, at ${at(rotation.switchAt)} at the latest`);
      break;
    case "switched":
      lines.push(`replaced by ${rotation.next}; ${s.ready} of ${s.nodes} nodes have its certificate`);
      lines.push(`the old one is dropped at ${at(rotation.finishAt)}: who was away until then has to join again`);
      break;
    case "returning":
      lines.push(`rotation taken back; ${s.ready} of ${s.nodes} nodes have a certificate of the old authority again`);
      lines.push(`${rotation.next} is dropped at ${at(rotation.finishAt)}`);
  }
  if (s.waiting.length > 0) lines.push(`waiting for ${s.waiting.join(", ")}`);
  return lines.join("\n");
}
