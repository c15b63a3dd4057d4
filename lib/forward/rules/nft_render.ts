/** Operations → `nft` script. Pure. Works with nft 0.9.8 (Debian 11) and later: no syntax newer than that. */
import { type Family, hostPort } from "../../addr.ts";
import { assertNever, MeshError } from "../../errors.ts";
import type { Operation } from "./kernel.ts";
import {
  type Action,
  type AtomType,
  type Chain,
  chainTag,
  type Element,
  elementKey,
  elementValue,
  type Field,
  type KeyPart,
  type Match,
  type Pick,
  type Rule,
  type SetSpec,
  type Table,
} from "./ruleset.ts";

const TYPES: Record<AtomType, string> = {
  ipv4: "ipv4_addr",
  ipv6: "ipv6_addr",
  proto: "inet_proto",
  port: "inet_service",
  u32: "mark",
  ifname: "ifname",
};

const STATES = {
  "dnat": "ct status dnat",
  "to-host": "fib daddr type local",
  "to-elsewhere": "fib daddr type != local",
  "from-host": "fib saddr type local",
  "from-elsewhere": "fib saddr type != local",
} as const;

/** One script for `nft -f -`: applied as one transaction. */
export function renderOperations(operations: readonly Operation[]): string {
  const lines: string[] = [];
  for (const op of operations) renderOperation(op, lines);
  return lines.join("\n") + "\n";
}

function renderOperation(op: Operation, lines: string[]): void {
  switch (op.op) {
    case "table":
      return renderTable(op.table, lines);
    case "delete-table":
      lines.push(`add table inet ${op.name}`, `delete table inet ${op.name}`);
      return;
    case "add-chain":
      lines.push(`add chain inet ${op.table} ${op.chain.name}${hookText(op.chain)}`);
      return;
    case "fill-chain":
      if (!op.fresh) lines.push(`flush chain inet ${op.table} ${op.chain.name}`);
      return renderRules(op.table, op.chain, lines);
    case "delete-chains":
      for (const name of op.names) lines.push(`flush chain inet ${op.table} ${name}`);
      for (const name of op.names) lines.push(`delete chain inet ${op.table} ${name}`);
      return;
    case "add":
    case "delete":
      lines.push(`${op.op} element inet ${op.table} ${op.set} { ${elementsText(op.elements, op.op === "add")} }`);
      return;
    default:
      assertNever(op);
  }
}

function renderTable(table: Table, lines: string[]): void {
  // "add" first makes the deletion succeed whether or not the table exists; all three are one transaction.
  lines.push(`add table inet ${table.name}`, `delete table inet ${table.name}`, `add table inet ${table.name}`);
  for (const set of table.sets) lines.push(setText(table.name, set));
  for (const chain of table.chains) lines.push(`add chain inet ${table.name} ${chain.name}${hookText(chain)}`);
  for (const chain of table.chains) renderRules(table.name, chain, lines);
}

function setText(table: string, set: SetSpec): string {
  const types = (list: readonly AtomType[]) => list.map((t) => TYPES[t]).join(" . ");
  let type = `type ${types(set.key)}`;
  if (set.value) type += ` : ${set.value === "verdict" ? "verdict" : types(set.value)}`;
  const flags = [...(set.interval ? ["interval"] : []), ...(set.learned === undefined ? [] : ["dynamic", "timeout"])];
  if (flags.length > 0) type += ` ; flags ${flags.join(",")}`;
  if (set.learned !== undefined) type += ` ; size ${set.learned}`;
  return `add ${set.value ? "map" : "set"} inet ${table} ${set.name} { ${type} ; }`;
}

function hookText(chain: Chain): string {
  if (!chain.hook) return "";
  const { type, at, priority } = chain.hook;
  return ` { type ${type} hook ${at} priority ${priority} ; policy accept ; }`;
}

function elementsText(elements: readonly Element[], withValues: boolean): string {
  return elements.map((e) => {
    const key = e.key.map((atom) => quoteName(atom)).join(" . ");
    return withValues && e.value !== undefined ? `${key} : ${elementValue(e.value)}` : key;
  }).join(", ");
}

/** Interface names may look like anything; addresses, protocols and numbers are taken as they are. */
function quoteName(atom: string | number): string {
  return typeof atom === "string" && !/^[0-9a-fA-F:.]+(\/\d+)?$|^(tcp|udp)$/.test(atom) ? `"${atom}"` : String(atom);
}

function renderRules(table: string, chain: Chain, lines: string[]): void {
  const tag = chainTag(chain);
  for (const rule of chain.rules) {
    lines.push(`add rule inet ${table} ${chain.name} ${ruleText(rule)} comment "${tag}"`);
  }
}

/** One rule without its comment. */
export function ruleText(rule: Rule): string {
  const parts: string[] = [];
  const family = rule.family ?? rule.within?.family;
  // Rules that read addresses name the family by that.
  if (family !== undefined && !readsAddresses(rule)) parts.push(`meta nfproto ipv${family}`);
  if (rule.within) parts.push(`meta l4proto ${rule.within.protocol}`);
  for (const match of rule.match) parts.push(matchText(match, rule));
  parts.push(actionText(rule.action, rule));
  return parts.join(" ");
}

function readsAddresses(rule: Rule): boolean {
  const { action } = rule;
  const fields = rule.match.flatMap((m): readonly KeyPart[] =>
    "fields" in m ? m.fields : "field" in m ? [m.field] : []
  );
  const more: readonly KeyPart[] = typeof action === "string"
    ? []
    : "dnat" in action
    ? action.dnat
    : "vmap" in action
    ? action.vmap
    : "learn" in action
    ? action.learn
    : [];
  return [...fields, ...more].some((f) => f === "saddr" || f === "daddr");
}

function matchText(match: Match, rule: Rule): string {
  if ("fields" in match) {
    const fields = match.fields.map((f) => fieldText(f, rule)).join(" . ");
    return "in" in match ? `${fields} @${match.in}` : `${fields} != @${match.notIn}`;
  }
  if ("pick" in match) return `${pickText(match.pick, familyOfRule(rule))} < ${match.below}`;
  if ("state" in match) return STATES[match.state];
  const value = "is" in match ? match.is : match.isNot;
  return `${fieldText(match.field, rule)} ${"is" in match ? "" : "!= "}${quoteName(value)}`;
}

function actionText(action: Action, rule: Rule): string {
  if (typeof action === "string") return action;
  if ("jump" in action) return `jump ${action.jump}`;
  if ("goto" in action) return `goto ${action.goto}`;
  if ("reject" in action) {
    return action.reject === "reset" ? "reject with tcp reset" : "reject with icmpx type port-unreachable";
  }
  if ("vmap" in action) return `${action.vmap.map((f) => fieldText(f, rule)).join(" . ")} vmap @${action.map}`;
  if ("learn" in action) {
    const key = action.learn.map((f) => fieldText(f, rule)).join(" . ");
    const value = action.value.map((f) => fieldText(f, rule)).join(" . ");
    return `update @${action.map} { ${key} timeout ${action.seconds}s : ${value} }`;
  }
  const dnat = `dnat ${familyText(familyOfRule(rule))} to`;
  if ("to" in action) return `${dnat} ${hostPort(action.to)}`;
  const fields = action.dnat.map((part) => {
    if (typeof part === "string") return fieldText(part, rule);
    throw new MeshError("INTERNAL", `nft has no words for the key of map ${action.map}`);
  });
  return `${dnat} ${fields.join(" . ")} map @${action.map}`;
}

function pickText(pick: Pick, family: Family | undefined): string {
  switch (pick.by) {
    case "turn":
      return `numgen inc mod ${pick.mod}`;
    case "random":
      return `numgen random mod ${pick.mod}`;
    case "source":
      return `jhash ${familyText(family)} saddr mod ${pick.mod} seed 0x${pick.seed.toString(16)}`;
  }
}

function fieldText(field: Field, rule: Rule): string {
  const family = familyOfRule(rule);
  switch (field) {
    case "saddr":
    case "daddr":
      return `${familyText(family)} ${field}`;
    case "proto":
      return "meta l4proto";
    case "dport":
      return "th dport";
    case "iifname":
    case "oifname":
      return field;
    case "ct-daddr":
      return `ct original ${familyText(family)} daddr`;
    case "ct-dport":
      return "ct original proto-dst";
    default:
      return assertNever(field);
  }
}

function familyOfRule(rule: Rule): Family | undefined {
  return rule.family ?? rule.within?.family;
}

function familyText(family: Family | undefined): string {
  return family === 6 ? "ip6" : "ip";
}

/** The text nft and we use for one element's key in messages. */
export function describeElement(element: Element): string {
  return `${elementKey(element.key)}${element.value === undefined ? "" : ` : ${elementValue(element.value)}`}`;
}
