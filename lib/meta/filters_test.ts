import assert from "node:assert/strict";
import type { FilterConfig, FilterReason } from "./filters.ts";
import { DEFAULT_FILTER, filterReason } from "./filters.ts";
import type { Service } from "./model.ts";
import { aService } from "./testing.ts";

const LABEL = { "service.edgemesh.kubeedge.io/service-proxy-name": "" };
const inverse: FilterConfig = { ...DEFAULT_FILTER, mode: "FilterIfLabelDoesNotExists" };
const native: FilterConfig = { ...DEFAULT_FILTER, nativeProxy: true };

const CASES: [string, Partial<Service>, FilterConfig, FilterReason | undefined][] = [
  ["plain", {}, DEFAULT_FILTER, undefined],
  ["A21: labelled", { labels: LABEL }, DEFAULT_FILTER, "label-exists"],
  ["A22: inverse, labelled", { labels: LABEL }, inverse, undefined],
  ["A22: inverse, not labelled", {}, inverse, "label-missing"],
  ["the value of the label does not matter", { labels: { ...LABEL, x: "y" } }, DEFAULT_FILTER, "label-exists"],
  [
    "Kubernetes' label names another proxy",
    { labels: { "service.kubernetes.io/service-proxy-name": "x" } },
    DEFAULT_FILTER,
    "other-proxy",
  ],
  ["headless label", { labels: { "service.kubernetes.io/headless": "" } }, DEFAULT_FILTER, "headless-label"],
  [
    "headless label wins in both modes",
    { labels: { "service.kubernetes.io/headless": "", ...LABEL } },
    inverse,
    "headless-label",
  ],
  ["namespace in", {}, { ...DEFAULT_FILTER, namespaces: ["shop"] }, undefined],
  ["namespace not in", {}, { ...DEFAULT_FILTER, namespaces: ["other"] }, "namespace"],
  ["namespace excluded", {}, { ...DEFAULT_FILTER, excludeNamespaces: ["shop"] }, "namespace"],
  ["API server, native works", { namespace: "default", name: "kubernetes" }, native, "native-apiserver"],
  ["API server, nothing native", { namespace: "default", name: "kubernetes" }, DEFAULT_FILTER, undefined],
  ["DNS by name", { namespace: "kube-system", name: "kube-dns" }, native, "native-dns"],
  ["DNS by label", { namespace: "dns", name: "rke2", labels: { "k8s-app": "kube-dns" } }, native, "native-dns"],
  ["DNS, nothing native", { namespace: "kube-system", name: "coredns" }, DEFAULT_FILTER, undefined],
  ["another Service, native works", {}, native, undefined],
];

for (const [name, service, config, expected] of CASES) {
  Deno.test(`filters: ${name}`, () => assert.equal(filterReason(aService(service), config), expected));
}
