/** Links, addresses and routes with the `ip` program (iproute2): the second way, where netlink over FFI is refused. */
import { type Cidr, cidrText, familyOf, parseCidr, parseIp } from "../addr.ts";
import { MeshError } from "../errors.ts";
import type { LinkTable } from "./link_table.ts";
import { type LinkRoute, OUR_ALIAS, OUR_MARK, type RouteResult } from "./links.ts";
import { type Link, type LinkAddress, type Route, RT_TABLE_MAIN, RTN_UNICAST } from "./rtnetlink.ts";

/** What `ip` says when there is nothing to do: each call may be repeated. */
const EXISTS = /File exists|already assigned/;
const ABSENT = /No such process|Cannot assign requested address|Address not found|Cannot find device|No such device/;
const UNKNOWN_KIND = /Unknown device type|Operation not supported/;

/** Fields of `ip -j -N` that are used here; numbers of tables and protocols come as text. */
interface JsonLink {
  readonly ifindex: number;
  readonly ifname: string;
  readonly flags: readonly string[];
  readonly mtu: number;
  readonly group?: string;
  readonly ifalias?: string;
  readonly master?: string;
  readonly linkinfo?: { readonly info_kind?: string };
  readonly addr_info?: readonly {
    readonly local: string;
    readonly prefixlen: number;
    readonly tentative?: boolean;
    readonly dadfailed?: boolean;
    readonly protocol?: string;
  }[];
}

interface JsonRoute {
  readonly type?: string;
  readonly dst: string;
  readonly gateway?: string;
  readonly dev?: string;
  readonly table?: string;
  readonly protocol?: string;
  readonly prefsrc?: string;
  readonly metric?: number;
}

export class LinkProgram implements LinkTable {
  list(): Link[] {
    const all = this.#json<JsonLink>("-d", "link", "show");
    const indexes = new Map(all.map((link) => [link.ifname, link.ifindex]));
    return all.map((link) => ({
      index: link.ifindex,
      name: link.ifname,
      kind: link.linkinfo?.info_kind,
      up: link.flags.includes("UP"),
      running: link.flags.includes("UP") && !link.flags.includes("NO-CARRIER"),
      loopback: link.flags.includes("LOOPBACK"),
      mtu: link.mtu,
      group: Number(link.group ?? 0),
      alias: link.ifalias,
      master: link.master === undefined ? undefined : indexes.get(link.master),
    }));
  }

  find(name: string): Link | undefined {
    return this.list().find((link) => link.name === name);
  }

  create(name: string, kinds: readonly string[]): Link | undefined {
    for (const kind of kinds) {
      const problem = ip("link", "add", name, "group", String(OUR_MARK), "type", kind);
      if (problem === undefined) this.#do(`name link ${name}`, ["link", "set", name, "alias", OUR_ALIAS]);
      if (problem === undefined || EXISTS.test(problem)) return this.find(name);
      // A kind that the kernel has not is no error; neither is it where a link of that name exists.
      const there = this.find(name);
      if (there) return there;
      if (!UNKNOWN_KIND.test(problem)) throw failure(`create link ${name} of kind ${kind}`, problem);
    }
    return undefined;
  }

  delete(index: number): void {
    this.#on(index, (name) => this.#do(`delete link ${name}`, ["link", "del", name], ABSENT));
  }

  setUp(index: number): void {
    this.#on(index, (name) => this.#do(`set link ${name} up`, ["link", "set", name, "up"]));
  }

  addresses(index?: number): LinkAddress[] {
    const links = this.#json<JsonLink>("addr", "show").filter((l) => index === undefined || l.ifindex === index);
    return links.flatMap((link) =>
      (link.addr_info ?? []).map((a) => ({
        index: link.ifindex,
        ip: parseIp(a.local) ?? a.local,
        bits: a.prefixlen,
        tentative: a.tentative === true || a.dadfailed === true,
        protocol: Number(a.protocol ?? 0),
      }))
    );
  }

  /** Without a mark of ours, which `ip` of older releases cannot set. */
  addAddress(index: number, address: Cidr): void {
    const text = cidrText(address);
    const now = familyOf(address.ip) === 6 ? ["nodad"] : [];
    this.#on(
      index,
      (name) => this.#do(`add address ${text} to link ${name}`, ["addr", "add", text, "dev", name, ...now], EXISTS),
    );
  }

  deleteAddress(index: number, address: Cidr): void {
    const text = cidrText(address);
    this.#on(
      index,
      (name) => this.#do(`delete address ${text} of link ${name}`, ["addr", "del", text, "dev", name], ABSENT),
    );
  }

  routes(): Route[] {
    const indexes = new Map(this.list().map((link) => [link.name, link.index]));
    return ([4, 6] as const).flatMap((family) =>
      this.#json<JsonRoute>(`-${family}`, "route", "show", "table", "all").map((route): Route => ({
        to: network(route.dst, family),
        table: Number(route.table ?? RT_TABLE_MAIN),
        protocol: Number(route.protocol ?? 0),
        type: Number(route.type ?? RTN_UNICAST),
        index: route.dev === undefined ? undefined : indexes.get(route.dev),
        gateway: route.gateway,
        source: route.prefsrc,
        metric: route.metric ?? 0,
      }))
    );
  }

  ourRoutes(): Route[] {
    return this.routes().filter((r) => r.protocol === OUR_MARK && r.table === RT_TABLE_MAIN);
  }

  addRoute(route: LinkRoute): RouteResult {
    const to = cidrText(route.to);
    // The program would add a second route to an IPv6 network beside one with another metric.
    const there = this.routes().filter((r) => r.table === RT_TABLE_MAIN && cidrText(r.to) === to);
    const foreign = there.find((r) => r.protocol !== OUR_MARK);
    if (foreign) return { kind: "foreign", route: foreign };
    if (there.some((r) => r.index === route.index && r.source === route.source)) return { kind: "ours" };
    for (const old of there) this.deleteRoute(old);
    const scope = familyOf(route.to.ip) === 4 ? ["scope", "link"] : [];
    const rest = ["proto", String(OUR_MARK), ...scope, "src", route.source];
    this.#on(route.index, (name) => this.#do(`add route ${to}`, ["route", "add", to, "dev", name, ...rest]));
    return { kind: "ours" };
  }

  deleteRoute({ to, index }: Pick<Route, "to" | "index">): void {
    const text = cidrText(to);
    const from = ["route", "del", text, "proto", String(OUR_MARK)];
    if (index === undefined) return this.#do(`delete route ${text}`, from, ABSENT);
    this.#on(index, (name) => this.#do(`delete route ${text}`, [...from, "dev", name], ABSENT));
  }

  close(): void {}

  /** The program knows links by name only. Nothing is done where the link is gone. */
  #on(index: number, act: (name: string) => void): void {
    const link = this.list().find((l) => l.index === index);
    if (link) act(link.name);
  }

  #do(action: string, args: readonly string[], fine?: RegExp): void {
    const problem = ip(...args);
    if (problem !== undefined && !fine?.test(problem)) throw failure(action, problem);
  }

  #json<T>(...args: readonly string[]): T[] {
    const { problem, stdout } = run(["-j", "-N", ...args]);
    if (problem !== undefined) throw failure(`run ip ${args.join(" ")}`, problem);
    return stdout.trim() === "" ? [] : JSON.parse(stdout) as T[];
  }
}

/** What the program complains about; undefined when it did what it was told. */
function ip(...args: readonly string[]): string | undefined {
  return run(args[0] === "route" && args[2]?.includes(":") ? ["-6", ...args] : args).problem;
}

function run(args: readonly string[]): { readonly problem: string | undefined; readonly stdout: string } {
  try {
    const { success, stdout, stderr } = new Deno.Command("ip", { args: [...args], env: { LC_ALL: "C" } }).outputSync();
    const text = new TextDecoder();
    return { problem: success ? undefined : text.decode(stderr).trim(), stdout: text.decode(stdout) };
  } catch (cause) {
    if (!(cause instanceof Deno.errors.NotFound)) throw cause;
    throw new MeshError("KERNEL", "Cannot run ip: not found", {
      cause,
      hint: "install the iproute2 package, or allow FFI (--allow-ffi)",
    });
  }
}

function failure(action: string, problem: string): MeshError {
  return new MeshError("KERNEL", `Cannot ${action}: ${problem.replace(/^(Error|RTNETLINK answers): /, "")}`);
}

function network(dst: string, family: 4 | 6): Cidr {
  if (dst === "default") return { ip: family === 4 ? "0.0.0.0" : "::", bits: 0 };
  return parseCidr(dst.includes("/") ? dst : `${dst}/${family === 4 ? 32 : 128}`)!;
}
