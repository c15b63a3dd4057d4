/** Judges the API that metadata is read from: rights and resources, a line for each kind of lack. Pure. */
import type { SourceView } from "../../lib/status.ts";
import type { Check } from "./facts.ts";
import { fail, ok, warn } from "./judge_host.ts";

/** Without one of these nothing, or the wrong thing, is forwarded. */
const NEEDED = /^(services|endpointslices\.|nodes|namespaces|pods)/;
/** The stand-in of EndpointSlices on old servers. */
const FALLBACK = "endpoints";

/** Nothing for sources that are no Kubernetes API. */
export function judgeSource(view: SourceView | undefined, category: "agent" | "mesh"): Check[] {
  if (view === undefined || (view.kind !== "kube" && view.kind !== "metaserver")) return [];
  const of = (why: string) => view.unreadable.filter((u) => u.why === why).map((u) => u.resource);
  const [forbidden, unknown] = [of("forbidden"), of("unknown")];
  const out: Check[] = [];
  if (view.state !== "synced") {
    out.push(
      fail(
        category,
        "source",
        `${view.from} is not followed: ${view.detail ?? view.state}`,
        `is its address reachable from here? edgemesh config show names where it was given`,
      ),
    );
  }
  if (forbidden.length > 0) {
    const list = forbidden.join(", ");
    const grant = `kubectl apply -f deploy/rbac.yaml, or give its account get, list and watch on ${list}`;
    const text = `${view.from} gives no right to list and watch ${list}`;
    out.push(
      forbidden.some((r) => NEEDED.test(r))
        ? fail(category, "kube-rbac", `${text}; Services that need them are wrong or missing`, grant)
        : warn(category, "kube-rbac", text, grant),
    );
  } else out.push(ok(category, "kube-rbac", `${view.from} lets us read all that it has`));
  const slices = unknown.some((r) => r.startsWith("endpointslices."));
  const crds = unknown.filter((r) => !NEEDED.test(r) && r !== FALLBACK);
  out.push(
    ok(
      category,
      "kube-crds",
      crds.length === 0
        ? "every kind of object that is looked for is installed"
        : `${crds.length} kinds are not installed, so not followed (each is, as soon as it is there): ${
          crds.join(", ")
        }`,
    ),
  );
  const lacking = unknown.filter((r) => NEEDED.test(r) && !r.startsWith("endpointslices."));
  if (slices && unknown.includes(FALLBACK)) lacking.push("endpointslices.discovery.k8s.io");
  if (lacking.length > 0) {
    out.push(
      fail(
        category,
        "kube-kinds",
        `${view.from} does not know ${lacking.join(", ")}`,
        "is it a Kubernetes API? kubectl api-resources against the same address",
      ),
    );
  } else if (slices) {
    out.push(ok(category, "kube-kinds", "no EndpointSlices there; Endpoints are read instead"));
  }
  return out;
}
