/**
 * `edgemesh config convert`: the configuration of KubeEdge's EdgeMesh (agent, gateway, and the server of 1.11 and before) as
 * one of ours. Every line of it either has its place here, or is named with what takes its place. Pure: text in, text out.
 */
import { isMap, isPair, isScalar, isSeq, LineCounter, parseDocument, type YAMLMap } from "yaml";
import { parseConfig } from "../lib/config.ts";
import { MeshError } from "../lib/errors.ts";

/** A line that has no place in our configuration. */
export interface ConvertNote {
  readonly line: number;
  readonly path: string;
  readonly text: string;
}

export interface Converted {
  /** As in our file: nested keys. */
  readonly config: Readonly<Record<string, unknown>>;
  readonly notes: readonly ConvertNote[];
}

/** What becomes of one key of theirs. */
interface Rule {
  /** Dotted path of ours. */
  readonly to?: string;
  /** Their value as ours; undefined: nothing is to be said. */
  readonly value?: (theirs: unknown) => unknown;
  /** Said with every value but `quiet`. */
  readonly note?: string;
  /** The value with which the key changes nothing. */
  readonly quiet?: unknown;
}

const same = (to: string): Rule => ({ to });
const told = (note: string, quiet?: unknown): Rule => ({ note, ...(quiet === undefined ? {} : { quiet }) });

const NO_RELAYS =
  "the server takes the place of relay nodes: `edgemesh server` on one of them, `server: [wss://ITS-ADDRESS]` here";
const NO_PSK = "there is no shared key: each node has its own, given by its join (edgemesh token create)";
const OWN_PACE = "not needed: reconnects and searches have their own pace";
const NO_GATEWAY = "there is no ingress gateway: keep the one that is there";
const NO_CNI = "there is no pod network of our own: pods keep the addresses that their CNI gave them";

/** Longest prefix wins; a rule for a key holds for all below it. */
const RULES: Readonly<Record<string, Rule>> = {
  "apiVersion": {},
  "kind": {},
  "kubeAPIConfig.kubeConfig": same("kubeconfig"),
  "kubeAPIConfig.master": told("write a kubeconfig file with this address, and name it in `kubeconfig`", ""),
  "kubeAPIConfig.metaServer.server": same("metaServer.server"),
  ...Object.fromEntries(
    ["requireAuthorization", "insecureSkipTLSVerify", "tlsCaFile", "tlsCertFile", "tlsPrivateKeyFile"].map((key) => [
      `kubeAPIConfig.metaServer.security.${key}`,
      same(`metaServer.security.${key}`),
    ]),
  ),
  "kubeAPIConfig.contentType": told("not needed: JSON is what every API speaks"),
  "kubeAPIConfig.qps": told("not needed: one list and one watch per kind of object"),
  "kubeAPIConfig.burst": told("not needed: one list and one watch per kind of object"),
  "kubeAPIConfig.mode": told(
    "not needed: what is followed is what is named (kubeconfig, metaServer, or the joined server)",
  ),
  "kubeAPIConfig.deleteKubeConfig": told("not needed: no kubeconfig is written", false),
  "commonConfig.bridgeDeviceName": same("mesh.interface"),
  "commonConfig.bridgeDeviceIP": same("mesh.address"),
  "commonConfig.pprofConfig": told("no pprof: /metrics on metricsListen, and edgemesh support-bundle"),
  "pprofConfig": told("no pprof: /metrics on metricsListen, and edgemesh support-bundle"),
  "modules.edgeDNS.enable": same("dns.enabled"),
  "modules.edgeDNS.listenPort": same("dns.port"),
  "modules.edgeDNS.cacheDNS.enable": { to: "dns.mode", value: (on) => on === true ? "cache" : undefined },
  "modules.edgeDNS.cacheDNS.autoDetect": same("dns.autoDetect"),
  "modules.edgeDNS.cacheDNS.upstreamServers": same("dns.upstreams"),
  "modules.edgeDNS.cacheDNS.cacheTTL": same("dns.maxTtlSeconds"),
  "modules.edgeProxy.enable": same("forward.enabled"),
  "modules.edgeProxy.serviceFilterMode": same("forward.serviceFilterMode"),
  "modules.edgeProxy.socks5Proxy.enable": told(
    "there is no SOCKS5 proxy: Services are reached by name and address",
    false,
  ),
  "modules.edgeProxy.socks5Proxy.listenPort": {},
  "modules.edgeProxy.loadBalancer.consistentHash": told("not needed: hashing here has nothing to tune"),
  "modules.edgeTunnel.enable": same("tunnel.enabled"),
  "modules.edgeTunnel.listenPort": { to: "tunnel.listen", value: (port) => `[::]:${port}` },
  "modules.edgeTunnel.nodeName": same("nodeName"),
  "modules.edgeTunnel.transport": told(
    "not needed: TLS over TCP with WebSocket to the server, mutual TLS between agents",
    "tcp",
  ),
  "modules.edgeTunnel.rendezvous": told(
    "not needed: the server lets nodes find each other; in a LAN they do by themselves",
  ),
  "modules.edgeTunnel.relayNodes": told(NO_RELAYS),
  "modules.edgeTunnel.enableIpfsLog": { to: "log.level", value: (on) => on === true ? "debug" : undefined },
  "modules.edgeTunnel.enableHolePunch": { to: "tunnel.mode", value: (on) => on === false ? "off" : undefined },
  "modules.edgeTunnel.maxCandidates": told(OWN_PACE),
  "modules.edgeTunnel.heartbeatPeriod": told(OWN_PACE),
  "modules.edgeTunnel.finderPeriod": told(OWN_PACE),
  "modules.edgeTunnel.psk": told(NO_PSK),
  "modules.edgeTunnel.tunnelLimitConfig": told("see forward.maxConnections; a peer's streams have a cap of their own"),
  "modules.edgeTunnel.listenInterfaces": told("name an address in tunnel.listen instead of interfaces", "*"),
  "modules.edgeTunnel.extraFilteredInterfaces": told("not needed: addresses of bridges and tunnels are told apart", ""),
  "modules.edgeTunnel.metricConfig.enable": { to: "metricsListen", value: (on) => on === false ? "off" : undefined },
  "modules.edgeTunnel.metricConfig.port": { to: "metricsListen", value: (port) => `127.0.0.1:${port}` },
  "modules.edgeTunnel.security": told(NO_PSK),
  "modules.edgeTunnel.advertiseAddress": told(NO_RELAYS),
  "modules.edgeCNI.enable": told(NO_CNI, false),
  "modules.edgeCNI": told(NO_CNI),
  "modules.edgeGateway.enable": told(NO_GATEWAY, false),
  "modules.edgeGateway": told(NO_GATEWAY),
};

/** Theirs of 1.11 and before called it so. */
const RENAMED: readonly (readonly [RegExp, string])[] = [[/^modules\.tunnel\b/, "modules.edgeTunnel"]];
const KINDS = /^EdgeMesh(Agent|Gateway|Server)$/;

/** Converts one of their files, or the ConfigMap it lies in. Throws CONFIG_INVALID for anything else. */
export function convertEdgeMesh(text: string, name: string): Converted {
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines });
  const broken = document.errors[0];
  const root = document.contents;
  if (broken || !isMap(root)) {
    throw new MeshError(
      "CONFIG_INVALID",
      `${name} is not YAML with keys: ${broken?.message.split("\n")[0] ?? "empty"}`,
    );
  }
  if (String(root.get("kind")) === "ConfigMap") {
    const data = root.get("data");
    const inner = isMap(data) ? data.items.find((item) => /^edgemesh-\w+\.yaml$/.test(String(item.key))) : undefined;
    if (inner && isScalar(inner.value)) {
      // A block of text begins on the line after its key.
      const first = lines.linePos(inner.value.range![0]).line;
      const { config, notes } = convertEdgeMesh(String(inner.value.value), `${name}, ${inner.key}`);
      return { config, notes: notes.map((note) => ({ ...note, line: note.line + first })) };
    }
  }
  const kind = String(root.get("kind"));
  if (!KINDS.test(kind)) {
    throw new MeshError("CONFIG_INVALID", `${name} is no configuration of KubeEdge's EdgeMesh: its kind is ${kind}`, {
      hint: "edgemesh-agent.yaml, edgemesh-gateway.yaml, or the ConfigMap that holds one",
    });
  }
  const config: Record<string, unknown> = {};
  const notes: ConvertNote[] = [];
  const line = (offset: number) => lines.linePos(offset).line;
  walk(root, "", (path, value, offset) => {
    const said = { line: line(offset), path };
    const rule = ruleOf(path);
    if (!rule) return void notes.push({ ...said, text: "is not a key of the original, as far as we know" });
    const ours = rule.to === undefined ? undefined : rule.value ? rule.value(value) : value;
    if (rule.to !== undefined && ours !== undefined && ours !== "" && !isEmptyList(ours)) {
      // A switch that is off wins over the port that stands beside it.
      if (at(config, rule.to) !== "off") set(config, rule.to, ours);
    }
    const quiet = rule.quiet !== undefined && value === rule.quiet;
    if (rule.note !== undefined && !quiet) notes.push({ ...said, text: rule.note });
  });
  const checked = parseConfig("agent", config);
  if ("issues" in checked) {
    for (const { path, problem } of checked.issues) notes.push({ line: 0, path, text: problem });
  }
  return { config, notes: once(notes) };
}

function walk(map: YAMLMap, prefix: string, seen: (path: string, value: unknown, offset: number) => void): void {
  for (const pair of map.items) {
    if (!isPair(pair) || !isScalar(pair.key)) continue;
    const path = prefix ? `${prefix}.${pair.key.value}` : String(pair.key.value);
    if (isMap(pair.value) && !isLeaf(path)) walk(pair.value, path, seen);
    else {
      const value = isMap(pair.value) || isSeq(pair.value)
        ? pair.value.toJSON()
        : isScalar(pair.value)
        ? pair.value.value
        : undefined;
      seen(path, value, pair.key.range![0]);
    }
  }
}

/** A key whose rule holds for all below it is one line. */
function isLeaf(path: string): boolean {
  const name = renamed(path);
  return name in RULES && !Object.keys(RULES).some((key) => key.startsWith(`${name}.`));
}

function ruleOf(path: string): Rule | undefined {
  for (let name = renamed(path); name !== ""; name = name.slice(0, Math.max(0, name.lastIndexOf(".")))) {
    if (name in RULES) return RULES[name];
  }
  return undefined;
}

function renamed(path: string): string {
  return RENAMED.reduce((name, [from, to]) => name.replace(from, to), path);
}

function isEmptyList(value: unknown): boolean {
  return Array.isArray(value) && value.length === 0;
}

function at(config: Readonly<Record<string, unknown>>, path: string): unknown {
  return path.split(".").reduce<unknown>((value, key) => (value as Record<string, unknown> | undefined)?.[key], config);
}

function set(config: Record<string, unknown>, path: string, value: unknown): void {
  const keys = path.split(".");
  let inner = config;
  for (const key of keys.slice(0, -1)) inner = (inner[key] ??= {}) as Record<string, unknown>;
  inner[keys.at(-1)!] = value;
}

/** Neighbouring lines with one reason are one note, at the first of them. */
function once(notes: readonly ConvertNote[]): ConvertNote[] {
  return notes.filter((note, i) => i === 0 || note.text !== notes[i - 1]!.text || note.path === notes[i - 1]!.path);
}
