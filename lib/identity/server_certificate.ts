/** The server's own key and certificate: the key is kept, the certificate is made again whenever it should be. */
import { generateKeyPairSync } from "node:crypto";
import type { CancelTimer, Clock } from "../clock.ts";
import { MeshError } from "../errors.ts";
import type { Logger } from "../log.ts";
import { publicKeyOf } from "./agent_state.ts";
import type { CertificateAuthority } from "./ca.ts";
import { type Certificate, parsePem, sameBytes } from "./certificate.ts";
import { identityUri } from "./names.ts";
import { keepFresh, renewalDelay } from "./renew.ts";
import type { StateFiles } from "./state_files.ts";
import type { TrustedTime } from "./time.ts";
import type { TlsMaterial } from "./tls_peer.ts";
import { checkPath } from "./trust.ts";

export const SERVER_KEY_FILE = "server.key";
export const SERVER_CERT_FILE = "server.crt";

export interface ServerCertificateOptions {
  readonly files: StateFiles;
  readonly authority: CertificateAuthority;
  readonly name: string;
  readonly lifetimeMs: number;
  readonly time: TrustedTime;
  readonly clock: Clock;
  readonly log: Logger;
}

export class ServerCertificate {
  readonly #options: ServerCertificateOptions;
  readonly #keyPem: string;
  #chainPem: string;
  #certificate: Certificate;

  private constructor(
    options: ServerCertificateOptions,
    own: { keyPem: string; chainPem: string; certificate: Certificate },
  ) {
    this.#options = options;
    this.#keyPem = own.keyPem;
    this.#chainPem = own.chainPem;
    this.#certificate = own.certificate;
  }

  /** Opens key and certificate, making what is missing. Throws STATE_INVALID for a damaged key. */
  static async open(options: ServerCertificateOptions): Promise<ServerCertificate> {
    const keyPem = await openServerKey(options.files);
    // Making one costs a third of a second at start; the one on disk is taken while it is good.
    const own = await readGood(options, keyPem) ?? await make(options, { keyPem, why: "server start" });
    return new ServerCertificate(options, { keyPem, ...own });
  }

  get certificate(): Certificate {
    return this.#certificate;
  }

  tls(): TlsMaterial {
    return { keyPem: this.#keyPem, certPem: this.#chainPem + this.#options.authority.bundlePem };
  }

  /** Makes the certificate anew if it is not from an authority in force any more. True when it was. */
  async followAuthority(): Promise<boolean> {
    try {
      checkPath(parsePem(this.#chainPem), this.#options.authority);
      return false;
    } catch {
      await this.#renew("authority changed");
      return true;
    }
  }

  /** Renews in time; `onChange` after each renewal. Returns what stops it. */
  watch(onChange: () => void): CancelTimer {
    const { clock, time, log } = this.#options;
    return keepFresh({
      clock,
      certificate: () => this.#certificate,
      now: () => time.now().ms,
      renew: async () => {
        await this.#renew("server renewal");
        onChange();
      },
      onFailure: (e, failures) => {
        log.error("the server's certificate could not be renewed", { error: String(e), failures });
      },
    });
  }

  async #renew(why: string): Promise<void> {
    const made = await make(this.#options, { keyPem: this.#keyPem, why });
    this.#chainPem = made.chainPem;
    this.#certificate = made.certificate;
  }
}

type Made = { readonly chainPem: string; readonly certificate: Certificate };

async function make(o: ServerCertificateOptions, by: { readonly keyPem: string; readonly why: string }): Promise<Made> {
  const issued = await o.authority.issue({
    role: "server",
    name: o.name,
    spki: publicKeyOf(by.keyPem),
    now: o.time.now().ms,
    lifetimeMs: o.lifetimeMs,
    why: by.why,
  });
  await o.files.writeAtomic(SERVER_CERT_FILE, issued.chainPem);
  return issued;
}

async function readGood(o: ServerCertificateOptions, keyPem: string): Promise<Made | undefined> {
  const chainPem = await o.files.read(SERVER_CERT_FILE);
  if (chainPem === undefined) return undefined;
  try {
    const chain = parsePem(chainPem);
    const certificate = chain[0]!;
    checkPath(chain, o.authority);
    const now = o.time.now().ms;
    const due = renewalDelay({ ...certificate, now, failures: 0, random: 0.5 }) === 0;
    // A lifetime configured shorter since then counts at once, and a clock that was ahead is noticed.
    const tooLong = certificate.notAfter > now + o.lifetimeMs;
    const uri = identityUri({ trustDomain: o.authority.trustDomain, role: "server", name: o.name });
    const good = !due && !tooLong && certificate.uris[0] === uri && sameBytes(certificate.spki, publicKeyOf(keyPem));
    return good ? { chainPem, certificate } : undefined;
  } catch {
    return undefined; // Unreadable: the certificate, unlike the key, can always be made again.
  }
}

/** This server's own key, made when there is none. Throws STATE_INVALID for a damaged one. */
export async function openServerKey(files: StateFiles): Promise<string> {
  const saved = await files.read(SERVER_KEY_FILE);
  if (saved === undefined) {
    const { privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
    const pem = privateKey.export({ type: "pkcs8", format: "pem" }) as string;
    await files.writeAtomic(SERVER_KEY_FILE, pem);
    return pem;
  }
  try {
    publicKeyOf(saved);
    return saved;
  } catch {
    throw new MeshError("STATE_INVALID", `the state file ${SERVER_KEY_FILE} holds no private key`, {
      hint: "restore it from a backup, or remove it: the server then makes a new key and certificate",
    });
  }
}
