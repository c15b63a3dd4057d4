import "./preload.ts";
import assert from "node:assert/strict";
import { X509Certificate } from "node:crypto";
import fc from "fast-check";
import { MeshError } from "../errors.ts";
import { TLS_INPUT, TLS_SLICE, type TlsIdentity, type TlsLibrary, type TlsMachine } from "../tls.ts";
import { selfTest } from "../tunnel/carriers/self_test.ts";
import { TestPki } from "../../tests/contract/tunnel_pki.ts";
import { memoryHeld } from "./memory.ts";
import { type OpensslOptions, openTlsLibrary } from "./openssl.ts";

const ALPN = "edgemesh/1";

/** Runs a test with a library of its own, and checks that it got everything back. */
async function withLibrary(
  test: (tls: TlsLibrary, ids: { readonly a: TlsIdentity; readonly b: TlsIdentity; readonly pki: TestPki }) => void,
  options: OpensslOptions = {},
): Promise<void> {
  const pki = await TestPki.create();
  const [a, b] = [await pki.issue("edge-a"), await pki.issue("edge-b")];
  const held = memoryHeld();
  const tls = openTlsLibrary(options);
  try {
    test(tls, { a, b, pki });
    assert.equal(tls.live, 0, "connections were not freed");
  } finally {
    tls.close();
  }
  assert.equal(memoryHeld(), held);
}

/** Moves all that one side has to say to the other; returns how many bytes. */
function pass(tls: TlsLibrary, from: TlsMachine, to: TlsMachine): number {
  let bytes = 0;
  for (let n; (n = from.take(tls.input.subarray(0, TLS_SLICE))) > 0; bytes += n) to.push(0, n);
  return bytes;
}

function pair(tls: TlsLibrary, a: TlsIdentity, b: TlsIdentity, alpn: readonly [string, string] = [ALPN, ALPN]) {
  return [
    tls.open({ role: "client", identity: a, alpn: alpn[0] }),
    tls.open({ role: "server", identity: b, alpn: alpn[1] }),
  ] as const;
}

function shake(tls: TlsLibrary, client: TlsMachine, server: TlsMachine): void {
  for (let step = 0; step < 5; step++) {
    const done = [client.handshake(), pass(tls, client, server), server.handshake(), pass(tls, server, client)];
    if (done[0] === true && done[2] === true) return;
  }
  assert.fail("the handshake does not end");
}

function drain(machine: TlsMachine): Uint8Array {
  const parts: number[] = [];
  for (let plain; (plain = machine.pull()) !== undefined;) parts.push(...plain);
  return Uint8Array.from(parts);
}

Deno.test("TLS: both sides get the other's certificate as it was issued, and agree on the protocol", async () => {
  await withLibrary((tls, { a, b }) => {
    const [client, server] = pair(tls, a, b);
    shake(tls, client, server);
    assert.deepEqual([client.alpn, server.alpn], [ALPN, ALPN]);
    assert.deepEqual([...client.chain()[0]!], [...new X509Certificate(b.cert).raw]);
    assert.deepEqual([...server.chain()[0]!], [...new X509Certificate(a.cert).raw]);
    client.free();
    client.free();
    server.free();
    assert.throws(() => client.pull(), { code: "INTERNAL" });
    assert.match(tls.name, /^OpenSSL 3\./);
    assert.equal(tls.input.length, TLS_INPUT);
  });
});

Deno.test("TLS: the self-test passes with a good identity, and a key that is not the certificate's is refused", async () => {
  await withLibrary((tls, { a, b }) => {
    selfTest(tls, a);
    assert.throws(() => selfTest(tls, { cert: a.cert, key: b.key }), { code: "INTERNAL" });
    assert.throws(() => selfTest(tls, { cert: "nonsense", key: b.key }), { code: "INTERNAL" });
  });
});

Deno.test("TLS: bytes of any length arrive equal, cut anywhere, both ways", async () => {
  await withLibrary((tls, { a, b }) => {
    const [client, server] = pair(tls, a, b);
    shake(tls, client, server);
    for (const length of [1, 100, 16_383, 16_384, 16_385, 65_546]) {
      const bytes = Uint8Array.from({ length }, (_, i) => i * 31 + length);
      for (const [from, to] of [[client, server], [server, client]] as const) {
        from.seal(bytes, length);
        const got: number[] = [];
        const wire = new Uint8Array(length * 2 + 1000);
        const n = from.take(wire);
        for (let at = 0, step = 1; at < n; at += step, step = step * 3 % 7_001 + 1) {
          const piece = wire.subarray(at, Math.min(n, at + step));
          tls.input.set(piece);
          to.push(0, piece.length);
          got.push(...drain(to));
        }
        assert.deepEqual(Uint8Array.from(got), bytes);
      }
    }
    client.free();
    server.free();
  });
});

Deno.test("TLS: a new key is taken before the old one is worn out, again and again", async () => {
  await withLibrary((tls, { a, b }) => {
    const [client, server] = pair(tls, a, b);
    shake(tls, client, server);
    const bytes = new Uint8Array(1000).fill(7);
    let plainSize = 0;
    for (let i = 0; i < 40; i++) {
      client.seal(bytes, bytes.length);
      plainSize = Math.max(plainSize, pass(tls, client, server));
      assert.deepEqual(drain(server), bytes);
    }
    assert.ok(plainSize > 1022, "a record with a new key before it is longer");
    client.free();
    server.free();
  }, { recordsPerKey: 3 });
});

Deno.test("TLS: an end that was said is told from a connection that was cut", async () => {
  await withLibrary((tls, { a, b }) => {
    const [client, server] = pair(tls, a, b);
    shake(tls, client, server);
    client.seal(Uint8Array.of(1), 1);
    client.finish();
    pass(tls, client, server);
    assert.deepEqual([...drain(server)], [1]);
    assert.equal(server.ended, true);
    // The other direction goes on.
    server.seal(Uint8Array.of(2), 1);
    pass(tls, server, client);
    assert.deepEqual([[...drain(client)], client.ended], [[2], false]);
    client.free();
    server.free();
  });
});

Deno.test("TLS: another protocol is refused by the server, with an alert", async () => {
  await withLibrary((tls, { a, b }) => {
    const [client, server] = pair(tls, a, b, ["h2", ALPN]);
    client.handshake();
    pass(tls, client, server);
    assert.throws(() => server.handshake(), { code: "PROTOCOL" });
    assert.ok(pass(tls, server, client) > 0);
    assert.throws(
      () => client.handshake(),
      (error: MeshError) => error.code === "PROTOCOL" && /alert/.test(error.message),
    );
    client.free();
    server.free();
  });
});

Deno.test("fuzz: whatever comes instead of a handshake, or inside a connection, is PROTOCOL or waits for more", async () => {
  await withLibrary((tls, { a, b }) => {
    const feed = (machine: TlsMachine, bytes: Uint8Array, use: () => void) => {
      tls.input.set(bytes);
      machine.push(0, bytes.length);
      try {
        use();
      } catch (error) {
        assert.equal((error as MeshError).code, "PROTOCOL");
        return false;
      }
      return true;
    };
    const garbage = fc.uint8Array({ minLength: 1, maxLength: 600 });
    fc.assert(
      fc.property(garbage, fc.boolean(), (bytes, toClient) => {
        const [client, server] = pair(tls, a, b);
        client.handshake();
        // Half of the time it looks like a record at least.
        const record = bytes.length % 2 === 0
          ? Uint8Array.of(22, 3, 3, bytes.length >> 8, bytes.length, ...bytes)
          : bytes;
        const victim = toClient ? client : server;
        feed(victim, record, () => assert.equal(victim.handshake(), false));
        client.free();
        server.free();
      }),
      { numRuns: 150 },
    );
    const edits = fc.array(fc.tuple(fc.nat(5000), fc.integer({ min: 1, max: 255 })), { minLength: 1, maxLength: 4 });
    fc.assert(
      fc.property(edits, fc.boolean(), (list, inHandshake) => {
        const [client, server] = pair(tls, a, b);
        if (inHandshake) client.handshake();
        else {
          shake(tls, client, server);
          client.seal(new Uint8Array(4000).fill(3), 4000);
        }
        const wire = new Uint8Array(6000);
        const n = client.take(wire);
        for (const [at, flip] of list) wire[at % n]! ^= flip;
        feed(server, wire.subarray(0, n), () => {
          if (inHandshake) server.handshake();
          else for (const byte of drain(server)) assert.equal(byte, 3, "a changed byte was let through");
        });
        client.free();
        server.free();
      }),
      { numRuns: 150 },
    );
  });
});

Deno.test("TLS: 400 connections come and go, with callbacks into JavaScript, and leave nothing", async () => {
  await withLibrary((tls, { a, b }) => {
    for (let i = 0; i < 400; i++) {
      const [client, server] = pair(tls, a, b);
      if (i % 4 !== 3) shake(tls, client, server);
      client.free();
      server.free();
    }
  });
});
