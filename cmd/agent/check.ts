/** The admin route behind `edgemesh check`: what only the running agent can know, as facts that the command judges. */
import { cidrContains, hostPort } from "../../lib/addr.ts";
import type { AdminRoute } from "../../lib/admin.ts";
import { openLinks } from "../../lib/linux/link_table.ts";
import { RT_TABLE_MAIN } from "../../lib/linux/rtnetlink.ts";
import type { RunningAgent } from "./running.ts";
import { serviceCidrs } from "./facts.ts";
import type { AgentAnswer } from "../check/facts.ts";
import { writeProblem } from "../check/gather_host.ts";

export function checkRoutes(agent: RunningAgent): AdminRoute[] {
  return [
    { method: "GET", path: "/v1/check", changes: false, handle: () => agentFacts(agent) },
    { method: "GET", path: "/v1/pods", changes: false, handle: ({ query }) => podsAt(agent, query.getAll("ip")) },
  ];
}

/** Address → `namespace/name`, of those that a pod has. */
function podsAt({ store }: RunningAgent, ips: readonly string[]): Readonly<Record<string, string>> {
  return Object.fromEntries(ips.flatMap((ip) => {
    const pod = store.snapshot.podsByIp(ip).at(0);
    return pod ? [[ip, `${pod.namespace}/${pod.name}`]] : [];
  }));
}

async function agentFacts(agent: RunningAgent): Promise<AgentAnswer> {
  const { identity, forwarder, config, disk, tunnel, dns } = agent;
  const forward = forwarder?.status();
  const { notBefore, notAfter } = identity.certificate;
  const skewMs = identity.time.skew();
  const { savedAt, lastError, loadError } = disk.status();
  const { problem: writing } = await writeProblem(config.stateDir);
  const listen = [config.mesh.address, ...(config.mesh.address6 === "off" ? [] : [config.mesh.address6])];
  const sample = sampleName(agent);
  const { without } = agent.sockets;
  return {
    ...(without ? { withoutFfi: without } : {}),
    rules: forward && {
      backend: forward.backend,
      repairs: forward.repairs,
      ...(forward.problem === undefined ? {} : { problem: forward.problem }),
    },
    dns: dns && {
      listen: listen.map((ip) => hostPort({ ip, port: config.dns.port })),
      ...(dns.problem === undefined ? {} : { problem: dns.problem }),
      ...(dns.hint === undefined ? {} : { hint: dns.hint }),
      upstreams: dns.stats()?.upstreams.length ?? 0,
      leftOut: dns.stats()?.leftOut ?? [],
    },
    ...(sample ? { sample } : {}),
    certificate: {
      notBefore,
      notAfter,
      expired: identity.renewal.expired,
      ...(identity.renewal.lastError ? { lastError: identity.renewal.lastError.text } : {}),
    },
    ...(skewMs === undefined ? {} : { skewMs }),
    snapshot: {
      ...(savedAt === undefined ? {} : { savedAt }),
      ...(lastError === undefined ? {} : { lastError }),
      ...(loadError === undefined ? {} : { loadError }),
      ...(writing === undefined ? {} : { writeProblem: writing }),
    },
    usage: {
      ourselves: listen.map((ip) => ({ ip, port: config.dns.port })),
      clusterDns: clusterDns(agent),
      zone: config.dns.zone,
    },
    ...hostLinks(agent),
    servers: tunnel.servers.clients.map((client) => ({
      url: client.url,
      ...(client.state.phase === "up"
        ? { name: client.state.welcome.server, version: client.state.welcome.version }
        : {}),
    })),
  };
}

/** A Service that has an address: its name must lead there. */
function sampleName({ store, config }: RunningAgent): AgentAnswer["sample"] {
  for (const service of store.snapshot.services()) {
    const address = service.clusterIPs.find((ip) => !ip.includes(":"));
    if (address !== undefined && !service.headless) {
      return { name: `${service.name}.${service.namespace}.svc.${config.dns.zone}`, address };
    }
  }
  return undefined;
}

/** Where clusters have their own DNS: CoreDNS keeps the name of its predecessor. */
function clusterDns({ store }: RunningAgent): readonly string[] {
  return ["kube-dns", "coredns", "rke2-coredns-rke2-coredns"].flatMap((name) =>
    store.snapshot.service("kube-system", name)?.clusterIPs ?? []
  );
}

/** Routes of others to Service networks, and bridges that pods of this node are on, as they are now. */
function hostLinks(agent: RunningAgent): Pick<AgentAnswer, "foreignRoutes" | "podBridges"> {
  const { config, identity, facts } = agent;
  const link = agent.link.name;
  const links = openLinks();
  try {
    const list = links.list();
    const mesh = list.find((l) => l.name === link)?.index;
    const cidrs = serviceCidrs(config, identity.state.mesh.serviceCidrs);
    const foreign = links.routes().filter((route) =>
      route.table === RT_TABLE_MAIN && route.index !== mesh && route.to.bits > 0 &&
      cidrs.some((c) => cidrContains(c, route.to.ip) && route.to.bits >= c.bits)
    );
    const name = (index: number | undefined) => list.find((l) => l.index === index)?.name ?? "no link";
    const pods = new Set(
      links.addresses().filter((a) => facts.podCidrs.some((c) => cidrContains(c, a.ip))).map((a) => name(a.index)),
    );
    return {
      foreignRoutes: foreign.map((r) => `${r.to.ip}/${r.to.bits} (${name(r.index)})`),
      podBridges: [...pods].filter(isBridge),
    };
  } finally {
    links.close();
  }
}

function isBridge(name: string): boolean {
  try {
    return Deno.statSync(`/sys/class/net/${name}/bridge`).isDirectory;
  } catch {
    return false;
  }
}
