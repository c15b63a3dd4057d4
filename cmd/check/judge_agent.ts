/** Judges a running agent or server. Pure: facts in, lines out. */
import type { AgentStatus, ServerStatus } from "../../lib/status.ts";
import { VERSION } from "../../lib/version.ts";
import { duration } from "../output.ts";
import { rulesHint } from "../rules_hint.ts";
import { serverHint } from "../server_hint.ts";
import { waitingText } from "../status.ts";
import { WITHOUT_FFI } from "../without_ffi.ts";
import type { AgentFacts, Check, RunningFacts } from "./facts.ts";
import { judgeSource } from "./judge_source.ts";
import { fail, FEW_FILES, fewFiles, ok, warn, withoutFfi } from "./judge_host.ts";

/** Beyond it, times in certificates and logs of two machines stop making sense together. */
const CLOCK_TOLERANCE_MS = 5 * 60_000;
/** Renewal begins at two thirds of a certificate's life; less than this part left means that renewals fail. */
const LOW_LIFE = 0.2;
/** Metadata that nobody confirmed for so long is still used, and said. */
const OLD_METADATA_S = 24 * 3600;
/** Pods named one by one; the rest is a number. */
const MAX_PODS = 5;

export function judgeRunning(facts: RunningFacts, now: number): Check[] {
  const { status } = facts;
  const out: Check[] = [
    ok(
      "agent",
      "answers",
      `the ${status.role} answers (edgemesh ${status.version}, up ${duration(status.uptimeSeconds)})`,
    ),
    status.ready ? ok("agent", "ready", "it is ready") : fail(
      "agent",
      "ready",
      `it is not ready: waiting for ${waitingText(status)}`,
      "edgemesh status, and the log: journalctl -u edgemesh-" + status.role,
    ),
    status.version === VERSION
      ? ok("agent", "version", "this command and the running process are of the same version")
      : warn(
        "agent",
        "version",
        `the running process is ${status.version}, this command ${VERSION}`,
        `systemctl restart edgemesh-${status.role}`,
      ),
  ];
  if (facts.openFiles !== undefined) {
    out.push(
      facts.openFiles < FEW_FILES
        ? fewFiles(facts.openFiles)
        : ok("system", "open-files", `${facts.openFiles} open files are allowed`),
    );
  }
  if (status.role === "server") return [...out, ...judgeServer(status)];
  if (!facts.agent) return out;
  return [
    ...out,
    ...judgeSockets(facts.agent),
    ...judgeRules(status, facts.agent),
    ...judgeMetadata(status, facts.agent),
    ...judgeSource(status.metadata.follows, "agent"),
    ...judgeServers(status, facts.agent),
    ...judgeIdentity(status, facts.agent, now),
    ...judgeNames(facts.agent, facts.answer),
  ];
}

function judgeSockets({ withoutFfi: without }: AgentFacts): Check[] {
  if (!without) return [];
  return [without.chosen ? ok("agent", "ffi", `${without.why}: ${WITHOUT_FFI}`) : withoutFfi(without.why)];
}

function judgeRules(status: AgentStatus, { rules, foreignRoutes }: AgentFacts): Check[] {
  if (!rules) return [ok("agent", "rules", "forwarding is switched off in the configuration")];
  return [
    rules.problem === undefined
      ? ok("agent", "rules", `kernel rules are current (${rules.backend}, ${status.services.length} Service ports)`)
      : fail(
        "agent",
        "rules",
        `kernel rules are not current: ${rules.problem}`,
        rulesHint(rules.problem),
      ),
    ...(rules.repairs > 0
      ? [
        warn(
          "agent",
          "rules-foreign",
          `something else changed our rules ${
            rules.repairs === 1 ? "once" : `${rules.repairs} times`
          }; they were repaired`,
          "look for who runs `nft flush ruleset` or firewall-cmd --reload",
        ),
      ]
      : []),
    foreignRoutes.length === 0 ? ok("network", "routes", "Service networks lead to the mesh link") : warn(
      "network",
      "routes",
      `other routes of this host lead ${foreignRoutes.join(", ")} elsewhere`,
      "ip route; or give Services networks of their own (serviceCIDRs)",
    ),
  ];
}

function judgeMetadata(status: AgentStatus, { snapshot }: AgentFacts): Check[] {
  const m = status.metadata;
  const problem = snapshot.writeProblem ?? snapshot.lastError;
  return [
    m.source === ""
      ? fail(
        "agent",
        "metadata",
        "nothing is known of the cluster yet",
        status.mode === "offline"
          ? "it comes with the first connection to a server: edgemesh netcheck"
          : "the server needs a source: --manifests DIR or kubeconfig",
      )
      : m.ageSeconds > OLD_METADATA_S && status.mode === "offline"
      ? warn(
        "agent",
        "metadata",
        `metadata is ${duration(m.ageSeconds)} old and no server confirms it`,
        "edgemesh netcheck",
      )
      : ok("agent", "metadata", `${m.services} Services, ${m.nodes} nodes from ${m.source}`),
    ...(m.refused.length === 0 ? [] : [
      warn(
        "agent",
        "refused",
        `${m.refused.length} objects are not believed: ${m.refused[0]}`,
        "edgemesh status lists all of them",
      ),
    ]),
    ...(snapshot.loadError === undefined ? [] : [
      warn(
        "agent",
        "snapshot-loaded",
        `a copy of the metadata on disk could not be used at the start: ${snapshot.loadError}`,
        "wait: it is written anew from what the server says; if it happens again, check the disk",
      ),
    ]),
    problem === undefined ? ok("agent", "snapshot", "the snapshot for starts without the cloud can be written") : fail(
      "agent",
      "snapshot",
      `the snapshot on disk cannot be written: ${problem}`,
      "df on the state directory; without it a start without the cloud knows nothing",
    ),
  ];
}

function judgeServers(status: AgentStatus, facts: AgentFacts): Check[] {
  const some = status.servers.some((s) => s.state === "connected");
  if (status.modules.some((m) => m.name === "tunnel" && m.state === "off")) {
    return [ok("server", "connected", "the tunnel is switched off in the configuration")];
  }
  return status.servers.flatMap((s): Check[] => {
    if (s.state !== "connected") {
      const why = `${s.url} is not connected: ${s.detail ?? s.state}`;
      return [
        (some ? warn : fail)("server", "connected", why, serverHint(why)),
      ];
    }
    const version = facts.servers.find((f) => f.url === s.url)?.version;
    return [
      ok("server", "connected", `${s.url} is connected${s.rttMs === undefined ? "" : ` (${Math.round(s.rttMs)} ms)`}`),
      version === undefined || version === status.version
        ? ok("server", "version", "agent and server are of the same version")
        : warn(
          "server",
          "version",
          `the server is ${version}, this agent ${status.version}`,
          "upgrade the server first, then the agents",
        ),
    ];
  });
}

function judgeIdentity(status: AgentStatus, { certificate, skewMs }: AgentFacts, now: number): Check[] {
  const left = certificate.notAfter - now;
  const life = certificate.notAfter - certificate.notBefore;
  const why = certificate.lastError === undefined ? "" : `: ${certificate.lastError}`;
  const revoked = status.warnings.find((w) => w.code === "REVOKED");
  return [
    revoked ? fail("identity", "certificate", revoked.text, revoked.hint ?? "join again") : certificate.expired
      ? fail(
        "identity",
        "certificate",
        `the certificate has expired${why}`,
        "it is renewed once a server with the right time is connected: edgemesh netcheck",
      )
      : left < life * LOW_LIFE
      ? warn(
        "identity",
        "certificate",
        `the certificate ends in ${duration(left / 1000)} and is not renewed${why}`,
        "edgemesh netcheck",
      )
      : ok("identity", "certificate", `the certificate is good for ${duration(left / 1000)}`),
    skewMs === undefined
      ? ok("identity", "clock-skew", "no server's time is known to compare the clock with")
      : Math.abs(skewMs) > CLOCK_TOLERANCE_MS
      ? warn(
        "identity",
        "clock-skew",
        `the clock is ${duration(Math.abs(skewMs) / 1000)} ${
          skewMs > 0 ? "ahead of" : "behind"
        } the servers', whose time is used`,
        "set the clock, or run an NTP client",
      )
      : ok("identity", "clock-skew", `the clock agrees with the servers' (${Math.round(Math.abs(skewMs))} ms)`),
  ];
}

function judgeNames({ dns, sample, ...seen }: AgentFacts, answer: RunningFacts["answer"]): Check[] {
  if (!dns) return [ok("names", "dns", "DNS is switched off in the configuration")];
  if (dns.problem !== undefined) {
    return [
      fail(
        "names",
        "dns",
        `DNS does not answer: ${dns.problem}`,
        dns.hint ?? "the agent tries again every 5 s",
      ),
    ];
  }
  const out: Check[] = [];
  if (sample && answer) {
    const where = dns.listen[0] ?? "the mesh address";
    out.push(
      "problem" in answer
        ? fail(
          "names",
          "dns",
          `${where} does not answer ${sample.name}: ${answer.problem}`,
          "a firewall on this host may drop it: nft list ruleset",
        )
        : answer.addresses.includes(sample.address)
        ? ok("names", "dns", `${where} answers ${sample.name} with ${sample.address} (${answer.ms} ms)`)
        : fail(
          "names",
          "dns",
          `${where} answers ${sample.name} with ${
            answer.addresses.join(", ") || "nothing"
          } instead of ${sample.address}`,
          `edgemesh resolve ${sample.name}`,
        ),
    );
  } else {
    out.push(ok("names", "dns", `DNS listens on ${dns.listen.join(", ")}; no Service has an address to ask for`));
  }
  if (dns.upstreams === 0 && dns.leftOut.length > 0) {
    out.push(
      fail(
        "names",
        "upstreams",
        `names outside the cluster cannot be resolved: ${dns.leftOut.join("; ")}`,
        "name another resolver: dns.upstreams in the configuration, or a second nameserver",
      ),
    );
  }
  return [...out, ...judgeResolvers(seen, dns.listen[0] ?? "")];
}

function judgeResolvers(
  { resolvers, podsHidden }: Pick<AgentFacts, "resolvers" | "podsHidden">,
  listen: string,
): Check[] {
  const good = resolvers.filter((r) => r.uses === "mesh");
  const others = resolvers.filter((r) => r.uses !== "mesh");
  const address = listen.replace(/:\d+$/, "");
  const lines = others.slice(0, MAX_PODS).map((r) => {
    const host = r.who === "this host";
    const hint = host
      ? `put "nameserver ${address}" first in /etc/resolv.conf`
      : r.hint ?? `set the kubelet's clusterDNS to ${address}`;
    return warn("names", host ? "resolver-host" : "resolver-pod", r.summary, hint);
  });
  if (others.length > MAX_PODS) {
    lines.push(
      warn(
        "names",
        "resolver-pod",
        `and ${others.length - MAX_PODS} more pods ask somebody else`,
        "edgemesh check -o json lists what was found first",
      ),
    );
  }
  if (podsHidden === "not root") {
    lines.push(warn("names", "resolver-pod", "whom pods ask for names only root may see", "sudo edgemesh check"));
  } else if (podsHidden === "other version") {
    lines.push(
      warn(
        "names",
        "resolver-pod",
        "whom pods ask for names was not looked at: the agent that runs is of another version than this command",
        "systemctl restart edgemesh-agent",
      ),
    );
  }
  if (good.length > 0) {
    lines.unshift(ok(
      "names",
      "resolvers",
      `${good.map((r) => r.who).slice(0, MAX_PODS).join(", ")} ${good.length === 1 ? "asks" : "ask"} the agent`,
    ));
  }
  return lines;
}

function judgeServer(status: ServerStatus): Check[] {
  const { metadata } = status;
  return [
    metadata.source === "" && metadata.services === 0
      ? warn("mesh", "metadata", "the server knows no Services", "--manifests DIR, or --set kubeconfig=in-cluster")
      : ok("mesh", "metadata", `${metadata.services} Services from ${metadata.source}`),
    ...judgeSource(metadata.follows, "mesh"),
    ...metadata.problems.filter((p) => !/no right to list and watch|does not have this resource/.test(p)).map((p) =>
      warn("mesh", "objects", p, "correct the object; its last good state is served")
    ),
    status.agents.length === 0
      ? warn("mesh", "agents", "no agent is connected", "edgemesh token create prints the command that joins one")
      : ok("mesh", "agents", `${status.agents.length} agents are connected`),
    ...status.agents.filter((a) => a.version !== status.version).map((a) =>
      warn("mesh", "agent-version", `${a.node} is ${a.version}, this server ${status.version}`, `upgrade ${a.node}`)
    ),
  ];
}
