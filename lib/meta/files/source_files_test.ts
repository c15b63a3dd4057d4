import assert from "node:assert/strict";
import { setImmediate as turn } from "node:timers/promises";
import { parseCidr } from "../../addr.ts";
import { FakeClock, systemClock } from "../../clock.ts";
import { createLogger, memorySink, nullLogger } from "../../log.ts";
import type { Folder } from "./folder.ts";
import { openFolder } from "./folder.ts";
import { problemText } from "../problems.ts";
import { FilesSource } from "./source_files.ts";
import { MetaStore } from "../store/store.ts";

/** A folder in memory; `edit` changes it without a notice, as a network file system would. */
class MemoryFolder implements Folder {
  readonly path = "/manifests";
  readonly files = new Map<string, { text: string; stamp: number }>();
  missing = false;
  changed: () => void = () => {};
  #stamp = 0;

  edit(name: string, text: string | undefined): void {
    if (text === undefined) this.files.delete(name);
    else this.files.set(name, { text, stamp: ++this.#stamp });
  }

  list() {
    if (this.missing) return Promise.reject(new Deno.errors.NotFound("No such file or directory"));
    return Promise.resolve([...this.files].map(([name, f]) => ({ name, stamp: String(f.stamp) })));
  }

  read(name: string) {
    return Promise.resolve(new TextEncoder().encode(this.files.get(name)!.text));
  }

  watch(changed: () => void) {
    this.changed = changed;
    return () => {};
  }
}

const WEB = `apiVersion: v1
kind: Service
metadata: { name: web, namespace: shop }
spec:
  clusterIP: 10.96.0.10
  ports:
    - port: 80
`;
const API = WEB.replace("name: web", "name: api").replace("10.96.0.10", "10.96.0.11");

async function setup(files: Record<string, string>, allocate?: string) {
  const clock = new FakeClock();
  const folder = new MemoryFolder();
  for (const [name, text] of Object.entries(files)) folder.edit(name, text);
  const store = new MetaStore({ clock, layers: ["local"] });
  const sink = memorySink("info");
  const source = new FilesSource({
    folder,
    layer: store.layer("local"),
    clock,
    log: createLogger(sink),
    ...(allocate ? { allocateFrom: [parseCidr(allocate)!] } : {}),
  });
  await source.start();
  const names = () => [...store.snapshot.services()].map((s) => `${s.name} ${s.clusterIPs}`).sort();
  const problems = () => source.status().problems.map(problemText);
  /** Lets virtual time pass, and everything it wakes run. */
  const wait = async (ms: number) => {
    for (let at = 0; at < ms; at += 50) {
      clock.advance(50);
      // The loading of the parser is a real import: give it real turns of the loop.
      await turn();
    }
  };
  return { clock, folder, store, sink, source, names, problems, wait };
}

Deno.test("files: several documents, lists and both kinds of endpoints", async () => {
  const { source, store, names, problems } = await setup({
    "a.yaml": `${WEB}---\n${API}---\n# nothing\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: { name: d }\n`,
    "b.yml": `apiVersion: v1
kind: List
items:
  - apiVersion: v1
    kind: Endpoints
    metadata: { name: web, namespace: shop }
    subsets: [{ addresses: [{ ip: 10.1.0.1 }], ports: [{ port: 8080 }] }]
  - apiVersion: v1
    kind: Endpoints
    metadata: { name: api, namespace: shop }
    subsets: [{ addresses: [{ ip: 10.1.0.9 }], ports: [{ port: 8080 }] }]
`,
    "c.json": JSON.stringify({
      apiVersion: "discovery.k8s.io/v1",
      kind: "EndpointSliceList",
      items: [{
        metadata: { name: "api-1", namespace: "shop", labels: { "kubernetes.io/service-name": "api" } },
        addressType: "IPv4",
        endpoints: [{ addresses: ["10.1.0.2"] }],
        ports: [{ port: 8080 }],
      }],
    }),
    "readme.txt": "not a manifest",
    ".hidden.yaml": "broken: [",
  });
  assert.deepEqual(problems(), []);
  assert.deepEqual(names(), ["api 10.96.0.11", "web 10.96.0.10"]);
  assert.deepEqual(store.snapshot.slicesOf("shop", "web").map((s) => s.name), ["web~0"]);
  assert.deepEqual(
    store.snapshot.slicesOf("shop", "api").map((s) => s.name),
    ["api-1"],
    "slices say more than Endpoints",
  );
  assert.ok(store.snapshot.synced);
  await source.stop();
});

Deno.test("files: a broken file keeps its last good state and says file, line and field; others go on", async () => {
  const { source, folder, names, problems, wait, sink } = await setup({ "a.yaml": WEB, "b.yaml": API });
  folder.edit("a.yaml", WEB.replace("port: 80", "port: 80000"));
  folder.edit("b.yaml", API.replace("10.96.0.11", "10.96.0.12"));
  folder.changed();
  await wait(300);
  assert.deepEqual(names(), ["api 10.96.0.12", "web 10.96.0.10"]);
  assert.deepEqual(problems(), [
    "a.yaml:7: Service shop/web: spec.ports[0].port 80000: must be a whole number from 1 to 65535",
  ]);
  folder.edit("a.yaml", "kind: Service\n  bad indent: [\n");
  folder.changed();
  await wait(300);
  assert.deepEqual(names(), ["api 10.96.0.12", "web 10.96.0.10"]);
  assert.match(problems()[0]!, /^a\.yaml:\d: /);
  folder.edit("a.yaml", WEB.replace("10.96.0.10", "10.96.0.20"));
  folder.changed();
  await wait(300);
  assert.deepEqual([names(), problems()], [["api 10.96.0.12", "web 10.96.0.20"], []]);
  assert.equal(sink.lines.filter((l) => l.includes("80000")).length, 1, "said once");
  await source.stop();
});

Deno.test("files: a file that was never good gives the objects in it that are", async () => {
  const { source, names, problems } = await setup({
    "a.yaml": `${WEB}---\n${API.replace("10.96.0.11", "010.96.0.11")}`,
  });
  assert.deepEqual(names(), ["web 10.96.0.10"]);
  assert.match(problems()[0]!, /^a\.yaml:13: Service shop\/api: spec\.clusterIP 010\.96\.0\.11: is not an IP/);
  await source.stop();
});

Deno.test("files: a file is read only when it has stopped changing", async () => {
  const { source, folder, names, wait } = await setup({ "a.yaml": WEB });
  // An editor truncates, then writes: the empty file must never be taken for the removal of everything.
  folder.edit("a.yaml", "");
  folder.changed();
  await wait(150);
  folder.edit("a.yaml", API);
  folder.changed();
  assert.deepEqual(names(), ["web 10.96.0.10"]);
  await wait(300);
  assert.deepEqual(names(), ["api 10.96.0.11"]);
  await source.stop();
});

Deno.test("files: one that never stops changing, even one that is no manifest, does not hold up the others", async () => {
  const { source, folder, names, wait } = await setup({ "a.yaml": WEB });
  for (const name of ["a.yaml", "a.log"]) {
    folder.edit("b.yaml", API);
    for (let i = 0; i < 10; i++) {
      folder.edit(name, `${WEB}# ${i}\n`);
      folder.changed();
      await wait(50);
    }
    assert.deepEqual(names(), ["api 10.96.0.11", "web 10.96.0.10"], `while ${name} changes`);
    folder.edit("b.yaml", undefined);
    await wait(2500);
    assert.deepEqual(names(), ["web 10.96.0.10"]);
  }
  await source.stop();
});

Deno.test("files: removal and addition are found without any notice", async () => {
  const { source, folder, names, wait, clock } = await setup({ "a.yaml": WEB });
  folder.edit("a.yaml", undefined);
  folder.edit("b.yaml", API);
  await wait(2300);
  assert.deepEqual(names(), ["api 10.96.0.11"]);
  await source.stop();
  assert.equal(clock.pending, 0);
});

Deno.test("files: the same object in two files: the first by name wins, the other is reported", async () => {
  const { source, names, problems } = await setup({ "z.yaml": WEB, "a.yaml": WEB.replace("10.96.0.10", "10.96.0.99") });
  assert.deepEqual(names(), ["web 10.96.0.99"]);
  assert.deepEqual(problems(), ["z.yaml: service shop/web: is also in a.yaml, which wins"]);
  await source.stop();
});

Deno.test("files: a folder that is not there yet, then is, then is gone", async () => {
  const { source, folder, names, wait, store } = await setup({});
  folder.missing = true;
  await source.stop();
  const clock = new FakeClock();
  const late = new FilesSource({ folder, layer: store.layer("local"), clock, log: nullLogger });
  await late.start();
  assert.equal(late.status().state, "starting");
  assert.match(late.status().lastError!, /No such file/);
  folder.missing = false;
  folder.edit("a.yaml", WEB);
  const pass = async () => {
    for (let i = 0; i < 60; i++) {
      clock.advance(50);
      await wait(0);
      await turn();
    }
  };
  await pass();
  assert.equal(late.status().state, "synced");
  assert.deepEqual(names(), ["web 10.96.0.10"]);
  folder.missing = true;
  await pass();
  assert.equal(late.status().state, "degraded");
  assert.deepEqual(names(), ["web 10.96.0.10"], "the last good state stays");
  await late.stop();
});

Deno.test("files: Services without a cluster IP get a stable one where a network is given", async () => {
  const plain = WEB.replace("  clusterIP: 10.96.0.10\n", "");
  const other = plain.replace("name: web", "name: other");
  const first = await setup({ "a.yaml": plain }, "10.96.0.0/16");
  const given = first.names();
  assert.match(given[0]!, /^web 10\.96\.\d+\.\d+$/);
  first.folder.edit("b.yaml", other);
  await first.wait(2300);
  assert.ok(first.names().includes(given[0]!), "a further Service moves nobody");
  await first.source.stop();
  const again = await setup({ "b.yaml": other, "a.yaml": plain }, "10.96.0.0/16");
  assert.deepEqual(again.names(), first.names(), "the same folder gives the same addresses");
  await again.source.stop();
  const full = await setup({ "a.yaml": plain, "b.yaml": other, "c.yaml": API }, "10.96.0.8/29");
  assert.equal(new Set(full.names().map((n) => n.split(" ")[1])).size, 3);
  await full.source.stop();
  const tiny = await setup({ "a.yaml": plain, "b.yaml": other }, "10.96.0.8/30");
  assert.equal(tiny.names().length, 2);
  await tiny.source.stop();
});

Deno.test("files: an alias bomb and duplicate keys are refused, not expanded", async () => {
  const bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" +
    "bcdefgh".split("").map((c, i) => `${c}: &${c} [${Array(9).fill(`*${"abcdefgh"[i]}`).join(",")}]`).join("\n");
  const { source, problems } = await setup({ "a.yaml": bomb, "b.yaml": "kind: A\nkind: B\n", "c.yaml": "\x00\xff" });
  const text = problems().join("\n");
  assert.match(text, /a\.yaml:1: .*alias/i);
  assert.match(text, /b\.yaml:2: .*unique/i);
  await source.stop();
});

Deno.test("files: a real folder: written, changed by rename, removed, all seen through inotify", async () => {
  const path = await Deno.makeTempDir();
  const store = new MetaStore({ clock: systemClock, layers: ["local"] });
  const heard = () => {
    let stop = () => {};
    return new Promise<void>((resolve) => stop = store.subscribe(() => resolve())).then(() => stop());
  };
  // The product's timers do not keep a process alive; a test's process has nothing else that would.
  const hold = setInterval(() => {}, 1000);
  const source = new FilesSource({
    folder: openFolder(path),
    layer: store.layer("local"),
    clock: systemClock,
    log: nullLogger,
  });
  try {
    await source.start();
    let next = heard();
    await Deno.writeTextFile(`${path}/a.yaml`, WEB);
    await next;
    assert.equal(store.snapshot.service("shop", "web")?.clusterIPs[0], "10.96.0.10");
    next = heard();
    await Deno.writeTextFile(`${path}/.new`, WEB.replace("10.96.0.10", "10.96.0.20"));
    await Deno.rename(`${path}/.new`, `${path}/a.yaml`);
    await next;
    assert.equal(store.snapshot.service("shop", "web")?.clusterIPs[0], "10.96.0.20");
    next = heard();
    await Deno.remove(`${path}/a.yaml`);
    await next;
    assert.equal(store.snapshot.count("service"), 0);
  } finally {
    clearInterval(hold);
    await source.stop();
    await Deno.remove(path, { recursive: true });
  }
});

Deno.test("T41: files: a link out of the folder is reported and not read; the others go on", async () => {
  const root = await Deno.makeTempDir();
  const store = new MetaStore({ clock: systemClock, layers: ["local"] });
  const log = nullLogger;
  const source = new FilesSource({
    folder: openFolder(`${root}/m`),
    layer: store.layer("local"),
    clock: systemClock,
    log,
  });
  try {
    await Deno.mkdir(`${root}/m`);
    await Deno.writeTextFile(`${root}/shadow`, "root:canary4711");
    await Deno.symlink("../shadow", `${root}/m/a.yaml`);
    await Deno.writeTextFile(`${root}/m/b.yaml`, WEB);
    await source.start();
    assert.equal(store.snapshot.service("shop", "web")?.clusterIPs[0], "10.96.0.10");
    const texts = source.status().problems.map(problemText);
    assert.equal(texts.length, 1);
    assert.match(texts[0]!, /^a\.yaml: .*is a link that leads out of its folder, to .*shadow; try: /);
    assert.doesNotMatch(texts[0]!, /canary/);
  } finally {
    await source.stop();
    await Deno.remove(root, { recursive: true });
  }
});
