/**
 * The functions of OpenSSL 3 that TLS connections need. The system's own library is used, so its security updates come
 * with the distribution; where it is missing the caller does without.
 */
import { MeshError } from "../errors.ts";
import { checkFfi } from "./ffi.ts";

const I = "i32" as const;
const U = "u32" as const;
const P = "pointer" as const;
const B = "buffer" as const;
const V = "void" as const;

/**
 * A pointer wrapped into a structure, which both calling conventions pass in the same register. It keeps the engine from
 * making a fast call of the function: from inside of fast calls no JavaScript may run, and the handshake calls back.
 */
const CALLS_BACK = { struct: [P] } as const;

const SSL = {
  TLS_method: { parameters: [], result: P },
  SSL_CTX_new: { parameters: [P], result: P },
  SSL_CTX_free: { parameters: [P], result: V },
  SSL_CTX_ctrl: { parameters: [P, I, "i64", P], result: "i64" },
  SSL_CTX_set_options: { parameters: [P, "u64"], result: "u64" },
  SSL_CTX_set_ciphersuites: { parameters: [P, B], result: I },
  SSL_CTX_set_num_tickets: { parameters: [P, "usize"], result: I },
  SSL_CTX_set_verify: { parameters: [P, I, P], result: V },
  SSL_CTX_set_cert_verify_callback: { parameters: [P, P, P], result: V },
  SSL_CTX_set_alpn_protos: { parameters: [P, B, U], result: I },
  SSL_CTX_set_alpn_select_cb: { parameters: [P, P, P], result: V },
  SSL_CTX_use_certificate: { parameters: [P, P], result: I },
  SSL_CTX_use_PrivateKey: { parameters: [P, P], result: I },
  SSL_new: { parameters: [P], result: P },
  SSL_free: { parameters: [P], result: V },
  SSL_set_bio: { parameters: [P, P, P], result: V },
  SSL_set_connect_state: { parameters: [P], result: V },
  SSL_set_accept_state: { parameters: [P], result: V },
  SSL_do_handshake: { parameters: [CALLS_BACK], result: I },
  SSL_session_reused: { parameters: [P], result: I },
  SSL_get0_alpn_selected: { parameters: [P, P, P], result: V },
  SSL_get1_peer_certificate: { parameters: [P], result: P },
  SSL_get_peer_cert_chain: { parameters: [P], result: P },
  SSL_read: { parameters: [P, P, I], result: I },
  SSL_write: { parameters: [P, B, I], result: I },
  SSL_get_error: { parameters: [P, I], result: I },
  SSL_shutdown: { parameters: [P], result: I },
  SSL_key_update: { parameters: [P, I], result: I },
} as const satisfies Deno.ForeignLibraryInterface;

const CRYPTO = {
  OpenSSL_version: { parameters: [I], result: P },
  BIO_s_mem: { parameters: [], result: P },
  BIO_new: { parameters: [P], result: P },
  BIO_new_mem_buf: { parameters: [B, I], result: P },
  BIO_free: { parameters: [P], result: I },
  BIO_read: { parameters: [P, B, I], result: I },
  BIO_write: { parameters: [P, P, I], result: I },
  BIO_ctrl_pending: { parameters: [P], result: U },
  PEM_read_bio_X509: { parameters: [P, P, P, P], result: P },
  PEM_read_bio_PrivateKey: { parameters: [P, P, P, P], result: P },
  EVP_PKEY_free: { parameters: [P], result: V },
  X509_free: { parameters: [P], result: V },
  i2d_X509: { parameters: [P, P], result: I },
  OPENSSL_sk_num: { parameters: [P], result: I },
  OPENSSL_sk_value: { parameters: [P, I], result: P },
  ERR_clear_error: { parameters: [], result: V },
  ERR_get_error: { parameters: [], result: "u64" },
  ERR_error_string_n: { parameters: ["u64", B, "usize"], result: V },
} as const satisfies Deno.ForeignLibraryInterface;

export type Libssl = Deno.DynamicLibrary<typeof SSL>["symbols"];
export type Libcrypto = Deno.DynamicLibrary<typeof CRYPTO>["symbols"];

/** An open pair of libraries. */
export interface Openssl {
  readonly ssl: Libssl;
  readonly crypto: Libcrypto;
  close(): void;
}

/** Opens the system's OpenSSL 3. Throws MeshError KERNEL when there is none, or FFI is refused. */
export function openOpenssl(): Openssl {
  checkFfi();
  try {
    const crypto = Deno.dlopen("libcrypto.so.3", CRYPTO);
    try {
      const ssl = Deno.dlopen("libssl.so.3", SSL);
      return {
        ssl: ssl.symbols,
        crypto: crypto.symbols,
        close() {
          ssl.close();
          crypto.close();
        },
      };
    } catch (error) {
      crypto.close();
      throw error;
    }
  } catch (cause) {
    throw new MeshError("KERNEL", "Cannot open libssl.so.3", { cause, hint: "install OpenSSL 3 (libssl3)" });
  }
}
