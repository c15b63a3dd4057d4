/** The part of an object that all kinds share: identity and age. */
import type { Checker, Fields } from "./checker.ts";
import { isLabel, isSubdomain } from "./checker.ts";

export interface Identity {
  readonly kind: string;
  readonly apiVersion: string;
  readonly namespace: string;
  readonly name: string;
}

/** Namespace of an object that names none, as `kubectl apply` would put it. */
const DEFAULT_NAMESPACE = "default";

/** Kinds whose names become DNS labels and are held to that. */
const LABEL_NAMED = new Set(["Service", "Namespace", "Endpoints"]);

/** Identity of an object, or undefined with the problem noted. Names the object in `check` for later problems. */
export function identify(raw: Fields, check: Checker, clusterScoped: boolean): Identity | undefined {
  const kind = typeof raw.kind === "string" ? raw.kind : "";
  const apiVersion = typeof raw.apiVersion === "string" ? raw.apiVersion : "";
  const meta = check.fields(raw.metadata, "metadata");
  if (!meta) return check.bad("metadata", raw.metadata, "is required");
  const name = check.name(meta.name, "metadata.name", LABEL_NAMED.has(kind) ? isLabel : isSubdomain);
  if (name === undefined) {
    return meta.name === undefined ? check.bad("metadata.name", undefined, "is required") : undefined;
  }
  if (clusterScoped) {
    check.object = `${kind} ${name}`;
    return { kind, apiVersion, namespace: "", name };
  }
  const namespace = meta.namespace === undefined || meta.namespace === null || meta.namespace === ""
    ? DEFAULT_NAMESPACE
    : check.name(meta.namespace, "metadata.namespace");
  if (namespace === undefined) return undefined;
  check.object = `${kind} ${namespace}/${name}`;
  return { kind, apiVersion, namespace, name };
}

/** `metadata.creationTimestamp` in seconds since 1970; undefined when absent (files) or unreadable. */
export function created(meta: Fields, check: Checker): number | undefined {
  const text = check.text(meta.creationTimestamp, "metadata.creationTimestamp");
  if (text === undefined) return undefined;
  const ms = Date.parse(text);
  return Number.isNaN(ms)
    ? check.bad("metadata.creationTimestamp", text, "is not a time (RFC 3339)")
    : Math.floor(ms / 1000);
}
