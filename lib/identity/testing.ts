/**
 * A whole mesh's identities in memory, for tests of every folder: an authority, members with keys and certificates,
 * and the trust each side would have. Imported by tests only.
 */
import { generateKeyPairSync } from "node:crypto";
import type { WallMs } from "../clock.ts";
import { BUILD_TIME_MS } from "../version.ts";
import { type CertificateAuthority, openOrCreateAuthority } from "./ca.ts";
import type { Certificate } from "./certificate.ts";
import type { Role } from "./names.ts";
import { Revocations } from "./revocation.ts";
import { MemoryStateFiles } from "./state_files.ts";
import type { TimeEstimate } from "./time.ts";
import { DEFAULT_GRACE_MS, type Trust } from "./trust.ts";

/** A party with everything node:tls needs (`key`, `cert`) and what tests compare with. */
export interface TestMember {
  readonly role: Role;
  readonly name: string;
  readonly keyPem: string;
  /** Leaf, then the authority: what a server presents. */
  readonly certPem: string;
  readonly certificate: Certificate;
}

export interface TestMesh {
  readonly files: MemoryStateFiles;
  readonly authority: CertificateAuthority;
  /** A member with a fresh key. */
  member(
    role: Role,
    name: string,
    options?: { readonly now?: WallMs; readonly lifetimeMs?: number },
  ): Promise<TestMember>;
  /** A trust in this mesh, with nothing revoked and no keys known unless given. */
  trust(parts?: Partial<Trust>): Trust;
}

/** Noon of a day after the build, so that the build-time floor never interferes. */
export const TEST_NOW: WallMs = BUILD_TIME_MS + 36 * 3600 * 1000;

/** Makes a mesh. Takes about 10 ms after the encoder is loaded (0.3 s once). */
export async function testMesh(trustDomain = "mesh.test"): Promise<TestMesh> {
  const files = new MemoryStateFiles();
  const authority = await openOrCreateAuthority(files, { trustDomain, now: TEST_NOW });
  return {
    files,
    authority,
    member: async (role, name, options = {}) => {
      const key = testKey();
      const now = options.now ?? TEST_NOW;
      const { lifetimeMs } = options;
      const issued = await authority.issue({ role, name, spki: key.spki, now, lifetimeMs, why: "test" });
      const certPem = issued.chainPem + authority.bundlePem;
      return { role, name, keyPem: key.keyPem, certPem, certificate: issued.certificate };
    },
    trust: (parts = {}) => ({
      trustDomain,
      anchors: authority.anchors,
      revocations: new Revocations(),
      graceMs: DEFAULT_GRACE_MS,
      ...parts,
    }),
  };
}

/** A fresh P-256 key. */
export function testKey(): { readonly keyPem: string; readonly spki: Uint8Array } {
  const { publicKey, privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
  return {
    keyPem: privateKey.export({ type: "pkcs8", format: "pem" }) as string,
    spki: new Uint8Array(publicKey.export({ type: "spki", format: "der" })),
  };
}

/** A time that a server confirmed. */
export function attested(ms: WallMs): TimeEstimate {
  return { ms, floor: ms, attested: true };
}

/** A time from this machine's clock only. */
export function unattested(ms: WallMs, floor: WallMs = ms): TimeEstimate {
  return { ms, floor, attested: false };
}
