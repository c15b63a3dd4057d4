/** A connection to nf_tables: transactions, listings, and word of what others change. */
import { MeshError } from "../../errors.ts";
import { NETLINK_NETFILTER, netlinkError, NetlinkSocket } from "../netlink.ts";
import { attrText, NLMSG_DONE } from "../netlink_message.ts";
import type { Batch } from "./batch.ts";
import { MSG, NFNL_SUBSYS_NFTABLES, NFNLGRP_NFTABLES, TABLE } from "./constants.ts";
import { bodyOf, listTables } from "./listing.ts";

const EPERM = 1;

export class NftablesConnection {
  readonly socket: NetlinkSocket;
  readonly #watch: NetlinkSocket;
  readonly #port: number;

  /** Throws MeshError KERNEL when netlink, nf_tables or the privilege is missing. */
  constructor() {
    this.socket = new NetlinkSocket(NETLINK_NETFILTER);
    try {
      this.#watch = new NetlinkSocket(NETLINK_NETFILTER, [NFNLGRP_NFTABLES]);
    } catch (error) {
      this.socket.close();
      throw error;
    }
    try {
      this.#port = this.socket.port;
      listTables(this.socket);
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /** Sends a batch made with `socket.nextSeq`. Throws MeshError KERNEL; nothing was changed then. */
  commit(batch: Batch): void {
    const { message, last } = batch.finish();
    const refused = this.socket.transact(message, last).find((outcome) => outcome.errno !== 0);
    if (!refused) return;
    if (refused.errno === EPERM && Deno.uid() === 0) {
      throw new MeshError("KERNEL", "Cannot change nf_tables: a table belongs to another running process (EPERM)", {
        hint: "stop the other agent of this network namespace",
      });
    }
    throw netlinkError(`change nf_tables (message ${last - refused.seq} before the last)`, refused);
  }

  /** Whether anybody else has changed one of these tables since the last call; also true when that is not known. */
  changedByOthers(tables: ReadonlySet<string>): boolean {
    const { messages, lost } = this.#watch.notifications();
    let changed = lost;
    for (const message of messages) {
      const kind = message.type & 0xff;
      if (message.type >> 8 !== NFNL_SUBSYS_NFTABLES || kind === MSG.NEWGEN || message.type === NLMSG_DONE) continue;
      if (message.port === this.#port) continue;
      // The first attribute of every other nf_tables message is the name of its table.
      if (tables.has(attrText(bodyOf(message), TABLE.NAME) ?? "")) changed = true;
    }
    return changed;
  }

  close(): void {
    this.socket.close();
    this.#watch.close();
  }
}
