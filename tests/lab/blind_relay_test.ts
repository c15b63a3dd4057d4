/** The server carries what two agents say to each other, and can read none of it. */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { Capture } from "../../lib/lab/capture.ts";
import { processesInGroup } from "../../lib/lab/proc.ts";
import { tell, webService, withMesh } from "./fixture.ts";
import { fixture, labTest } from "./support.ts";

const TAP = "/var/lib/edgemesh/server/tap";
/** Two sites that find a direct path would leave the relay nothing to see. */
const RELAY_ONLY = ["--set", "tunnel.mode=off"];
const BODY_BYTES = 100 * 1024;
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

    const secrets = {
      path: `/orders-${crypto.randomUUID()}`,
      host: `shop-${crypto.randomUUID()}.test`,
      body: `card-${crypto.randomUUID()}`,
    };
    const line = `${secrets.body}\n`;
    const body = line.repeat(Math.ceil(BODY_BYTES / line.length));
    const meter = await topology.server.counters("relay");
    const inPod = await Capture.start(client.host.ns, { iface: "eth0", filter: "tcp" });
    const argv = ["curl", "-sS", "--max-time", "8", "-H", `Host: ${secrets.host}`, "--data-binary", "@-"];
    const { stdout } = await client.host.execOk([...argv, `http://10.96.0.10${secrets.path}`], { stdin: body });
    assert.equal(stdout, `answer:${body}`);
    await inPod.stop();

    // The same search finds every secret where it must be: on the client's own wire.
    const plain = latin1(await Deno.readFile(inPod.file));
    const tap = latin1(await Deno.readFile(topology.server.host.path(TAP)));
    for (const [what, secret] of Object.entries(secrets)) {
      assert.ok(plain.includes(secret), `the ${what} is not on the client's own wire: this test would find nothing`);
      assert.ok(!tap.includes(secret), `the relay has seen the ${what}`);
      assert.ok(!tap.includes(latin1(Buffer.from(secret, "utf16le"))), `the relay has seen the ${what} as UTF-16`);
    }
    assert.ok(tap.length > 2 * BODY_BYTES, `${tap.length} bytes passed the relay: the request went another way`);
    const [one, two] = topology.sites.map((site) => site.address) as [string, string];
    assert.equal((await meter.total({ between: [one, two] })).bytes, 0, "the sites spoke to each other directly");
    tell(
      `the relay saw ${tap.length} bytes of a request and an answer of ${2 * BODY_BYTES}, and none of their content`,
    );

    const found = await searchMemory(processesInGroup(mesh.server.pid), {
      ...secrets,
      // What the server does know shows that its memory was read.
      known: mesh.url,
    });
    assert.ok(found.has("known"), "the server's memory could not be searched");
    found.delete("known");
    assert.deepEqual([...found], [], "the server has these in its memory");
  });
});

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
