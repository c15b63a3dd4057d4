/**
 * An agent's identity in one object: who this node is, whom it trusts, and what time it is. cmd/agent.ts opens it;
 * carriers ask it who a peer is; the control connection feeds it the server's time, revocations and renewals.
 */
import type { CancelTimer, Clock, WallMs } from "../clock.ts";
import { codeOf, describe, type ReasonCode } from "../errors.ts";
import type { Logger } from "../log.ts";
import { type AgentState, loadAgentState, type LoadedAgentState, renewedState, saveAgentState } from "./agent_state.ts";
import { type Certificate, parsePem } from "./certificate.ts";
import { type Grant, readAnswer, writeRenewRequest } from "./messages.ts";
import { PeerKeys } from "./peer_keys.ts";
import { pinOf } from "./pin.ts";
import { type Freshness, keepFresh } from "./renew.ts";
import { type RevocationEntry, Revocations } from "./revocation.ts";
import { integer, literal, object } from "./shape.ts";
import { Serial } from "./serial.ts";
import type { StateFiles } from "./state_files.ts";
import { readState, writeState } from "./state_json.ts";
import type { TlsMaterial } from "./tls_peer.ts";
import { CLOCK_TOLERANCE_MS, type TimeEstimate, TrustedTime } from "./time.ts";
import { DEFAULT_GRACE_MS, issuerPin, type Trust, type VerifiedPeer, verifyPeer, type VerifyRequest } from "./trust.ts";

export const AGENT_REVOCATIONS_FILE = "revocations.json";
export const TIME_FILE = "time.json";
/** How often the time is persisted: what a reboot without a clock falls back by, against one small write to flash. */
const PERSIST_TIME_MS = 3600 * 1000;

/** A change of the authority is followed within this time: spread, so that a fleet does not come in one moment. */
const FOLLOW_MS = 3_000;

export interface AgentIdentityOptions {
  readonly files: StateFiles;
  readonly clock: Clock;
  readonly log: Logger;
  /** Milliseconds an expired certificate of a peer is accepted; default {@link DEFAULT_GRACE_MS}. */
  readonly graceMs?: number | undefined;
  /** Version text for the server's log. */
  readonly version: string;
}

/** For `status`. */
export interface RenewalStatus {
  readonly notAfter: WallMs;
  readonly expired: boolean;
  /** Why the last renewal failed; undefined when it did not. */
  readonly lastError: { readonly code: ReasonCode; readonly text: string; readonly at: WallMs } | undefined;
}

export class AgentIdentity implements Trust {
  readonly revocations: Revocations;
  readonly knownKeys: PeerKeys;
  readonly graceMs: number;
  readonly time: TrustedTime;
  readonly #options: AgentIdentityOptions;
  readonly #writes = new Serial();
  #loaded: LoadedAgentState;
  #lastError: RenewalStatus["lastError"];
  #freshness: Freshness | undefined;

  private constructor(
    options: AgentIdentityOptions,
    parts: { loaded: LoadedAgentState; revocations: Revocations; knownKeys: PeerKeys; persisted: WallMs },
  ) {
    this.#options = options;
    this.#loaded = parts.loaded;
    this.revocations = parts.revocations;
    this.knownKeys = parts.knownKeys;
    this.graceMs = options.graceMs ?? DEFAULT_GRACE_MS;
    // Our own certificate was made by a server at that time: a floor even where the time file was lost.
    this.time = new TrustedTime(options.clock, [parts.persisted, parts.loaded.certificate.notBefore]);
  }

  /** Opens the identity on disk; undefined when this machine has not joined yet. Throws STATE_INVALID. */
  static async open(options: AgentIdentityOptions): Promise<AgentIdentity | undefined> {
    const { files, log } = options;
    const loaded = await loadAgentState(files);
    if (!loaded) return undefined;
    const revocations = await readState(files, AGENT_REVOCATIONS_FILE, {
      check: (value) => Revocations.load(value),
      hint: "remove it: the servers send their lists again; until then revoked nodes are trusted",
    });
    const knownKeys = await PeerKeys.open(files, log);
    const persisted = await readTime(files, log);
    return new AgentIdentity(options, { loaded, revocations: revocations ?? new Revocations(), knownKeys, persisted });
  }

  get node(): string {
    return this.#loaded.state.node;
  }

  get trustDomain(): string {
    return this.#loaded.state.trustDomain;
  }

  get anchors(): readonly Certificate[] {
    return this.#loaded.anchors;
  }

  get certificate(): Certificate {
    return this.#loaded.certificate;
  }

  /** Everything but the key. */
  get state(): Omit<AgentState, "keyPem"> {
    const { keyPem: _, ...rest } = this.#loaded.state;
    return rest;
  }

  /** Key and chain for TLS; changes when {@link takeGrant} succeeds. */
  tls(): TlsMaterial {
    return { keyPem: this.#loaded.state.keyPem, certPem: this.#loaded.state.chainPem };
  }

  /** {@link verifyPeer} with this node's trust and time. */
  verify(chainDer: readonly Uint8Array[], expected: VerifyRequest["expected"]): VerifiedPeer {
    return verifyPeer({ chainDer, expected, trust: this, now: this.time.now() });
  }

  now(): TimeEstimate {
    return this.time.now();
  }

  /**
   * Takes the time a verified server stated over its connection (asked at `sentAt` on the monotonic clock). Returns
   * the skew of this machine's clock in ms; a large one is worth a warning and never a failure.
   */
  learnTime(server: string, time: WallMs, sentAt: number): number {
    const before = this.time.skew();
    this.time.learn(server, time, sentAt);
    const skew = this.time.skew()!;
    const crossed = Math.abs(skew) > CLOCK_TOLERANCE_MS && Math.abs(before ?? 0) <= CLOCK_TOLERANCE_MS;
    if (crossed) {
      this.#options.log.warn("this machine's clock differs from the server's; the server's time is used", {
        skewSeconds: Math.round(skew / 1000),
        server,
      });
    }
    return skew;
  }

  /**
   * Takes the revocation list of a server, under a name that stays the same for it. Resolves when it is on disk: true when it was news, and live sessions with
   * parties for whom `revocations.find` now answers must be closed. Throws PROTOCOL or LIMIT.
   */
  async applyRevocations(server: string, list: unknown): Promise<boolean> {
    if (!this.revocations.apply(server, list)) return false;
    await this.#writes.run(() => writeState(this.#options.files, AGENT_REVOCATIONS_FILE, this.revocations.save()));
    return true;
  }

  /**
   * Forgets the lists of servers that are not configured any more, by the names given to {@link applyRevocations}.
   * Resolves when it is on disk.
   */
  async retainRevocations(servers: readonly string[]): Promise<void> {
    if (!this.revocations.retain(servers)) return;
    await this.#writes.run(() => writeState(this.#options.files, AGENT_REVOCATIONS_FILE, this.revocations.save()));
  }

  /** Takes a renewed certificate. In force, and on disk, when it resolves. Throws when it does not fit this node. */
  takeGrant(grant: Grant): Promise<void> {
    return this.#writes.run(async () => {
      this.#loaded = await saveAgentState(this.#options.files, renewedState(this.#loaded.state, grant));
    });
  }

  /** Pins of the authorities this node trusts, and of the one its certificate comes from. */
  get authorities(): { readonly trusted: readonly string[]; readonly issuer: string } {
    return { trusted: this.anchors.map(pinOf), issuer: issuerPin(parsePem(this.#loaded.state.chainPem), this.anchors) };
  }

  /** A server says which authorities there are: what this node lacks, it gets by renewing soon. */
  compareAuthorities(theirs: { readonly trusted: readonly string[]; readonly issuer: string }): void {
    const own = this.authorities;
    const same = own.issuer === theirs.issuer && [...own.trusted].sort().join() === [...theirs.trusted].sort().join();
    if (!same) this.#freshness?.soon(FOLLOW_MS);
  }

  /** The entry that shuts this very node out, or undefined: worth telling its operator before others refuse it. */
  get revoked(): RevocationEntry | undefined {
    const { keyHash, serial } = this.certificate;
    return this.revocations.find({ node: this.node, keyHash, serial });
  }

  get renewal(): RenewalStatus {
    const { notAfter } = this.certificate;
    return { notAfter, expired: this.time.now().ms > notAfter, lastError: this.#lastError };
  }

  /**
   * Keeps the certificate fresh and the time persisted. `request` posts a body to `/v1/renew` on a connection to a
   * server and gives its answer; `onChange` makes carriers use {@link tls} anew. Returns what stops it.
   */
  watch(request: (body: string) => Promise<string>, onChange: () => void): CancelTimer {
    const { clock, log, version } = this.#options;
    const stopRenewal = this.#freshness = keepFresh({
      clock,
      certificate: () => this.certificate,
      now: () => this.time.now().ms,
      renew: async () => {
        const body = writeRenewRequest({ time: Math.floor(clock.wall()), agent: version });
        await this.takeGrant(readAnswer(await request(body)));
        this.#lastError = undefined;
        log.info("certificate renewed", { until: new Date(this.certificate.notAfter).toISOString() });
        onChange();
      },
      onFailure: (e, failures) => {
        this.#lastError = { code: codeOf(e), text: describe(e), at: this.time.now().ms };
        // Offline is normal for an edge node: one line when it begins, the rest on demand.
        log[failures === 1 ? "warn" : "debug"]("certificate could not be renewed", { error: describe(e), failures });
      },
    });
    let stopped = false;
    let cancelTime: CancelTimer = () => {};
    const persist = async () => {
      await this.persistTime();
      if (!stopped) cancelTime = clock.timer(PERSIST_TIME_MS, persist);
    };
    cancelTime = clock.timer(PERSIST_TIME_MS, persist);
    return () => {
      stopped = true;
      stopRenewal();
      cancelTime();
    };
  }

  /** Writes the servers' time, if one is known. Also worth calling at shutdown. */
  persistTime(): Promise<void> {
    const ms = this.time.persistable();
    if (ms === undefined) return Promise.resolve();
    return this.#writes.run(async () => {
      try {
        await writeState(this.#options.files, TIME_FILE, { format: 1, ms });
      } catch (e) {
        this.#options.log.warn("the time could not be saved", { error: String(e) });
      }
    });
  }

  /** Resolves when what was learned is on disk. */
  async close(): Promise<void> {
    await this.persistTime();
    await this.knownKeys.flush();
  }
}

/** A lost time only makes dates be judged more leniently: not worth refusing to start, but worth a line. */
async function readTime(files: StateFiles, log: Logger): Promise<WallMs> {
  try {
    const saved = await readState(files, TIME_FILE, {
      check: object({ format: literal(1), ms: integer(0, 8.64e15) }),
      hint: "it is written again within the hour",
    });
    return saved?.ms ?? 0;
  } catch (e) {
    log.warn("the saved time is ignored", { error: describe(e) });
    return 0;
  }
}
