/** OpenSSL's list of errors, as text. */
import type { Libcrypto } from "./openssl_ffi.ts";

/** The oldest error OpenSSL noted, in its own words, or nothing; empties its list. */
export function opensslError(crypto: Libcrypto): string {
  const code = crypto.ERR_get_error();
  if (code === 0n) return "";
  const text = new Uint8Array(256);
  crypto.ERR_error_string_n(code, text, BigInt(text.length));
  crypto.ERR_clear_error();
  return new TextDecoder().decode(text.subarray(0, text.indexOf(0)));
}
