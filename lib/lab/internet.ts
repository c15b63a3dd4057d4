/**
 * The lab's internet: one namespace that routes between legs with public addresses, with a real one-way delay. All
 * that comes from a leg is policy-routed into a TUN device; the delay box holds it and hands it back to be routed out.
 */
import { parseIp } from "../addr.ts";
import { MeshError } from "../errors.ts";
import { type DelayStats, STAY } from "./delay_box.ts";
import type { LinkShape } from "./delay_line.ts";
import { Meter } from "./meter.ts";
import type { Lab, Namespace } from "./namespace.ts";

export interface InternetOptions {
  /** How to start the executable that has `lab-delay`: `["dist/edgemesh"]`. */
  readonly command: readonly string[];
  /** Without any delay, jitter or loss there is no box; {@link Internet.shape} then cannot be used. */
  readonly shape: LinkShape;
  /** For jitter and loss; the same seed loses the same packets of the same sequence. Default 1. */
  readonly seed?: number;
}

export interface LegOptions {
  /** Public addresses of the attached namespace, IPv4 and IPv6. The first of each family is the source of its traffic. */
  readonly addresses: readonly string[];
  /** Name of the interface in the attached namespace. */
  readonly ifname: string;
  /** Legs of the same zone (a data centre) reach each other without the delay. */
  readonly zone?: string;
  /** Networks behind the attached namespace that are reachable from everywhere. */
  readonly routed?: readonly string[];
}

/** The gateway on every leg, for both families: a leg is a link of its own, so one address serves all. */
const GATEWAY4 = "203.0.113.254";
const GATEWAY6 = "fe80::1";
const TUN = "tun0";
/** Rules: what comes out of the box goes by the main table; what comes from a leg by the table of its zone. */
const PREFERENCE_OUT = 10;
const PREFERENCE_IN = 50;
const FIRST_ZONE_TABLE = 200;
/** Packets the kernel keeps for the box before it drops: a few milliseconds of a fast sender. */
const TUN_QUEUE = 10_000;

/** The attachment of one namespace to the internet. */
export class Leg {
  readonly ns: Namespace;
  readonly ifname: string;
  /** The internet's end: the interface name in {@link Internet.meter}. */
  readonly port: string;
  readonly table: number;
  readonly routed: readonly string[];
  #addresses: readonly string[];

  constructor(options: LegOptions & { readonly ns: Namespace; readonly port: string; readonly table: number }) {
    this.ns = options.ns;
    this.ifname = options.ifname;
    this.port = options.port;
    this.table = options.table;
    this.routed = options.routed ?? [];
    this.#addresses = options.addresses;
  }

  get addresses(): readonly string[] {
    return this.#addresses;
  }

  /** For {@link Internet.renumber} only. */
  set addresses(addresses: readonly string[]) {
    this.#addresses = addresses;
  }
}

export class Internet {
  readonly ns: Namespace;
  /** Counts all legs: interface {@link Leg.port}. */
  readonly meter: Meter;
  readonly #zones = new Map<string, number>();
  readonly #legs: Leg[] = [];
  readonly #box: Promise<DelayBoxProcess> | undefined;

  private constructor(ns: Namespace, meter: Meter, box: Promise<DelayBoxProcess> | undefined) {
    this.ns = ns;
    this.meter = meter;
    this.#box = box;
    // Whoever awaits `ready` gets the failure; one that nobody awaits is no crash.
    box?.catch(() => {});
  }

  /** Resolves when traffic flows; legs may be attached before. Throws MeshError KERNEL when the box did not start. */
  get ready(): Promise<unknown> {
    return this.#box ?? Promise.resolve();
  }

  /** Lets the delay go on without this process, for a lab that is kept; its shape cannot be changed any more. */
  async stay(): Promise<void> {
    await (await this.#box)?.stay();
  }

  /** Builds the namespace and begins to start the delay box. */
  static async create(lab: Lab, options: InternetOptions): Promise<Internet> {
    const ns = await lab.namespace("internet");
    const { delayMs, jitterMs, loss } = options.shape;
    const shaped = delayMs > 0 || jitterMs > 0 || loss > 0;
    // The device is made first, so that its routes can be set while the box is still starting.
    const tun = [
      `tuntap add ${TUN} mode tun vnet_hdr`,
      `link set ${TUN} up txqueuelen ${TUN_QUEUE}`,
      `rule add iif ${TUN} lookup main pref ${PREFERENCE_OUT}`,
      `-6 rule add iif ${TUN} lookup main pref ${PREFERENCE_OUT}`,
    ];
    await ns.configure({
      sysctl: ROUTER_SYSCTLS,
      // An address nobody has is silent, as on the real internet: no ICMP error gives it away.
      ip: [...(shaped ? tun : []), "route add blackhole default", "-6 route add blackhole default"],
      nft: INTERNET_RULES,
    });
    const box = shaped ? DelayBoxProcess.start(lab, ns, options) : undefined;
    return new Internet(ns, await Meter.start(ns, "internet"), box);
  }

  /** Gives a namespace a leg: an interface with public addresses and the default route. */
  async attach(ns: Namespace, options: LegOptions): Promise<Leg> {
    const port = `leg${this.#legs.length}`;
    const leg = new Leg({ ...options, ns, port, table: this.#box ? this.#zoneTable(options.zone ?? "") : 0 });
    this.#legs.push(leg);
    await ns.lab.link([{ ns: this.ns, ifname: port }, { ns, ifname: leg.ifname }]);
    await Promise.all([
      this.ns.ip(
        `addr add ${GATEWAY4}/32 dev ${port}`,
        `-6 addr add ${GATEWAY6}/64 dev ${port} nodad`,
        ...(this.#box
          ? ["", "-6 "].map((family) => `${family}rule add iif ${port} lookup ${leg.table} pref ${PREFERENCE_IN}`)
          : []),
        ...this.#routes(leg),
      ),
      ns.ip(
        ...leg.addresses.map((address) => addAddress(address, leg.ifname)),
        ...defaultRoutes(leg),
      ),
    ]);
    return leg;
  }

  /** Moves a leg to other addresses, as a provider does overnight. Connections of the old ones go silent. */
  async renumber(leg: Leg, addresses: readonly string[]): Promise<void> {
    const old = leg.addresses;
    const before = this.#routes(leg).map((line) => line.replace("route replace", "route delete"));
    leg.addresses = addresses;
    await this.ns.ip(...before, ...this.#routes(leg));
    await leg.ns.ip(
      ...addresses.map((address) => addAddress(address, leg.ifname)),
      // The gateway's route must not go with the address it was made with.
      ...old.map((address) => `addr del ${hostCidr(address)} dev ${leg.ifname}`),
      ...defaultRoutes(leg),
    );
  }

  /** Drops everything of a leg in both directions. Neither end sees the link go. */
  async cut(leg: Leg): Promise<void> {
    await this.ns.nft(`add element inet lab_cut legs { "${leg.port}" }`);
  }

  async heal(leg: Leg): Promise<void> {
    await this.ns.nft(`delete element inet lab_cut legs { "${leg.port}" }`);
  }

  /** Drops everything between two public addresses; each still reaches everybody else. */
  async cutPair(a: string, b: string): Promise<void> {
    await this.ns.nft(pairElements("add", a, b));
  }

  async healPair(a: string, b: string): Promise<void> {
    await this.ns.nft(pairElements("delete", a, b));
  }

  /** Takes the carrier from the attached interface, as pulling the cable does. Routes there stay. */
  async unplug(leg: Leg): Promise<void> {
    await this.ns.ip(`link set ${leg.port} down`);
    await leg.ns.carrier(leg.ifname, false);
  }

  async plug(leg: Leg): Promise<void> {
    // Routes and IPv6 addresses of this end went with the link.
    await this.ns.ip(
      `link set ${leg.port} up`,
      `-6 addr replace ${GATEWAY6}/64 dev ${leg.port} nodad`,
      ...this.#routes(leg),
    );
    await Promise.all([leg.ns.carrier(leg.ifname, true), this.ns.carrier(leg.port, true)]);
  }

  /** Changes delay, jitter and loss for packets from now on. Returns the counters of the box so far. */
  async shape(shape: LinkShape): Promise<DelayStats> {
    if (!this.#box) throw new MeshError("CONFIG_INVALID", "This lab internet was made without a delay box");
    return await (await this.#box).shape(shape);
  }

  /** The table for legs of a zone; the nameless zone is for legs that share nothing. */
  #zoneTable(zone: string): number {
    const table = this.#zones.get(zone) ?? FIRST_ZONE_TABLE + this.#zones.size;
    this.#zones.set(zone, table);
    return table;
  }

  #routes(leg: Leg): string[] {
    const lines: string[] = [];
    const zoned = this.#box !== undefined && leg.table !== this.#zones.get("");
    for (const table of ["main", ...(zoned ? [String(leg.table)] : [])]) {
      for (const address of leg.addresses) {
        lines.push(`${family(address)}route replace ${hostCidr(address)} dev ${leg.port} table ${table}`);
      }
      for (const cidr of leg.routed) {
        const via = leg.addresses.find((address) => family(address) === family(cidr));
        if (via === undefined) throw new MeshError("CONFIG_INVALID", `No address of the leg can route ${cidr}`);
        lines.push(`${family(cidr)}route replace ${cidr} via ${via} dev ${leg.port} onlink table ${table}`);
      }
    }
    if (this.#box) {
      for (const f of ["", "-6 "]) {
        lines.push(`${f}route replace default dev ${TUN} table ${leg.table}`);
      }
    }
    return lines;
  }
}

/** Forwards, keeps no opinion about where packets come from, tells nobody about better ways. */
export const ROUTER_SYSCTLS: Readonly<Record<string, number>> = {
  "net.ipv4.ip_forward": 1,
  "net.ipv6.conf.all.forwarding": 1,
  "net.ipv4.conf.all.rp_filter": 0,
  "net.ipv4.conf.default.rp_filter": 0,
  "net.ipv4.conf.all.send_redirects": 0,
  "net.ipv4.conf.default.send_redirects": 0,
};

/** Addresses that no provider forwards (RFC 2827): a router that leaks them must not get an answer. */
const INTERNET_RULES = `table inet lab_cut {
  set legs {
    type ifname
  }
  set pairs4 {
    type ipv4_addr . ipv4_addr
  }
  set pairs6 {
    type ipv6_addr . ipv6_addr
  }
  chain incoming {
    type filter hook prerouting priority -450; policy accept;
    iifname @legs drop
    ip saddr . ip daddr @pairs4 drop
    ip6 saddr . ip6 daddr @pairs6 drop
    iifname "leg*" ip saddr { 10.0.0.0/8, 100.64.0.0/10, 172.16.0.0/12, 192.168.0.0/16 } drop
  }
  chain outgoing {
    type filter hook postrouting priority -450; policy accept;
    oifname @legs drop
  }
}`;

function pairElements(verb: "add" | "delete", a: string, b: string): string {
  const set = a.includes(":") ? "pairs6" : "pairs4";
  return `${verb} element inet lab_cut ${set} { ${a} . ${b}, ${b} . ${a} }`;
}

function defaultRoutes(leg: Leg): string[] {
  const lines: string[] = [];
  const v4 = leg.addresses.find((address) => family(address) === "");
  if (v4) lines.push(`route replace default via ${GATEWAY4} dev ${leg.ifname} onlink src ${v4}`);
  const v6 = leg.addresses.find((address) => family(address) === "-6 ");
  if (v6) lines.push(`-6 route replace default via ${GATEWAY6} dev ${leg.ifname} src ${v6}`);
  return lines;
}

/** Even where duplicates are not looked for, an address without `nodad` cannot be used before a kernel worker has run. */
function addAddress(address: string, ifname: string): string {
  return `addr add ${hostCidr(address)} dev ${ifname}${address.includes(":") ? " nodad" : ""}`;
}

function family(address: string): "" | "-6 " {
  return address.includes(":") ? "-6 " : "";
}

function hostCidr(address: string): string {
  if (parseIp(address) === undefined) throw new MeshError("CONFIG_INVALID", `"${address}" is not an IP address`);
  return `${address}/${address.includes(":") ? 128 : 32}`;
}

/** The running `lab-delay` and its protocol: a line in, a line out. */
class DelayBoxProcess {
  readonly #input: WritableStreamDefaultWriter<Uint8Array>;
  readonly #output: AsyncIterator<string>;

  private constructor(child: Deno.ChildProcess & { stdin: WritableStream<Uint8Array> }) {
    this.#input = child.stdin.getWriter();
    this.#output = lines(child.stdout)[Symbol.asyncIterator]();
  }

  static async start(lab: Lab, ns: Namespace, options: InternetOptions): Promise<DelayBoxProcess> {
    const { delayMs, jitterMs, loss } = options.shape;
    const flags = ["--delay-ms", delayMs, "--jitter-ms", jitterMs, "--loss", loss, "--seed", options.seed ?? 1];
    // A box that is scheduled late delivers late: it goes before the programs under test, which fill the processors.
    const argv = ["nice", "-n", "-10", ...options.command, "lab-delay", "--tun", TUN, ...flags.map(String)];
    const [program, ...args] = ns.command(argv);
    const child = new Deno.Command(program!, {
      args,
      stdin: "piped",
      stdout: "piped",
      stderr: "piped",
      detached: true,
    }).spawn();
    const box = new DelayBoxProcess(child);
    lab.adopt(child, () => box.#input.close());
    const first = await box.#output.next();
    if (first.done) {
      const said = (await new Response(child.stderr).text()).trim();
      throw new MeshError("KERNEL", `The delay box did not start: ${said}`);
    }
    await child.stderr.cancel();
    return box;
  }

  async stay(): Promise<void> {
    await this.#input.write(new TextEncoder().encode(STAY + "\n"));
  }

  async shape(shape: LinkShape): Promise<DelayStats> {
    await this.#input.write(new TextEncoder().encode(JSON.stringify(shape) + "\n"));
    const reply = await this.#output.next();
    if (reply.done) throw new MeshError("PEER_GONE", "The delay box has ended");
    return JSON.parse(reply.value) as DelayStats;
  }
}

async function* lines(stream: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  let rest = "";
  for await (const chunk of stream.pipeThrough(new TextDecoderStream() as TransformStream<Uint8Array, string>)) {
    const parts = (rest + chunk).split("\n");
    rest = parts.pop()!;
    yield* parts;
  }
}
