/**
 * Messages that lead two agents to each other: where an agent can be reached, what the server saw of it, and the steps
 * of hole punching. Bodies are JSON like those of message.ts, checked member by member. They are sent only to a side
 * that named the feature {@link PATHS_FEATURE}: a build without it would take them for a broken connection.
 */
import { isNodeName, parseIp } from "../../addr.ts";
import { MeshError, type ReasonCode, REASONS } from "../../errors.ts";
import type { IpPort } from "../../net.ts";

/** In `features` of HELLO: the agent looks for direct paths. In those of WELCOME: the server helps with them. */
export const PATHS_FEATURE = "paths";

/** Largest body of any of these messages. */
export const MAX_PATH_BODY = 8192;
/** Addresses of one agent's listener: a host with more is told about with the first ones. */
export const MAX_ADDRESSES = 16;
/** Addresses of the server's observation port. */
export const MAX_OBSERVERS = 4;
/** Addresses the server saw an agent come from. */
export const MAX_OBSERVED = 8;
/** Where one round of punching may aim at. */
export const MAX_TARGETS = 4;
/** Ports between two mappings of a NAT that counts up; what lies further apart is taken for chance. */
export const MAX_STRIDE = 8;
/** Sightings of one port that are kept: two families, two server addresses, and some. */
export const MAX_SIGHTINGS = 6;
/** Bytes of a nonce: enough that nobody guesses one within its life of seconds. */
export const NONCE_BYTES = 16;

/** How a NAT maps one local port towards several destinations. */
export type Mapping =
  /** To the same public port (endpoint-independent, or no NAT): punching can work. */
  | "same"
  /** To the next port for each destination (symmetric, counting up): what comes next can be foretold. */
  | "steps"
  /** To another port for each destination (symmetric). */
  | "varies"
  | "unknown";

export type PathMessage =
  /** → server: where our listener can be reached, as far as we know; replaces what was said before. */
  | { readonly type: "candidates"; readonly addresses: readonly IpPort[] }
  /** → agent: where to let the server see us from outside, proving who asks by `nonce` (hex). */
  | { readonly type: "observe"; readonly nonce: string; readonly port: number; readonly servers: readonly string[] }
  /**
   * → server: tell us and `peer` each other's addresses; with `punch`, begin a round of hole punching; with `ifApart`
   * (older builds know it not) begin one if the two are seen at different addresses, so that no LAN can hold both.
   */
  | { readonly type: "meet"; readonly peer: string; readonly punch: boolean; readonly ifApart?: boolean }
  /** → agent: where `peer` can be reached, and the addresses a server saw it come from. */
  | {
    readonly type: "addresses";
    readonly peer: string;
    readonly addresses: readonly IpPort[];
    readonly observed: readonly string[];
  }
  /** → agent: `peer` cannot be met, and why. */
  | { readonly type: "unmet"; readonly peer: string; readonly code: ReasonCode; readonly message: string }
  | PunchMessage;

/** One round of hole punching; `id` is the server's number of the round. */
export type PunchMessage =
  /**
   * → agent: take a fresh port, let the observation port see it, answer ready. With `counts` (older servers know it not)
   * the server waits for the sightings itself, and ready should come at once.
   */
  | {
    readonly type: "punch";
    readonly step: "prepare";
    readonly id: number;
    readonly peer: string;
    readonly nonce: string;
    readonly port: number;
    readonly servers: readonly string[];
    readonly counts?: boolean;
  }
  /**
   * → server: done; `rttMs` is our round trip to the server. With `expect` not done yet: so many sightings are on their
   * way. It may come again.
   */
  | {
    readonly type: "punch";
    readonly step: "ready";
    readonly id: number;
    readonly rttMs: number;
    readonly expect?: number;
  }
  /** → agent: connect to all targets at `at` of the server's clock (ms since 1970). */
  | {
    readonly type: "punch";
    readonly step: "go";
    readonly id: number;
    readonly at: number;
    readonly targets: readonly IpPort[];
    readonly mapping: Mapping;
    readonly peerMapping: Mapping;
    /** The peer's NAT steps: its IPv4 target is a guess, the next guesses are so many ports further on each. */
    readonly stride?: number;
  }
  /** Either way: the round is over. */
  | {
    readonly type: "punch";
    readonly step: "stop";
    readonly id: number;
    readonly code: ReasonCode;
    readonly message: string;
  };

export type PathMessageType = PathMessage["type"];

type Members = Readonly<Record<string, unknown>>;

/** A JSON body as the message of this type. Throws MeshError PROTOCOL. */
export function readPathMessage(type: PathMessageType, m: Members): PathMessage {
  switch (type) {
    case "candidates":
      return { type, addresses: list(m["addresses"], MAX_ADDRESSES, address) };
    case "observe":
      return { type, ...observers(m) };
    case "meet":
      return { type, peer: node(m["peer"]), punch: flag(m["punch"]), ...option("ifApart", m, flag) };
    case "addresses":
      return {
        type,
        peer: node(m["peer"]),
        addresses: list(m["addresses"], MAX_ADDRESSES, address),
        observed: list(m["observed"], MAX_OBSERVED, ip),
      };
    case "unmet":
      return { type, peer: node(m["peer"]), ...reason(m) };
    case "punch":
      return punch(m);
  }
}

function punch(m: Members): PunchMessage {
  const type = "punch";
  const id = number(m["id"], 0xffff_ffff);
  switch (m["step"]) {
    case "prepare":
      return { type, step: "prepare", id, peer: node(m["peer"]), ...observers(m), ...option("counts", m, flag) };
    case "ready":
      return {
        type,
        step: "ready",
        id,
        rttMs: number(m["rttMs"], 60_000),
        ...option("expect", m, (value) => number(value, MAX_SIGHTINGS)),
      };
    case "go":
      return {
        type,
        step: "go",
        id,
        at: number(m["at"], Number.MAX_SAFE_INTEGER),
        targets: list(m["targets"], MAX_TARGETS, address),
        mapping: mapping(m["mapping"]),
        peerMapping: mapping(m["peerMapping"]),
        ...option("stride", m, (value) => number(value, MAX_STRIDE)),
      };
    case "stop":
      return { type, step: "stop", id, ...reason(m) };
    default:
      throw bad("a punch without a known step");
  }
}

function observers(m: Members): { nonce: string; port: number; servers: readonly string[] } {
  const nonce = m["nonce"];
  if (typeof nonce !== "string" || nonce.length !== 2 * NONCE_BYTES || !/^[0-9a-f]*$/.test(nonce)) {
    throw bad("a nonce that is none");
  }
  return { nonce, port: number(m["port"], 65535), servers: list(m["servers"], MAX_OBSERVERS, ip) };
}

function reason(m: Members): { code: ReasonCode; message: string } {
  const { code, message } = m;
  if (typeof code !== "string" || typeof message !== "string" || message.length > 300) throw bad("a malformed reason");
  return { code: Object.hasOwn(REASONS, code) ? code as ReasonCode : "INTERNAL", message };
}

/** A member that may be missing. */
function option<K extends string, T>(name: K, m: Members, read: (value: unknown) => T): { readonly [P in K]?: T } {
  return m[name] === undefined ? {} : { [name]: read(m[name]) } as { readonly [P in K]?: T };
}

function list<T>(value: unknown, max: number, item: (value: unknown) => T): readonly T[] {
  if (!Array.isArray(value) || value.length > max) throw bad(`a list that is none or longer than ${max}`);
  return value.map(item);
}

function address(value: unknown): IpPort {
  if (typeof value !== "object" || value === null) throw bad("an address that is none");
  const m = value as Members;
  const at = { ip: ip(m["ip"]), port: number(m["port"], 65535) };
  if (at.port === 0) throw bad("an address without a port");
  return at;
}

function ip(value: unknown): string {
  const parsed = typeof value === "string" ? parseIp(value) : undefined;
  if (parsed === undefined) throw bad("an IP address that is none");
  return parsed;
}

function node(value: unknown): string {
  if (typeof value !== "string" || !isNodeName(value)) throw bad("a name that is not a node's");
  return value;
}

function flag(value: unknown): boolean {
  if (typeof value !== "boolean") throw bad("a flag that is none");
  return value;
}

function number(value: unknown, max: number): number {
  if (typeof value !== "number" || !Number.isSafeInteger(value) || value < 0 || value > max) {
    throw bad(`a number that is not from 0 to ${max}`);
  }
  return value;
}

function mapping(value: unknown): Mapping {
  return value === "same" || value === "steps" || value === "varies" ? value : "unknown";
}

function bad(what: string): MeshError {
  return new MeshError("PROTOCOL", `Control connection got ${what}`);
}
