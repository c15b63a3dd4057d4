/** Who listens on this host: the kernel's socket tables, read as text (proc(5)). */
import { ipFromBytes } from "../../lib/addr.ts";

export interface ListeningSocket {
  readonly protocol: "tcp" | "udp";
  readonly ip: string;
  readonly port: number;
  readonly inode: string;
}

const TCP_LISTEN = "0A";
/** A UDP socket that is bound and not connected. */
const UDP_UNCONNECTED = "07";

/** The listening sockets of one of /proc/net/{tcp,tcp6,udp,udp6}. */
export function parseSockets(text: string, protocol: "tcp" | "udp"): readonly ListeningSocket[] {
  const wanted = protocol === "tcp" ? TCP_LISTEN : UDP_UNCONNECTED;
  return text.split("\n").slice(1).flatMap((line) => {
    const fields = line.trim().split(/\s+/);
    const [address, port] = fields[1]?.split(":") ?? [];
    if (address === undefined || port === undefined || fields[3] !== wanted) return [];
    return [{ protocol, ip: ipFromHex(address), port: parseInt(port, 16), inode: fields[9] ?? "" }];
  });
}

/** Whether a socket keeps another from being bound to (`ip`, `port`): the same address, or all of them. */
export function conflicts(socket: ListeningSocket, ip: string, port: number): boolean {
  if (socket.port !== port) return false;
  const any = socket.ip === "0.0.0.0" || socket.ip === "::";
  return any || socket.ip === ip || ip === "0.0.0.0" || ip === "::";
}

/** An address of proc(5): words of four bytes, each in the host's order: little-endian on all machines that Deno runs on. */
export function ipFromHex(hex: string): string {
  const bytes = new Uint8Array(hex.length / 2);
  for (let i = 0; i < bytes.length; i++) {
    bytes[(i & ~3) + (3 - (i & 3))] = parseInt(hex.slice(2 * i, 2 * i + 2), 16);
  }
  return ipFromBytes(bytes);
}
