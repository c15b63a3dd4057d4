import assert from "node:assert/strict";
import type { IpPort } from "../../net.ts";
import { UpstreamPool, type UpstreamResult } from "./pool.ts";
import type { UpstreamSpec } from "./server_state.ts";

/** What a scripted server does with one message; times in milliseconds. */
type Reaction =
  | { readonly do: "silent" | "unreachable" | "refuse-tcp" }
  | {
    readonly do: "answer";
    readonly after: number;
    readonly change?: (bytes: Uint8Array) => void;
    readonly from?: IpPort;
  };

type Script = (attempt: { readonly n: number; readonly tcp: boolean; readonly bytes: Uint8Array }) => Reaction;

const silent: Script = () => ({ do: "silent" });
const quick: Script = () => ({ do: "answer", after: 5 });
const after = (ms: number): Script => () => ({ do: "answer", after: ms });
const rcode = (code: number): Script => () => ({
  do: "answer",
  after: 5,
  change: (b) => void (b[3] = (b[3]! & 0xf0) | code),
});

/** Time, servers and a pool; everything happens when {@link run} lets time pass. */
class Bench {
  now = 0;
  silences = 0;
  readonly asked: number[];
  readonly tcp: number[];
  readonly results = new Map<number, { readonly result: UpstreamResult; readonly at: number }>();
  readonly pool: UpstreamPool;
  readonly open = new Set<number>();
  readonly #events: { readonly at: number; readonly run: () => void }[] = [];
  readonly #scripts: Script[];
  #seed = 1;
  #ticket = 1;

  constructor(scripts: Script[], specs?: readonly Partial<UpstreamSpec>[]) {
    this.#scripts = scripts;
    this.asked = scripts.map(() => 0);
    this.tcp = scripts.map(() => 0);
    this.pool = new UpstreamPool(
      scripts.map((_, i) => ({ at: { ip: `192.0.2.${i + 1}`, port: 53 }, ...specs?.[i] })),
      {
        sendUdp: (x, to, bytes) => this.#sent(x, to, bytes, false),
        sendTcp: (x, to, bytes) => void this.#sent(x, to, bytes, true),
        close: (x) => void this.open.delete(x),
        done: (ticket, result) =>
          void this.results.set(ticket, {
            result: result.kind === "answer" ? { ...result, bytes: result.bytes.slice() } : result,
            at: this.now,
          }),
        allSilent: () => void this.silences++,
        random: (into) => {
          for (let i = 0; i < into.length; i++) into[i] = (this.#seed = (this.#seed * 1103515245 + 12345) >>> 0) >>> 16;
        },
      },
    );
  }

  set(i: number, script: Script): void {
    this.#scripts[i] = script;
  }

  ask(name = "example"): number {
    const wire = [...name.split(".").flatMap((l) => [l.length, ...new TextEncoder().encode(l)]), 0, 0, 1, 0, 1];
    const ticket = this.#ticket++;
    this.pool.ask(ticket, { wire: Uint8Array.from(wire), dnssecOk: false, checkingDisabled: false }, this.now);
    return ticket;
  }

  /** Asks and waits; how long it took, and from whom the answer came. */
  resolve(name?: string): { readonly ms: number; readonly server: string | undefined; readonly rcode: number } {
    const start = this.now;
    const ticket = this.ask(name);
    for (let i = 0; i < 2000 && !this.results.has(ticket); i++) this.run(5);
    const got = this.results.get(ticket);
    assert.ok(got, "a query always ends");
    const { result } = got;
    return {
      ms: got.at - start,
      server: result.kind === "answer" ? result.server : undefined,
      rcode: result.kind === "answer" ? result.bytes[3]! & 0xf : -1,
    };
  }

  run(ms: number): void {
    const end = this.now + ms;
    while (this.now < end) {
      this.now = Math.min(end, this.now + 5);
      this.#events.sort((a, b) => a.at - b.at);
      while (this.#events.length > 0 && this.#events[0]!.at <= this.now) this.#events.shift()!.run();
      if (this.pool.tickMs !== undefined) this.pool.tick(this.now);
    }
  }

  #sent(exchange: number, to: IpPort, bytes: Uint8Array, tcp: boolean): boolean {
    const i = Number(to.ip.split(".")[3]) - 1;
    (tcp ? this.tcp : this.asked)[i]!++;
    this.open.add(exchange);
    const reaction = this.#scripts[i]!({ n: this.asked[i]!, tcp, bytes });
    switch (reaction.do) {
      case "unreachable":
        return false;
      case "silent":
        return true;
      case "refuse-tcp":
        this.#events.push({ at: this.now + 1, run: () => this.pool.onTcpFailed(exchange, this.now) });
        return true;
      case "answer": {
        const answer = bytes.slice();
        answer[2] = answer[2]! | 0x80;
        answer[3] = 0x80;
        reaction.change?.(answer);
        this.#events.push({
          at: this.now + reaction.after,
          run: () =>
            tcp
              ? this.pool.onTcp(exchange, answer, this.now)
              : this.pool.onUdp(exchange, answer, reaction.from ?? to, this.now),
        });
        return true;
      }
    }
  }
}

const A = "192.0.2.1:53";
const B = "192.0.2.2:53";

for (
  const [what, scripts, want] of [
    ["one server answers", [quick], { server: A, within: 10 }],
    ["the first is black-holed", [silent, quick], { server: B, within: 1500 }],
    ["two of three are black-holed", [silent, silent, quick], { server: "192.0.2.3:53", within: 1500 }],
    ["the first cannot be reached at all", [() => ({ do: "unreachable" }), quick], { server: B, within: 10 }],
    ["the first is slower than usual: its late answer counts", [after(600), silent], { server: A, within: 610 }],
    ["one datagram is lost", [({ n }) => n === 1 ? { do: "silent" } : { do: "answer", after: 5 }], {
      server: A,
      within: 500,
    }],
    ["the first says SERVFAIL", [rcode(2), quick], { server: B, within: 20 }],
    ["the first says REFUSED", [rcode(5), quick], { server: B, within: 20 }],
    ["all say SERVFAIL", [rcode(2), rcode(2)], { rcode: 2, within: 20 }],
    ["NXDOMAIN is an answer", [rcode(3), quick], { server: A, rcode: 3, within: 10 }],
    ["everybody is silent", [silent, silent], { failed: true, within: 2410 }],
    ["nobody can be reached", [() => ({ do: "unreachable" })], { failed: true, within: 0 }],
    ["nobody is configured", [], { failed: true, within: 0 }],
  ] as readonly (readonly [string, Script[], {
    readonly server?: string;
    readonly rcode?: number;
    readonly failed?: boolean;
    readonly within: number;
  }])[]
) {
  Deno.test(`upstreams: ${what}`, () => {
    const bench = new Bench(scripts);
    const got = bench.resolve();
    if (want.failed) assert.equal(got.rcode, -1);
    if (want.server) assert.equal(got.server, want.server);
    if (want.rcode !== undefined) assert.equal(got.rcode, want.rcode);
    assert.ok(got.ms <= want.within, `${got.ms} ms, expected at most ${want.within}`);
    assert.equal(bench.pool.inFlight, 0);
    const probing = bench.pool.states().filter((s) => s.state !== "up").length;
    assert.ok(bench.open.size <= probing, "every socket of the query is closed");
  });
}

Deno.test("upstreams: a black-holed first server is passed over from the second query on", () => {
  const bench = new Bench([silent, quick]);
  bench.resolve();
  const times = Array.from({ length: 20 }, (_, i) => bench.resolve(`n${i}`).ms);
  assert.ok(Math.max(...times) <= 10, `slowest ${Math.max(...times)} ms`);
  assert.equal(bench.pool.states()[0]!.state === "up", false);
});

Deno.test("upstreams: a server that comes back is used again within its probe's time, and is no longer probed", () => {
  const bench = new Bench([silent, quick]);
  bench.resolve();
  bench.run(3000);
  assert.equal(bench.pool.states()[0]!.state, "down");
  bench.set(0, quick);
  bench.run(10_000);
  assert.equal(bench.pool.states()[0]!.state, "up");
  assert.equal(bench.resolve().server, A);
  const before = bench.asked[0];
  bench.run(120_000);
  assert.equal(bench.asked[0], before);
});

Deno.test("upstreams: probes of a dead server get rarer, and end when nobody asks", () => {
  const bench = new Bench([silent]);
  bench.resolve();
  const first = bench.asked[0]!;
  bench.run(60_000);
  const probes = bench.asked[0]! - first;
  assert.ok(probes >= 4 && probes <= 9, `${probes} probes in a minute`);
  bench.run(3_600_000);
  assert.ok(bench.asked[0]! - first <= probes + 1, "an hour without questions has no probes");
});

Deno.test("upstreams: while all are down a query ends sooner, and still asks", () => {
  const bench = new Bench([silent, silent]);
  bench.resolve();
  assert.equal(bench.pool.allDown, true);
  const before = bench.asked[0]! + bench.asked[1]!;
  const got = bench.resolve();
  assert.ok(got.ms <= 1510, `${got.ms} ms`);
  assert.ok(bench.asked[0]! + bench.asked[1]! > before);
  bench.set(1, quick);
  assert.equal(bench.resolve("again").server, B);
});

Deno.test("upstreams: networkChanged asks the dead at once", () => {
  const bench = new Bench([silent]);
  bench.resolve();
  bench.run(20_000);
  bench.set(0, quick);
  bench.pool.networkChanged(bench.now);
  bench.run(300);
  assert.equal(bench.pool.states()[0]!.state, "up");
});

Deno.test("upstreams: truncated over UDP is asked over TCP; TCP refused falls to the next server", () => {
  const truncating: Script = ({ tcp }) =>
    tcp ? { do: "answer", after: 5 } : { do: "answer", after: 5, change: (b) => void (b[2] = b[2]! | 2) };
  const good = new Bench([truncating]);
  assert.equal(good.resolve().server, A);
  assert.deepEqual([good.asked[0], good.tcp[0]], [1, 1]);
  const refusing: Script = ({ tcp }) =>
    tcp ? { do: "refuse-tcp" } : { do: "answer", after: 5, change: (b) => void (b[2] = b[2]! | 2) };
  const other = new Bench([refusing, quick]);
  assert.equal(other.resolve().server, B);
});

Deno.test("upstreams: a server said to speak TCP only never gets a datagram", () => {
  const bench = new Bench([quick], [{ tcp: true }]);
  assert.equal(bench.resolve().server, A);
  assert.deepEqual([bench.asked[0], bench.tcp[0]], [0, 1]);
});

Deno.test("upstreams: a server from before EDNS is asked without, and remembered", () => {
  const hasOpt = (bytes: Uint8Array) => bytes[11] === 1;
  const ancient: Script = ({ bytes }) => ({
    do: "answer",
    after: 5,
    change: (b) => {
      if (hasOpt(bytes)) b[3] = 0x81;
    },
  });
  const bench = new Bench([ancient]);
  assert.deepEqual(bench.resolve().rcode, 0);
  assert.equal(bench.asked[0], 2);
  bench.resolve("second");
  assert.equal(bench.asked[0], 3, "no second try with EDNS");
});

Deno.test("upstreams: FORMERR without a question, as some send it, is understood", () => {
  const headless: Script = ({ bytes }) => ({
    do: "answer",
    after: 5,
    change: (b) => {
      if (bytes[11] === 1) {
        b[3] = 0x81;
        b[5] = 0;
      }
    },
  });
  assert.equal(new Bench([headless]).resolve().rcode, 0);
});

for (
  const [what, forge] of [
    ["a wrong id", { change: (b: Uint8Array) => void (b[1] = b[1]! ^ 1) }],
    ["a wrong port", { from: { ip: "192.0.2.1", port: 54 } }],
    ["a wrong address", { from: { ip: "192.0.2.9", port: 53 } }],
    ["another question", { change: (b: Uint8Array) => void (b[13] = b[13]! ^ 3) }],
    ["another type", { change: (b: Uint8Array) => void (b[b.length - 14] = 28) }],
    ["no question", { change: (b: Uint8Array) => void (b[5] = 0) }],
    ["the query itself, reflected", { change: (b: Uint8Array) => void (b[2] = b[2]! & 0x7f) }],
  ] as const
) {
  Deno.test(`upstreams: a datagram with ${what} is ignored, the true answer still counts`, () => {
    // The same server sends the forgery at once and the truth later.
    const bench = new Bench([(a) => ({ do: "answer", after: 1, ...forge, n: a.n })]);
    const ticket = bench.ask();
    bench.run(50);
    assert.equal(bench.results.has(ticket), false);
    assert.equal(bench.pool.ignored, 1);
    bench.set(0, quick);
    bench.run(1000);
    assert.equal(bench.results.get(ticket)?.result.kind, "answer");
  });
}

Deno.test("upstreams: a second answer to the same exchange has no effect", () => {
  const bench = new Bench([quick]);
  const ticket = bench.ask();
  bench.run(20);
  const first = bench.results.get(ticket);
  bench.pool.onUdp(1, new Uint8Array(40), { ip: "192.0.2.1", port: 53 }, bench.now);
  assert.equal(bench.results.get(ticket), first);
});

Deno.test("upstreams: an answer in another letter case is only believed over TCP; then the server is known for it", () => {
  const lowering: Script = () => ({
    do: "answer",
    after: 5,
    change: (b) => {
      for (let i = 12; i < b.length - 15; i++) if (b[i]! >= 0x41 && b[i]! <= 0x5a) b[i] = b[i]! + 0x20;
    },
  });
  const bench = new Bench([lowering]);
  assert.equal(bench.resolve("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa").server, A);
  assert.deepEqual([bench.asked[0], bench.tcp[0]], [1, 1]);
  assert.equal(bench.resolve("bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb").server, A);
  assert.deepEqual([bench.asked[0], bench.tcp[0]], [2, 1]);
});

Deno.test("upstreams: ids and letter case differ between exchanges", () => {
  const seen = new Set<string>();
  const bench = new Bench([({ bytes }) => {
    seen.add(String(bytes.slice(0, 40)));
    return { do: "answer", after: 1 };
  }]);
  for (let i = 0; i < 50; i++) bench.resolve("samesamesamesame");
  assert.equal(seen.size, 50);
});

Deno.test("upstreams: a datagram that turns out to have no route is as good as an answer from nowhere", () => {
  const bench = new Bench([silent, quick]);
  const ticket = bench.ask();
  bench.pool.onUnreachable([...bench.open][0]!, bench.now);
  bench.run(10);
  assert.equal(bench.results.get(ticket)?.result.kind, "answer");
});

Deno.test("upstreams: close ends every query and every socket", () => {
  const bench = new Bench([silent]);
  const tickets = [bench.ask("a"), bench.ask("b")];
  bench.pool.close();
  for (const t of tickets) assert.equal(bench.results.get(t)?.result.kind, "failed");
  assert.equal(bench.open.size, 0);
});
