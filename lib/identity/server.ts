/**
 * A server's identity in one object: its authority, its own certificate, tokens, enrolments and revocations.
 * cmd/server.ts opens it and wires its handlers to HTTP; nothing here knows about sockets.
 */
import type { CancelTimer, Clock } from "../clock.ts";
import { MeshError } from "../errors.ts";
import type { Logger } from "../log.ts";
import { Backoff } from "./backoff.ts";
import { CERTIFICATE_LIFETIME_MS, type CertificateAuthority, openOrCreateAuthority } from "./ca.ts";
import type { Certificate } from "./certificate.ts";
import { Enrolments } from "./enrolment.ts";
import { admitJoin } from "./join_server.ts";
import { type Answer, type Grant, grantAnswer, type MeshInfo, readRenewRequest, refusalAnswer } from "./messages.ts";
import { type RevocationEntry, type RevocationList, Revocations, type RevokedBy } from "./revocation.ts";
import { RevocationRegistry } from "./revocation_registry.ts";
import { Serial } from "./serial.ts";
import { ServerCertificate } from "./server_certificate.ts";
import type { StateFiles } from "./state_files.ts";
import { type TimeEstimate, TrustedTime } from "./time.ts";
import type { TlsMaterial } from "./tls_peer.ts";
import { TokenStore } from "./token_store.ts";
import { DEFAULT_GRACE_MS, type Trust, type VerifiedPeer } from "./trust.ts";

export interface IdentityServerOptions {
  readonly files: StateFiles;
  readonly clock: Clock;
  readonly log: Logger;
  /** This server's name in its certificate. */
  readonly name: string;
  readonly trustDomain: string;
  /** Told to every node that joins. */
  readonly mesh: MeshInfo;
  /** Life of certificates; default {@link CERTIFICATE_LIFETIME_MS}. */
  readonly lifetimeMs?: number | undefined;
}

interface Parts {
  readonly authority: CertificateAuthority;
  readonly tokens: TokenStore;
  readonly enrolments: Enrolments;
  readonly registry: RevocationRegistry;
  readonly own: ServerCertificate;
  readonly time: TrustedTime;
}

export class IdentityServer {
  readonly authority: CertificateAuthority;
  readonly tokens: TokenStore;
  readonly enrolments: Enrolments;
  /** What {@link verifyPeer} needs here. Expiry is not judged by it but by {@link admit}, which knows who is enrolled. */
  readonly trust: Trust;
  readonly #options: IdentityServerOptions;
  readonly #registry: RevocationRegistry;
  readonly #revocations = new Revocations();
  readonly #time: TrustedTime;
  readonly #backoff = new Backoff();
  readonly #joins = new Serial();
  readonly #own: ServerCertificate;

  private constructor(options: IdentityServerOptions, parts: Parts) {
    this.#options = options;
    this.authority = parts.authority;
    this.tokens = parts.tokens;
    this.enrolments = parts.enrolments;
    this.#registry = parts.registry;
    this.#own = parts.own;
    this.#time = parts.time;
    if (parts.registry.list.epoch > 0) this.#revocations.apply(options.name, parts.registry.list);
    this.trust = {
      trustDomain: parts.authority.trustDomain,
      anchors: parts.authority.anchors,
      revocations: this.#revocations,
      graceMs: Number.MAX_SAFE_INTEGER,
    };
  }

  /** Opens the state, making authority and keys on the first start. Throws STATE_INVALID, CONFIG_INVALID. */
  static async open(options: IdentityServerOptions): Promise<IdentityServer> {
    const { files, clock, log, trustDomain, name } = options;
    const time = new TrustedTime(clock);
    const authority = await openOrCreateAuthority(files, { trustDomain, now: time.now().ms });
    const lifetimeMs = options.lifetimeMs ?? CERTIFICATE_LIFETIME_MS;
    return new IdentityServer(options, {
      authority,
      tokens: await TokenStore.open(files),
      enrolments: await Enrolments.open(files),
      registry: await RevocationRegistry.open(files),
      own: await ServerCertificate.open({ files, authority, name, lifetimeMs, time, clock, log }),
      time,
    });
  }

  /** The time to verify peers with. */
  now(): TimeEstimate {
    return this.#time.now();
  }

  /** Key and certificates of this server now; changes with {@link watch}. */
  tls(): TlsMaterial {
    return this.#own.tls();
  }

  get certificate(): Certificate {
    return this.#own.certificate;
  }

  /** Answers `POST /v1/join`. Never throws; the answer is what the agent gets, refusals included. */
  handleJoin(text: string, source: string): Promise<Answer> {
    return this.#answer("join", source, () =>
      this.#joins.run(() =>
        admitJoin(text, {
          authority: this.authority,
          tokens: this.tokens,
          enrolments: this.enrolments,
          revocations: this.#revocations,
          backoff: this.#backoff,
          serverName: this.#options.name,
          serverKeyHash: this.certificate.keyHash,
          mesh: this.#options.mesh,
          lifetimeMs: this.#lifetimeMs,
        }, { source, now: this.now().ms, mono: this.#options.clock.now() })
      ));
  }

  /** Answers `POST /v1/renew` of a node that {@link verifyPeer} accepted on this connection. Never throws. */
  handleRenew(text: string, peer: VerifiedPeer): Promise<Answer> {
    return this.#answer("renewal", peer.node, async () => {
      const request = readRenewRequest(text);
      await this.admit(peer);
      const now = this.now().ms;
      const issued = await this.authority.issue({
        role: "node",
        name: peer.node,
        spki: peer.spki,
        now,
        lifetimeMs: this.#lifetimeMs,
        why: `renewal agent=${request.agent}`,
      });
      return {
        node: peer.node,
        trustDomain: this.authority.trustDomain,
        chainPem: issued.chainPem,
        bundlePem: this.authority.bundlePem,
        server: this.#options.name,
        time: Math.floor(now),
        mesh: this.#options.mesh,
        labels: this.enrolments.get(peer.node)?.labels ?? {},
      };
    });
  }

  /**
   * Decides whether a verified node may use this server: control connection and renewal. A node that is enrolled with
   * this key is welcome however long its certificate has expired. One that is unknown here comes from another server
   * of the mesh and is enrolled by its certificate, if that is within the grace. Throws NODE_KEY_MISMATCH, REVOKED,
   * CERT_EXPIRED.
   */
  async admit(peer: VerifiedPeer): Promise<void> {
    const { node, keyHash } = peer;
    // Again, because the connection may be older than the revocation.
    const revoked = this.#revocations.find(peer);
    if (revoked) throw new MeshError("REVOKED", `${node} was revoked on ${new Date(revoked.at).toISOString()}`);
    this.enrolments.checkKey(node, keyHash);
    if (this.enrolments.get(node)) return;
    const now = this.now().ms;
    if (now > peer.notAfter + DEFAULT_GRACE_MS) {
      throw new MeshError("CERT_EXPIRED", `node ${node} is not enrolled here and its certificate expired long ago`, {
        hint: "join again with a new token from `edgemesh token create`",
      });
    }
    await this.enrolments.enrol({ node, keyHash, enrolledAt: Math.floor(now), labels: {} });
    this.#options.log.info("node enrolled by its certificate from another server", { node, keyHash });
  }

  /** The list to push to agents. */
  get revocationList(): RevocationList {
    return this.#registry.list;
  }

  /** Shuts a node, key or certificate out. When this resolves it is on disk; the caller pushes the list it returns. */
  async revoke(by: RevokedBy, value: string, reason: string): Promise<RevocationList> {
    const entry: RevocationEntry = { by, value, reason, at: Math.floor(this.now().ms) };
    // Checked by the same code that agents use, so that no agent can choke on what is published.
    new Revocations().apply(this.#options.name, { epoch: 1, entries: [entry] });
    return this.#published(await this.#registry.add(entry));
  }

  /** Takes a revocation back. */
  async liftRevocation(by: RevokedBy, value: string): Promise<RevocationList> {
    return this.#published(await this.#registry.lift(by, value, this.now().ms));
  }

  /**
   * Removes a node's enrolment, so that its name is free for another key, and revokes the key it had: without that the
   * old certificate would stay good for a month, and no peer could tell the new key from an impersonation. Returns the
   * list to push, or undefined when the node is unknown.
   */
  async removeNode(node: string): Promise<RevocationList | undefined> {
    const known = this.enrolments.get(node);
    if (!known) return undefined;
    const list = await this.revoke("key", known.keyHash, `enrolment of ${node} was removed`);
    await this.enrolments.remove(node);
    return list;
  }

  /** Renews this server's own certificate in time; `onChange` re-reads {@link tls}. Returns what stops it. */
  watch(onChange: () => void): CancelTimer {
    return this.#own.watch(onChange);
  }

  get #lifetimeMs(): number {
    return this.#options.lifetimeMs ?? CERTIFICATE_LIFETIME_MS;
  }

  #published(list: RevocationList): RevocationList {
    this.#revocations.apply(this.#options.name, list);
    return list;
  }

  async #answer(what: string, who: string, grant: () => Promise<Grant>): Promise<Answer> {
    const { log } = this.#options;
    try {
      const granted = await grant();
      log.info(`${what} granted`, { node: granted.node, from: who });
      return grantAnswer(granted);
    } catch (e) {
      if (e instanceof MeshError && e.code !== "INTERNAL") {
        log.warn(`${what} refused`, { from: who, code: e.code, why: e.message });
      } else log.error(`${what} failed`, { from: who, error: e instanceof Error ? e.stack ?? e.message : String(e) });
      return refusalAnswer(e);
    }
  }
}
