/**
 * The authority of a running server: issues by the rules of authority_state.ts and keeps the state on disk so that a
 * crash between any two writes is made good by the next start.
 *
 * `authority.json` decides. While it holds a state, `ca.crt` and `ca.key` are written after it; without one they are
 * the authority themselves, so that a mesh that never rotated has nothing else.
 */
import type { WallMs } from "../clock.ts";
import { MeshError } from "../errors.ts";
import {
  afterStep,
  AUTHORITY_STATE,
  type AuthorityMaterial,
  type AuthorityState,
  type AuthorityStep,
  issuingMaterial,
  trustedPem,
} from "./authority_state.ts";
import {
  type CertificateAuthority,
  type Issued,
  type IssueRequest,
  makeMaterial,
  openMaterial,
  openOrCreateAuthority,
  readMaterial,
  writeMaterial,
} from "./ca.ts";
import { type Certificate, parsePem } from "./certificate.ts";
import { Serial } from "./serial.ts";
import { integer, literal, object, optional } from "./shape.ts";
import type { StateFiles } from "./state_files.ts";
import { readState, writeState } from "./state_json.ts";

export const AUTHORITY_FILE = "authority.json";

/** `state` is there during a rotation, and while ca.crt and ca.key are being brought after it. */
const FILE = object({ format: literal(1), generation: integer(0), state: optional(AUTHORITY_STATE) });

/** For edgemesh server ca status and the status document; no keys. */
export interface AuthorityView {
  readonly generation: number;
  /** What a join line pins now, and what servers show. */
  readonly pin: string;
  readonly rotation?: {
    readonly phase: "announced" | "switched" | "returning";
    /** Pin of the authority that is coming; when returning, of the one that is leaving. */
    readonly next: string;
    readonly startedAt: WallMs;
    readonly switchAt: WallMs;
    readonly finishAt: WallMs;
  };
}

interface Opened {
  readonly state: AuthorityState;
  /** Issues certificates of servers. */
  readonly current: CertificateAuthority;
  readonly next: CertificateAuthority | undefined;
  readonly anchors: readonly Certificate[];
}

export class Authority implements CertificateAuthority {
  readonly #files: StateFiles;
  readonly #serial = new Serial();
  #opened: Opened;

  private constructor(files: StateFiles, opened: Opened) {
    this.#files = files;
    this.#opened = opened;
  }

  /** Opens what is in the directory, makes an authority where there is none, and ends what a crash interrupted. */
  static async open(
    files: StateFiles,
    options: { readonly trustDomain: string; readonly now: WallMs },
  ): Promise<Authority> {
    const saved = await readState(files, AUTHORITY_FILE, {
      check: FILE,
      hint: "restore it from a backup together with ca.crt and ca.key; without it a rotation that is under way is lost",
    });
    if (saved?.state) await settle(files, saved.state);
    await openOrCreateAuthority(files, options);
    const current = await readMaterial(files);
    if (!current) throw new MeshError("INTERNAL", "the authority was opened and is not there");
    const state = saved?.state ?? { generation: saved?.generation ?? 0, current };
    return new Authority(files, await openState(files, state));
  }

  get trustDomain(): string {
    return this.#opened.current.trustDomain;
  }

  get anchors(): readonly Certificate[] {
    return this.#opened.anchors;
  }

  get bundlePem(): string {
    return trustedPem(this.#opened.state);
  }

  get pin(): string {
    return this.#opened.current.pin;
  }

  get generation(): number {
    return this.#opened.state.generation;
  }

  /** With the keys: for another server of the mesh, and nobody else. */
  get state(): AuthorityState {
    return this.#opened.state;
  }

  /** Pin of the authority that node certificates come from. */
  get issuingPin(): string {
    return this.#issuing.pin;
  }

  get view(): AuthorityView {
    const { state, next } = this.#opened;
    const { rotation } = state;
    return {
      generation: state.generation,
      pin: this.pin,
      ...(rotation && next
        ? {
          rotation: {
            phase: rotation.phase,
            next: next.pin,
            startedAt: rotation.startedAt,
            switchAt: rotation.switchAt,
            finishAt: rotation.finishAt,
          },
        }
        : {}),
    };
  }

  issue(request: IssueRequest): Promise<Issued> {
    return (request.role === "server" ? this.#opened.current : this.#issuing).issue(request);
  }

  /** Announces a new authority. Throws CONFIG_INVALID. In force, and on disk, when it resolves. */
  rotate(now: WallMs, overlapMs: number): Promise<void> {
    return this.#serial.run(async () => {
      const suffix = ` ${this.generation + 1}-${new Date(now).toISOString().slice(0, 10)}`;
      const next = await makeMaterial({ trustDomain: this.trustDomain, now, suffix });
      await this.#take(afterStep(this.#opened.state, { step: "rotate", next, now, overlapMs }));
    });
  }

  /** Takes any other step. Throws CONFIG_INVALID when it does not fit. In force, and on disk, when it resolves. */
  step(step: Exclude<AuthorityStep, { step: "rotate" }>): Promise<void> {
    return this.#serial.run(() => this.#take(afterStep(this.#opened.state, step)));
  }

  /** Takes over another server's state if it is newer. True when it was. Throws CERT_UNTRUSTED for what does not fit. */
  adopt(state: AuthorityState): Promise<boolean> {
    return this.#serial.run(async () => {
      if (!newer(state, this.#opened.state)) return false;
      await this.#take(state);
      return true;
    });
  }

  /** Disk first, then memory: what cannot be opened is not written. */
  async #take(state: AuthorityState): Promise<void> {
    const opened = await openState(this.#files, state);
    if (opened.current.trustDomain !== this.trustDomain) {
      throw new MeshError("CERT_UNTRUSTED", `that authority is of trust domain ${opened.current.trustDomain}`);
    }
    await writeState(this.#files, AUTHORITY_FILE, { format: 1, generation: state.generation, state });
    await settle(this.#files, state);
    this.#opened = opened;
  }

  get #issuing(): CertificateAuthority {
    const { state, current, next } = this.#opened;
    return state.rotation?.phase === "switched" && next ? next : current;
  }
}

/** Installs the authority of another server in a state directory. Throws what {@link openMaterial} throws. */
export async function installAuthority(files: StateFiles, state: AuthorityState): Promise<void> {
  await openState(files, state);
  await writeState(files, AUTHORITY_FILE, { format: 1, generation: state.generation, state });
  await settle(files, state);
}

/** Brings ca.crt and ca.key after the state; once nothing is under way they alone hold the keys. */
async function settle(files: StateFiles, state: AuthorityState): Promise<void> {
  const { keyPem, issuerPem } = issuingMaterial(state);
  const material: AuthorityMaterial = { bundlePem: trustedPem(state), keyPem, ...(issuerPem ? { issuerPem } : {}) };
  await writeMaterial(files, material);
  if (!state.rotation) await writeState(files, AUTHORITY_FILE, { format: 1, generation: state.generation });
}

async function openState(files: StateFiles, state: AuthorityState): Promise<Opened> {
  const current = await openMaterial(files, state.current);
  const next = state.rotation && await openMaterial(files, state.rotation.next);
  return { state, current, next, anchors: parsePem(trustedPem(state)) };
}

/** Of two states of one generation, made on two servers at once, all servers choose the same. */
function newer(a: AuthorityState, b: AuthorityState): boolean {
  if (a.generation !== b.generation) return a.generation > b.generation;
  return trustedPem(a) + (a.rotation?.phase ?? "") > trustedPem(b) + (b.rotation?.phase ?? "");
}
