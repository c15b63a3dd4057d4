/** What a host that refuses FFI costs, in the words of log, `status` and `check`. */

/** What an agent there does otherwise, or not at all. */
export const WITHOUT_FFI =
  "bytes are copied instead of spliced, each Service port has a listener of its own, rules are written with the nft " +
  "program, other nodes are reached through the server only, and the limit of open files stays as it is";

export const FFI_HINT = "find what refuses it (--deny-ffi, SELinux, seccomp); `sockets: portable` accepts it";
