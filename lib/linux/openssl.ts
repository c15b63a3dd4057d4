/**
 * TLS 1.3 by the system's OpenSSL as {@link TlsLibrary}: memory BIOs, so that sockets stay with the loop. Measured
 * equal in speed to OpenSSL on the socket itself, and it runs over anything that carries bytes.
 *
 * Certificates are accepted here whatever they are: OpenSSL proves that the peer holds the key, and the caller, who
 * knows the mesh's authorities, revocations and grace, judges the chain. Sessions are never resumed, there are no
 * tickets, and TLS 1.3 knows no renegotiation.
 */
import { MeshError } from "../errors.ts";
import { TLS_INPUT, TLS_SLICE, type TlsIdentity, type TlsLibrary, type TlsMachine, type TlsOpen } from "../tls.ts";
import { type Libcrypto, type Libssl, openOpenssl, type Openssl } from "./openssl_ffi.ts";
import { type ContextKit, makeContext } from "./openssl_context.ts";
import { Memory } from "./memory.ts";
import { opensslError } from "./openssl_error.ts";

/** Decrypted bytes handed out at once: a whole {@link TLS_SLICE} and the record that was incomplete before it. */
const PLAIN = 65_536;
/** Most bytes of one record (RFC 8446 §5.1). */
const RECORD = 16_384;
/**
 * Records under one key before a new one is used. RFC 8446 §5.5: 2^24.5 with AES-GCM; OpenSSL does not count them.
 */
const RECORDS_PER_KEY = 2 ** 23;
/** Certificates looked at; a longer chain is cut here and judged by the verifier, which allows fewer. */
const MAX_CHAIN = 5;

const SSL_ERROR_WANT_READ = 2;
const SSL_ERROR_ZERO_RETURN = 6;
const SSL_KEY_UPDATE_NOT_REQUESTED = 0;

/** What the machines of one library share. */
interface Kit {
  readonly ssl: Libssl;
  readonly crypto: Libcrypto;
  /** Where slices of the input begin; made once, because making a pointer allocates. */
  readonly slices: readonly Deno.PointerObject[];
  readonly plain: Memory;
  readonly scratch: Memory;
  readonly recordsPerKey: number;
  freed(): void;
}

/** A role's settings for one identity: made again when renewal brings another one. */
interface Cached {
  readonly identity: TlsIdentity;
  readonly alpn: string;
  readonly context: Deno.PointerObject;
}

export interface OpensslOptions {
  /** See {@link RECORDS_PER_KEY}; for tests. */
  readonly recordsPerKey?: number;
}

/** Opens the system's library. Throws MeshError KERNEL when it is missing. */
export function openTlsLibrary(options: OpensslOptions = {}): TlsLibrary {
  return new OpensslLibrary(openOpenssl(), options);
}

class OpensslLibrary implements TlsLibrary {
  readonly name: string;
  readonly input: Uint8Array;
  readonly #libraries: Openssl;
  readonly #kit: Kit;
  readonly #contexts: ContextKit;
  readonly #input = Memory.allocate(TLS_INPUT);
  readonly #cached = new Map<"client" | "server", Cached>();
  #live = 0;

  constructor(libraries: Openssl, options: OpensslOptions) {
    this.#libraries = libraries;
    const { ssl, crypto } = libraries;
    this.input = this.#input.bytes;
    this.#kit = {
      ssl,
      crypto,
      slices: Array.from({ length: TLS_INPUT / TLS_SLICE }, (_, i) => this.#input.pointerAt(i * TLS_SLICE)),
      plain: Memory.allocate(PLAIN),
      scratch: Memory.allocate(64),
      recordsPerKey: options.recordsPerKey ?? RECORDS_PER_KEY,
      freed: () => this.#live--,
    };
    this.#contexts = makeContext(libraries);
    this.name = textAt(crypto.OpenSSL_version(0)).split(" ").slice(0, 2).join(" ");
  }

  get live(): number {
    return this.#live;
  }

  open(options: TlsOpen): TlsMachine {
    const ssl = this.#kit.ssl.SSL_new(this.#context(options));
    if (ssl === null) throw new MeshError("INTERNAL", "OpenSSL cannot make a connection");
    this.#live++;
    return new OpensslMachine(this.#kit, ssl, options.role);
  }

  close(): void {
    for (const { context } of this.#cached.values()) this.#kit.ssl.SSL_CTX_free(context);
    this.#cached.clear();
    this.#contexts.close();
    for (const memory of [this.#input, this.#kit.plain, this.#kit.scratch]) memory.free();
    this.#libraries.close();
  }

  #context({ role, identity, alpn }: TlsOpen): Deno.PointerObject {
    const cached = this.#cached.get(role);
    if (
      cached?.identity.cert === identity.cert && cached.identity.key === identity.key && cached.alpn === alpn
    ) return cached.context;
    const context = this.#contexts.create(role, identity, alpn);
    // Connections that use the old one keep it until they end.
    if (cached) this.#kit.ssl.SSL_CTX_free(cached.context);
    this.#cached.set(role, { identity, alpn, context });
    return context;
  }
}

class OpensslMachine implements TlsMachine {
  readonly #kit: Kit;
  readonly #ssl: Deno.PointerObject;
  readonly #in: Deno.PointerObject;
  readonly #out: Deno.PointerObject;
  readonly #server: boolean;
  #secured = false;
  #ended = false;
  #records = 0;
  #freed = false;

  constructor(kit: Kit, ssl: Deno.PointerObject, role: "client" | "server") {
    this.#kit = kit;
    this.#ssl = ssl;
    this.#server = role === "server";
    const method = kit.crypto.BIO_s_mem();
    this.#in = kit.crypto.BIO_new(method)!;
    this.#out = kit.crypto.BIO_new(method)!;
    // The connection owns both from here on.
    kit.ssl.SSL_set_bio(ssl, this.#in, this.#out);
    if (this.#server) kit.ssl.SSL_set_accept_state(ssl);
    else kit.ssl.SSL_set_connect_state(ssl);
  }

  handshake(): boolean {
    if (this.#secured) return true;
    this.#check();
    const { ssl, crypto, scratch } = this.#kit;
    crypto.ERR_clear_error();
    const value = BigInt(Deno.UnsafePointer.value(this.#ssl));
    scratch.view.setBigUint64(0, value, true);
    const n = ssl.SSL_do_handshake(scratch.bytes.subarray(0, 8));
    if (n === 1) {
      if (ssl.SSL_session_reused(this.#ssl) !== 0) {
        throw new MeshError("INTERNAL", "A TLS session was resumed although resumption is off");
      }
      return this.#secured = true;
    }
    if (ssl.SSL_get_error(this.#ssl, n) === SSL_ERROR_WANT_READ) return false;
    throw this.#broken("TLS handshake failed");
  }

  get alpn(): string | undefined {
    const { ssl, scratch } = this.#kit;
    scratch.bytes.fill(0);
    ssl.SSL_get0_alpn_selected(this.#ssl, scratch.pointer, scratch.pointerAt(8));
    const length = scratch.u32[2]!;
    const at = Deno.UnsafePointer.create(scratch.view.getBigUint64(0, true));
    if (length === 0 || at === null) return undefined;
    return new TextDecoder().decode(new Uint8Array(Deno.UnsafePointerView.getArrayBuffer(at, length)));
  }

  chain(): Uint8Array[] {
    const { ssl, crypto } = this.#kit;
    const chain: Uint8Array[] = [];
    // A client's list of what the server showed begins with the server's own; a server's list does not hold it.
    if (this.#server) {
      const own = ssl.SSL_get1_peer_certificate(this.#ssl);
      if (own === null) return [];
      chain.push(this.#der(own));
      crypto.X509_free(own);
    }
    const stack = ssl.SSL_get_peer_cert_chain(this.#ssl);
    const count = stack === null ? 0 : crypto.OPENSSL_sk_num(stack);
    for (let i = 0; i < count && chain.length < MAX_CHAIN; i++) {
      chain.push(this.#der(crypto.OPENSSL_sk_value(stack, i)!));
    }
    return chain;
  }

  push(start: number, end: number): void {
    this.#check();
    const pointer = this.#kit.slices[start / TLS_SLICE];
    if (pointer === undefined || end - start > TLS_SLICE) {
      throw new MeshError("INTERNAL", `Bytes ${start} to ${end} are no slice of the input`);
    }
    if (this.#kit.crypto.BIO_write(this.#in, pointer, end - start) !== end - start) {
      throw new MeshError("INTERNAL", "OpenSSL has no memory for what was received");
    }
  }

  pull(): Uint8Array | undefined {
    this.#check();
    if (this.#ended) return undefined;
    const { ssl, crypto, plain } = this.#kit;
    let at = 0;
    while (PLAIN - at >= RECORD) {
      crypto.ERR_clear_error();
      const n = ssl.SSL_read(this.#ssl, plain.pointerAt(at), PLAIN - at);
      if (n > 0) {
        at += n;
        continue;
      }
      const error = ssl.SSL_get_error(this.#ssl, n);
      if (error === SSL_ERROR_WANT_READ) break;
      if (error !== SSL_ERROR_ZERO_RETURN) throw this.#broken("TLS ended");
      this.#ended = true;
      break;
    }
    return at === 0 ? undefined : plain.bytes.subarray(0, at);
  }

  get ended(): boolean {
    return this.#ended;
  }

  seal(from: Uint8Array, length: number): void {
    this.#check();
    const { ssl, crypto, recordsPerKey } = this.#kit;
    crypto.ERR_clear_error();
    this.#records += Math.ceil(length / RECORD);
    if (this.#records > recordsPerKey) {
      this.#records = 0;
      // The message goes with the next record. The other direction is for the other side to renew.
      if (ssl.SSL_key_update(this.#ssl, SSL_KEY_UPDATE_NOT_REQUESTED) !== 1) throw this.#broken("TLS key not renewed");
    }
    if (ssl.SSL_write(this.#ssl, from, length) !== length) throw this.#broken("TLS cannot send");
  }

  finish(): void {
    this.#check();
    const { ssl, crypto } = this.#kit;
    crypto.ERR_clear_error();
    // Before the handshake is over there is nothing to end.
    if (this.#secured) ssl.SSL_shutdown(this.#ssl);
    crypto.ERR_clear_error();
  }

  take(into: Uint8Array): number {
    this.#check();
    return Math.max(0, this.#kit.crypto.BIO_read(this.#out, into, into.length));
  }

  get waiting(): boolean {
    return !this.#freed && this.#kit.crypto.BIO_ctrl_pending(this.#out) > 0;
  }

  free(): void {
    if (this.#freed) return;
    this.#freed = true;
    this.#kit.ssl.SSL_free(this.#ssl);
    this.#kit.freed();
  }

  /** A pointer of C that is used after its end corrupts memory instead of failing: a bug must end here. */
  #check(): void {
    if (this.#freed) throw new MeshError("INTERNAL", "A TLS connection was used after its end");
  }

  #der(certificate: Deno.PointerObject): Uint8Array {
    const { crypto, scratch } = this.#kit;
    const length = crypto.i2d_X509(certificate, null);
    if (length <= 0) return new Uint8Array(0);
    const into = Memory.allocate(length);
    scratch.putAddress(0, into);
    crypto.i2d_X509(certificate, scratch.pointer);
    const der = into.bytes.slice();
    into.free();
    return der;
  }

  #broken(what: string): MeshError {
    const { crypto } = this.#kit;
    const why = opensslError(crypto);
    return new MeshError("PROTOCOL", why === "" ? what : `${what}: ${why}`);
  }
}

function textAt(pointer: Deno.PointerValue): string {
  return pointer === null ? "" : new Deno.UnsafePointerView(pointer).getCString();
}
