import "./preload.ts";
import { strict as assert } from "node:assert";
import { libc } from "./ffi.ts";
import { addressOf, Memory, memoryHeld, MemoryPool } from "./memory.ts";

Deno.test("memory is zero, of the asked size, and at the address C sees", () => {
  const memory = Memory.allocate(10);
  assert.equal(memory.bytes.length, 10);
  assert(memory.bytes.every((b) => b === 0));
  assert(memory.bytes.buffer.byteLength >= 128, "small buffers live on V8's moving heap");
  libc().copyFrom(memory.pointerAt(3), Uint8Array.of(1, 2, 3), 3);
  assert.deepEqual([...memory.bytes], [0, 0, 0, 1, 2, 3, 0, 0, 0, 0]);
  const value = BigInt(Deno.UnsafePointer.value(memory.pointer));
  assert.equal(BigInt(memory.high) << 32n | BigInt(memory.low), value);
  memory.free();
});

Deno.test("addresses with an offset carry over 4 GiB borders", () => {
  const memory = Memory.allocate(16);
  memory.putAddress(8, { pointer: memory.pointer, low: 0xfffffff0, high: 7 }, 0x20);
  assert.equal(memory.view.getBigUint64(8, true), 0x8_0000_0010n);
  memory.putAddress(8, { pointer: memory.pointer, low: 0xfffffff0, high: 7 }, 0xf);
  assert.equal(memory.view.getBigUint64(8, true), 0x7_ffff_ffffn);
  memory.free();
});

Deno.test("a caller's buffer keeps its address, and each buffer has its own", () => {
  const a = new Uint8Array(1000);
  const b = new Uint8Array(1000);
  assert.equal(addressOf(a.buffer), addressOf(a.subarray(5).buffer));
  assert.notDeepEqual([addressOf(a.buffer).low, addressOf(a.buffer).high], [
    addressOf(b.buffer).low,
    addressOf(b.buffer).high,
  ]);
  // A typed array of at most 64 bytes lives on V8's heap until its buffer is asked for: it must not move afterwards.
  const small = new Uint8Array(8);
  const address = addressOf(small.buffer);
  const memory = Memory.allocate(8);
  memory.bytes.set([9, 8, 7, 6, 5, 4, 3, 2]);
  libc().copyFrom(address.pointer, memory.bytes, 8);
  assert.deepEqual([...small], [9, 8, 7, 6, 5, 4, 3, 2]);
  memory.free();
});

Deno.test("a pool gives pieces again and keeps only so many", () => {
  const held = memoryHeld();
  const pool = new MemoryPool(100, 2);
  const three = [pool.take(), pool.take(), pool.take()];
  assert.equal(memoryHeld(), held + 3);
  for (const memory of three) pool.give(memory);
  assert.equal(memoryHeld(), held + 2);
  assert(three.includes(pool.take()));
  pool.give(three[2]!);
  pool.clear();
});

Deno.test("discarded pages are empty and can be used again; what shares a page with others keeps it", () => {
  const memory = Memory.allocate(1 << 20);
  memory.bytes.fill(7);
  memory.discard();
  const kept = (65_536 - memory.low % 65_536) % 65_536;
  assert(memory.bytes.subarray(0, kept).every((b) => b === 7));
  const whole = Math.floor((memory.bytes.length - kept) / 65_536) * 65_536;
  assert(whole >= 15 * 65_536);
  assert(memory.bytes.subarray(kept, kept + whole).every((b) => b === 0));
  assert(memory.bytes.subarray(kept + whole).every((b) => b === 7));
  memory.bytes.fill(8);
  assert(memory.bytes.every((b) => b === 8));
  memory.free();
  const small = Memory.allocate(1000);
  small.bytes.fill(7);
  small.discard();
  assert(small.bytes.every((b) => b === 7), "too small to have a page of its own");
  small.free();
});
