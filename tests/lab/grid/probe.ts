/**
 * One pair of the grid: a request from a pod here to a Service there, then one megabyte, and which way it took. Counters
 * decide: of the bytes that crossed the server's interface and of those that crossed the asking node's own, to and from
 * addresses of the other site. What agents say is not asked.
 */
import { pause, systemClock } from "../../../lib/clock.ts";
import { type FlowCount, type Meter, sumFlows } from "../../../lib/lab/meter.ts";
import type { Mesh } from "../../../lib/lab/mesh.ts";
import { isRouted } from "../../../lib/lab/nat.ts";
import type { LabNode } from "../../../lib/lab/node.ts";
import type { Site } from "../../../lib/lab/site.ts";
import type { Pair, World } from "./world.ts";

/** Size of the file that each node serves. */
export const FILE_BYTES = 1024 * 1024;
/** Bytes of a small request. */
const FEW = 64;
/** A round of punching is five seconds from its start, and begins within a second of the first request. */
const PATIENCE_MS = 8_000;
/** A pair that is told it is hopeless, or has hopes for more rounds, is waited for this long where the relay will do. */
const RELAY_MS = 7_000;
const POLL_MS = 60;
/** Payload of a TLS handshake with two certificates is more; the SYNs and RSTs of a failed punch have none. */
const HANDSHAKE_BYTES = 1_200;
/** IPv6 and TCP headers with options: what a packet may have without payload. */
const HEADERS = 92;

export type Path = "lan" | "direct" | "relay" | "none" | "mixed";

export interface Found {
  readonly pair: Pair;
  readonly path: Path;
  /** Milliseconds from the first request's start to its first answer, and to the direct path. */
  readonly firstMs: number;
  readonly directMs: number | undefined;
  /** For people, where something is not as expected. */
  readonly detail: string;
}

/** Where a node of the grid can be seen. */
export class Place {
  readonly node: LabNode;
  readonly site: Site;
  /** What occupies the pair's addresses: no two pairs at once may share one. */
  readonly address: string;
  /** Flags of its agent. */
  readonly flags: readonly string[];

  constructor({ topology }: Mesh, world: World, name: string) {
    const { name: site, behind } = world.site(name);
    this.node = topology.node(world.edge(name));
    this.site = topology.site(site);
    this.flags = world.flags(name);
    const provider = behind === undefined ? undefined : topology.site(behind);
    this.address = provider?.address ?? (isRouted(this.site.kind) ? this.node.address : this.site.address);
  }

  /** Addresses by which others may see it, here and from outside. */
  get addresses(): readonly string[] {
    const six = this.node.address6;
    return [...new Set([this.node.address, this.site.address, this.address, ...(six === undefined ? [] : [six])])];
  }

  get clusterIp(): string {
    return `10.96.1.${this.node.name.slice("edge-".length)}`;
  }
}

export interface Ends {
  readonly from: Place;
  readonly to: Place;
}

export class Prober {
  readonly #server: { readonly meter: Meter; readonly iface: string };

  constructor({ topology }: Mesh) {
    this.#server = { meter: topology.internet.meter, iface: topology.leg(topology.server).port };
  }

  /** Brings a pair together and says how it went. Never throws for what the product does. */
  async probe(pair: Pair, { from, to }: Ends): Promise<Found> {
    const own = await from.node.counters("grid");
    const direct = async () => payload(await own.read(), to);
    const before = await direct();
    const start = systemClock.now();
    const first = this.#get(from, to, FEW).then((result) => ({ ...result, ms: systemClock.now() - start }));
    let directMs: number | undefined;
    const patience = pair.expected === "relay" ? RELAY_MS : PATIENCE_MS;
    while (systemClock.now() - start < patience) {
      if (await direct() - before >= HANDSHAKE_BYTES) {
        directMs = systemClock.now() - start;
        break;
      }
      await pause(POLL_MS);
    }
    const { bytes, error, ms: firstMs } = await first;
    if (bytes !== FEW) return { pair, path: "none", firstMs, directMs, detail: `the first request failed: ${error}` };
    // The carrier that has just been made takes over with its first round trips.
    if (directMs !== undefined) await pause(400);
    return { pair, firstMs, directMs, ...await this.#transfer(from, to, own) };
  }

  async #transfer(from: Place, to: Place, own: Meter): Promise<{ readonly path: Path; readonly detail: string }> {
    const { meter, iface } = this.#server;
    const through = async () => sumFlows(await meter.read(), { iface, address: from.address }).bytes;
    const [server, direct] = [await through(), payload(await own.read(), to)];
    const { bytes, error } = await this.#get(from, to, FILE_BYTES);
    const relayed = await through() - server;
    const flows = await own.read();
    const straight = payload(flows, to) - direct;
    const detail = `${straight} bytes direct, ${relayed} at the server`;
    if (bytes !== FILE_BYTES) return { path: "none", detail: `only ${bytes} bytes came (${error}); ${detail}` };
    if (straight < FILE_BYTES / 4 && relayed >= FILE_BYTES) return { path: "relay", detail };
    if (straight < FILE_BYTES * 0.95 || relayed >= FILE_BYTES / 4) return { path: "mixed", detail };
    const sameLan = from.site === to.site &&
      sumFlows(flows, { between: [from.node.address, to.node.address] }).bytes >= FILE_BYTES;
    return { path: sameLan ? "lan" : "direct", detail };
  }

  async #get(from: Place, to: Place, bytes: number): Promise<{ readonly bytes: number; readonly error: string }> {
    const flags = ["-sS", "--max-time", "8", "-o", "/dev/null", "-r", `0-${bytes - 1}`, "-w", "%{size_download}"];
    const { stdout, stderr } = await from.node.pods[0]!.host.exec(["curl", ...flags, `http://${to.clusterIp}/`]);
    return { bytes: Number(stdout), error: stderr.trim() };
  }
}

/** Bytes beyond headers to and from a node's addresses, as another node's interface counts them. */
function payload(flows: readonly FlowCount[], to: Place): number {
  let sum = 0;
  for (const address of to.addresses) {
    const { bytes, packets } = sumFlows(flows, { iface: "eth0", protocol: "tcp", address });
    sum += Math.max(0, bytes - packets * HEADERS);
  }
  return sum;
}
