/** Reads tables back from the kernel: sets with their elements, chains with the comments of their rules. */
import {
  CHAIN,
  DATA,
  ELEMENT,
  ELEMENT_INTERVAL_END,
  ELEMENTS,
  GENERATION_ID,
  HOOK,
  type HookName,
  HOOKS,
  LIST_ELEM,
  MSG,
  NFNL_SUBSYS_NFTABLES,
  NFPROTO_INET,
  RULE,
  SET,
  TABLE,
  UDATA_COMMENT,
  VERDICT,
  VERDICTS,
} from "./constants.ts";
import type { NetlinkSocket } from "../netlink.ts";
import {
  type Attributes,
  attrText,
  MessageBuilder,
  type NetlinkMessage,
  NLM_F_ACK,
  NLM_F_DUMP,
  parseAttributes,
} from "../netlink_message.ts";

/** nfgenmsg before the attributes of every message. */
const NFGENMSG = 4;
const INET = Uint8Array.of(NFPROTO_INET, 0, 0, 0);

export interface ListedElement {
  readonly key: Uint8Array;
  readonly value: Uint8Array | { readonly goto: string } | "drop" | "other" | undefined;
  readonly intervalEnd: boolean;
}

export interface ListedChain {
  readonly name: string;
  readonly hook?: { readonly type: string; readonly at: HookName; readonly priority: number };
}

/** Names of all tables of the inet family. Throws MeshError KERNEL. */
export function listTables(socket: NetlinkSocket): string[] {
  return dump(socket, "list nf_tables tables", MSG.GETTABLE).map((m) => attrText(bodyOf(m), TABLE.NAME) ?? "");
}

/** The number of the kernel's ruleset: it counts the transactions of everybody. Throws MeshError KERNEL. */
export function generationOf(socket: NetlinkSocket): number {
  const messages = socket.dump("read the nf_tables generation", (seq) => {
    const w = new MessageBuilder(seq);
    w.message(NFNL_SUBSYS_NFTABLES << 8 | MSG.GETGEN, NLM_F_ACK, INET);
    return w;
  });
  const generation = messages[0] && bodyOf(messages[0]);
  return generation ? be32(generation, GENERATION_ID) : 0;
}

export function listSets(socket: NetlinkSocket, table: string): string[] {
  const messages = dump(socket, `list the sets of ${table}`, MSG.GETSET, (w) => w.text(SET.TABLE, table));
  return messages.map((m) => attrText(bodyOf(m), SET.NAME) ?? "");
}

export function listChains(socket: NetlinkSocket, table: string): ListedChain[] {
  const out: ListedChain[] = [];
  // The kernel does not filter chains by table.
  for (const message of dump(socket, `list the chains of ${table}`, MSG.GETCHAIN)) {
    const body = bodyOf(message);
    if (attrText(body, CHAIN.TABLE) !== table) continue;
    const name = attrText(body, CHAIN.NAME) ?? "";
    const hook = body.get(CHAIN.HOOK);
    if (!hook) out.push({ name });
    else {
      const values = parseAttributes(hook);
      const at = HOOKS[be32(values, HOOK.NUM)] ?? "forward";
      const priority = be32(values, HOOK.PRIORITY) | 0;
      out.push({ name, hook: { type: attrText(body, CHAIN.TYPE) ?? "", at, priority } });
    }
  }
  return out;
}

/** Chain → comment of each rule in order; "" for a rule without one. */
export function listRuleComments(socket: NetlinkSocket, table: string): Map<string, string[]> {
  const out = new Map<string, string[]>();
  for (const message of dump(socket, `list the rules of ${table}`, MSG.GETRULE, (w) => w.text(RULE.TABLE, table))) {
    const body = bodyOf(message);
    const chain = attrText(body, RULE.CHAIN) ?? "";
    const comments = out.get(chain);
    const comment = commentOf(body.get(RULE.USERDATA));
    if (comments) comments.push(comment);
    else out.set(chain, [comment]);
  }
  return out;
}

export function listElements(socket: NetlinkSocket, table: string, set: string): ListedElement[] {
  const out: ListedElement[] = [];
  const messages = dump(socket, `list the elements of ${table} ${set}`, MSG.GETSETELEM, (w) => {
    w.text(ELEMENTS.TABLE, table);
    w.text(ELEMENTS.SET, set);
  });
  for (const message of messages) {
    const list = bodyOf(message).get(ELEMENTS.LIST);
    if (list) { for (const element of itemsOf(list)) out.push(elementOf(parseAttributes(element))); }
  }
  return out;
}

/** The attributes of an nf_tables message. */
export function bodyOf(message: NetlinkMessage): Attributes {
  return parseAttributes(message.body, NFGENMSG);
}

function dump(
  socket: NetlinkSocket,
  action: string,
  type: number,
  attributes: (w: MessageBuilder) => void = () => {},
): NetlinkMessage[] {
  return socket.dump(action, (seq) => {
    const w = new MessageBuilder(seq);
    w.message(NFNL_SUBSYS_NFTABLES << 8 | type, NLM_F_DUMP, INET, () => attributes(w));
    return w;
  });
}

function elementOf(attributes: Attributes): ListedElement {
  const key = attributes.get(ELEMENT.KEY);
  const data = attributes.get(ELEMENT.DATA);
  return {
    key: (key && parseAttributes(key).get(DATA.VALUE)) ?? new Uint8Array(),
    value: data && valueOf(parseAttributes(data)),
    intervalEnd: attributes.has(ELEMENT.FLAGS) && (be32(attributes, ELEMENT.FLAGS) & ELEMENT_INTERVAL_END) !== 0,
  };
}

function valueOf(data: Attributes): ListedElement["value"] {
  const verdict = data.get(DATA.VERDICT);
  if (!verdict) return data.get(DATA.VALUE);
  const values = parseAttributes(verdict);
  const code = be32(values, VERDICT.CODE) | 0;
  if (code === VERDICTS.DROP) return "drop";
  return code === VERDICTS.GOTO ? { goto: attrText(values, VERDICT.CHAIN) ?? "" } : "other";
}

/** The items of a netlink list: attributes that all have one number. */
function* itemsOf(list: Uint8Array): Generator<Uint8Array> {
  for (let at = 0; at + 4 <= list.length;) {
    const length = list[at]! | list[at + 1]! << 8;
    const type = (list[at + 2]! | list[at + 3]! << 8) & 0x3fff;
    if (length < 4 || at + length > list.length) return;
    if (type === LIST_ELEM) yield list.subarray(at + 4, at + length);
    at += (length + 3) & ~3;
  }
}

function be32(attributes: Attributes, type: number): number {
  const value = attributes.get(type);
  if (!value || value.length < 4) return 0;
  return new DataView(value.buffer, value.byteOffset).getUint32(0, false);
}

function commentOf(data: Uint8Array | undefined): string {
  for (let at = 0; data && at + 2 <= data.length;) {
    const type = data[at]!;
    const length = data[at + 1]!;
    if (type === UDATA_COMMENT) {
      return new TextDecoder().decode(data.subarray(at + 2, at + 2 + Math.max(0, length - 1)));
    }
    at += 2 + length;
  }
  return "";
}
