/** A connection to nf_tables: transactions, listings, and word of what others change. */
import { MeshError } from "../../errors.ts";
import { NETLINK_NETFILTER, netlinkError, NetlinkSocket, type Outcome } from "../netlink.ts";
import { attrText, NLMSG_DONE } from "../netlink_message.ts";
import type { Batch } from "./batch.ts";
import { MSG, NFNL_SUBSYS_NFTABLES, NFNLGRP_NFTABLES, TABLE } from "./constants.ts";
import { bodyOf, generationOf, listTables } from "./listing.ts";

const EPERM = 1;

export class NftablesConnection {
  readonly socket: NetlinkSocket;
  readonly #watch: NetlinkSocket;
  readonly #port: number;
  /** Somebody else's change fell into the time of one of ours, where we do not listen. */
  #missed = false;

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
    const refused = this.#transact(batch);
    if (!refused) return;
    if (refused.errno === EPERM && Deno.uid() === 0) {
      throw new MeshError("KERNEL", "Cannot change nf_tables: a table belongs to another running process (EPERM)", {
        hint: "stop the other agent of this network namespace",
      });
    }
    throw netlinkError("change nf_tables", refused);
  }

  /** Like {@link commit}, but false when it is refused with this error number. */
  tryCommit(batch: Batch, accepted: number): boolean {
    const refused = this.#transact(batch);
    if (refused && refused.errno !== accepted) throw netlinkError("change nf_tables", refused);
    return refused === undefined;
  }

  /** Whether anybody else has changed one of these tables since the last call; also true when that is not known. */
  changedByOthers(tables: ReadonlySet<string>): boolean {
    const { messages, lost } = this.#watch.notifications();
    let changed = lost || this.#missed;
    this.#missed = false;
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

  #transact(batch: Batch): Outcome | undefined {
    const { message, last } = batch.finish();
    const before = generationOf(this.socket);
    // While anybody listens the kernel describes each object of a change: for a large batch of ours that takes as long
    // as the change itself, and nobody wants to know.
    this.#watch.listen(NFNLGRP_NFTABLES, false);
    let refused: Outcome | undefined;
    try {
      refused = this.socket.transact(message, last).find((outcome) => outcome.errno !== 0);
    } finally {
      this.#watch.listen(NFNLGRP_NFTABLES, true);
    }
    // Ours is one step; more means that somebody else's change fell into the gap.
    const steps = (generationOf(this.socket) - before) >>> 0;
    if (steps > (refused ? 0 : 1)) this.#missed = true;
    return refused;
  }
}
