/** Overrides: names given addresses by local configuration, before everything else. */
import { familyOf, parseIp } from "../../addr.ts";
import { MeshError } from "../../errors.ts";
import type { ClusterAnswer } from "./answer.ts";
import { RCODE, TYPE } from "../wire/constants.ts";
import { type Labels, labelsOf, lowerLabels } from "../wire/labels.ts";
import { addressRecord } from "../wire/records.ts";

/** Seconds: short, because a changed configuration should be seen soon. */
const HOSTS_TTL = 60;

export class HostsTable {
  readonly #exact = new Map<string, readonly string[]>();
  /** Names below these: `*.example.org`. */
  readonly #below = new Map<string, readonly string[]>();

  /** Throws MeshError CONFIG_INVALID for names and addresses that are none. */
  constructor(hosts: Readonly<Record<string, readonly string[]>>) {
    for (const [name, addresses] of Object.entries(hosts)) {
      const wild = name.startsWith("*.");
      const labels = labelsOf(wild ? name.slice(2) : name);
      if (labels === undefined || labels.length === 0) {
        throw new MeshError("CONFIG_INVALID", `hosts override ${JSON.stringify(name)} is no DNS name`);
      }
      const ips = addresses.map((text) => {
        const ip = parseIp(text);
        if (ip === undefined) {
          throw new MeshError(
            "CONFIG_INVALID",
            `hosts override ${name} has ${JSON.stringify(text)}, which is no address`,
          );
        }
        return ip;
      });
      (wild ? this.#below : this.#exact).set(lowerLabels(labels).join("."), ips);
    }
  }

  get empty(): boolean {
    return this.#exact.size === 0 && this.#below.size === 0;
  }

  /**
   * The addresses of a name (lower case): its own entry, else that of the longest wildcard above. An empty list means
   * that the name has no address.
   */
  find(lower: Labels): readonly string[] | undefined {
    const exact = this.#exact.get(lower.join("."));
    if (exact !== undefined) return exact;
    for (let i = 1; i < lower.length; i++) {
      const below = this.#below.get(lower.slice(i).join("."));
      if (below !== undefined) return below;
    }
    return undefined;
  }

  /** A whole answer; a name with an override has these addresses and nothing else. */
  answer(name: Labels, lower: Labels, type: number): ClusterAnswer | undefined {
    const ips = this.find(lower);
    return ips && fixedAnswer(name, type, ips);
  }
}

/** An answer of fixed addresses: overrides and `localhost`. */
export function fixedAnswer(name: Labels, type: number, ips: readonly string[]): ClusterAnswer {
  const family = type === TYPE.A ? 4 : type === TYPE.AAAA ? 6 : undefined;
  const answers = ips.filter((ip) => familyOf(ip) === family).map((ip) => addressRecord(name, ip, HOSTS_TTL));
  return {
    rcode: RCODE.NOERROR,
    answers,
    additionals: [],
    soaOf: answers.length > 0 ? undefined : name,
    chase: undefined,
    caseBound: false,
    reason: answers.length > 0 ? "found" : "no-records-of-type",
  };
}
