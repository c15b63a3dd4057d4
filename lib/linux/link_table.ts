/** Links, addresses and routes of this host, whichever way they are reached. */
import type { Cidr } from "../addr.ts";
import { ffiProblem } from "./ffi.ts";
import { LinkProgram } from "./link_program.ts";
import { type LinkRoute, Links, type RouteResult } from "./links.ts";
import type { Link, LinkAddress, Route } from "./rtnetlink.ts";

/** What {@link Links} does over netlink and {@link LinkProgram} with the `ip` program. Methods throw MeshError KERNEL. */
export interface LinkTable {
  list(): Link[];
  find(name: string): Link | undefined;
  create(name: string, kinds: readonly string[]): Link | undefined;
  delete(index: number): void;
  setUp(index: number): void;
  addresses(index?: number): LinkAddress[];
  addAddress(index: number, address: Cidr): void;
  deleteAddress(index: number, address: Cidr): void;
  routes(): Route[];
  ourRoutes(): Route[];
  addRoute(route: LinkRoute): RouteResult;
  deleteRoute(route: Pick<Route, "to" | "index">): void;
  close(): void;
}

/** Opens netlink, or the `ip` program where FFI is refused. Throws MeshError KERNEL. */
export function openLinks(): LinkTable {
  return ffiProblem() === undefined ? new Links() : new LinkProgram();
}
