/**
 * Two layers of objects seen as one: a local folder wins per object over the source the node follows (design: source
 * order). A Service's endpoints belong together: where the folder has any slice for a Service, the other layer's
 * slices for it are hidden, else overriding an endpoint locally would only add one.
 */
import type { Kind, Kinds } from "../model.ts";
import { serviceKey } from "../model.ts";
import type { Changes, ObjectChange } from "../objects.ts";
import type { ChangeSet, Snapshot } from "./snapshot.ts";

/** Layers in order of precedence. */
export type LayerName = "local" | "base";

/** What both layers together say about one key. */
export function effective<K extends Kind>(
  kind: K,
  key: string,
  layers: Readonly<Record<LayerName, Snapshot>>,
): Kinds[K] | undefined {
  const own = layers.local.get(kind, key);
  if (own !== undefined) return own;
  const below = layers.base.get(kind, key);
  if (below === undefined || kind !== "slice") return below;
  const slice = below as Kinds["slice"];
  return layers.local.slicesOf(slice.namespace, slice.service).length > 0 ? undefined : below;
}

/** What the merged state must take over after one layer changed; `layers` are as they are after the change. */
export function effectiveChanges(
  changes: ChangeSet,
  changedLayer: LayerName,
  layers: Readonly<Record<LayerName, Snapshot>>,
): Changes {
  const out: ObjectChange[] = [];
  const seen = new Set<string>();
  const take = (kind: Kind, key: string) => {
    const id = `${kind} ${key}`;
    if (seen.has(id)) return;
    seen.add(id);
    out.push({ kind, key, object: effective(kind, key, layers) } as ObjectChange);
  };
  for (const [kind, keys] of changes.changed) for (const key of keys) take(kind, key);
  if (changedLayer === "local" && changes.changed.has("slice")) {
    // Local slices may have begun or ceased to hide slices of the layer below.
    for (const service of changes.services) {
      const [namespace, name] = service.split("/") as [string, string];
      for (const slice of layers.base.slicesOf(namespace, name)) take("slice", serviceKey(namespace, slice.name));
    }
  }
  return out;
}
