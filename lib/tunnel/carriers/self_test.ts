/**
 * Shows before the first peer does that a TLS library works on this machine: two connections with our own certificate
 * talk to each other in memory. A system may have a library that refuses our keys by its policy, or lacks what we use.
 */
import { MeshError } from "../../errors.ts";
import { TLS_SLICE, type TlsIdentity, type TlsLibrary, type TlsMachine } from "../../tls.ts";
import { CARRIER_ALPN } from "./engine.ts";

/** More than a record, so that a batch of several is tried. */
const BYTES = 40_000;
/** A handshake takes three. */
const MAX_STEPS = 10;

/** Throws MeshError when the library cannot carry a carrier. */
export function selfTest(tls: TlsLibrary, identity: TlsIdentity): void {
  const open = (role: "client" | "server") => tls.open({ role, identity, alpn: CARRIER_ALPN });
  const client = open("client");
  const server = open("server");
  try {
    for (let step = 0; !(client.handshake() && server.handshake()); step++) {
      if (step === MAX_STEPS) throw new MeshError("INTERNAL", "The handshake does not end");
      client.handshake();
      pass(tls, client, server);
      server.handshake();
      pass(tls, server, client);
    }
    for (const machine of [client, server]) {
      if (machine.alpn !== CARRIER_ALPN) throw new MeshError("INTERNAL", "No protocol was agreed on");
      if (machine.chain().length === 0) throw new MeshError("INTERNAL", "The certificate did not arrive");
    }
    for (const [from, to] of [[client, server], [server, client]] as const) talk(tls, from, to);
  } finally {
    client.free();
    server.free();
  }
}

function talk(tls: TlsLibrary, from: TlsMachine, to: TlsMachine): void {
  const bytes = new Uint8Array(BYTES);
  for (let i = 0; i < BYTES; i++) bytes[i] = i * 7;
  from.seal(bytes, BYTES);
  from.finish();
  pass(tls, from, to);
  let at = 0;
  for (let plain; (plain = to.pull()) !== undefined; at += plain.length) {
    if (plain.some((byte, i) => byte !== bytes[at + i])) {
      throw new MeshError("INTERNAL", "What was decrypted is not what was sent");
    }
  }
  if (at !== BYTES || !to.ended) throw new MeshError("INTERNAL", `Only ${at} of ${BYTES} bytes arrived, or no end`);
}

/** Moves all that one side has to say to the other. */
function pass(tls: TlsLibrary, from: TlsMachine, to: TlsMachine): void {
  for (let n; (n = from.take(tls.input.subarray(0, TLS_SLICE))) > 0;) to.push(0, n);
}
