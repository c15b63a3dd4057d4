/** What a server measures, read when it is scraped. */
import type { Registry } from "../../lib/metrics.ts";
import { processMetrics } from "../daemon/process_metrics.ts";
import type { RunningServer } from "./running.ts";

export function collectServerMetrics(server: RunningServer): Registry {
  const r = processMetrics(server);
  const { agents, pending, turnedAway, relay, legs, paths } = server.control.stats();
  r.gauge("edgemesh_agents", "Agents connected").set(agents.length);
  r.gauge("edgemesh_enrolled_nodes", "Nodes enrolled").set(server.identity.enrolments.list().length);
  r.gauge("edgemesh_pending_connections", "Connections that are not agents yet").set(pending);
  r.counter("edgemesh_connections_turned_away_total", "Connections turned away by a cap").set(turnedAway);
  r.counter("edgemesh_relayed_bytes_total", "Bytes relayed").set(relay.relayedBytes + (legs?.bytes ?? 0));
  r.gauge("edgemesh_relay_legs", "Pairs of relay legs that the kernel joins").set(legs?.joined ?? 0);
  r.counter("edgemesh_relay_legs_refused_total", "Connections without a good ticket").set(legs?.refused ?? 0);
  r.counter("edgemesh_relayed_messages_total", "Messages relayed").set(relay.relayedMessages);
  r.gauge("edgemesh_relay_queued_bytes", "Bytes waiting for slow agents").set(relay.queuedBytes);
  r.counter("edgemesh_relay_channels_opened_total", "Channels opened").set(relay.opened);
  const refused = r.counter("edgemesh_relay_channels_refused_total", "Channels refused", ["reason"]);
  for (const [reason, n] of Object.entries(relay.refused)) refused.set(n, reason);
  if (paths) {
    r.gauge("edgemesh_punch_rounds_running", "Rounds of hole punching being coordinated now").set(paths.rounds);
    const rounds = r.counter("edgemesh_punch_rounds_coordinated_total", "Rounds by how far they came", ["step"]);
    rounds.set(paths.begun, "begun");
    rounds.set(paths.started, "started");
    rounds.set(paths.connected, "connected");
  }
  return r;
}
