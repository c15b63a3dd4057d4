/**
 * CoreDNS's tables for its `kubernetes` plugin, answered from our snapshot. The vectors are no part of this
 * repository: without them (`../shared/vectors` beside it) the test says so and is skipped.
 */
import assert from "node:assert/strict";
import type { EndpointSlice, Service } from "../meta/model.ts";
import { parseCidr } from "../addr.ts";
import { answerCluster, type AnswerOptions, type ClusterAnswer } from "./cluster/answer.ts";
import { rcodeName, TYPE, typeName, typeNumber } from "./wire/constants.ts";
import { labelsOf, lowerLabels, nameText } from "./wire/labels.ts";
import { zoneOf } from "./cluster/name.ts";
import { addressRecord, type ResourceRecord } from "./wire/records.ts";
import { answerReverse, reverseZones } from "./cluster/reverse.ts";
import { soaRecord } from "./cluster/soa.ts";
import { recordTexts, TestServer, upstreamProgram } from "./testing.ts";
import { endpoint, MemoryMeta, service, slice } from "./testing_meta.ts";

interface Row {
  readonly qname: string;
  readonly qtype: string;
  readonly rcode: string;
  readonly answer?: readonly string[];
  readonly authority?: readonly string[];
  readonly additional?: readonly string[];
  readonly truncated?: boolean;
  readonly note?: string;
}
interface FixtureService {
  readonly ns: string;
  readonly name: string;
  readonly type?: string;
  readonly clusterIPs?: readonly string[];
  readonly externalName?: string;
  readonly ports?: readonly { name: string; protocol: "TCP" | "UDP"; port: number }[];
}
interface FixtureSlice {
  readonly ns: string;
  readonly service: string;
  readonly slice?: string;
  readonly endpoints: readonly { addresses: readonly string[]; hostname?: string }[];
  readonly ports?: readonly { name: string; protocol: "TCP" | "UDP"; port: number }[];
}
interface Vectors {
  readonly exposedNamespaces: readonly string[];
  readonly sets: Readonly<Record<string, readonly Row[]>>;
  readonly fixtures: {
    readonly services: readonly FixtureService[];
    readonly endpointSlices: readonly FixtureSlice[];
    readonly pods: readonly { ns: string; name: string; podIP: string }[];
    readonly namespaces: readonly string[];
    readonly reverse: {
      readonly services: readonly FixtureService[];
      readonly endpointSlices: readonly FixtureSlice[];
    };
  };
}

const file = new URL("../../../shared/vectors/coredns-kubernetes.json", import.meta.url);

function load(): Vectors | undefined {
  try {
    return JSON.parse(Deno.readTextFileSync(file)) as Vectors;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}

const vectors = load();
// deno-lint-ignore no-console
if (vectors === undefined) console.log(`skipped: CoreDNS vectors are not at ${file.pathname}`);

/** Options and snapshot that a set of the table assumes. */
function setting(name: string, v: Vectors): { options: AnswerOptions; meta: MemoryMeta } {
  const all = name === "allNamespaces" || name.startsWith("pods");
  const multicluster = name === "multicluster";
  const options: AnswerOptions = {
    zones: [{ labels: ["cluster", "local"], multicluster }],
    ttl: 5,
    pods: name === "podsVerified" ? "verified" : name === "podsInsecure" ? "insecure" : "disabled",
    ignoreEmptyServices: name === "ignoreEmptyService",
    namespaces: all ? undefined : new Set(v.exposedNamespaces),
    nameservers: ["127.0.0.1"],
  };
  const meta = new MemoryMeta({
    services: v.fixtures.services.map(toService),
    slices: v.fixtures.endpointSlices.map((s) => toSlice(s, multicluster ? "cluster1" : undefined)),
    pods: v.fixtures.pods.map((p) => ({ namespace: p.ns, name: p.name, ips: [p.podIP], hostNetwork: false })),
    namespaces: v.fixtures.namespaces,
    synced: name !== "notSynced",
  });
  return { options, meta };
}

function toService(s: FixtureService): Service {
  const headless = s.clusterIPs?.[0] === "None";
  return service(s.ns, s.name, {
    type: s.type === "ExternalName" ? "ExternalName" : "ClusterIP",
    clusterIPs: headless ? [] : s.clusterIPs ?? [],
    headless,
    ports: s.ports ?? [],
    ...(s.externalName === undefined ? {} : { externalName: s.externalName }),
  });
}

function toSlice(s: FixtureSlice, sourceCluster: string | undefined): EndpointSlice {
  const endpoints = s.endpoints.flatMap((e) =>
    e.addresses.map((ip) => endpoint(ip, e.hostname === undefined ? {} : { hostname: e.hostname }))
  );
  const of = { namespace: s.ns, service: s.service, name: s.slice ?? `${s.service}-slice1` };
  return slice(sourceCluster === undefined ? of : { ...of, sourceCluster }, endpoints, s.ports ?? []);
}

/** `name ttl IN TYPE data`; the SOA's serial and minimum are not compared, as the table says. */
function text(r: ResourceRecord): string {
  const head = `${nameText(r.name)} ${r.ttl} IN ${typeName(r.type)}`;
  switch (r.data.kind) {
    case "address":
      return `${head} ${r.data.ip}`;
    case "name":
      return `${head} ${nameText(r.data.target)}`;
    case "srv":
      return `${head} ${r.data.priority} ${r.data.weight} ${r.data.port} ${nameText(r.data.target)}`;
    case "text":
      return `${head} ${r.data.strings.join(" ")}`;
    case "soa":
      return `${head} ${nameText(r.data.mname)} ${
        nameText(r.data.rname)
      } - ${r.data.refresh} ${r.data.retry} ${r.data.expire} -`;
    case "raw":
      return `${head} raw`;
  }
}

function expected(rows: readonly string[] | undefined): string[] {
  return (rows ?? []).map((row) => {
    const f = row.trim().split(/\s+/);
    if (f[3] === "SOA") {
      f[6] = "-";
      f[10] = "-";
    }
    return f.join(" ");
  }).sort();
}

function check(row: Row, answer: ClusterAnswer): void {
  const answers = [...answer.answers];
  // The table's upstream answers this name; here it is enough that the answer leads there.
  if (answer.chase && nameText(answer.chase) === "ext.interwebs.test." && row.qtype === "A") {
    answers.push(addressRecord(answer.chase, "1.2.3.4", 5));
  }
  assert.equal(rcodeName(answer.rcode), row.rcode);
  assert.deepEqual(answers.map(text).sort(), expected(row.answer));
  const soa = answer.soaOf ? [text(soaRecord(answer.soaOf, 1, 5))] : [];
  assert.deepEqual(soa, expected(row.authority));
  assert.deepEqual(answer.additionals.map(text).sort(), expected(row.additional));
  const names = answers.filter((r) => r.type === TYPE.CNAME).map((r) => answers.indexOf(r));
  assert.ok(names.every((at, i) => at === i), "CNAMEs come before what they lead to");
}

for (const [set, rows] of Object.entries(vectors?.sets ?? {})) {
  if (set === "reverse") continue;
  const variants = set === "common" ? ["common", "multicluster"] : [set];
  for (const variant of variants) {
    const { options, meta } = setting(variant, vectors!);
    for (const row of rows) {
      Deno.test(`CoreDNS table ${set} (${variant}): ${row.qtype} ${row.qname}`, () => {
        const name = labelsOf(row.qname)!;
        assert.ok(zoneOf(lowerLabels(name), options.zones));
        check(row, answerCluster(name, typeNumber(row.qtype) ?? 13, meta, options));
      });
    }
  }
}

for (const row of vectors?.sets["reverse"] ?? []) {
  Deno.test(`CoreDNS table reverse: ${row.qtype} ${row.qname}`, () => {
    const f = vectors!.fixtures.reverse;
    const meta = new MemoryMeta({
      services: [...f.services, { ns: "testns", name: "svc2", clusterIPs: [] }].map(toService),
      slices: f.endpointSlices.map((s) => toSlice(s, undefined)),
    });
    const ownNetworks = ["10.0.0.0/16", "192.168.0.0/16", "1234:abcd::/32", "fd00:77:30::/96"].map((c) =>
      parseCidr(c)!
    );
    const options = {
      ...setting("common", vectors!).options,
      namespaces: undefined,
      ownNetworks,
      ownZones: ownNetworks.flatMap((n) => [...reverseZones(n)]),
    };
    const name = labelsOf(row.qname)!;
    const lower = lowerLabels(name);
    const answer = lower.at(-1) === "arpa"
      ? answerReverse({ name, lower, type: typeNumber(row.qtype)! }, meta, options)
      : answerCluster(name, typeNumber(row.qtype)!, meta, options);
    assert.ok(answer);
    check(row, answer);
  });
}

/** A row's records in the form of {@link recordTexts}; serial and minimum of a SOA are not compared. */
function wireTexts(rows: readonly string[] | undefined): string[] {
  return (rows ?? []).map((row) => {
    const [name, ttl, , type, ...data] = row.trim().split(/\s+/).map((field) => field.replace(/\.$/, ""));
    return [name, ttl, type, ...(type === "SOA" ? [...data.slice(0, 2), ...data.slice(3, 6)] : data)].join(" ");
  }).sort();
}

function seenTexts(records: Parameters<typeof recordTexts>[0]): string[] {
  return recordTexts(records).map((text) => {
    const f = text.split(" ");
    return f[2] === "SOA" ? [...f.slice(0, 5), ...f.slice(6, 9)].join(" ") : text;
  });
}

/** The same tables through the whole server: bytes in, bytes out, read by an independent codec. */
for (const [set, rows] of Object.entries(vectors?.sets ?? {})) {
  if (set === "reverse") continue;
  for (const row of rows) {
    Deno.test(`CoreDNS table on the wire, ${set}: ${row.qtype} ${row.qname}`, async () => {
      const { options, meta } = setting(set, vectors!);
      const upstream = { ip: "192.0.2.53", port: 53 };
      const server = new TestServer({
        meta,
        config: {
          ...(set === "multicluster"
            ? { zones: [], multiclusterZones: ["cluster.local"] }
            : { zones: ["cluster.local"] }),
          pods: options.pods,
          ignoreEmptyServices: options.ignoreEmptyServices,
          namespaces: options.namespaces && [...options.namespaces],
          upstreams: [{ at: upstream }],
        },
        // The upstream of the table says that its answer is cut off, and nobody answers over TCP.
        prepare: (network) =>
          network.at(
            upstream,
            upstreamProgram(
              {
                "ext.interwebs.test/A": [{ name: "ext.interwebs.test", type: "A", ttl: 5, data: "1.2.3.4" }],
              },
              [],
              row.truncated ? 0x200 : 0,
            ),
          ),
      });
      // Twice: made, and from the cache.
      for (let i = 0; i < 2; i++) {
        const got = await server.ask(row.qname.replace(/\.$/, ""), row.qtype, { edns: 1232 });
        assert.equal(got.rcode, row.rcode);
        assert.equal(got.questions![0]!.name, row.qname.replace(/\.$/, ""));
        assert.deepEqual(seenTexts(got.answers), wireTexts(row.answer));
        assert.deepEqual(seenTexts(got.authorities), wireTexts(row.authority));
        assert.deepEqual(seenTexts(got.additionals), wireTexts(row.additional));
        assert.equal(got.flag_tc, row.truncated ?? false);
      }
      await server.close();
    });
  }
}
