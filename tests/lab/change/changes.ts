/** What happens to a network under a download, in the order in which it can happen. */
import { pause, systemClock } from "../../../lib/clock.ts";
import type { Mesh } from "../../../lib/lab/mesh.ts";
import { sumFlows } from "../../../lib/lab/meter.ts";
import type { LabNode } from "../../../lib/lab/node.ts";
import type { Change } from "./transfer.ts";

/** Wait for the direct path after a change, so that the next one meets one; it goes on with the relay otherwise. */
const DIRECT_MS = 6_000;
const POLL_MS = 100;
/** What a direct path carries at the least in a tenth of a second while a download runs. */
const FLOWING = 500_000;

/** Moves the network around between the first two sites; each round has five changes. */
export class Upheaval {
  readonly #mesh: Mesh;
  #cut: readonly [string, string] | undefined;
  #suffix = 100;
  #wan = 110;

  constructor(mesh: Mesh) {
    this.#mesh = mesh;
  }

  round(): readonly Change[] {
    const { topology } = this.#mesh;
    const [one, two] = topology.edges as [LabNode, LabNode];
    return [
      { name: "the way between the two sites swallows everything: by the relay", act: () => this.#cutPair() },
      { name: "the relay is killed and started again while it carries the stream", act: () => this.#restartServer() },
      { name: "the way is back, and edge-1 gets another address: direct", act: () => this.#healAndMove(one) },
      { name: "the cable of edge-2 is pulled for a second", act: () => this.#pull(two) },
      { name: "the router of site 2 gets another public address", act: () => this.#renumber() },
    ];
  }

  /** Waits until bytes pass between the sites at the rate of a download; undefined: they do not. */
  async untilDirect(): Promise<number | undefined> {
    const start = systemClock.now();
    for (let before = await this.#direct();;) {
      await pause(POLL_MS);
      const now = await this.#direct();
      if (now - before >= FLOWING) return systemClock.now() - start;
      if (systemClock.now() - start > DIRECT_MS) return undefined;
      before = now;
    }
  }

  async #direct(): Promise<number> {
    const { internet, sites } = this.#mesh.topology;
    const [a, b] = sites;
    const flows = await internet.meter.read();
    return sumFlows(flows, { iface: a!.leg.port, between: [a!.address, b!.address] }).bytes;
  }

  async #cutPair(): Promise<void> {
    const { internet, sites } = this.#mesh.topology;
    this.#cut = [sites[0]!.address, sites[1]!.address];
    await internet.cutPair(...this.#cut);
  }

  async #restartServer(): Promise<void> {
    await this.#mesh.stopServer("kill");
    await this.#mesh.startServer();
  }

  async #healAndMove(node: LabNode): Promise<void> {
    if (this.#cut) await this.#mesh.topology.internet.healPair(...this.#cut);
    if (!("plug" in node.attachment)) throw new Error(`${node.name} is in no site`);
    const { plug } = node.attachment;
    const address = plug.address.replace(/\d+$/, String(++this.#suffix));
    await plug.ns.ip(
      `addr flush dev ${plug.ifname}`,
      `addr add ${address}/24 dev ${plug.ifname}`,
      `route replace default via ${plug.gateway} dev ${plug.ifname}`,
    );
    await this.untilDirect();
  }

  async #pull(node: LabNode): Promise<void> {
    if (!("plug" in node.attachment)) throw new Error(`${node.name} is in no site`);
    const { plug } = node.attachment;
    await plug.unplug();
    await pause(1_000);
    await plug.replug();
    await this.untilDirect();
  }

  async #renumber(): Promise<void> {
    await this.#mesh.topology.sites[1]!.renumber(`203.0.113.${++this.#wan}`);
    await this.untilDirect();
  }
}
