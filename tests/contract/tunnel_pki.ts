/** Identities for tests of the tunnel, as carriers and control connections are given them; the judge is the product's own. */
import { attested, TEST_NOW, type TestMember, type TestMesh, testMesh } from "../../lib/identity/testing.ts";
import { Revocations } from "../../lib/identity/revocation.ts";
import { type Trust, type VerifiedPeer, verifyPeer } from "../../lib/identity/trust.ts";
import type { TlsCredentials } from "../../lib/tunnel/carriers/engine.ts";

export { DEFAULT_GRACE_MS } from "../../lib/identity/trust.ts";
export { TEST_NOW } from "../../lib/identity/testing.ts";

export class TestPki {
  readonly revocations = new Revocations();
  readonly #mesh: TestMesh;
  readonly #trust: Trust;
  readonly #revoked: { by: "node"; value: string; reason: string; at: number }[] = [];

  private constructor(mesh: TestMesh) {
    this.#mesh = mesh;
    this.#trust = mesh.trust({ revocations: this.revocations });
  }

  static async create(): Promise<TestPki> {
    return new TestPki(await testMesh());
  }

  /** A fresh key with a certificate; `agedMs`: issued so long before {@link TEST_NOW}. */
  async issue(name: string, options: { role?: "node" | "server"; agedMs?: number } = {}): Promise<TlsCredentials> {
    const member = await this.#mesh.member(options.role ?? "node", name, { now: TEST_NOW - (options.agedMs ?? 0) });
    return credentialsOf(member, this.#mesh);
  }

  revoke(node: string): void {
    this.#revoked.push({ by: "node", value: node, reason: "test", at: TEST_NOW });
    this.revocations.apply("srv", { epoch: this.#revoked.length, entries: this.#revoked });
  }

  /** What carriers and the control server are given as `verify`. */
  readonly verifyNode = (chainDer: readonly Uint8Array[], name?: string): VerifiedPeer =>
    verifyPeer({ chainDer, expected: { role: "node", name }, trust: this.#trust, now: attested(TEST_NOW) });

  /** What the control client is given as `verify`. */
  readonly verifyServer = (chainDer: readonly Uint8Array[]): VerifiedPeer =>
    verifyPeer({ chainDer, expected: { role: "server" }, trust: this.#trust, now: attested(TEST_NOW) });
}

function credentialsOf(member: TestMember, mesh: TestMesh): TlsCredentials {
  return { cert: member.certPem, key: member.keyPem, ca: mesh.authority.bundlePem };
}
