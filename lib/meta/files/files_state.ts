/** The state of a folder of manifests: what each file gives, and what all files together give. No I/O. */
import type { Cidr } from "../../addr.ts";
import { familyOf } from "../../addr.ts";
import { describe, MeshError } from "../../errors.ts";
import { allocate, needsAddress } from "./allocate.ts";
import type { ConvertContext } from "../convert/convert.ts";
import { convert } from "../convert/convert.ts";
import { isFromEndpoints } from "../convert/convert_endpoints.ts";
import type { EndpointSlice, Service } from "../model.ts";
import { serviceKey } from "../model.ts";
import type { ObjectChange } from "../objects.ts";
import { put } from "../objects.ts";
import type { Problem } from "../problems.ts";

/** One file: what it gives now, and what is wrong with its latest content. */
export interface LoadedFile {
  readonly stamp: string;
  readonly puts: readonly ObjectChange[];
  readonly problems: readonly Problem[];
  /** True when `puts` come from an earlier content, because the latest cannot be used. */
  readonly stale: boolean;
}

/**
 * Reads one file's bytes. Content with an error gives what the file gave before; a file that was never good gives the
 * objects in it that are.
 */
export async function loadFile(
  file: {
    readonly name: string;
    readonly stamp: string;
    /** An error where the file is not to be read. */
    readonly bytes: Uint8Array | MeshError;
    readonly before: LoadedFile | undefined;
  },
  context: ConvertContext,
): Promise<LoadedFile> {
  const { name, stamp, before } = file;
  // Loaded when the first manifest is: most agents have no folder, and the parser is among the larger packages.
  const { MAX_FILE_BYTES, parseObjects } = await import("./yaml_objects.ts");
  const whole = (reason: string): LoadedFile => ({
    stamp,
    puts: before?.puts ?? [],
    problems: [{ object: "", field: "", value: "", reason, code: "OBJECT_INVALID", where: name }],
    stale: before !== undefined,
  });
  if (file.bytes instanceof MeshError) return whole(describe(file.bytes));
  if (file.bytes.length > MAX_FILE_BYTES) return whole(`is larger than ${MAX_FILE_BYTES} bytes`);
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(file.bytes);
  } catch {
    return whole("is not UTF-8 text");
  }
  const parsed = parseObjects(text, name);
  const problems: Problem[] = [...parsed.errors];
  const puts: ObjectChange[] = [];
  for (const object of parsed.objects) {
    const converted = convert(object.value, context);
    for (const p of converted.problems) problems.push({ ...p, where: `${name}:${object.lineOf(p.field)}` });
    if (!converted.problems.some(isError)) puts.push(...converted.puts);
  }
  if (before && problems.some(isError)) return { stamp, puts: before.puts, problems, stale: true };
  return { stamp, puts, problems, stale: false };
}

export interface CombineOptions {
  readonly cidrs: readonly Cidr[];
  /** Addresses given to Services so far; updated. */
  readonly allocated: Map<string, string>;
}

/** All files as one state. Where two define the same object, the first by file name wins and the other is reported. */
export function combine(
  files: ReadonlyMap<string, LoadedFile>,
  options: CombineOptions,
): { changes: ObjectChange[]; problems: Problem[] } {
  const problems: Problem[] = [];
  const objects = new Map<string, { change: ObjectChange; file: string }>();
  const sliced = new Set<string>();
  for (const [file, loaded] of [...files].sort(([a], [b]) => a < b ? -1 : 1)) {
    problems.push(...loaded.problems);
    for (const change of loaded.puts) {
      const id = `${change.kind} ${change.key}`;
      const first = objects.get(id);
      if (first) {
        problems.push({
          object: id,
          field: "",
          value: "",
          reason: `is also in ${first.file}, which wins`,
          code: "CLAIM_LOST",
          where: file,
        });
        continue;
      }
      objects.set(id, { change, file });
      if (change.kind !== "slice") continue;
      const slice = change.object as EndpointSlice;
      if (!isFromEndpoints(slice.name)) sliced.add(serviceKey(slice.namespace, slice.service));
    }
  }
  const changes: ObjectChange[] = [];
  for (const { change } of objects.values()) {
    // Exports hold both forms of the same endpoints; EndpointSlices say more.
    if (change.kind === "slice" && isFromEndpoints(change.object!.name)) {
      const slice = change.object as EndpointSlice;
      if (sliced.has(serviceKey(slice.namespace, slice.service))) continue;
    }
    changes.push(change);
  }
  return { changes: withAddresses(changes, options, problems), problems };
}

function withAddresses(changes: ObjectChange[], options: CombineOptions, problems: Problem[]): ObjectChange[] {
  const cidr = options.cidrs.find((c) => familyOf(c.ip) === 4) ?? options.cidrs[0];
  if (!cidr) return changes;
  const services = changes.filter((c) => c.kind === "service").map((c) => c.object as Service);
  const given = allocate(services, cidr, options.allocated);
  return changes.map((change) => {
    if (change.kind !== "service" || !needsAddress(change.object!)) return change;
    const ip = given.get(change.key);
    if (ip !== undefined) return put("service", { ...change.object!, clusterIPs: [ip] });
    problems.push({
      object: `Service ${change.key}`,
      field: "spec.clusterIP",
      value: "",
      reason: `no free address in ${cidr.ip}/${cidr.bits}`,
      code: "LIMIT",
    });
    return change;
  });
}

/** Whether a problem makes a file's latest content unusable; things the mesh merely does not carry do not. */
function isError(problem: Problem): boolean {
  return problem.code !== "UNSUPPORTED";
}
