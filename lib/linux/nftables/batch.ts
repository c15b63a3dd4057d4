/** One transaction of nf_tables: messages between two markers, applied all or none. Tables are of the `inet` family. */
import {
  CHAIN,
  DATA,
  DATATYPE,
  DATATYPE_BITS,
  ELEMENT,
  ELEMENT_INTERVAL_END,
  ELEMENTS,
  HOOK,
  type HookName,
  HOOKS,
  IFNAME_BYTES,
  LIST_ELEM,
  MSG,
  NFNL_MSG_BATCH_BEGIN,
  NFNL_MSG_BATCH_END,
  NFNL_SUBSYS_NFTABLES,
  NFPROTO_INET,
  NFPROTO_UNSPEC,
  NFT_DATA_VERDICT,
  NFT_TABLE_F_OWNER,
  RULE,
  SET,
  SET_DESC_CONCAT,
  SET_DESC_SIZE,
  SET_FIELD_LEN,
  SET_FLAG,
  TABLE,
  UDATA_COMMENT,
  VERDICTS,
} from "./constants.ts";
import { verdictData } from "./expressions.ts";
import { MessageBuilder, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE } from "../netlink_message.ts";
import { STRUCT } from "../structs.ts";

/** nfgenmsg of the batch markers: no family, version 0, the subsystem in network order. */
const BATCH_HEADER = Uint8Array.of(NFPROTO_UNSPEC, 0, 0, NFNL_SUBSYS_NFTABLES);
const INET_HEADER = Uint8Array.of(NFPROTO_INET, 0, 0, 0);

/** Types of set keys and values. Each takes a multiple of 4 bytes in a concatenation. */
export type FieldType = "ipv4" | "ipv6" | "proto" | "port" | "u32" | "ifname";

const FIELDS: Record<FieldType, { readonly bytes: number; readonly datatype: number }> = {
  ipv4: { bytes: 4, datatype: DATATYPE.IPV4 },
  ipv6: { bytes: 16, datatype: DATATYPE.IPV6 },
  proto: { bytes: 1, datatype: DATATYPE.PROTO },
  port: { bytes: 2, datatype: DATATYPE.SERVICE },
  // A plain integer has no type number that nft prints; marks are integers of this size.
  u32: { bytes: 4, datatype: DATATYPE.MARK },
  ifname: { bytes: IFNAME_BYTES, datatype: DATATYPE.IFNAME },
};

/** Bytes of a field itself, without padding. */
export function fieldBytes(type: FieldType): number {
  return FIELDS[type].bytes;
}

/** Bytes of a field inside a concatenation or a register file. */
export function paddedBytes(type: FieldType): number {
  return (FIELDS[type].bytes + 3) & ~3;
}

export interface SetShape {
  readonly name: string;
  readonly key: readonly FieldType[];
  readonly value?: readonly FieldType[] | "verdict";
  readonly interval?: boolean;
  /** Filled by packets, at most so many elements, each with a timeout. */
  readonly dynamic?: number;
}

export interface SetElement {
  readonly key: Uint8Array;
  readonly value?: Uint8Array | { readonly goto: string } | "drop";
  /** Ends the interval that the element before it began. */
  readonly intervalEnd?: boolean;
}

/** An attribute's length has 16 bits; the elements of one message are one attribute. */
const LIST_BYTES = 0xffff - 4;

export class Batch {
  readonly #w: MessageBuilder;
  /** Where the last message begins. */
  #last = 0;
  #lastComment = { text: "", data: commentData("") };

  /** `seq` is the socket's next sequence number. */
  constructor(seq: number) {
    this.#w = new MessageBuilder(seq);
    this.#w.message(NFNL_MSG_BATCH_BEGIN, 0, BATCH_HEADER);
  }

  /** Ends the batch. `last` is the number of its last message that is acknowledged. */
  finish(): { readonly message: MessageBuilder; readonly last: number } {
    const last = this.#w.nextSeq - 1;
    // Errors come for every message; one acknowledgement, of the last, says that all were taken. One for each would
    // take longer to read than the batch to apply.
    this.#w.bytes[this.#last + STRUCT.nlmsghdr.at.flags]! |= NLM_F_ACK;
    this.#w.message(NFNL_MSG_BATCH_END, 0, BATCH_HEADER);
    return { message: this.#w, last };
  }

  /** Makes a table that may exist, empty. `owned`: it ends with the socket the batch is sent on. */
  replaceTable(name: string, owned: boolean): void {
    this.deleteTable(name);
    this.#send(MSG.NEWTABLE, NLM_F_CREATE, () => {
      this.#w.text(TABLE.NAME, name);
      if (owned) this.#w.be32(TABLE.FLAGS, NFT_TABLE_F_OWNER);
    });
  }

  /** Deletes a table whether or not it exists. */
  deleteTable(name: string): void {
    // Creating first makes the deletion succeed in both cases; nobody sees what lies between.
    this.#send(MSG.NEWTABLE, NLM_F_CREATE, () => this.#w.text(TABLE.NAME, name));
    this.#send(MSG.DELTABLE, 0, () => this.#w.text(TABLE.NAME, name));
  }

  addChain(table: string, name: string, hook?: { readonly at: HookName; readonly priority: number }): void {
    const w = this.#w;
    this.#send(MSG.NEWCHAIN, NLM_F_CREATE, () => {
      w.text(CHAIN.TABLE, table);
      w.text(CHAIN.NAME, name);
      if (!hook) return;
      w.nest(CHAIN.HOOK, () => {
        w.be32(HOOK.NUM, HOOKS.indexOf(hook.at));
        w.be32(HOOK.PRIORITY, hook.priority);
      });
      w.be32(CHAIN.POLICY, VERDICTS.ACCEPT);
      w.text(CHAIN.TYPE, "nat");
    });
  }

  /** Deletes a chain that has no rules and to which nothing leads. */
  deleteChain(table: string, name: string): void {
    this.#send(MSG.DELCHAIN, 0, () => {
      this.#w.text(CHAIN.TABLE, table);
      this.#w.text(CHAIN.NAME, name);
    });
  }

  /** Deletes the rules of a chain. */
  flushChain(table: string, name: string): void {
    this.#send(MSG.DELRULE, 0, () => {
      this.#w.text(RULE.TABLE, table);
      this.#w.text(RULE.CHAIN, name);
    });
  }

  /** Appends a rule; `expressions` writes them with the functions of expressions.ts. */
  addRule(table: string, chain: string, comment: string, expressions: (w: MessageBuilder) => void): void {
    const w = this.#w;
    this.#send(MSG.NEWRULE, NLM_F_CREATE | NLM_F_APPEND, () => {
      w.text(RULE.TABLE, table);
      w.text(RULE.CHAIN, chain);
      w.nest(RULE.EXPRESSIONS, () => expressions(w));
      w.attr(RULE.USERDATA, this.#comment(comment));
    });
  }

  /** `id` is any number unique within the batch. */
  addSet(table: string, shape: SetShape, id: number): void {
    const w = this.#w;
    const { key, value } = shape;
    this.#send(MSG.NEWSET, NLM_F_CREATE, () => {
      w.text(SET.TABLE, table);
      w.text(SET.NAME, shape.name);
      w.be32(SET.FLAGS, flagsOf(shape));
      w.be32(SET.KEY_TYPE, datatypeOf(key));
      w.be32(SET.KEY_LEN, sizeOf(key));
      if (value === "verdict") w.be32(SET.DATA_TYPE, NFT_DATA_VERDICT);
      else if (value) {
        w.be32(SET.DATA_TYPE, datatypeOf(value));
        w.be32(SET.DATA_LEN, sizeOf(value));
      }
      w.be32(SET.ID, id);
      w.nest(SET.DESC, () => {
        if (shape.dynamic !== undefined) w.be32(SET_DESC_SIZE, shape.dynamic);
        if (key.length > 1 && shape.interval) this.#concatDescription(key);
      });
    });
  }

  addElements(table: string, set: string, elements: Iterable<SetElement>): void {
    this.#elements(MSG.NEWSETELEM, NLM_F_CREATE, { table, set }, elements);
  }

  deleteElements(table: string, set: string, elements: Iterable<SetElement>): void {
    this.#elements(MSG.DELSETELEM, 0, { table, set }, elements);
  }

  #elements(
    type: number,
    flags: number,
    where: { readonly table: string; readonly set: string },
    elements: Iterable<SetElement>,
  ): void {
    const w = this.#w;
    const iterator = elements[Symbol.iterator]();
    let next = iterator.next();
    while (!next.done) {
      this.#send(type, flags, () => {
        w.text(ELEMENTS.TABLE, where.table);
        w.text(ELEMENTS.SET, where.set);
        w.nest(ELEMENTS.LIST, () => {
          for (let room = LIST_BYTES - sizeOfElement(next.value); !next.done && room >= 0;) {
            this.#element(next.value);
            next = iterator.next();
            if (!next.done) room -= sizeOfElement(next.value);
          }
        });
      });
    }
  }

  #element({ key, value, intervalEnd }: SetElement): void {
    const w = this.#w;
    w.nest(LIST_ELEM, () => {
      if (intervalEnd) w.be32(ELEMENT.FLAGS, ELEMENT_INTERVAL_END);
      w.nest(ELEMENT.KEY, () => w.attr(DATA.VALUE, key));
      if (value === undefined) return;
      w.nest(ELEMENT.DATA, () => {
        if (value === "drop") verdictData(w, "DROP");
        else if (value instanceof Uint8Array) w.attr(DATA.VALUE, value);
        else verdictData(w, "GOTO", value.goto);
      });
    });
  }

  /** The rules of a chain carry the same comment, one after the other. */
  #comment(text: string): Uint8Array {
    if (this.#lastComment.text !== text) this.#lastComment = { text, data: commentData(text) };
    return this.#lastComment.data;
  }

  #concatDescription(key: readonly FieldType[]): void {
    const w = this.#w;
    w.nest(SET_DESC_CONCAT, () => {
      for (const type of key) w.nest(LIST_ELEM, () => w.be32(SET_FIELD_LEN, paddedBytes(type)));
    });
  }

  #send(type: number, flags: number, body: () => void): void {
    this.#last = this.#w.bytes.length;
    this.#w.message(NFNL_SUBSYS_NFTABLES << 8 | type, flags, INET_HEADER, body);
  }
}

function flagsOf(shape: SetShape): number {
  return (shape.value === undefined ? 0 : SET_FLAG.MAP) | (shape.interval ? SET_FLAG.INTERVAL : 0) |
    (shape.dynamic === undefined ? 0 : SET_FLAG.TIMEOUT | SET_FLAG.EVAL);
}

function sizeOf(fields: readonly FieldType[]): number {
  // A single field is as long as it is; in a concatenation each is padded to whole registers.
  return fields.length === 1 ? fieldBytes(fields[0]!) : fields.reduce((sum, type) => sum + paddedBytes(type), 0);
}

function datatypeOf(fields: readonly FieldType[]): number {
  return fields.reduce((number, type) => (number << DATATYPE_BITS) | FIELDS[type].datatype, 0);
}

/** Bytes that an element takes in its list, rounded up. */
function sizeOfElement({ key, value }: SetElement): number {
  const data = value === undefined
    ? 0
    : value instanceof Uint8Array
    ? 11 + value.length
    : 40 + (value === "drop" ? 0 : 3 * value.goto.length);
  return 4 + 8 + 11 + key.length + data;
}

/** libnftnl's type-length-value form. */
function commentData(comment: string): Uint8Array {
  const text = new TextEncoder().encode(comment + "\0");
  return Uint8Array.of(UDATA_COMMENT, text.length, ...text);
}
