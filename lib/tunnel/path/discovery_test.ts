import assert from "node:assert/strict";
import fc from "fast-check";
import { FakeClock } from "../../clock.ts";
import type { IpPort } from "../../net.ts";
import type { HostAddress } from "./candidates.ts";
import { Discovery, type LanSocket } from "./discovery.ts";
import { decodeLan, encodeLan, MAX_SOUGHT, tagOf } from "./lan_message.ts";

const KEY = new Uint8Array(32).fill(1);
const OLD_KEY = new Uint8Array(32).fill(2);

/** A LAN: what one says, the others hear. */
class Lan {
  readonly clock = new FakeClock();
  readonly members: { readonly ip: string; readonly discovery: Discovery; readonly links: Set<number> }[] = [];
  datagrams = 0;

  join(node: string, ip: string, options: { port?: number; keys?: readonly Uint8Array[]; host?: HostAddress[] } = {}) {
    const found: string[] = [];
    const links = new Set<number>();
    const socket: LanSocket = {
      join: (list) => {
        links.clear();
        for (const link of list) links.add(link);
      },
      send: (bytes) => {
        this.datagrams++;
        for (const other of this.members) {
          if (other.links.size > 0) other.discovery.received(bytes, bytes.length, { ip, port: 20006 });
        }
        return true;
      },
      close: () => links.clear(),
    };
    const discovery = new Discovery({
      node,
      clock: this.clock,
      keys: () => options.keys ?? [KEY],
      host: () => options.host ?? [{ ip, bits: 24, link: 2 }],
      port: () => options.port ?? 20006,
      onFound: (peer: string, at: IpPort) => found.push(`${peer} at ${at.ip} ${at.port}`),
    }, socket);
    this.members.push({ ip, discovery, links });
    discovery.hostChanged();
    return { discovery, found, links };
  }

  settle(): void {
    this.clock.advance(1_000);
  }
}

Deno.test("golden bytes, and what is no such datagram", () => {
  const hex = (bytes: Uint8Array) => Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
  const [from, sought] = ["00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100"];
  const bytes = encodeLan({ port: 20006, from, sought: [sought] });
  assert.equal(hex(bytes), "454d4431" + "01" + "00" + "4e26" + from + sought);
  assert.deepEqual(decodeLan(bytes, bytes.length), { port: 20006, from, sought: [sought] });
  assert.equal(decodeLan(bytes, bytes.length - 1), undefined);
  assert.equal(decodeLan(bytes.with(5, 1), bytes.length), undefined);
  assert.equal(decodeLan(bytes.with(4, 2), bytes.length), undefined);
  assert.equal(decodeLan(bytes.with(0, 0), bytes.length), undefined);
  const full = encodeLan({ port: 1, from, sought: new Array(MAX_SOUGHT + 1).fill(from) });
  assert.equal(decodeLan(full, full.length), undefined);
  assert.equal(tagOf(KEY, "edge-1").length, 32);
  assert.notEqual(tagOf(KEY, "edge-1"), tagOf(OLD_KEY, "edge-1"));
});

Deno.test("fuzz: any bytes are a message or nothing, and never throw", () => {
  const { discovery } = new Lan().join("a", "10.0.0.1");
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 300 }), fc.nat(300), (bytes, length) => {
      decodeLan(bytes, Math.min(length, bytes.length));
      discovery.received(bytes, bytes.length, { ip: "10.0.0.9", port: 1 });
    }),
    { numRuns: 10_000 },
  );
});

Deno.test("who asks is answered by the node that is meant, and by no other", () => {
  const lan = new Lan();
  const [a, b, c] = [lan.join("a", "10.0.0.1"), lan.join("b", "10.0.0.2"), lan.join("c", "10.0.0.3")];
  lan.clock.advance(700_000);
  assert.ok(a.discovery.seek("b"));
  lan.settle();
  assert.deepEqual(a.found.slice(0, 1), ["b at 10.0.0.2 20006"]);
  assert.deepEqual([b.found, c.found], [[], []]);
});

Deno.test("an agent that starts is heard by those who look for it, without asking again", () => {
  const lan = new Lan();
  const a = lan.join("a", "10.0.0.1");
  a.discovery.seek("b");
  lan.settle();
  assert.deepEqual(a.found, []);
  lan.join("b", "10.0.0.2", { port: 7777 });
  lan.settle();
  assert.deepEqual(a.found, ["b at 10.0.0.2 7777"]);
});

Deno.test("what was heard before is told at once, and not when it is old", () => {
  const lan = new Lan();
  const a = lan.join("a", "10.0.0.1");
  const b = lan.join("b", "10.0.0.2");
  lan.settle();
  b.discovery.close();
  a.discovery.seek("b");
  lan.clock.advance(0);
  assert.deepEqual(a.found, ["b at 10.0.0.2 20006"]);
  lan.clock.advance(700_000);
  a.discovery.seek("b");
  lan.settle();
  assert.equal(a.found.length, 1);
});

Deno.test("after forgetting nothing is told", () => {
  const lan = new Lan();
  const a = lan.join("a", "10.0.0.1");
  a.discovery.seek("b");
  a.discovery.forget("b");
  lan.join("b", "10.0.0.2");
  lan.settle();
  assert.deepEqual(a.found, []);
});

Deno.test("an agent without a listener asks and is never found", () => {
  const lan = new Lan();
  const a = lan.join("a", "10.0.0.1", { port: 0 });
  const b = lan.join("b", "10.0.0.2");
  b.discovery.seek("a");
  a.discovery.seek("b");
  lan.settle();
  assert.deepEqual(b.found, []);
  assert.equal(a.found[0], "b at 10.0.0.2 20006");
});

Deno.test("during a change of authority agents with either key find each other", () => {
  const lan = new Lan();
  const a = lan.join("a", "10.0.0.1", { keys: [OLD_KEY, KEY] });
  const b = lan.join("b", "10.0.0.2", { keys: [KEY] });
  a.discovery.seek("b");
  b.discovery.seek("a");
  lan.settle();
  assert.equal(a.found[0], "b at 10.0.0.2 20006");
  assert.equal(b.found[0], "a at 10.0.0.1 20006");
});

Deno.test("senders that are on no network of ours, or claim our own address, are not heard", () => {
  const lan = new Lan();
  const a = lan.join("a", "10.0.0.1");
  a.discovery.seek("b");
  lan.join("b", "192.168.9.9");
  lan.settle();
  const bytes = encodeLan({ port: 20006, from: tagOf(KEY, "b"), sought: [] });
  a.discovery.received(bytes, bytes.length, { ip: "10.0.0.1", port: 20006 });
  assert.deepEqual(a.found, []);
});

Deno.test("a flood of questions is answered a few times a second, and a flood of anything is not read", () => {
  const lan = new Lan();
  const a = lan.join("a", "10.0.0.1");
  lan.settle();
  lan.datagrams = 0;
  const question = encodeLan({ port: 1, from: "0".repeat(32), sought: [tagOf(KEY, "a")] });
  for (let i = 0; i < 1_000; i++) {
    a.discovery.received(question, question.length, { ip: "10.0.0.7", port: 20006 });
    lan.clock.advance(1);
  }
  assert.ok(lan.datagrams >= 2 && lan.datagrams <= 5, `${lan.datagrams} answers in a second`);
  a.discovery.seek("b");
  for (let i = 0; i < 10_000; i++) a.discovery.received(question, question.length, { ip: "10.0.0.7", port: 20006 });
  const here = encodeLan({ port: 1, from: tagOf(KEY, "b"), sought: [] });
  a.discovery.received(here, here.length, { ip: "10.0.0.2", port: 20006 });
  assert.deepEqual(a.found, []);
  lan.settle();
  a.discovery.received(here, here.length, { ip: "10.0.0.2", port: 20006 });
  assert.deepEqual(a.found, ["b at 10.0.0.2 1"]);
});

Deno.test("without a LAN there is nothing to ask; IPv4 links are joined, and joined anew", () => {
  const lan = new Lan();
  const host: HostAddress[] = [];
  const a = lan.join("a", "10.0.0.1", { host });
  assert.equal(a.discovery.seek("b"), false);
  host.push({ ip: "10.0.0.1", bits: 24, link: 5 }, { ip: "2001:db8::1", bits: 64, link: 6 });
  a.discovery.hostChanged();
  assert.deepEqual([...a.links], [5]);
  host.push({ ip: "10.1.0.1", bits: 24, link: 7 });
  lan.clock.advance(120_000);
  assert.deepEqual([...a.links], [5, 7]);
  a.discovery.close();
  assert.equal(lan.clock.pending, 0);
  assert.equal(a.discovery.seek("b"), false);
});
