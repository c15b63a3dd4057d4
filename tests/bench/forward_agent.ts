/**
 * Forwarding in a process of its own, for tests/bench/forward_bench.ts: real rules, real sockets, fixed metadata.
 * Runs inside a network namespace; the first argument is a {@link AgentSetup} in JSON. Prints `ready` when rules are in.
 */
// deno-lint-ignore-file no-console -- a bench prints its results
import { setImmediate } from "node:timers";
import { systemClock } from "../../lib/clock.ts";
import { DEFAULT_FORWARD_CONFIG } from "../../lib/forward/facts.ts";
import { Forwarder } from "../../lib/forward/forwarder.ts";
import { NetlinkRules } from "../../lib/forward/rules/netlink.ts";
import { RuleWriter } from "../../lib/forward/rules/writer.ts";
import { parseCidr } from "../../lib/addr.ts";
import { EpollLoop } from "../../lib/linux/loop.ts";

import { createLogger, stderrSink } from "../../lib/log.ts";
import { type EndpointLiteral, metaOf, service, slice } from "../fixtures/meta_literal.ts";

export interface AgentSetup {
  readonly mesh: string;
  readonly addresses: readonly string[];
  readonly podCidrs: readonly string[];
  readonly services: readonly {
    readonly name: string;
    readonly ip: string;
    readonly endpoint: EndpointLiteral;
    readonly ports: readonly {
      readonly name: string;
      readonly port: number;
      readonly targetPort: number;
      readonly protocol: "TCP" | "UDP";
    }[];
  }[];
}

if (import.meta.main) await main(JSON.parse(Deno.args[0]!) as AgentSetup);

async function main(setup: AgentSetup): Promise<void> {
  const loop = EpollLoop.open({ clock: systemClock, log: createLogger(stderrSink("warn")), alone: true });
  const forwarder = new Forwarder({
    loop,
    clock: systemClock,
    log: createLogger(stderrSink("warn")),
    tunnel: {
      dial: () => {
        throw new Error("The bench has no tunnel");
      },
      openFlow: () => {
        throw new Error("The bench has no tunnel");
      },
    },
    rules: new RuleWriter(NetlinkRules.open()),
    facts: {
      node: "n1",
      addresses: [...setup.addresses, setup.mesh],
      podCidrs: setup.podCidrs.map((text) => parseCidr(text)!),
      routable: [],
      mesh4: setup.mesh,
      mesh6: undefined,
      hairpinLinks: [],
    },
    // A bench's pods have private addresses and belong to no node.
    config: { ...DEFAULT_FORWARD_CONFIG, privateEndpoints: true },
    options: { connectTimeoutMs: 5000, udpIdleMs: 60_000, maxConnections: 8192, accessLog: false },
    defer: (task) => void setImmediate(task),
  });
  await forwarder.update(metaOf({
    services: setup.services.map((s) => service(`bench/${s.name}`, { clusterIPs: [s.ip], ports: s.ports })),
    slices: setup.services.map((s) =>
      slice(`bench/${s.name}`, [s.endpoint], s.ports.map((p) => ({ ...p, port: p.targetPort })))
    ),
  }));
  const { problem } = forwarder.status();
  if (problem !== undefined) throw new Error(problem);
  console.log("ready");
}
