/**
 * A server's identity in one object: its authority, its own certificate, tokens, enrolments and revocations.
 * cmd/server.ts opens it and wires its handlers to HTTP; nothing here knows about sockets.
 */
import type { CancelTimer, Clock, WallMs } from "../clock.ts";
import { describe, MeshError } from "../errors.ts";
import type { Logger } from "../log.ts";
import { Backoff } from "./backoff.ts";
import { Authority } from "./authority.ts";
import { AuthorityKeeper } from "./authority_keeper.ts";
import { CA_KEY_FILE, CERTIFICATE_LIFETIME_MS } from "./ca.ts";
import type { Certificate } from "./certificate.ts";
import { Enrolments } from "./enrolment.ts";
import { admitJoin } from "./join_server.ts";
import { type Member, Members } from "./members.ts";
import { type Answer, grantAnswer, type MeshInfo, readRenewRequest, refusalAnswer } from "./messages.ts";
import { type RevocationEntry, type RevocationList, Revocations, type RevokedBy } from "./revocation.ts";
import { RevocationRegistry } from "./revocation_registry.ts";
import { Serial } from "./serial.ts";
import { admitServer } from "./server_admission.ts";
import { ServerGroup } from "./server_group.ts";
import { serverAnswer } from "./server_messages.ts";
import { SharedStore } from "./shared_state.ts";
import { ServerCertificate } from "./server_certificate.ts";
import type { StateFiles } from "./state_files.ts";
import { type TimeEstimate, TrustedTime } from "./time.ts";
import type { TlsMaterial } from "./tls_peer.ts";
import { TokenStore } from "./token_store.ts";
import { DEFAULT_GRACE_MS, type Trust, type VerifiedPeer } from "./trust.ts";

/** As many as a grant may name; agents use three of them. */
const MAX_TOLD_SERVERS = 8;

export interface IdentityServerOptions {
  readonly files: StateFiles;
  readonly clock: Clock;
  readonly log: Logger;
  /** This server's name in its certificate. */
  readonly name: string;
  /** Where agents and other servers find it; default: the first of `mesh.servers`. */
  readonly url?: string | undefined;
  readonly trustDomain: string;
  /** Told to every node that joins. */
  readonly mesh: MeshInfo;
  /** Life of certificates; default {@link CERTIFICATE_LIFETIME_MS}. */
  readonly lifetimeMs?: number | undefined;
  /** Revocations came from another server: tell the agents. */
  onRevocations?(): void;
  /** The authority changed: tell the agents. */
  onAuthority?(): void;
}

interface Parts {
  readonly authority: Authority;
  readonly members: Members;
  readonly tokens: TokenStore;
  readonly enrolments: Enrolments;
  readonly registry: RevocationRegistry;
  readonly own: ServerCertificate;
  readonly time: TrustedTime;
}

export class IdentityServer {
  readonly authority: Authority;
  readonly tokens: TokenStore;
  readonly enrolments: Enrolments;
  /** The servers of the mesh, this one included once there are several. */
  readonly members: Members;
  /** This server's part among them. */
  readonly group: ServerGroup;
  /** Replaces the authority. */
  readonly keeper: AuthorityKeeper;
  /** What {@link verifyPeer} needs here. Expiry is not judged by it but by {@link admit}, which knows who is enrolled. */
  readonly trust: Trust;
  readonly #options: IdentityServerOptions;
  readonly #registry: RevocationRegistry;
  readonly #revocations = new Revocations();
  readonly #time: TrustedTime;
  readonly #backoff = new Backoff();
  readonly #joins = new Serial();
  readonly #own: ServerCertificate;
  readonly #shared: SharedStore;

  private constructor(options: IdentityServerOptions, parts: Parts) {
    this.#options = options;
    this.authority = parts.authority;
    this.tokens = parts.tokens;
    this.enrolments = parts.enrolments;
    this.#registry = parts.registry;
    this.#own = parts.own;
    this.#time = parts.time;
    this.members = parts.members;
    if (parts.registry.list.epoch > 0) this.#revocations.apply(options.name, parts.registry.list);
    const { authority, members, enrolments, registry } = parts;
    this.#shared = new SharedStore({ members, enrolments, registry, log: options.log });
    this.group = new ServerGroup({
      files: options.files,
      clock: options.clock,
      log: options.log,
      name: options.name,
      authority,
      members,
      shared: this.#shared,
      now: () => this.now().ms,
      tls: () => this.tls(),
      onRevocations: (list) => {
        this.#revocations.apply(options.name, list);
        options.onRevocations?.();
      },
      onAuthority: () => this.#authorityChanged(),
    });
    this.keeper = new AuthorityKeeper({
      authority,
      clock: options.clock,
      log: options.log,
      now: () => this.now().ms,
      nodes: () =>
        enrolments.list().filter((e) => !this.#revocations.find({ ...e, serial: "" })).map(({ node }) => node),
      onChange: async () => {
        await this.#authorityChanged();
        this.group.changed();
      },
    });
    this.trust = {
      trustDomain: authority.trustDomain,
      get anchors() {
        return authority.anchors;
      },
      revocations: this.#revocations,
      graceMs: Number.MAX_SAFE_INTEGER,
    };
  }

  /** Opens the state, making authority and keys on the first start. Throws STATE_INVALID, CONFIG_INVALID. */
  static async open(options: IdentityServerOptions): Promise<IdentityServer> {
    const { files, clock, log, trustDomain, name } = options;
    const time = new TrustedTime(clock);
    const members = await Members.open(files);
    if (members.all.length > 0 && await files.read(CA_KEY_FILE) === undefined) {
      throw new MeshError("STATE_INVALID", "joining the other servers was begun and not finished", {
        hint: "run `edgemesh server join` again, with a new token from `edgemesh token create --server NAME`",
      });
    }
    const authority = await Authority.open(files, { trustDomain, now: time.now().ms });
    const lifetimeMs = options.lifetimeMs ?? CERTIFICATE_LIFETIME_MS;
    const own = await ServerCertificate.open({ files, authority, name, lifetimeMs, time, clock, log });
    await noteOwnAddress(members, { name, keyHash: own.certificate.keyHash, url: urlOf(options) }, time.now().ms);
    return new IdentityServer(options, {
      authority,
      members,
      tokens: await TokenStore.open(files),
      enrolments: await Enrolments.open(files),
      registry: await RevocationRegistry.open(files),
      own,
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
      this.#joins.run(async () => {
        const granted = await admitJoin(text, {
          authority: this.authority,
          tokens: this.tokens,
          enrolments: this.enrolments,
          revocations: this.#revocations,
          backoff: this.#backoff,
          serverName: this.#options.name,
          serverKeyHash: this.certificate.keyHash,
          mesh: this.mesh,
          lifetimeMs: this.#lifetimeMs,
        }, { source, now: this.now().ms, mono: this.#options.clock.now() });
        this.group.changed();
        return { node: granted.node, ...grantAnswer(granted) };
      }));
  }

  /** Answers `POST /v1/server-join`: another server gets the authority. Never throws. */
  handleServerJoin(text: string, source: string): Promise<Answer> {
    return this.#answer("server's join", source, () =>
      this.#joins.run(async () => {
        const { files, name, clock } = this.#options;
        const granted = await admitServer(text, {
          files,
          name,
          url: urlOf(this.#options),
          authority: this.authority,
          tokens: this.tokens,
          members: this.members,
          shared: this.#shared,
          backoff: this.#backoff,
          keyHash: this.certificate.keyHash,
          mesh: this.#options.mesh,
        }, { source, now: this.now().ms, mono: clock.now() });
        this.group.changed();
        return { node: granted.name, ...serverAnswer(granted) };
      }));
  }

  /** Answers `POST /v1/server-sync` of a server that {@link ServerGroup.admit} let in. Never throws. */
  async handleServerSync(text: string, from: Member): Promise<Answer> {
    try {
      return serverAnswer(await this.group.answer(text, from));
    } catch (e) {
      this.#options.log.warn("a server's state was refused", { from: from.name, error: describe(e) });
      return refusalAnswer(e);
    }
  }

  /** What every member is told: with all servers there are, this one first. */
  get mesh(): MeshInfo {
    const { mesh } = this.#options;
    const others = this.members.present.filter((m) => m.name !== this.#options.name).map((m) => m.url);
    return { ...mesh, servers: [...new Set([...mesh.servers, ...others])].slice(0, MAX_TOLD_SERVERS) };
  }

  /** Removes a server from the mesh: it is asked and answered no more. Throws UNKNOWN_NODE. */
  async removeServer(name: string): Promise<void> {
    const known = this.members.get(name);
    if (!known || known.gone || name === this.#options.name) {
      throw new MeshError("UNKNOWN_NODE", `no other server ${name} is part of this mesh`, {
        hint: "edgemesh server list",
      });
    }
    await this.members.put({ ...known, gone: true }, this.now().ms);
    this.group.changed();
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
        ...grantAnswer({
          node: peer.node,
          trustDomain: this.authority.trustDomain,
          chainPem: issued.chainPem,
          bundlePem: this.authority.bundlePem,
          server: this.#options.name,
          time: Math.floor(now),
          mesh: this.mesh,
          labels: this.enrolments.get(peer.node)?.labels ?? {},
        }),
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

  /**
   * Renews this server's own certificate in time (`onChange` re-reads {@link tls}) and keeps in touch with the other
   * servers. Returns what stops it.
   */
  watch(onChange: () => void): CancelTimer {
    const stopRenewal = this.#own.watch(onChange);
    const stopGroup = this.group.start();
    const stopKeeper = this.keeper.start();
    return () => {
      stopRenewal();
      stopGroup();
      stopKeeper();
    };
  }

  async #authorityChanged(): Promise<void> {
    try {
      if (await this.#own.followAuthority()) this.#options.log.info("the server's certificate follows the authority");
    } catch (e) {
      this.#options.log.error("the server's certificate does not follow the authority", { error: describe(e) });
    }
    this.#options.onAuthority?.();
  }

  get #lifetimeMs(): number {
    return this.#options.lifetimeMs ?? CERTIFICATE_LIFETIME_MS;
  }

  #published(list: RevocationList): RevocationList {
    this.#revocations.apply(this.#options.name, list);
    this.group.changed();
    return list;
  }

  async #answer(what: string, who: string, grant: () => Promise<Answer & { node: string }>): Promise<Answer> {
    const { log } = this.#options;
    try {
      const { node, ...answer } = await grant();
      log.info(`${what} granted`, { node, from: who });
      return answer;
    } catch (e) {
      if (e instanceof MeshError && e.code !== "INTERNAL") {
        log.warn(`${what} refused`, { from: who, code: e.code, why: e.message });
      } else log.error(`${what} failed`, { from: who, error: e instanceof Error ? e.stack ?? e.message : String(e) });
      return refusalAnswer(e);
    }
  }
}

function urlOf(options: IdentityServerOptions): string {
  return options.url ?? options.mesh.servers[0] ?? "";
}

/** The others know this server by name and key, and must learn a new address. Throws CONFIG_INVALID. */
async function noteOwnAddress(
  members: Members,
  own: { readonly name: string; readonly keyHash: string; readonly url: string },
  now: WallMs,
): Promise<void> {
  const known = members.all.find((m) => m.keyHash === own.keyHash);
  if (!known || known.gone) return;
  if (known.name !== own.name) {
    throw new MeshError("CONFIG_INVALID", `this server joined the mesh as ${known.name}, it cannot be ${own.name}`, {
      hint: `--name ${known.name}`,
    });
  }
  await members.put({ ...own, gone: false }, now);
}
