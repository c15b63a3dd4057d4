/** Judges a host before and beside the agent. Pure: facts in, lines out. */
import { serverHint } from "../server_hint.ts";
import { FFI_HINT, WITHOUT_FFI } from "../without_ffi.ts";
import type { Check, HostFacts, PortFact, ReachFact, StartFacts } from "./facts.ts";

/** The oldest kernel whose nf_tables has all that the rules use (RHEL 8). */
export const OLDEST_KERNEL = [4, 18] as const;
/** Each carried connection takes two descriptors. */
export const FEW_FILES = 4096;

export function judgeHost(facts: HostFacts): Check[] {
  const out: Check[] = [kernel(facts.kernel)];
  out.push(
    facts.glibc === undefined
      ? warn(
        "system",
        "glibc",
        "the C library's version cannot be told",
        "edgemesh needs glibc 2.28 or newer; musl does not do",
      )
      : ok("system", "glibc", `glibc ${facts.glibc}`),
  );
  const behind = facts.built - facts.wall;
  out.push(
    behind > 0
      ? warn(
        "system",
        "clock",
        `the clock says ${day(facts.wall)}, before this release was made (${
          day(facts.built)
        }); the servers' time is used`,
        "set the clock, or run an NTP client",
      )
      : ok("system", "clock", `the clock is plausible (${day(facts.wall)})`),
  );
  if (facts.proxies.length > 0) {
    out.push(
      ok(
        "network",
        "http-proxy",
        `${facts.proxies.join(", ")} ${
          facts.proxies.length === 1 ? "is" : "are"
        } set: servers are reached as it says, unless \`proxy\` is set`,
      ),
    );
  }
  if (facts.bridges.length > 0) {
    const on = facts.bridgeCall === "1";
    const list = facts.bridges.join(", ");
    out.push(
      on ? ok("network", "bridge-nf", `packets between pods on ${list} meet the rules`) : warn(
        "network",
        "bridge-nf",
        `packets between two pods on ${list} do not meet the rules (bridge-nf-call-iptables is ${
          facts.bridgeCall ?? "missing"
        }): answers to a Service from a pod of the same bridge may come from a wrong address`,
        "modprobe br_netfilter && sysctl -w net.bridge.bridge-nf-call-iptables=1",
      ),
    );
  }
  return out;
}

export function judgeStart(facts: StartFacts): Check[] {
  const { missingCapabilities: missing, nftables } = facts;
  const out: Check[] = [
    missing.length === 0 ? ok("system", "privileges", "the needed capabilities are there") : fail(
      "system",
      "privileges",
      `${missing.join(", ")} ${missing.length === 1 ? "is" : "are"} missing`,
      "run as root",
    ),
    "problem" in nftables
      ? fail(
        "system",
        "nf-tables",
        `the kernel's nf_tables cannot be used: ${nftables.problem}`,
        missing.length > 0
          ? "run as root"
          : "modprobe nf_tables, or a kernel that has it (CONFIG_NF_TABLES_INET, CONFIG_NFT_NAT)",
      )
      : nftables.by === "nft"
      ? warn(
        "system",
        "nf-tables",
        "rules are written with the nft program, which is slower than netlink",
        "see the agent's log for why",
      )
      : ok("system", "nf-tables", "nf_tables can be written over netlink"),
    facts.openFiles < FEW_FILES
      ? fewFiles(facts.openFiles)
      : ok("system", "open-files", `${facts.openFiles} open files are allowed`),
    facts.ffi === undefined ? ok("system", "ffi", "FFI works") : withoutFfi(facts.ffi),
    facts.stateDir.problem === undefined ? ok("system", "state-dir", `${facts.stateDir.path} can be written`) : fail(
      "system",
      "state-dir",
      `${facts.stateDir.path} cannot be written: ${facts.stateDir.problem}`,
      "free space, or set stateDir",
    ),
    ...facts.ports.map(port),
  ];
  const { joined } = facts;
  out.push(
    joined === undefined
      ? warn(
        "identity",
        "joined",
        "this machine has not joined a mesh yet",
        "edgemesh token create, on the server host, prints the join command",
      )
      : "problem" in joined
      ? fail(
        "identity",
        "joined",
        `this machine's identity cannot be read: ${joined.problem}`,
        "restore the state directory, or join again",
      )
      : ok("identity", "joined", `joined as ${joined.node}`),
  );
  return [...out, ...judgeReach(facts.servers)];
}

/** The way to each server; one of several is enough to work. */
export function judgeReach(servers: readonly ReachFact[]): Check[] {
  if (servers.length === 0) {
    return [warn("server", "reach", "no server is configured, so none was tried", "--set server=wss://HOST")];
  }
  const some = servers.some((s) => s.failed === undefined);
  return servers.map((s) => {
    if (s.failed === undefined) {
      const what = s.tlsMs === undefined
        ? `${s.url} accepts connections (${s.tcpMs} ms); its authority is not known before the join`
        : `${s.url} answers (TCP ${s.tcpMs} ms, with TLS ${s.tlsMs} ms) and its authority is the pinned one`;
      return ok("server", "reach", what);
    }
    return (some ? warn : fail)("server", "reach", `${s.url}: ${s.failed.text}`, reachHint(s.failed));
  });
}

function reachHint({ step, text }: NonNullable<ReachFact["failed"]>): string {
  return step === "tcp" || step === "name" ? serverHint(text) : REACH_HINTS[step];
}

const REACH_HINTS = {
  tls: "something between answers instead of the server: a proxy or another program on its port",
  mtu:
    "lower the MTU of this host's uplink (ip link set DEVICE mtu 1280), have the router clamp the MSS, or let ICMP `fragmentation needed` through",
  pin: "take the join command anew: edgemesh token create, on the server host; or somebody intercepts the connection",
} as const;

export function withoutFfi(why: string): Check {
  return warn("system", "ffi", `FFI is refused (${why}): ${WITHOUT_FFI}`, FFI_HINT);
}

export function fewFiles(limit: number): Check {
  return warn(
    "system",
    "open-files",
    `only ${limit} open files are allowed; each carried connection takes two`,
    "LimitNOFILE=1048576 in the unit, or ulimit -n",
  );
}

function kernel(release: string): Check {
  const [major = 0, minor = 0] = release.split(".").map((part) => parseInt(part, 10));
  const old = major < OLDEST_KERNEL[0] || (major === OLDEST_KERNEL[0] && minor < OLDEST_KERNEL[1]);
  return old
    ? fail("system", "kernel", `Linux ${release} is older than ${OLDEST_KERNEL.join(".")}`, "upgrade the kernel")
    : ok("system", "kernel", `Linux ${release}`);
}

function port({ what, at, holder }: PortFact): Check {
  const name = `port-${what.toLowerCase()}`;
  return holder === undefined ? ok("network", name, `${at} is free for ${what}`) : fail(
    "network",
    name,
    `${at} (${what}) is held by ${holder}`,
    `stop it or bind it elsewhere; ss -lntup shows all`,
  );
}

export function ok(category: Check["category"], name: string, text: string): Check {
  return { category, name, state: "ok", text };
}

export function warn(category: Check["category"], name: string, text: string, hint: string): Check {
  return { category, name, state: "warn", text, hint };
}

export function fail(category: Check["category"], name: string, text: string, hint: string): Check {
  return { category, name, state: "fail", text, hint };
}

function day(ms: number): string {
  return new Date(ms).toISOString().slice(0, 10);
}
