/** What an agent measures, read when it is scraped: the sources count anyway, so scraping costs nothing in between. */
import { CONNECT_SECONDS } from "../../lib/forward/counters.ts";
import type { Registry } from "../../lib/metrics.ts";
import { processMetrics } from "../daemon/process_metrics.ts";
import type { RunningAgent } from "./running.ts";

export function collectAgentMetrics(agent: RunningAgent): Registry {
  const r = processMetrics(agent);
  const snapshot = agent.store.snapshot;
  r.gauge("edgemesh_metadata_synced", "1 once metadata was learned").set(snapshot.synced ? 1 : 0);
  r.gauge("edgemesh_metadata_refused", "Objects or fields the guard refuses now").set(agent.guard.book.size);

  const tunnel = agent.tunnel.status();
  const servers = r.gauge("edgemesh_server_connected", "1 while connected to the server", ["server"]);
  const rtt = r.gauge("edgemesh_server_rtt_seconds", "Round trip to the server", ["server"]);
  for (const s of tunnel.servers) {
    servers.set(s.state.phase === "up" ? 1 : 0, s.url);
    if (s.rttMs !== undefined) rtt.set(s.rttMs / 1000, s.url);
  }
  const path = r.gauge("edgemesh_peer_path", "1 for the path in use", ["peer", "path"]);
  const peerRtt = r.gauge("edgemesh_peer_rtt_seconds", "Round trip to the peer", ["peer"]);
  const peerBytes = r.counter("edgemesh_peer_bytes_total", "Session bytes", ["peer", "direction"]);
  const carriers = r.counter(
    "edgemesh_peer_carriers_total",
    "Carriers that became ready; of lan and direct: upgrades",
    [
      "peer",
      "path",
    ],
  );
  const punches = r.counter("edgemesh_punch_rounds_total", "Rounds of hole punching by how both NATs map", [
    "nat",
    "peer_nat",
    "result",
  ]);
  for (const { ours, theirs, ok, rounds } of tunnel.paths?.punches ?? []) {
    punches.set(rounds, ours, theirs, ok ? "connected" : "failed");
  }
  for (const p of tunnel.peers) {
    for (const [path, n] of Object.entries(p.carriers)) carriers.set(n, p.node, path);
    path.set(1, p.node, p.path ?? "none");
    if (p.rttMs !== undefined) peerRtt.set(p.rttMs / 1000, p.node);
    peerBytes.set(p.bytesReceived, p.node, "in");
    peerBytes.set(p.bytesSent, p.node, "out");
  }

  const forward = agent.forwarder?.status();
  if (forward) {
    r.gauge("edgemesh_connections", "Connections the agent carries now").set(forward.connections);
    r.counter("edgemesh_rules_repaired_total", "Foreign changes to our rules that were undone").set(forward.repairs);
    r.gauge("edgemesh_rules_current", "1 while the kernel holds rules of the newest snapshot").set(
      forward.problem === undefined ? 1 : 0,
    );
    const opened = r.counter("edgemesh_connections_total", "Connections carried by the agent", ["port", "way"]);
    const failed = r.counter("edgemesh_dial_failures_total", "Endpoints that could not be connected to", [
      "port",
      "way",
    ]);
    const bytes = r.counter("edgemesh_connection_bytes_total", "Bytes carried by the agent", [
      "port",
      "way",
      "direction",
    ]);
    const connect = r.histogram(
      "edgemesh_connect_duration_seconds",
      "From a client's connection to its open endpoint",
      CONNECT_SECONDS,
      ["port", "way"],
    );
    const givenUp = r.counter("edgemesh_connections_failed_total", "Connections given up after all endpoints", [
      "port",
      "reason",
    ]);
    for (const { port, reason, count } of forward.failed) givenUp.set(count, port, reason);
    const syncs = r.counter("edgemesh_rules_syncs_total", "Times that kernel rules were written", ["result"]);
    syncs.set(forward.sync.done, "ok");
    syncs.set(forward.sync.failed, "failed");
    r.counter("edgemesh_rules_sync_seconds_total", "Time spent writing kernel rules").set(forward.sync.seconds);
    r.gauge("edgemesh_rules_last_sync_seconds", "Time that the last writing of kernel rules took").set(
      forward.sync.lastSeconds,
    );
    for (const t of forward.traffic) {
      connect.set(t.connectBuckets, t.connectSeconds, t.port, t.way);
      opened.set(t.opened, t.port, t.way);
      failed.set(t.dialFailures, t.port, t.way);
      bytes.set(t.bytesIn, t.port, t.way, "in");
      bytes.set(t.bytesOut, t.port, t.way, "out");
    }
    const refused = r.counter("edgemesh_refused_total", "Connections refused here", ["reason"]);
    for (const [reason, n] of Object.entries(forward.refused)) refused.set(n, reason);
    const inbound = r.counter("edgemesh_inbound_refused_total", "Streams of other nodes refused here", ["reason"]);
    for (const [reason, n] of Object.entries(forward.inbound.refused)) inbound.set(n, reason);
  }

  const dns = agent.dns?.stats();
  if (dns) {
    const queries = r.counter("edgemesh_dns_queries_total", "DNS queries by how they were answered", ["how"]);
    for (
      const how of [
        "clusterHits",
        "local",
        "foreignHits",
        "forwarded",
        "stale",
        "refused",
        "malformed",
        "denied",
        "limited",
      ] as const
    ) {
      queries.set(dns[how], how.replace(/[A-Z]/g, (c) => "_" + c.toLowerCase()));
    }
    const codes = r.counter("edgemesh_dns_responses_total", "DNS responses by code", ["rcode"]);
    for (const [rcode, n] of Object.entries(dns.rcodes)) codes.set(n, rcode);
  }
  return r;
}
