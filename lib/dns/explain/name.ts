/** Asks a name through the running server and collects why the answer is what it is. */
import type { Clock } from "../../clock.ts";
import { MeshError } from "../../errors.ts";
import type { MetaReader } from "../../meta/model.ts";
import type { AnswerCache } from "../cache/cache.ts";
import { typeName, typeNumber } from "../wire/constants.ts";
import {
  explainDecision,
  type ExplainedForward,
  explainReverse,
  explainServices,
  type Explanation,
} from "./explain.ts";
import type { Forwarder } from "../upstream/forwarder.ts";
import { type Labels, labelsOf, lowerLabels, nameText } from "../wire/labels.ts";
import type { Source } from "../limit.ts";
import { presentMessage } from "./message.ts";
import { ownQuestion, type Resolver } from "../resolver.ts";
import type { ReverseOptions } from "../cluster/reverse.ts";
import { writeQuestion } from "../upstream/messages.ts";

export interface ExplainDeps {
  readonly resolver: Resolver;
  readonly forwarder: Forwarder;
  readonly foreign: AnswerCache;
  readonly clock: Clock;
  readonly meta: () => MetaReader;
  readonly options: ReverseOptions;
  /** In whose name it is asked: this host. */
  readonly source: Source;
}

/** See {@link DnsServer.explain}. */
export async function explainName(text: string, typeText: string, deps: ExplainDeps): Promise<Explanation> {
  const labels = labelsOf(text);
  const type = typeNumber(typeText);
  if (labels === undefined) {
    throw new MeshError("CONFIG_INVALID", `${JSON.stringify(text)} is no DNS name`, {
      hint: "labels of at most 63 characters between dots, 253 in all",
    });
  }
  if (type === undefined) {
    throw new MeshError("CONFIG_INVALID", `${JSON.stringify(typeText)} is no record type`, {
      hint: "A, AAAA, SRV, PTR, TXT, CNAME, NS, SOA, MX or TYPE<number>",
    });
  }
  const { resolver, clock, meta, options } = deps;
  const start = clock.now();
  const lower = lowerLabels(labels);
  const decision = resolver.decide(labels, type, true);
  const foreign = foreignOf(decision, lower);
  const before = foreign && watch(foreign.name, type, deps);
  const { wire } = ownQuestion(lower, type, 0);
  const query = writeQuestion({ wire, dnssecOk: false, checkingDisabled: false }, false, () => {});
  const bytes = await resolver.ask(query, deps.source);
  const message = await presentMessage(bytes);
  if (message === undefined) throw new MeshError("INTERNAL", `The answer to ${nameText(labels)} cannot be read`);
  const after = foreign && before && finish(foreign, before, deps);
  const services = explainServices(labels, meta(), options.zones);
  const reverse = services.length > 0 ? services : explainReverse(lower, meta(), options.zones);
  const zone = options.zones.find((z) => decision.kind === "local" && nameText(lower).endsWith(nameText(z.labels)));
  return {
    question: { name: nameText(labels), type: typeName(type) },
    rcode: message.rcode,
    flags: message.flags,
    answers: message.answers,
    authorities: message.authorities,
    additionals: message.additionals,
    origin: decision.kind === "local" ? decision.origin : after?.origin ?? "failed",
    ...(zone === undefined ? {} : { zone: nameText(zone.labels) }),
    ...(decision.kind === "local" ? { reason: decision.answer.reason } : {}),
    why: [...explainDecision(decision, { type, synced: meta().synced }), ...after?.why ?? []],
    services: reverse,
    ...(after ? { forward: after.forward } : {}),
    ms: clock.now() - start,
  };
}

/** The name that somebody else is asked about, if any. */
function foreignOf(decision: ReturnType<Resolver["decide"]>, lower: Labels) {
  if (decision.kind === "forward") return { name: lower, zone: decision.zone };
  const { chase } = decision.answer;
  return chase && { name: lowerLabels(chase), zone: [] as Labels };
}

interface Before {
  readonly storedAt: number | undefined;
  readonly fresh: boolean;
  readonly type: number;
}

function watch(name: Labels, type: number, deps: ExplainDeps): Before {
  const entry = peek(name, type, deps);
  return {
    storedAt: entry?.life.storedAt,
    fresh: entry !== undefined && deps.clock.now() < entry.life.expiresAt,
    type,
  };
}

function peek(name: Labels, type: number, deps: ExplainDeps) {
  const question = ownQuestion(name, type, 0);
  return deps.foreign.peek(question.hash, question.variant, question.wire);
}

function finish(
  foreign: { readonly name: Labels; readonly zone: Labels },
  before: Before,
  deps: ExplainDeps,
): { readonly origin: keyof typeof WHY; readonly why: readonly string[]; readonly forward: ExplainedForward } {
  const entry = peek(foreign.name, before.type, deps);
  const now = deps.clock.now();
  const failed = entry === undefined || (entry.rcode !== 0 && entry.rcode !== 3);
  const origin: keyof typeof WHY = failed
    ? "failed"
    : entry.life.storedAt !== before.storedAt
    ? "upstream"
    : before.fresh
    ? "cache"
    : "stale";
  const route = deps.forwarder.routes.find((r) => nameText(r.zone) === nameText(foreign.zone));
  return {
    origin,
    why: [WHY[origin]],
    forward: {
      name: nameText(foreign.name),
      zone: foreign.zone.length === 0 ? "." : nameText(foreign.zone),
      upstreams: route?.io.pool.states() ?? [],
      ...(!failed && entry.life.from ? { answeredBy: entry.life.from } : {}),
      ...(failed ? {} : {
        cache: { ageSeconds: (now - entry.life.storedAt) / 1000, leftSeconds: (entry.life.expiresAt - now) / 1000 },
      }),
    },
  };
}

const WHY = {
  failed: "No upstream gave a usable answer, and none was kept from before (SERVFAIL)",
  upstream: "An upstream was asked",
  cache: "The answer was still in the cache",
  stale: "No upstream answers: the expired answer is served with a TTL of 30 s (RFC 8767)",
};
