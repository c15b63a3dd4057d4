/** The server's public port towards strangers, and towards agents that break the rules (conformance T01, T06, T10, T35). */
import assert from "node:assert/strict";
import net from "node:net";
import tls from "node:tls";
import type { WebSocket } from "ws";
import { FakeClock, pause, systemClock } from "../../lib/clock.ts";
import { MeshError, type ReasonCode, reasonCode } from "../../lib/errors.ts";
import type { TlsCredentials } from "../../lib/tunnel/carriers/engine.ts";
import { connectControl } from "../../lib/tunnel/control/connect.ts";
import { CONTROL_VERSION, decodeControl, encodeControl } from "../../lib/tunnel/control/message.ts";
import { type TestServer, TunnelRig } from "./tunnel_rig.ts";

const test = (name: string, run: (rig: TunnelRig) => Promise<void>) => Deno.test(name, () => TunnelRig.run(run));

test("T10: strangers find a web server without a name that has nothing", async (rig) => {
  const server = await rig.server();
  const cert = await rig.pki.issue("edge-a");
  for (const client of [undefined, cert]) {
    for (
      const head of [
        "GET /",
        "GET /v1/join",
        "GET /v1/control",
        "POST /",
        "POST /v1/control",
        "OPTIONS *",
        "GET /metrics",
      ]
    ) {
      const answer = await http(server, `${head} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n`, client);
      assert.match(answer, /^HTTP\/1\.1 404 Not Found\r\n/, head);
      assert.doesNotMatch(answer, /server:|edgemesh|deno|node|x-|date:/i, head);
      assert.match(answer, /\r\n\r\n$/, "no body");
    }
  }
});

test("without a certificate the control connection does not exist", async (rig) => {
  const server = await rig.server();
  const upgrade = "GET /v1/control HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n" +
    "sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
  assert.match(await http(server, upgrade), /^HTTP\/1\.1 404 /);
  const cert = await rig.pki.issue("edge-a");
  assert.match(await http(server, upgrade.replace("/v1/control", "/other"), cert), /^HTTP\/1\.1 404 /);
  assert.match(await http(server, upgrade.replace("13", "9"), cert), /^HTTP\/1\.1 400 /);
  assert.deepEqual(server.server.stats().agents, []);
});

test("T04: bytes that are no TLS, old TLS and nonsense over TLS end the connection", async (rig) => {
  const server = await rig.server({ limits: { door: { deadlineMs: 500 } } });
  for (
    const bytes of [
      "GET / HTTP/1.1\r\nhost: x\r\n\r\n",
      "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
      "\0".repeat(100),
    ]
  ) {
    await ended(net.connect({ host: "127.0.0.1", port: server.at.port }), bytes);
  }
  const old = tls.connect({
    host: "127.0.0.1",
    port: server.at.port,
    rejectUnauthorized: false,
    maxVersion: "TLSv1.2",
  });
  await ended(old);
  for (
    const bytes of [
      "\x00\x01\x02\r\n\r\n",
      "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
      `GET / HTTP/1.1\r\nx: ${"y".repeat(9000)}\r\n\r\n`,
    ]
  ) {
    const answer = await http(server, bytes);
    assert.doesNotMatch(answer, /200/, JSON.stringify(bytes.slice(0, 20)));
  }
  assert.equal(server.server.stats().pending, 0);
});

test("a join reaches its handler with the sender's address; its answer goes back", async (rig) => {
  const seen: [string, string][] = [];
  const server = await rig.server({
    join: (body, source) => {
      seen.push([body, source]);
      if (body === "throw") return Promise.reject(new Error("secret detail"));
      return Promise.resolve({ status: 429, body: '{"refused":{}}', retryAfter: 60 });
    },
  });
  const post = (body: string) =>
    http(server, `POST /v1/join HTTP/1.1\r\nhost: x\r\ncontent-length: ${body.length}\r\n\r\n${body}`);
  const answer = await post("hello");
  assert.match(answer, /^HTTP\/1\.1 429 /);
  assert.match(answer, /retry-after: 60\r\n/i);
  assert.ok(answer.endsWith('{"refused":{}}'));
  const failed = await post("throw");
  assert.match(failed, /^HTTP\/1\.1 500 /);
  assert.doesNotMatch(failed, /secret/);
  assert.match(await post("x".repeat(16_385)), /^HTTP\/1\.1 413 /);
  assert.deepEqual(seen, [["hello", "127.0.0.1"], ["throw", "127.0.0.1"]]);
});

test("joins beyond what is worked on at once are told to wait", async (rig) => {
  let release: () => void = () => {};
  const gate = new Promise<void>((resolve) => (release = resolve));
  const server = await rig.server({
    join: async () => {
      await gate;
      return { status: 200, body: "{}" };
    },
    limits: { door: { joins: 2 } },
  });
  const post = () => http(server, "POST /v1/join HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}");
  const first = [post(), post()];
  await pause(100);
  assert.match(await post(), /^HTTP\/1\.1 429 .*retry-after: 5/is);
  release();
  for (const answer of await Promise.all(first)) assert.match(answer, /^HTTP\/1\.1 200 /);
});

test("T11: whoever dribbles is cut at one deadline, in the handshake, the head and the body alike", async (rig) => {
  const clock = new FakeClock(0, systemClock.wall());
  const server = await rig.server({ clock, limits: { door: { perSource: 8 } } });
  const silent = net.connect({ host: "127.0.0.1", port: server.at.port });
  const open = (bytes: string) => {
    const socket = tls.connect({ host: "127.0.0.1", port: server.at.port, rejectUnauthorized: false });
    socket.on("secureConnect", () => socket.write(bytes));
    return socket;
  };
  const slow = [
    open("GET / HT"),
    open("GET / HTTP/1.1\r\nhost: x\r\n"),
    open("POST /v1/join HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"),
  ];
  const ends = [silent, ...slow].map((socket) => ended(socket));
  await until(() => server.server.stats().pending === 4);
  await Promise.all(slow.map((socket) => until(() => socket.bytesWritten > 0)));
  clock.advance(9_999);
  await pause(30);
  assert.equal(server.server.stats().pending, 4);
  clock.advance(1);
  await Promise.all(ends);
  await until(() => server.server.stats().pending === 0);
});

test("one source cannot take every place, and all strangers together cannot either", async (rig) => {
  const server = await rig.server({ limits: { door: { perSource: 5, pending: 7 } } });
  const sockets: net.Socket[] = [];
  const connect = (localAddress: string) => {
    const socket = net.connect({ host: "127.0.0.1", port: server.at.port, localAddress });
    socket.on("error", () => {});
    sockets.push(socket);
    return socket;
  };
  for (let i = 0; i < 6; i++) connect("127.0.0.1");
  for (let i = 0; i < 3; i++) connect("127.0.0.2");
  await until(() => server.server.stats().turnedAway === 2);
  assert.equal(server.server.stats().pending, 7);
  for (const socket of sockets) socket.destroy();
  await until(() => server.server.stats().pending === 0);
  // Agents are not strangers: more of them than that come in.
  await Promise.all(Array.from({ length: 5 }, (_, i) => rig.agent(`edge-${i}`, server.url)));
  await Promise.all(Array.from({ length: 5 }, (_, i) => rig.agent(`edge-b${i}`, server.url)));
  assert.equal(server.server.stats().agents.length, 10);
});

test("T01: hundreds of bad tries leave no descriptor behind", async (rig) => {
  const server = await rig.server({ limits: { door: { perSource: 1000 } } });
  const open = () => [...Deno.readDirSync("/proc/self/fd")].length;
  const before = open();
  for (let round = 0; round < 20; round++) {
    await Promise.all(
      Array.from({ length: 25 }, () => ended(net.connect({ host: "127.0.0.1", port: server.at.port }), "no TLS")),
    );
  }
  await until(() => server.server.stats().pending === 0);
  await pause(20);
  assert.ok(open() <= before + 2, `${before} descriptors before, ${open()} after`);
});

test("T11: what an agent may not say ends its connection with the reason, and only its own", async (rig) => {
  const server = await rig.server();
  const bystander = await rig.agent("edge-z", server.url);
  const hello = (node: string, protocol = CONTROL_VERSION) =>
    encodeControl({ type: "hello", protocol, node, version: "t", boot: "b", features: [] });
  const cases: Record<string, [Uint8Array[], ReasonCode]> = {
    "no HELLO first": [[encodeControl({ type: "ping", stamp: 1 })], "PROTOCOL"],
    "a channel before HELLO": [[Uint8Array.of(0x10, 0, 0, 0, 1, 1, 97)], "PROTOCOL"],
    "HELLO twice": [[hello("edge-a"), hello("edge-a")], "PROTOCOL"],
    "another's name": [[hello("edge-b")], "PROTOCOL"],
    "another version": [[hello("edge-a", CONTROL_VERSION + 1)], "VERSION"],
    "a server's message": [
      [hello("edge-a"), encodeControl({ type: "peers", full: true, online: [], offline: [] })],
      "PROTOCOL",
    ],
    "garbage": [[hello("edge-a"), Uint8Array.of(0x7f, 1, 2, 3)], "PROTOCOL"],
    "nothing": [[hello("edge-a"), new Uint8Array(0)], "PROTOCOL"],
    "a channel that never was": [[hello("edge-a"), Uint8Array.of(0x12, 0, 0, 0, 9, 0, 0, 0, 1)], "PROTOCOL"],
  };
  for (const [name, [frames, reason]] of Object.entries(cases)) {
    const raw = await rawAgent(rig, server, "edge-a");
    for (const frame of frames) raw.ws.send(frame);
    assert.equal(await raw.closed, reason, name);
  }
  const text = await rawAgent(rig, server, "edge-a");
  text.ws.send("hello");
  assert.equal(await text.closed, "PROTOCOL");
  const huge = await rawAgent(rig, server, "edge-a");
  huge.ws.send(new Uint8Array(300_000));
  assert.equal(await huge.closed, "PEER_GONE", "cut by the frame limit");
  assert.deepEqual(bystander.downs, []);
  await until(() => server.server.stats().agents.length === 1);
});

test("an agent that floods the server with messages, renewals or metadata is cut off, and nobody else notices", async (rig) => {
  let renewals = 0;
  const server = await rig.server({
    renew: () => {
      renewals++;
      return Promise.resolve("{}");
    },
  });
  const bystander = await rig.agent("edge-z", server.url);
  const connect = async () => {
    const raw = await rawAgent(rig, server, "edge-a");
    raw.ws.send(
      encodeControl({
        type: "hello",
        protocol: CONTROL_VERSION,
        node: "edge-a",
        version: "t",
        boot: "b",
        features: [],
      }),
    );
    await until(() => raw.messages.some((m) => m.type === "welcome"));
    return raw;
  };
  const pings = await connect();
  for (let i = 0; i < 5_000; i++) pings.ws.send(encodeControl({ type: "ping", stamp: i }));
  assert.equal(await pings.closed, "LIMIT");
  assert.ok(pings.messages.filter((m) => m.type === "pong").length <= 2_500);
  const renewer = await connect();
  for (let id = 0; id < 11; id++) {
    renewer.ws.send(encodeControl({ type: "renew", id, body: "{}" }));
    if (id < 10) await until(() => renewer.messages.filter((m) => m.type === "renewed").length === id + 1);
  }
  assert.equal(await renewer.closed, "LIMIT");
  assert.equal(renewals, 10);
  const hoarder = await connect();
  for (let i = 0; i < 5; i++) {
    hoarder.ws.send(encodeControl({ type: "meta", last: false, bytes: new Uint8Array(16_384) }));
  }
  assert.equal(await hoarder.closed, "LIMIT");
  assert.deepEqual(bystander.downs, []);
});

test("an agent that connects and says nothing is sent away", async (rig) => {
  const clock = new FakeClock(0, systemClock.wall());
  const server = await rig.server({ clock });
  const raw = await rawAgent(rig, server, "edge-a");
  clock.advance(5_000);
  assert.equal(await raw.closed, "TIMEOUT");
});

test("T16: an agent that falls silent is dropped after three missed pings", async (rig) => {
  const clock = new FakeClock(0, systemClock.wall());
  const gone: [string, ReasonCode][] = [];
  const server = await rig.server({ clock, onAgentGone: (node, reason) => gone.push([node, reason]) });
  const raw = await rawAgent(rig, server, "edge-a");
  raw.ws.send(
    encodeControl({ type: "hello", protocol: CONTROL_VERSION, node: "edge-a", version: "t", boot: "b", features: [] }),
  );
  await until(() => server.server.online("edge-a"));
  clock.advance(44_000);
  raw.ws.send(encodeControl({ type: "ping", stamp: 5 }));
  await until(() => raw.messages.some((m) => m.type === "pong" && m.stamp === 5));
  clock.advance(44_000);
  assert.deepEqual(gone, []);
  clock.advance(6_000);
  assert.deepEqual(gone, [["edge-a", "TIMEOUT"]]);
});

test("a server that falls silent is given up after three missed pings, and another connection is made", async (rig) => {
  const clock = new FakeClock(0, systemClock.wall());
  const server = await rig.server();
  let mute = false;
  const sockets: net.Socket[] = [];
  const proxy = net.createServer((client) => {
    const upstream = net.connect({ host: "127.0.0.1", port: server.at.port });
    sockets.push(client, upstream);
    client.on("data", (chunk: Uint8Array) => mute || upstream.write(chunk));
    upstream.on("data", (chunk: Uint8Array) => mute || client.write(chunk));
    for (const socket of [client, upstream]) socket.on("error", () => {});
  });
  await new Promise<void>((resolve) => proxy.listen(0, "127.0.0.1", () => resolve()));
  rig.onEnd(async () => {
    for (const socket of sockets) socket.destroy();
    await new Promise<void>((resolve) => proxy.close(() => resolve()));
  });
  const agent = await rig.agent("edge-a", `wss://127.0.0.1:${(proxy.address() as net.AddressInfo).port}`, { clock });
  mute = true;
  clock.advance(29_999);
  assert.deepEqual(agent.downs, []);
  clock.advance(1);
  assert.deepEqual(agent.downs, ["TIMEOUT"]);
  mute = false;
  clock.advance(100);
  await agent.until(() => agent.up === 2);
});

test("T16: reconnects: two to four times a second while the port is closed, up to half a minute apart while something refuses", async (rig) => {
  const tcp = net.createServer((socket) => {
    socket.on("error", () => {});
    socket.destroy();
  });
  await new Promise<void>((resolve) => tcp.listen(0, "127.0.0.1", () => resolve()));
  rig.onEnd(() => new Promise<void>((resolve) => tcp.close(() => resolve())));
  const answering = `wss://127.0.0.1:${(tcp.address() as net.AddressInfo).port}`;
  // With `random` at its least, each wait is half of what it may be.
  for (
    const [url, first, longest] of [
      ["wss://127.0.0.1:1", [50, 100, 200, 250], 250],
      [answering, [50, 100, 200, 400], 15_000],
    ] as const
  ) {
    const clock = new FakeClock(0, systemClock.wall());
    const agent = await rig.agent("edge-a", url, { clock, random: () => 0, wait: false });
    const client = agent.tunnel.servers.clients[0]!;
    const waits: number[] = [];
    for (let i = 0; i < 12; i++) {
      await agent.until(() => client.state.phase === "waiting");
      const { state } = client;
      if (state.phase !== "waiting") throw new Error("not waiting");
      waits.push(state.untilMs - clock.now());
      clock.advance(state.untilMs - clock.now());
      assert.equal(agent.tunnel.servers.connecting, url === answering, "who needs a silent server is told at once");
    }
    assert.deepEqual(waits.slice(0, 4), first);
    assert.equal(waits.at(-1), longest);
  }
});

test("T06: two machines with one name do not throw each other off for ever", async (rig) => {
  const server = await rig.server();
  const credentials = await rig.pki.issue("edge-a");
  const hello = encodeControl({
    type: "hello",
    protocol: CONTROL_VERSION,
    node: "edge-a",
    version: "t",
    boot: "b",
    features: [],
  });
  for (let i = 0; i < 11; i++) {
    const raw = await rawAgent(rig, server, "edge-a", credentials);
    raw.ws.send(hello);
    await until(() => raw.messages.some((m) => m.type === "welcome"));
  }
  await assert.rejects(rawAgent(rig, server, "edge-a", credentials), { code: "LIMIT" });
  await assert.doesNotReject(rawAgent(rig, server, "edge-b"));
});

test("an agent that may not use the server hears why", async (rig) => {
  const server = await rig.server({
    admit: (peer) =>
      peer.node === "edge-a"
        ? Promise.reject(new MeshError("NODE_KEY_MISMATCH", "edge-a has another key"))
        : Promise.resolve(),
  });
  await assert.rejects(rawAgent(rig, server, "edge-a"), {
    code: "NODE_KEY_MISMATCH",
    message: /edge-a has another key/,
  });
  rig.pki.revoke("edge-b");
  await assert.rejects(rawAgent(rig, server, "edge-b"), { code: "REVOKED" });
});

/** A control connection in the test's own hands. */
async function rawAgent(rig: TunnelRig, server: TestServer, node: string, credentials?: TlsCredentials) {
  const own = credentials ?? await rig.pki.issue(node);
  const { ws } = await connectControl({
    clock: systemClock,
    url: server.url,
    credentials: () => own,
    verify: rig.pki.verifyServer,
    timeoutMs: 5_000,
    signal: new AbortController().signal,
  });
  rig.onEnd(() => ws.terminate());
  const messages: ReturnType<typeof decodeControl>[] = [];
  ws.on("message", (bytes: Uint8Array) => messages.push(decodeControl(new Uint8Array(bytes))));
  ws.on("error", () => {});
  return { ws, messages, closed: closeReason(ws) };
}

function closeReason(ws: WebSocket): Promise<ReasonCode> {
  return new Promise((resolve) => {
    ws.once("close", (code: number) => resolve(code > 4000 ? reasonCode(code - 4000) : "PEER_GONE"));
  });
}

/** What the server answers over TLS until it closes. */
function http(server: TestServer, request: string, client?: TlsCredentials): Promise<string> {
  return new Promise((resolve) => {
    let answer = "";
    const socket = tls.connect({
      host: "127.0.0.1",
      port: server.at.port,
      rejectUnauthorized: false,
      ...(client ? { cert: client.cert, key: client.key } : {}),
    });
    socket.on("secureConnect", () => socket.write(request));
    socket.on("data", (chunk: Uint8Array) => (answer += new TextDecoder().decode(chunk)));
    socket.on("error", () => {});
    socket.on("close", () => resolve(answer));
    socket.on("end", () => socket.destroy());
  });
}

/** Waits until the other side has ended a connection. */
function ended(socket: net.Socket, bytes?: string): Promise<void> {
  return new Promise((resolve) => {
    socket.on("connect", () => bytes && socket.write(bytes, "latin1"));
    socket.on("data", () => {});
    socket.on("error", () => {});
    socket.on("end", () => socket.destroy());
    socket.on("close", () => resolve());
  });
}

async function until(done: () => boolean): Promise<void> {
  for (let waited = 0; !done(); waited += 2) {
    if (waited > 10_000) throw new Error("the condition did not come true");
    await pause(2);
  }
}
