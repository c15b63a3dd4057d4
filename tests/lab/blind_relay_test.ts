/** The server carries what two agents say to each other, and can read none of it. */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { Capture } from "../../lib/lab/capture.ts";
import { until } from "../../lib/lab/exec.ts";
import { processesInGroup } from "../../lib/lab/proc.ts";
import { tell, webService, withMesh } from "./fixture.ts";
import { fixture, labTest } from "./support.ts";

const TAP = "/var/lib/edgemesh/server/tap";
/** Two sites that find a direct path would leave the relay nothing to see. */
const RELAY_ONLY = ["--set", "tunnel.mode=off"];
const BODY_BYTES = 100 * 1024;
/** What a relay leg begins with (PROTOCOL.md). */
const LEG_MARK = "EMR1";
const PAGE = pageSize();
/** Bit of a pagemap entry. */
const PRESENT = 1n << 63n;

labTest("the relay sees neither path nor host nor body of a request, on the wire or in its memory", async () => {
  await withMesh({ cloud: "none", web: [] }, async (mesh) => {
    const { topology } = mesh;
    const [client, web] = [topology.pod("edge-1-pod-1"), topology.pod("edge-2-pod-1")];
    await mesh.writeManifest("web.yaml", webService("web", "10.96.0.10", [web]));
    await web.host.start("http-echo", fixture("http_echo"), { ready: { log: /listening/ } });
    await mesh.startServer({ flags: ["--set", `relayTap=${TAP}`] });
    await Promise.all(topology.nodes.map((node) => mesh.join(node, { flags: RELAY_ONLY })));

    const [one, two] = topology.sites.map((site) => site.address) as [string, string];
    const meter = await topology.server.counters("relay");
    const ask = async (secrets: Secrets, body: string): Promise<void> => {
      const argv = ["curl", "-sS", "--max-time", "8", "-H", `Host: ${secrets.host}`, "--data-binary", "@-"];
      const { stdout } = await client.host.execOk([...argv, `http://10.96.0.10${secrets.path}`], { stdin: body });
      assert.equal(stdout, `answer:${body}`);
    };

    // Through the channel on the control connections, whose content the server can record.
    const first = newSecrets();
    const inPod = await Capture.start(client.host.ns, { iface: "eth0", filter: "tcp" });
    await ask(first, bodyOf(first));
    const tap = latin1(await Deno.readFile(topology.server.host.path(TAP)));
    assertBlind(tap, first);
    assert.ok(tap.length > 2 * BODY_BYTES, `${tap.length} bytes passed the relay: the request went another way`);

    // Over relay legs, which have no TLS of the server's around them: what is on its wire is all it can see.
    const onServer = await Capture.start(topology.server.host.ns, { filter: `tcp and (host ${one} or host ${two})` });
    const warm = crypto.randomUUID().repeat(10_000);
    await until("relay legs", async () => {
      await ask(newSecrets(), warm);
      const { stdout } = await topology.server.host.execOk(["curl", "-sS", "http://127.0.0.1:9465/metrics"]);
      return /^edgemesh_relay_legs 1$/m.test(stdout) || undefined;
    });
    const tapped = (await Deno.stat(topology.server.host.path(TAP))).size;
    const second = newSecrets();
    await ask(second, bodyOf(second));
    const through = (await Deno.stat(topology.server.host.path(TAP))).size - tapped;
    assert.ok(through < BODY_BYTES, `${through} bytes of a request that is to take the legs went through the channel`);
    await Promise.all([inPod.stop(), onServer.stop()]);
    const wire = latin1(await Deno.readFile(onServer.file));
    assert.ok(wire.includes(LEG_MARK), "no leg began on the server's wire");
    assert.ok(wire.length > 4 * BODY_BYTES, `${wire.length} bytes on the server's wire: the legs went another way`);
    assertBlind(wire, second);

    // The same search finds every secret where it must be: on the client's own wire.
    const plain = latin1(await Deno.readFile(inPod.file));
    for (const secret of [...Object.values(first), ...Object.values(second)]) {
      assert.ok(plain.includes(secret), `${secret} is not on the client's own wire: this test would find nothing`);
    }
    assert.equal((await meter.total({ between: [one, two] })).bytes, 0, "the sites spoke to each other directly");
    tell(
      `the relay saw ${tap.length} bytes of channels and ${wire.length} bytes on its wire with legs, for requests and ` +
        `answers of ${2 * BODY_BYTES} each, and none of their content`,
    );

    const found = await searchMemory(processesInGroup(mesh.server.pid), {
      ...first,
      legPath: second.path,
      legHost: second.host,
      legBody: second.body,
      // What the server does know shows that its memory was read.
      known: mesh.url,
    });
    assert.ok(found.has("known"), "the server's memory could not be searched");
    found.delete("known");
    assert.deepEqual([...found], [], "the server has these in its memory");
  });
});

/** Parts of a request that nobody on the way may read. */
interface Secrets {
  readonly path: string;
  readonly host: string;
  readonly body: string;
}

function newSecrets(): Secrets {
  return {
    path: `/orders-${crypto.randomUUID()}`,
    host: `shop-${crypto.randomUUID()}.test`,
    body: `card-${crypto.randomUUID()}`,
  };
}

/** The secret of the body on every line. */
function bodyOf(secrets: Secrets): string {
  const line = `${secrets.body}\n`;
  return line.repeat(Math.ceil(BODY_BYTES / line.length));
}

function assertBlind(recording: string, secrets: Secrets): void {
  for (const [what, secret] of Object.entries(secrets)) {
    assert.ok(!recording.includes(secret), `the relay has seen the ${what}`);
    assert.ok(!recording.includes(latin1(Buffer.from(secret, "utf16le"))), `the relay has seen the ${what} as UTF-16`);
  }
}

/** Which of the texts are anywhere in the writable memory of the processes, in either of the engine's two encodings. */
async function searchMemory(pids: readonly number[], texts: Readonly<Record<string, string>>): Promise<Set<string>> {
  const found = new Set<string>();
  const needles = Object.entries(texts).flatMap(([name, text]) =>
    [text, latin1(Buffer.from(text, "utf16le"))].map((bytes) => ({ name, bytes }))
  );
  for (const pid of pids) {
    for await (const pages of residentMemory(pid)) {
      // As text with one character per byte: the engine searches that 30 times faster than a Buffer.
      const bytes = latin1(pages);
      for (const needle of needles) if (bytes.includes(needle.bytes)) found.add(needle.name);
    }
  }
  return found;
}

function latin1(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("latin1");
}

/**
 * The resident pages of the writable regions, runs of neighbours together (proc(5), maps and pagemap): the engine
 * reserves gigabytes that it never touches.
 */
async function* residentMemory(pid: number): AsyncGenerator<Uint8Array> {
  const maps = await Deno.readTextFile(`/proc/${pid}/maps`);
  using memory = await Deno.open(`/proc/${pid}/mem`);
  using pagemap = await Deno.open(`/proc/${pid}/pagemap`);
  for (const row of maps.split("\n")) {
    const [, from, to] = /^([0-9a-f]+)-([0-9a-f]+) rw/.exec(row) ?? [];
    if (from === undefined || to === undefined) continue;
    const first = Number(BigInt(`0x${from}`) / PAGE);
    const count = Number(BigInt(`0x${to}`) / PAGE) - first;
    const pages = new BigUint64Array((await readAt(pagemap, first * 8, count * 8)).buffer);
    for (let page = 0; page < count; page++) {
      const start = page;
      while (page < count && pages[page]! & PRESENT) page++;
      if (page > start) yield await readAt(memory, BigInt(first + start) * PAGE, (page - start) * Number(PAGE));
    }
  }
}

function pageSize(): bigint {
  return BigInt(/^KernelPageSize: +(\d+) kB/m.exec(Deno.readTextFileSync("/proc/self/smaps"))![1]!) * 1024n;
}

/** Exactly so many bytes from there; zeros where a page has gone meanwhile. */
async function readAt(file: Deno.FsFile, from: number | bigint, size: number): Promise<Uint8Array<ArrayBuffer>> {
  const into = new Uint8Array(size);
  await file.seek(from, Deno.SeekMode.Start);
  for (let at = 0; at < size;) {
    const n = await file.read(into.subarray(at));
    if (n === null) break;
    at += n;
  }
  return into;
}
