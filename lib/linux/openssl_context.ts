/** What all connections of one role and identity share in OpenSSL (SSL_CTX): versions, suites, keys, callbacks. */
import { MeshError } from "../errors.ts";
import type { TlsIdentity } from "../tls.ts";
import { Memory } from "./memory.ts";
import { opensslError } from "./openssl_error.ts";
import type { Openssl } from "./openssl_ffi.ts";

const SSL_CTRL_MODE = 33;
const SSL_CTRL_SET_SESS_CACHE_MODE = 44;
const SSL_CTRL_CHAIN_CERT = 89;
const SSL_CTRL_SET_MIN_PROTO_VERSION = 123;
const SSL_CTRL_SET_MAX_PROTO_VERSION = 124;
const TLS1_3_VERSION = 0x0304n;
/**
 * A write takes all or fails (no partial writes), may be repeated from another address, and buffers of 32 KiB per
 * connection are given back while nothing moves.
 */
const MODE = 0x2n | 0x10n;
/** No tickets, no renegotiation, no compression. */
const OPTIONS = (1n << 14n) | (1n << 30n) | (1n << 17n);
const SSL_VERIFY_PEER = 1;
/** AES-128 first: with AES instructions it is the fastest, and as safe as anything else here. */
const SUITES = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256";
const SSL_TLSEXT_ERR_OK = 0;
const SSL_TLSEXT_ERR_ALERT_FATAL = 2;

const P = "pointer" as const;
const VERIFY = { parameters: [P, P], result: "i32" } as const;
const SELECT = { parameters: [P, P, P, P, "u32", P], result: "i32" } as const;

export interface ContextKit {
  /** Throws MeshError INTERNAL when the identity cannot be used. The caller frees it. */
  create(role: "client" | "server", identity: TlsIdentity, alpn: string): Deno.PointerObject;
  /** Gives the callbacks back; no connection may be left. */
  close(): void;
}

export function makeContext({ ssl, crypto }: Openssl): ContextKit {
  /** The protocol that servers accept, as it stands in a hello: a length and the name. */
  const chosen = Memory.allocate(256);
  // OpenSSL asks for a judgement of the chain: it is for the caller, after the handshake has proven the key.
  const verify = new Deno.UnsafeCallback(VERIFY, () => 1);
  const select = new Deno.UnsafeCallback(SELECT, (_ssl, out, outLength, list, listLength) => {
    const offered = new Uint8Array(Deno.UnsafePointerView.getArrayBuffer(list!, listLength));
    const length = chosen.bytes[0]!;
    for (let at = 0; at < offered.length; at += 1 + offered[at]!) {
      if (!sameName(offered, at, chosen.bytes)) continue;
      const target = new DataView(Deno.UnsafePointerView.getArrayBuffer(out!, 8));
      target.setBigUint64(0, BigInt(Deno.UnsafePointer.value(chosen.pointer)) + 1n, true);
      new Uint8Array(Deno.UnsafePointerView.getArrayBuffer(outLength!, 1))[0] = length;
      return SSL_TLSEXT_ERR_OK;
    }
    return SSL_TLSEXT_ERR_ALERT_FATAL;
  });

  const fail = (what: string): never => {
    const why = opensslError(crypto);
    throw new MeshError("INTERNAL", `OpenSSL refuses ${what}${why === "" ? "" : `: ${why}`}`);
  };

  function withPem<T>(pem: string, use: (bio: Deno.PointerObject) => T): T {
    const bytes = new TextEncoder().encode(pem);
    // Copied by OpenSSL while this call lasts only: the bytes stay reachable until the BIO is freed.
    const memory = Memory.allocate(bytes.length);
    memory.bytes.set(bytes);
    const bio = crypto.BIO_new_mem_buf(memory.bytes, bytes.length);
    if (bio === null) fail("memory for a key");
    try {
      return use(bio!);
    } finally {
      crypto.BIO_free(bio!);
      memory.bytes.fill(0);
      memory.free();
    }
  }

  function useIdentity(context: Deno.PointerObject, identity: TlsIdentity): void {
    withPem(identity.cert, (bio) => {
      for (let first = true;; first = false) {
        const certificate = crypto.PEM_read_bio_X509(bio, null, null, null);
        if (certificate === null && first) fail("our certificate");
        if (certificate === null) break;
        const taken = first
          ? ssl.SSL_CTX_use_certificate(context, certificate) === 1
          // With the value 1 OpenSSL takes a reference of its own.
          : ssl.SSL_CTX_ctrl(context, SSL_CTRL_CHAIN_CERT, 1n, certificate) === 1n;
        crypto.X509_free(certificate);
        if (!taken) fail("our certificate");
      }
      // The end of the text was noted as an error.
      crypto.ERR_clear_error();
    });
    withPem(identity.key, (bio) => {
      const key = crypto.PEM_read_bio_PrivateKey(bio, null, null, null);
      if (key === null) fail("our key");
      const taken = ssl.SSL_CTX_use_PrivateKey(context, key) === 1;
      crypto.EVP_PKEY_free(key);
      if (!taken) fail("our key, which is not the certificate's");
    });
  }

  return {
    create(role, identity, alpn) {
      crypto.ERR_clear_error();
      const context = ssl.SSL_CTX_new(ssl.TLS_method());
      if (context === null) return fail("to start");
      try {
        ssl.SSL_CTX_ctrl(context, SSL_CTRL_SET_MIN_PROTO_VERSION, TLS1_3_VERSION, null);
        ssl.SSL_CTX_ctrl(context, SSL_CTRL_SET_MAX_PROTO_VERSION, TLS1_3_VERSION, null);
        ssl.SSL_CTX_ctrl(context, SSL_CTRL_MODE, MODE, null);
        ssl.SSL_CTX_ctrl(context, SSL_CTRL_SET_SESS_CACHE_MODE, 0n, null);
        ssl.SSL_CTX_set_options(context, OPTIONS);
        ssl.SSL_CTX_set_num_tickets(context, 0n);
        if (ssl.SSL_CTX_set_ciphersuites(context, new TextEncoder().encode(`${SUITES}\0`)) !== 1) fail("our suites");
        // A client without a certificate is let through the handshake, so that it can be told why it is refused.
        ssl.SSL_CTX_set_verify(context, SSL_VERIFY_PEER, null);
        ssl.SSL_CTX_set_cert_verify_callback(context, verify.pointer, null);
        const name = new TextEncoder().encode(`\0${alpn}`);
        name[0] = name.length - 1;
        if (role === "client") ssl.SSL_CTX_set_alpn_protos(context, name, name.length);
        else {
          chosen.bytes.set(name);
          ssl.SSL_CTX_set_alpn_select_cb(context, select.pointer, null);
        }
        useIdentity(context, identity);
        return context;
      } catch (error) {
        ssl.SSL_CTX_free(context);
        throw error;
      }
    },
    close() {
      verify.close();
      select.close();
      chosen.free();
    },
  };
}

/** Whether the name with its length at `at` of `list` is the one at the beginning of `wanted`. */
function sameName(list: Uint8Array, at: number, wanted: Uint8Array): boolean {
  const size = 1 + wanted[0]!;
  if (at + size > list.length) return false;
  for (let i = 0; i < size; i++) if (list[at + i] !== wanted[i]) return false;
  return true;
}
