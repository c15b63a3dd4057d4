/**
 * What every engine and every kind of leg must do for the session (lib/tunnel/carrier.ts, carriers/engine.ts):
 * batches whole and in order, back-pressure, reasons of ends, and above all nobody who is not who it should be.
 */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { MeshError } from "../../lib/errors.ts";
import { MAX_BATCH } from "../../lib/tunnel/carrier.ts";
import { Bench, type CarrierRig, constant, nothing, Recorder } from "./carrier_bench.ts";
import { DEFAULT_GRACE_MS, TestPki } from "./tunnel_pki.ts";

const DAY = 24 * 3600 * 1000;

export function carrierContract<Leg>(rig: CarrierRig<Leg>): void {
  const test = (name: string, run: (t: Bench<Leg>) => Promise<void>) => {
    Deno.test(`carrier over ${rig.name}: ${name}`, async () => {
      rig.setUp?.();
      const t = new Bench(rig, await TestPki.create());
      await run(t);
      t.finish();
      await rig.tearDown?.();
    });
  };

  test("both sides learn who is at the other end, from its certificate", async (t) => {
    const [a, b] = await t.pair();
    assert.deepEqual([a.peer.node, b.peer.node, a.path, b.path], ["edge-b", "edge-a", "lan", "lan"]);
    assert.match(a.peer.keyHash, /^[0-9a-f]{64}$/);
    assert.notEqual(a.peer.keyHash, b.peer.keyHash);
  });

  test("batches of every size arrive whole and in order, both ways at once", async (t) => {
    const [a, b] = await t.pair();
    const sizes = [1, 2, 125, 126, 127, 4095, 4096, 4097, 16384, 65535, MAX_BATCH];
    const batches = sizes.map((n, i) => Uint8Array.from({ length: n }, (_, k) => k * 7 + i));
    const [ra, rb] = [new Recorder(a), new Recorder(b)];
    const reused = new Uint8Array(MAX_BATCH);
    for (const batch of batches) {
      // The bytes are ours again when send returns: the same array is overwritten for each batch.
      reused.set(batch);
      a.send(reused.subarray(0, batch.length));
      b.send(reused.subarray(0, batch.length));
      reused.fill(0xee);
    }
    await Promise.all([ra.batches(batches.length), rb.batches(batches.length)]);
    for (const r of [ra, rb]) assert.deepEqual(r.got, batches);
  });

  test("100 MB keep their hash, with back-pressure obeyed", async (t) => {
    const [a, b] = await t.pair();
    const total = 100 * 1024 * 1024;
    const [sent, received] = [createHash("sha256"), createHash("sha256")];
    const block = crypto.getRandomValues(new Uint8Array(MAX_BATCH));
    let left = total;
    let stops = 0;
    const pump = () => {
      while (left > 0) {
        const batch = block.subarray(0, Math.min(left, 1 + (left * 2654435761) % MAX_BATCH));
        block[0]!++;
        sent.update(batch);
        left -= batch.length;
        if (!a.send(batch)) return void stops++;
      }
    };
    a.handler = { ...nothing, onDrain: pump };
    await new Promise<void>((resolve) => {
      let got = 0;
      b.handler = {
        ...nothing,
        onBatch(batch) {
          received.update(batch);
          got += batch.length;
          if (got === total) resolve();
        },
      };
      pump();
    });
    assert.ok(stops > 0, "a sender this fast must be told to stop");
    assert.equal(received.digest("hex"), sent.digest("hex"));
  });

  test("a receiver that does not take is felt by the sender within a bound, and again when it takes", async (t) => {
    const [a, b, wire] = await t.pair();
    const rb = new Recorder(b);
    wire.stalled = true;
    let drained = t.signal();
    a.handler = { ...nothing, onDrain: () => drained.fire() };
    const batch = new Uint8Array(MAX_BATCH);
    let accepted = 0;
    while (accepted < 64 * 1024 * 1024) {
      accepted += batch.length;
      if (a.send(batch)) continue;
      // Kernel buffers may still swallow some; only a stop that lasts is back-pressure.
      if (!await drained.within(300)) break;
      drained = t.signal();
    }
    assert.ok(accepted <= rig.slack + 4 * MAX_BATCH, `${accepted} bytes were taken`);
    wire.stalled = false;
    await drained.fired;
    await rb.bytes(accepted);
  });

  test("batches that come before the session are kept, in order, up to the bound", async (t) => {
    const [a, b] = await t.pair();
    for (let i = 0; i < 4; i++) a.send(Uint8Array.of(i));
    const echo = new Recorder(a);
    await t.passes(b, 20);
    const rb = new Recorder(b);
    assert.deepEqual(rb.got, [], "not from inside the setter");
    a.send(Uint8Array.of(4));
    await rb.batches(5);
    assert.deepEqual(rb.got.map((batch) => batch[0]), [0, 1, 2, 3, 4]);
    assert.deepEqual(echo.got, []);
  });

  test("more than the bound before the session ends the carrier", async (t) => {
    const [a, b] = await t.pair();
    const ra = new Recorder(a);
    for (let i = 0; i < 6; i++) a.send(new Uint8Array(MAX_BATCH));
    assert.equal(await ra.closed(), "LIMIT");
    assert.equal(await new Recorder(b).closed(), "LIMIT");
  });

  test("a close tells the other side its reason; an orderly one is no fault; ours is not called", async (t) => {
    for (const [reason, seen] of [["SHUTDOWN", undefined], ["REVOKED", "REVOKED"], ["LIMIT", "LIMIT"]] as const) {
      const [a, b] = await t.pair();
      const [ra, rb] = [new Recorder(a), new Recorder(b)];
      a.send(Uint8Array.of(1, 2, 3));
      a.close(reason);
      assert.equal(await rb.closed(), seen);
      assert.deepEqual(rb.got, [Uint8Array.of(1, 2, 3)], "what was sent before arrives before");
      a.close("INTERNAL");
      assert.equal(a.send(Uint8Array.of(9)), false);
      b.close("INTERNAL");
      assert.equal(ra.ended, false);
    }
  });

  test("a lost connection is PEER_GONE on both sides, once", async (t) => {
    const [a, b, wire] = await t.pair();
    const [ra, rb] = [new Recorder(a), new Recorder(b)];
    a.send(new Uint8Array(1000));
    await rb.batches(1);
    wire.cut();
    assert.deepEqual(await Promise.all([ra.closed(), rb.closed()]), ["PEER_GONE", "PEER_GONE"]);
  });

  test("a connection lost inside a batch delivers nothing of it", async (t) => {
    const [a, b, wire] = await t.pair();
    const rb = new Recorder(b);
    let seen = 0;
    wire.tamper = (chunk, fromClient) => {
      if (!fromClient) return chunk;
      const keep = Math.max(0, Math.min(chunk.length, 20_000 - seen));
      seen += chunk.length;
      if (keep < chunk.length) queueMicrotask(() => wire.cut());
      return chunk.subarray(0, keep);
    };
    a.send(new Uint8Array(MAX_BATCH));
    assert.equal(await rb.closed(), "PEER_GONE");
    assert.deepEqual(rb.got, []);
  });

  test("one changed bit on the way ends the carrier before a byte of it is used", async (t) => {
    const [a, b, wire] = await t.pair();
    const rb = new Recorder(b);
    wire.tamper = (chunk, fromClient) => {
      if (!fromClient || chunk.length < 100) return chunk;
      const changed = chunk.slice();
      changed[50]! ^= 1;
      return changed;
    };
    a.send(new Uint8Array(1000).fill(5));
    assert.ok(["PROTOCOL", "PEER_GONE"].includes(String(await rb.closed())));
    assert.deepEqual(rb.got, []);
  });

  test("an authority that is not ours is refused by either side", async (t) => {
    const foreign = await TestPki.create();
    await t.refused({ client: await foreign.issue("edge-a"), code: "CERT_UNTRUSTED", by: "server" });
    await t.refused({ server: await foreign.issue("edge-b"), code: "CERT_UNTRUSTED", by: "client" });
  });

  test("a node of another name is refused by who asked for a certain one", async (t) => {
    await t.refused({ server: await t.pki.issue("edge-c"), code: "CERT_UNTRUSTED", by: "client" });
  });

  test("a server's certificate does not make a node", async (t) => {
    await t.refused({ client: await t.pki.issue("edge-a", { role: "server" }), code: "CERT_UNTRUSTED", by: "server" });
    await t.refused({ server: await t.pki.issue("edge-b", { role: "server" }), code: "CERT_UNTRUSTED", by: "client" });
  });

  test("an expired certificate is good within the grace and refused beyond it", async (t) => {
    const [a] = await t.pair({ client: await t.pki.issue("edge-a", { agedMs: 10 * DAY }) });
    assert.equal(a.peer.node, "edge-b");
    const agedMs = DEFAULT_GRACE_MS + 2 * DAY;
    await t.refused({ client: await t.pki.issue("edge-a", { agedMs }), code: "CERT_EXPIRED", by: "server" });
    await t.refused({ server: await t.pki.issue("edge-b", { agedMs }), code: "CERT_EXPIRED", by: "client" });
  });

  test("a revoked node is refused by either side, whatever its certificate's dates", async (t) => {
    t.pki.revoke("edge-a");
    await t.refused({ code: "REVOKED", by: "server" });
    const other = new Bench(rig, await TestPki.create());
    other.pki.revoke("edge-b");
    await other.refused({ code: "REVOKED", by: "client" });
    other.finish();
  });

  test("a certificate without its key proves nothing", async (t) => {
    const [mine, stolen] = [await t.pki.issue("edge-x"), await t.pki.issue("edge-a")];
    await t.fails({ client: { ...stolen, key: mine.key } });
    await t.fails({ server: { ...stolen, key: mine.key } });
  });

  test("what a renewal changes is used from the next handshake on", async (t) => {
    let now = await t.pki.issue("edge-a");
    const seen: string[] = [];
    const verify = (chain: readonly Uint8Array[], name?: string) => {
      const peer = t.pki.verifyNode(chain, name);
      seen.push(peer.keyHash);
      return peer;
    };
    const client = t.engine({ credentials: () => now, verify: t.pki.verifyNode });
    const server = t.engine({ credentials: constant(await t.pki.issue("edge-b")), verify });
    for (let i = 0; i < 2; i++) {
      const [x, y] = await rig.legs();
      const [a] = await Promise.all([
        client.connect(x, { peer: "edge-b", path: "lan" }),
        server.accept(y, { path: "lan" }),
      ]);
      a.close("SHUTDOWN");
      now = await t.pki.issue("edge-a");
    }
    assert.equal(new Set(seen).size, 2);
  });

  test("bytes that are no TLS are refused at once by both sides", async (t) => {
    for (const fromClient of [true, false]) {
      const handshake = t.handshake({}, (wire) => {
        wire.tamper = (chunk, from) => from === fromClient ? new TextEncoder().encode("GET / HTTP/1.1\r\n\r\n") : chunk;
      });
      for (const end of await Promise.all(handshake)) {
        assert.ok(end instanceof MeshError && ["PROTOCOL", "PEER_GONE"].includes(end.code), String(end));
      }
    }
  });

  test("a handshake that is cut off anywhere fails on both sides and leaves nothing", async (t) => {
    for (const at of [0, 1, 5, 100, 200, 300, 1000]) {
      for (const fromClient of [true, false]) {
        let seen = 0;
        const handshake = t.handshake({}, (wire) => {
          wire.tamper = (chunk, from) => {
            if (from !== fromClient) return chunk;
            const keep = Math.max(0, Math.min(chunk.length, at - seen));
            seen += chunk.length;
            queueMicrotask(() => wire.cut());
            return chunk.subarray(0, keep);
          };
        });
        const ends = await Promise.all(handshake);
        // The client finishes a round trip before the server: its carrier then ends instead.
        for (const end of ends) {
          if (end instanceof Error) assert.match((end as MeshError).code, /^(PEER_GONE|PROTOCOL)$/, `${at}: ${end}`);
          else assert.notEqual(await new Recorder(end).closed(), undefined);
        }
        assert.ok(ends.some((end) => end instanceof MeshError), `cut at ${at}`);
      }
    }
  });

  test("a handshake that goes nowhere ends at its deadline", async (t) => {
    const ends = t.handshake({}, (wire) => (wire.tamper = () => new Uint8Array(0)));
    await t.settled();
    t.clock.advance(4_999);
    await t.settled();
    t.clock.advance(1);
    for (const end of await Promise.all(ends)) assert.equal((end as MeshError).code, "TIMEOUT");
  });

  test("two hundred carriers come and go without leaving anything", async (t) => {
    for (let i = 0; i < 20; i++) {
      const pairs = await Promise.all(Array.from({ length: 10 }, () => t.pair()));
      for (const [a, b] of pairs) {
        const rb = new Recorder(b);
        a.send(Uint8Array.of(i));
        await rb.batches(1);
        a.close("SHUTDOWN");
        await rb.closed();
      }
    }
  });
}
