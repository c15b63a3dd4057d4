/** Bridges whose frames do not pass the IP hooks: two of their ports talk to each other past every address translation. */
import { parseIp } from "../addr.ts";

const BRIDGED_TO_IP = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/** What is asked of the machine; replaced in tests. */
export interface BridgeSource {
  /** Content of a file, undefined when it does not exist. */
  read(path: string): string | undefined;
  exists(path: string): boolean;
  interfaces(): readonly { readonly name: string; readonly address: string }[];
}

/** Names of bridges that have an address for which `inside` holds, while bridged packets skip the IP hooks. */
export function unhookedBridges(inside: (ip: string) => boolean, source: BridgeSource = machine): string[] {
  if (source.read(BRIDGED_TO_IP)?.trim() === "1") return [];
  const names = new Set<string>();
  for (const { name, address } of source.interfaces()) {
    const ip = parseIp(address.replace(/%.*$/, ""));
    if (ip !== undefined && inside(ip) && source.exists(`/sys/class/net/${name}/bridge`)) names.add(name);
  }
  return [...names].sort();
}

const machine: BridgeSource = {
  read(path) {
    try {
      return Deno.readTextFileSync(path);
    } catch {
      // br_netfilter is not loaded: the file is not there.
      return undefined;
    }
  },
  exists(path) {
    try {
      Deno.statSync(path);
      return true;
    } catch {
      return false;
    }
  },
  interfaces: () => Deno.networkInterfaces(),
};
