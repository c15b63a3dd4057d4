/** A site: a router with a NAT or firewall of some kind, its networks, and what is plugged into them. */
import { cidrText, parseCidr } from "../addr.ts";
import { MeshError } from "../errors.ts";
import { nthAddress } from "./addresses.ts";
import { Internet, type Leg, ROUTER_SYSCTLS } from "./internet.ts";
import type { Lab, Namespace } from "./namespace.ts";
import { type Ipv6Policy, isRouted, type NatKind, natRules, type PortForward } from "./nat.ts";
import { requireTools } from "./tools.ts";

export interface SiteOptions {
  /** Short name; the router's namespace is called after it. */
  readonly name: string;
  readonly kind: NatKind;
  /** 1 to 250, unique in the lab: default addresses are made from it. */
  readonly number: number;
  /** Public IPv4 address of the router. Default 203.0.113.(10 × number) below 250, else from 198.51.100.0/24. */
  readonly address?: string;
  /** First network. Default 192.168.(number).0/24; for kinds without NAT 198.18.(number).0/24, routed from everywhere. */
  readonly lan?: string;
  /** IPv6 networks 2001:db8:(number)::/64 behind no NAT. Default: none. */
  readonly ipv6?: Ipv6Policy;
  readonly hairpin?: boolean;
  readonly isolated?: boolean;
  readonly forwards?: readonly PortForward[];
  /** Forgets nothing gracefully: packets of a connection it did not see begin are not let out (`tcp_loose=0`). */
  readonly strict?: boolean;
  /** More settings of the router: `net.netfilter.nf_conntrack_tcp_timeout_established` → 6. */
  readonly sysctl?: Readonly<Record<string, string | number>>;
}

export interface PlugOptions {
  /** Interface in the plugged namespace. Default `eth0`. */
  readonly ifname?: string;
  /** Which network of the site, by order. Default 0. */
  readonly lan?: number;
  /** Default true. */
  readonly defaultRoute?: boolean;
  /** Networks or addresses to be routed by the site's router in any case. */
  readonly routes?: readonly string[];
}

interface Lan {
  readonly bridge: string;
  readonly gateway: string;
  readonly bits: number;
  readonly gateway6: string | undefined;
  used: number;
}

const WAN = "wan";

/** A namespace in a network of a site. */
export class Plug {
  readonly ns: Namespace;
  readonly ifname: string;
  /** Its address on the site's network. */
  readonly address: string;
  readonly address6: string | undefined;
  readonly gateway: string;
  readonly #site: Site;
  readonly #port: string;
  readonly #bridge: string;

  constructor(
    site: Site,
    place: Pick<Plug, "ns" | "ifname" | "address" | "address6" | "gateway">,
    switchPort: { readonly port: string; readonly bridge: string },
  ) {
    this.#site = site;
    this.ns = place.ns;
    this.ifname = place.ifname;
    this.address = place.address;
    this.address6 = place.address6;
    this.gateway = place.gateway;
    this.#port = switchPort.port;
    this.#bridge = switchPort.bridge;
  }

  /** The network swallows everything from here on; the interface does not notice. */
  cut(): Promise<void> {
    return this.#site.router.ip(`link set ${this.#port} nomaster`);
  }

  heal(): Promise<void> {
    return this.#site.router.ip(`link set ${this.#port} master ${this.#bridge}`);
  }

  /** The interface loses its carrier, as when the cable is pulled. */
  async unplug(): Promise<void> {
    await this.#site.router.ip(`link set ${this.#port} down`);
    await this.ns.carrier(this.ifname, false);
  }

  async replug(): Promise<void> {
    await this.#site.router.ip(`link set ${this.#port} up`);
    await Promise.all([this.ns.carrier(this.ifname, true), this.#site.router.carrier(this.#port, true)]);
  }
}

export class Site {
  readonly name: string;
  readonly kind: NatKind;
  readonly router: Namespace;
  readonly #options: SiteOptions;
  readonly #lans: Lan[] = [];
  #uplink: { readonly internet: Internet; readonly leg: Leg } | Plug | undefined;
  #ports = 0;

  private constructor(options: SiteOptions, router: Namespace) {
    this.name = options.name;
    this.kind = options.kind;
    this.router = router;
    this.#options = options;
  }

  /** Builds a site on the internet, or behind another site's NAT (a provider's: CGN). */
  static async create(lab: Lab, uplink: Internet | Site, options: SiteOptions): Promise<Site> {
    const site = new Site(options, await lab.namespace(`${options.name}-gw`));
    const lan = options.lan ?? `${isRouted(options.kind) ? "198.18" : "192.168"}.${options.number}.0/24`;
    await site.router.configure({
      sysctl: {
        ...ROUTER_SYSCTLS,
        ...(options.strict ? { "net.netfilter.nf_conntrack_tcp_loose": 0 } : {}),
        ...options.sysctl,
      },
    });
    await site.addLan(lan, options.ipv6 && options.ipv6 !== "none" ? `2001:db8:${options.number}::/64` : undefined);
    if (uplink instanceof Internet) await site.#joinInternet(uplink, lan);
    else await site.#joinSite(uplink);
    await site.#applyRules();
    return site;
  }

  /** The address the outside world knows: the router's on its uplink. */
  get address(): string {
    if (this.#uplink === undefined) throw new MeshError("INTERNAL", `Site ${this.name} has no uplink yet`);
    return this.#uplink instanceof Plug ? this.#uplink.address : this.#uplink.leg.addresses[0]!;
  }

  get hasIpv6(): boolean {
    return (this.#options.ipv6 ?? "none") !== "none";
  }

  /** The site's attachment to the internet; none behind another site. */
  get leg(): Leg {
    return this.#direct().leg;
  }

  /** Adds a network; returns its number for {@link PlugOptions.lan}. */
  async addLan(cidr: string, cidr6?: string): Promise<number> {
    const parsed = parseCidr(cidr);
    if (parsed === undefined) throw new MeshError("CONFIG_INVALID", `"${cidr}" is not a network`);
    const bridge = `lan${this.#lans.length}`;
    const lan: Lan = {
      bridge,
      gateway: nthAddress(parsed.ip, 1),
      bits: parsed.bits,
      gateway6: cidr6 === undefined ? undefined : cidr6.replace(/\/\d+$/, "1"),
      used: 1,
    };
    const number = this.#lans.push(lan) - 1;
    await this.router.configure({
      ip: [
        `link add ${bridge} type bridge`,
        `link set ${bridge} up`,
        `addr add ${lan.gateway}/${lan.bits} dev ${bridge}`,
        ...(lan.gateway6 ? [`addr add ${lan.gateway6}/64 dev ${bridge} nodad`] : []),
      ],
    });
    return number;
  }

  /** Plugs a namespace into a network of the site, with the next free address. */
  async plug(ns: Namespace, options: PlugOptions = {}): Promise<Plug> {
    const lan = this.#lans[options.lan ?? 0];
    if (lan === undefined) throw new MeshError("CONFIG_INVALID", `Site ${this.name} has no network ${options.lan}`);
    const [ifname, port, n] = [options.ifname ?? "eth0", `port${this.#ports++}`, ++lan.used];
    const address = nthAddress(lan.gateway, n - 1);
    const address6 = lan.gateway6?.replace(/1$/, n.toString(16));
    await this.router.lab.link([{ ns: this.router, ifname: port }, { ns, ifname }]);
    const routes = [...(options.defaultRoute === false ? [] : ["default"]), ...options.routes ?? []];
    await Promise.all([
      this.router.ip(`link set ${port} master ${lan.bridge}`),
      ns.ip(
        `addr add ${address}/${lan.bits} dev ${ifname}`,
        ...(address6 ? [`addr add ${address6}/64 dev ${ifname} nodad`] : []),
        ...routes.filter((to) => !to.includes(":")).map((to) => `route add ${to} via ${lan.gateway} dev ${ifname}`),
        ...(lan.gateway6
          ? routes.filter((to) => to === "default" || to.includes(":"))
            .map((to) => `-6 route add ${to} via ${lan.gateway6} dev ${ifname}`)
          : []),
      ),
    ]);
    const place = { ns, ifname, address, address6, gateway: lan.gateway };
    return new Plug(this, place, { port, bridge: lan.bridge });
  }

  /** Loses all connections and mappings, as a power cycle of the router does. Needs conntrack(8). */
  async reboot(): Promise<void> {
    const { conntrack } = await requireTools(["conntrack"]);
    await this.#applyRules();
    await this.router.execOk([conntrack, "-F"]);
  }

  /** Gives the router another public address. Its hosts learn nothing of it. */
  async renumber(address: string): Promise<void> {
    const { internet, leg } = this.#direct();
    await internet.renumber(leg, [address, ...leg.addresses.slice(1)]);
    await this.#applyRules();
  }

  /** The uplink swallows everything; the router does not notice. */
  cut(): Promise<void> {
    const up = this.#uplink!;
    return up instanceof Plug ? up.cut() : up.internet.cut(up.leg);
  }

  heal(): Promise<void> {
    const up = this.#uplink!;
    return up instanceof Plug ? up.heal() : up.internet.heal(up.leg);
  }

  /** The router's uplink loses its carrier. */
  unplug(): Promise<void> {
    const up = this.#uplink!;
    return up instanceof Plug ? up.unplug() : up.internet.unplug(up.leg);
  }

  replug(): Promise<void> {
    const up = this.#uplink!;
    return up instanceof Plug ? up.replug() : up.internet.plug(up.leg);
  }

  async #joinInternet(internet: Internet, lan: string): Promise<void> {
    const { number, kind, ipv6 } = this.#options;
    const v6 = ipv6 !== undefined && ipv6 !== "none";
    const address = this.#options.address ?? (number < 25 ? `203.0.113.${number * 10}` : `198.51.100.${number}`);
    const leg = await internet.attach(this.router, {
      ifname: WAN,
      addresses: [address, ...(v6 ? [`2001:db8:ffff::${number}`] : [])],
      routed: [
        ...(isRouted(kind) ? [cidrText(parseCidr(lan)!)] : []),
        ...(v6 ? [`2001:db8:${number}::/64`] : []),
      ],
    });
    this.#uplink = { internet, leg };
  }

  /** Each customer has a network of the provider's own (RFC 6598), so that customers meet only through the NAT. */
  async #joinSite(provider: Site): Promise<void> {
    if (isRouted(this.kind) || (this.#options.ipv6 ?? "none") !== "none") {
      throw new MeshError("CONFIG_INVALID", `Site ${this.name} behind another site must have a NAT and no IPv6`);
    }
    const lan = await provider.addLan(`100.64.${this.#options.number}.0/24`);
    this.#uplink = await provider.plug(this.router, { ifname: WAN, lan });
  }

  async #applyRules(): Promise<void> {
    await this.router.nft(natRules({ ...this.#options, wanAddress: this.address, wan: WAN, lan: "lan*" }));
  }

  #direct(): { readonly internet: Internet; readonly leg: Leg } {
    if (this.#uplink === undefined || this.#uplink instanceof Plug) {
      throw new MeshError("CONFIG_INVALID", `Site ${this.name} is not on the internet itself`);
    }
    return this.#uplink;
  }
}
