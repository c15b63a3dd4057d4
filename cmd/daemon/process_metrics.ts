/** Metrics that both roles have: the build, the memory, the snapshot. */
import { memoryUse, processUse } from "../../lib/linux/process.ts";
import type { MetaStore } from "../../lib/meta/store/store.ts";
import { Registry } from "../../lib/metrics.ts";
import type { Readiness } from "../../lib/readiness.ts";
import { buildInfo, VERSION } from "../../lib/version.ts";

/** A registry with these in it. */
export function processMetrics(process: { readonly readiness: Readiness; readonly store: MetaStore }): Registry {
  const r = new Registry();
  const { commit, form } = buildInfo();
  r.gauge("edgemesh_build_info", "Version of the running process", ["version", "commit", "form"]).set(
    1,
    VERSION,
    commit,
    form,
  );
  const memory = memoryUse();
  r.gauge("edgemesh_memory_private_bytes", "Memory only this process has").set(memory.privateMb * 1e6);
  r.gauge("edgemesh_memory_resident_bytes", "Resident set").set(memory.rssMb * 1e6);
  const { cpuSeconds, startedAt, descriptors } = processUse();
  r.counter("edgemesh_process_cpu_seconds_total", "Processor time of this process").set(cpuSeconds);
  r.gauge("edgemesh_process_start_time_seconds", "When this process started, in seconds since 1970").set(startedAt);
  r.gauge("edgemesh_process_open_descriptors", "Open file descriptors").set(descriptors);
  r.gauge("edgemesh_ready", "1 when the process is ready").set(process.readiness.ready ? 1 : 0);
  const objects = r.gauge("edgemesh_metadata_objects", "Objects in the snapshot", ["kind"]);
  for (const kind of ["service", "slice", "node", "pod"] as const) {
    objects.set(process.store.snapshot.count(kind), kind);
  }
  return r;
}
