/** An {@link Explanation} as a person reads it: dig's form, then the reasons. */
import type { ExplainedService, Explanation } from "./explain.ts";
import type { PresentedRecord } from "./message.ts";

export function explainText(e: Explanation): string {
  const out: string[] = [];
  const flags = [e.flags.aa && "authoritative", e.flags.tc && "truncated", e.flags.ad && "authenticated"].filter(
    Boolean,
  );
  out.push(
    `${e.question.name} ${e.question.type}: ${e.rcode}${flags.length ? ` (${flags.join(", ")})` : ""}, ${
      round(e.ms)
    } ms`,
  );
  section(out, "", e.answers);
  section(out, "authority", e.authorities);
  section(out, "additional", e.additionals);
  out.push("", ...e.why.map((line) => `- ${line}`));
  for (const service of e.services) out.push("", ...serviceLines(service));
  if (e.forward) {
    const { name, zone, upstreams, answeredBy, cache } = e.forward;
    out.push("", `asked    ${name} of the upstreams for ${zone === "." ? "everything" : zone}`);
    if (cache) {
      out.push(
        cache.leftSeconds >= 0
          ? `cache    ${Math.round(cache.ageSeconds)} s old, ${Math.round(cache.leftSeconds)} s left`
          : `cache    ${Math.round(cache.ageSeconds)} s old, expired ${Math.round(-cache.leftSeconds)} s ago`,
      );
    }
    for (const u of upstreams) {
      const rtt = u.rttMs === undefined ? "never answered" : `${round(u.rttMs)} ms`;
      out.push(`upstream ${u.server} ${u.state}, ${rtt}${u.server === answeredBy ? ", gave this answer" : ""}`);
    }
    if (upstreams.length === 0) out.push("upstream none");
  }
  return out.join("\n");
}

function section(out: string[], title: string, records: readonly PresentedRecord[]): void {
  if (records.length === 0) return;
  if (title) out.push(`  ${title}:`);
  for (const r of records) out.push(`  ${r.name} ${r.ttl} ${r.type} ${r.data}`);
}

function serviceLines(s: ExplainedService): string[] {
  const detail = s.externalName ?? (s.addresses.length > 0 ? s.addresses.join(", ") : "no address of its own");
  const lines = [
    `service  ${s.namespace}/${s.name} ${s.kind}, ${detail}${s.ports.length ? `, ports ${s.ports.join(", ")}` : ""}`,
  ];
  for (const e of s.endpoints) lines.push(`endpoint ${place(e)}  ${e.name}`);
  for (const e of s.excluded) lines.push(`left out ${place(e)}  ${e.why}`);
  if (s.endpoints.length + s.excluded.length === 0 && s.kind !== "ExternalName") lines.push("endpoint none");
  return lines;
}

function place(e: { readonly ip: string; readonly node?: string; readonly pod?: string }): string {
  return [e.ip, e.node && `on ${e.node}`, e.pod && `pod ${e.pod}`].filter(Boolean).join(" ");
}

function round(ms: number): string {
  return ms < 10 ? ms.toFixed(1) : String(Math.round(ms));
}
