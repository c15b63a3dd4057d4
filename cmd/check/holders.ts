/** Which program of this host has a port: the kernel's socket tables, and the descriptors of processes (proc(5)). */
import { parseHostPort } from "../../lib/addr.ts";
import { conflicts, type ListeningSocket, parseSockets } from "./sockets.ts";

/** A program that has a port, and that this user may not look at. */
const UNNAMED = "another program";

const TABLES = ["tcp", "tcp6", "udp", "udp6"] as const;

/** Every socket of this host that keeps others from its port. */
export async function listeningSockets(): Promise<ListeningSocket[]> {
  const texts = await Promise.all(TABLES.map((t) => Deno.readTextFile(`/proc/net/${t}`).catch(() => "")));
  return TABLES.flatMap((table, i) => parseSockets(texts[i]!, table.startsWith("tcp") ? "tcp" : "udp"));
}

/** `dnsmasq (pid 7)`: who keeps others from a port; undefined when nobody does. */
export async function holderOf(
  at: { readonly ip: string; readonly port: number },
  protocols: readonly string[],
  sockets?: readonly ListeningSocket[],
): Promise<string | undefined> {
  const all = sockets ?? await listeningSockets();
  const found = all.find((s) => protocols.includes(s.protocol) && conflicts(s, at.ip, at.port));
  return found && await programOf(found);
}

/** Name and pid of who has the socket, as far as we may look. */
async function programOf(socket: ListeningSocket): Promise<string> {
  const wanted = `socket:[${socket.inode}]`;
  for await (const { name: pid } of Deno.readDir("/proc")) {
    if (!/^\d+$/.test(pid)) continue;
    try {
      for await (const fd of Deno.readDir(`/proc/${pid}/fd`)) {
        if (await Deno.readLink(`/proc/${pid}/fd/${fd.name}`).catch(() => "") !== wanted) continue;
        return `${(await Deno.readTextFile(`/proc/${pid}/comm`)).trim()} (pid ${pid})`;
      }
    } catch {
      // Gone, or not ours to look at.
    }
  }
  return UNNAMED;
}

/** A text in which a program could not be named, with its name where we may look: an agent that is not root may not. */
export async function withHolder(text: string, listen: readonly string[]): Promise<string> {
  if (!text.includes(UNNAMED)) return text;
  for (const address of listen) {
    const holder = await holderOf(parseHostPort(address)!, ["udp", "tcp"]);
    if (holder !== undefined) return text.replaceAll(UNNAMED, holder);
  }
  return text;
}
