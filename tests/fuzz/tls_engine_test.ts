/**
 * Broken handshakes and records against the fast engine's TLS: what was sent, nothing, or PROTOCOL, never another byte,
 * never another error, and every connection of OpenSSL given back. FUZZ_RUNS and FUZZ_SEED as in tunnel_wire_test.ts.
 */
import "../../lib/linux/preload.ts";
import assert from "node:assert/strict";
import { codeOf } from "../../lib/errors.ts";
import { memoryHeld } from "../../lib/linux/memory.ts";
import { openTlsLibrary } from "../../lib/linux/openssl.ts";
import { TLS_SLICE, type TlsIdentity, type TlsLibrary, type TlsMachine } from "../../lib/tls.ts";
import { TestPki } from "../contract/tunnel_pki.ts";
import { generator, mutated, type Random } from "./random.ts";

const RUNS = Number(Deno.env.get("FUZZ_RUNS") ?? 10_000);
const FIRST = Number(Deno.env.get("FUZZ_SEED") ?? 1);
/** One input in so many needs a handshake first: a thousand times the work of the others. */
const DEEP = 64;
const ALPN = "edgemesh/1";
const TEXT = new TextEncoder().encode("what was sent ".repeat(40));

interface Ends {
  readonly tls: TlsLibrary;
  readonly a: TlsIdentity;
  readonly b: TlsIdentity;
  readonly hello: Uint8Array;
}

Deno.test(`fuzz of the fast engine's TLS: ${RUNS} inputs`, async () => {
  const pki = await TestPki.create();
  const [a, b] = [await pki.issue("edge-a"), await pki.issue("edge-b")];
  const held = memoryHeld();
  const tls = openTlsLibrary();
  try {
    const client = open(tls, "client", a);
    client.handshake();
    const ends: Ends = { tls, a, b, hello: taken(client) };
    client.free();
    for (let seed = FIRST; seed < FIRST + RUNS; seed++) {
      try {
        const random = generator(seed);
        if (random(DEEP) > 0) brokenHello(ends, random);
        else if (random(2) === 0) brokenFlight(ends, random);
        else brokenRecord(ends, random);
      } catch (error) {
        throw new Error(`seed ${seed}`, { cause: error });
      }
      assert.equal(tls.live, 0, `seed ${seed}: a connection was not freed`);
    }
  } finally {
    tls.close();
  }
  assert.equal(memoryHeld(), held);
});

/** The first bytes of a client reach a server changed. */
function brokenHello({ tls, b, hello }: Ends, random: Random): void {
  const server = open(tls, "server", b);
  try {
    protocolOnly(() => {
      give(tls, server, mutated(random, hello.slice()));
      assert.equal(server.handshake(), false, "nobody is let in by a hello alone");
      assert.equal(server.pull(), undefined);
    });
  } finally {
    server.free();
  }
}

/** The server's answer reaches the client changed. */
function brokenFlight({ tls, a, b }: Ends, random: Random): void {
  const [client, server] = [open(tls, "client", a), open(tls, "server", b)];
  try {
    client.handshake();
    give(tls, server, taken(client));
    server.handshake();
    const flight = taken(server);
    const broken = mutated(random, flight.slice());
    const same = broken.length === flight.length && broken.every((byte, i) => byte === flight[i]);
    protocolOnly(() => {
      give(tls, client, broken);
      // What follows the flight is a broken record, which is seen later.
      if (client.handshake()) {
        assert.ok(same || flight.every((byte, i) => byte === broken[i]), "a changed flight passed");
      }
    });
  } finally {
    client.free();
    server.free();
  }
}

/** A record of a proven peer is changed on the way. */
function brokenRecord({ tls, a, b }: Ends, random: Random): void {
  const [client, server] = [open(tls, "client", a), open(tls, "server", b)];
  try {
    while (!(client.handshake() && server.handshake())) {
      give(tls, server, taken(client));
      server.handshake();
      give(tls, client, taken(server));
    }
    client.seal(TEXT, TEXT.length);
    const wire = mutated(random, taken(client));
    let got = new Uint8Array(0);
    protocolOnly(() => {
      give(tls, server, wire);
      for (let plain; (plain = server.pull()) !== undefined;) got = Uint8Array.from([...got, ...plain]);
    });
    assert.ok(
      got.length === 0 || got.length === TEXT.length && got.every((byte, i) => byte === TEXT[i]),
      "other bytes",
    );
  } finally {
    client.free();
    server.free();
  }
}

function open(tls: TlsLibrary, role: "client" | "server", identity: TlsIdentity): TlsMachine {
  return tls.open({ role, identity, alpn: ALPN });
}

/** All that a machine has to say, as a copy. */
function taken(machine: TlsMachine): Uint8Array {
  const into = new Uint8Array(TLS_SLICE);
  return into.slice(0, machine.take(into));
}

function give(tls: TlsLibrary, machine: TlsMachine, bytes: Uint8Array): void {
  tls.input.set(bytes);
  machine.push(0, bytes.length);
}

function protocolOnly(run: () => void): void {
  try {
    run();
  } catch (error) {
    if (codeOf(error) !== "PROTOCOL") throw error;
  }
}
