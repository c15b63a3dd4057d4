/**
 * One server's part in a group of servers with one authority: lets others join, answers their questions, and asks them.
 * They exchange what each knows (shared_state.ts) every {@link SYNC_MS} and at once after a change; who is newer about
 * the authority is followed; each keeps a copy of every other's issuance log.
 *
 * Servers know each other by key: a certificate of an authority that was replaced meanwhile still proves its holder.
 */
import type { CancelTimer, Clock, MonoMs, WallMs } from "../clock.ts";
import { describe, MeshError } from "../errors.ts";
import type { Logger } from "../log.ts";
import type { Authority } from "./authority.ts";
import { ISSUANCE_LOG_FILE } from "./ca.ts";
import type { Certificate } from "./certificate.ts";
import { postVerified } from "./join_connection.ts";
import type { Member, Members } from "./members.ts";
import { parseIdentityUri } from "./names.ts";
import type { RevocationList } from "./revocation.ts";
import { Serial } from "./serial.ts";
import {
  MAX_ISSUED_BYTES,
  MAX_SERVER_BYTES,
  readSync,
  readSyncAnswer,
  SERVER_SYNC_PATH,
  type Sync,
  type SyncAnswer,
  type SyncRequest,
  writeSync,
} from "./server_messages.ts";
import type { SharedStore } from "./shared_state.ts";
import type { StateFiles } from "./state_files.ts";
import type { TlsMaterial } from "./tls_peer.ts";
import { parseChain } from "./trust.ts";

/** Between two exchanges with a server: with the two requests of one, a change is everywhere within five seconds. */
const SYNC_MS = 2_000;
/** For connecting, and again for the answer: what takes longer is tried again. */
const TIMEOUT_MS = 2_000;

export interface ServerGroupOptions {
  readonly files: StateFiles;
  readonly clock: Clock;
  readonly log: Logger;
  /** This server's name. */
  readonly name: string;
  readonly authority: Authority;
  readonly members: Members;
  readonly shared: SharedStore;
  now(): WallMs;
  tls(): TlsMaterial;
  /** Revocations came from another server; already on disk. */
  onRevocations(list: RevocationList): void;
  /** Another server's authority was taken over. */
  onAuthority(): Promise<void>;
  /** Default {@link postVerified}. */
  readonly post?: typeof postVerified | undefined;
}

/** For `status`. */
export interface MemberView {
  readonly name: string;
  readonly url: string;
  /** Milliseconds since the last exchange; undefined: none since the start. */
  readonly syncedMsAgo: number | undefined;
  /** Why the last one failed; empty when it did not. */
  readonly error: string;
}

interface Exchange {
  syncedAt: MonoMs | undefined;
  error: string;
  running: Promise<void> | undefined;
  /** Something changed while it ran. */
  again: boolean;
}

export class ServerGroup {
  readonly #options: ServerGroupOptions;
  readonly #exchanges = new Map<string, Exchange>();
  readonly #merging = new Serial();
  #cancel: CancelTimer = () => {};
  #stopped = true;

  constructor(options: ServerGroupOptions) {
    this.#options = options;
  }

  /** Keeps in touch with the others until what it returns is called. */
  start(): CancelTimer {
    this.#stopped = false;
    const turn = () => {
      this.changed();
      this.#cancel = this.#options.clock.timer(SYNC_MS, turn);
    };
    turn();
    return () => {
      this.#stopped = true;
      this.#cancel();
    };
  }

  /** Something changed here: tells the others now. */
  changed(): void {
    if (this.#stopped) return;
    for (const member of this.#others()) this.#exchange(member);
  }

  /** Resolves when no exchange is under way. */
  async settled(): Promise<void> {
    await Promise.all([...this.#exchanges.values()].map((exchange) => exchange.running));
  }

  /** The other servers of the mesh. */
  status(): readonly MemberView[] {
    const now = this.#options.clock.now();
    return this.#others().map(({ name, url }) => {
      const exchange = this.#exchanges.get(name);
      return {
        name,
        url,
        syncedMsAgo: exchange?.syncedAt === undefined ? undefined : now - exchange.syncedAt,
        error: exchange?.error ?? "",
      };
    });
  }

  /** Who may exchange state. Throws CERT_UNTRUSTED for anybody but a server of this mesh. */
  admit(chainDer: readonly Uint8Array[]): Member {
    const leaf = parseChain(chainDer)[0]!;
    return this.#memberOf(leaf);
  }

  /** Answers `POST /v1/server-sync` of an admitted server. Throws PROTOCOL, LIMIT, VERSION. */
  async answer(text: string, from: Member): Promise<SyncAnswer> {
    const request = readSync(text);
    await this.#take(request, from.name);
    return { ...this.#own(request), issued: await this.#issuedFrom(request.issuedFrom) };
  }

  #others(): readonly Member[] {
    return this.#options.members.present.filter((m) => m.name !== this.#options.name);
  }

  #memberOf(leaf: Certificate): Member {
    const { members, authority } = this.#options;
    const identity = leaf.uris.length === 1 ? parseIdentityUri(leaf.uris[0]!) : undefined;
    const member = identity?.role === "server" && identity.trustDomain === authority.trustDomain
      ? members.present.find((m) => m.name === identity.name && m.keyHash === leaf.keyHash)
      : undefined;
    if (member) return member;
    throw new MeshError("CERT_UNTRUSTED", "the certificate is not that of a server of this mesh", {
      hint: "`edgemesh server list` names them; a removed one has to join again",
    });
  }

  /** Exchanges with a server, and once more when something changes meanwhile. */
  #exchange(member: Member): void {
    const exchange: Exchange = this.#exchanges.get(member.name) ??
      { syncedAt: undefined, error: "", running: undefined, again: false };
    this.#exchanges.set(member.name, exchange);
    exchange.again = exchange.running !== undefined;
    exchange.running ??= this.#run(member, exchange).finally(() => exchange.running = undefined);
  }

  async #run(member: Member, exchange: Exchange): Promise<void> {
    const { log, clock } = this.#options;
    try {
      do {
        exchange.again = false;
        while (await this.#ask(member)) if (this.#stopped) return;
      } while (exchange.again && !this.#stopped);
      if (exchange.error !== "") log.info("the other server answers again", { server: member.name });
      exchange.error = "";
      exchange.syncedAt = clock.now();
    } catch (error) {
      const text = describe(error);
      if (exchange.error === "" && !this.#stopped) {
        log.warn("the other server cannot be asked", { server: member.name, error: text });
      }
      exchange.error = text;
    }
  }

  /** Asks once. True when there is more to say or to hear. */
  async #ask(member: Member): Promise<boolean> {
    const { files, clock, tls, authority, shared, post = postVerified } = this.#options;
    const copy = copyOf(member.name);
    const send = async (more: Partial<SyncRequest>) =>
      readSyncAnswer(
        await post({
          url: member.url,
          clock,
          timeoutMs: TIMEOUT_MS,
          tls: tls(),
          maxReplyBytes: MAX_SERVER_BYTES,
          verify: (chain) => {
            const found = this.#memberOf(parseChain(chain)[0]!);
            if (found.name === member.name) return;
            throw new MeshError("CERT_UNTRUSTED", `server ${found.name} answers at the address of ${member.name}`);
          },
        }, {
          path: SERVER_SYNC_PATH,
          body: writeSync({ ...this.#digest(), issuedFrom: await files.size(copy), ...more }),
        }),
      );
    let answer = await send({});
    await this.#take(answer, member.name);
    const behind = { state: answer.digest !== shared.digest(), authority: answer.generation < authority.generation };
    if (behind.state || behind.authority) {
      answer = await send({
        ...(behind.state ? { state: shared.value() } : {}),
        ...(behind.authority ? { authority: authority.state } : {}),
      });
      await this.#take(answer, member.name);
    }
    if (answer.issued === "") return false;
    await this.#merging.run(() => files.append(copy, answer.issued));
    return answer.issued.length >= MAX_ISSUED_BYTES / 2;
  }

  /** Takes over what another server said. */
  #take(said: Sync, from: string): Promise<void> {
    const { shared, authority, now, onRevocations, onAuthority, log } = this.#options;
    return this.#merging.run(async () => {
      if (said.state) {
        const list = await shared.merge(from, said.state, now());
        if (list) onRevocations(list);
      }
      if (said.authority && await authority.adopt(said.authority)) {
        log.info("the authority of another server was taken over", { from, generation: authority.generation });
        await onAuthority();
      }
    });
  }

  #digest(): { readonly digest: string; readonly generation: number } {
    return { digest: this.#options.shared.digest(), generation: this.#options.authority.generation };
  }

  /** What this server says to one that said `theirs`: all of what that one does not know. */
  #own(theirs: Sync): Sync {
    const { shared, authority } = this.#options;
    const own = this.#digest();
    return {
      ...own,
      ...(theirs.digest === own.digest ? {} : { state: shared.value() }),
      ...(theirs.generation < own.generation ? { authority: authority.state } : {}),
    };
  }

  /** Whole lines of our issuance log from a byte on. */
  async #issuedFrom(from: number): Promise<string> {
    const bytes = await this.#options.files.readRange(ISSUANCE_LOG_FILE, from, MAX_ISSUED_BYTES);
    return new TextDecoder().decode(bytes.subarray(0, bytes.lastIndexOf(0x0a) + 1));
  }
}

/** Our copy of another server's issuance log; its length is how much of it we know. */
export function copyOf(server: string): string {
  return `issued-by-${server}.jsonl`;
}
