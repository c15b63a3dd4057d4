/** An agent that follows an API directly, cut off for an hour and restarted meanwhile; answers are the real DNS code's. */
import assert from "node:assert/strict";
import { parseCidr } from "../addr.ts";
import { FakeClock } from "../clock.ts";
import { answerCluster, type AnswerOptions } from "../dns/cluster/answer.ts";
import { rcodeName, TYPE } from "../dns/wire/constants.ts";
import { labelsOf } from "../dns/wire/labels.ts";
import { createLogger, memorySink } from "../log.ts";
import { FakeApiServer } from "../../tests/kube/fake_apiserver.ts";
import { kubeService, kubeSlice, SERVICES, SLICES } from "../../tests/kube/objects.ts";
import { DiskSnapshot } from "./disk/disk.ts";
import { openSnapshotFiles } from "./disk/disk_files.ts";
import { Guard } from "./guard.ts";
import { FetchApi } from "./kube/kube_api.ts";
import { KubeSource } from "./kube/source_kube.ts";
import { MetaStore } from "./store/store.ts";

const HOUR_MS = 3_600_000;

const dns: AnswerOptions = {
  zones: [{ labels: labelsOf("cluster.local")!, multicluster: false }],
  ttl: 5,
  pods: "disabled",
  ignoreEmptyServices: false,
  namespaces: undefined,
  nameservers: [],
};

/** What an agent is made of as far as metadata goes. */
function agent(clock: FakeClock, folder: string, api: FakeApiServer, guard?: Guard) {
  const log = createLogger(memorySink());
  const store = new MetaStore({ clock });
  const layer = store.layer("base");
  const disk = new DiskSnapshot({ files: openSnapshotFiles(folder), layer, clock, log });
  const source = new KubeSource({
    api: new FetchApi(() => Promise.resolve({ server: api.url, caCerts: [] }), { clock, address: api.url }),
    layer,
    clock,
    log,
    pods: "none",
    routes: false,
    ...(guard ? { guard } : {}),
  });
  store.subscribe(() => disk.changed(api.url));
  const ask = (name: string) => {
    const { rcode } = answerCluster(labelsOf(`${name}.svc.cluster.local`)!, TYPE.A, store.snapshot, dns);
    return rcodeName(rcode);
  };
  return { store, disk, source, ask };
}

/** Virtual time passes while real bytes flow. */
async function pass(clock: FakeClock, ms: number, done: () => boolean = () => false): Promise<void> {
  const step = Math.max(50, ms / 120);
  for (let at = 0; at < ms && !done(); at += step) {
    for (let i = 0; i < 4; i++) {
      await new Promise((resolve) => setTimeout(resolve, 1));
      clock.advance(0);
    }
    clock.advance(step);
  }
}

Deno.test("offline: an hour without the API and a restart in it: cached names work, unknown ones are NXDOMAIN", async () => {
  const folder = await Deno.makeTempDir();
  const clock = new FakeClock();
  const api = new FakeApiServer();
  await api.start();
  api.put(SERVICES, kubeService("web", "10.96.0.10"));
  api.put(SLICES, kubeSlice("web-1", "web", ["10.1.0.1"]));
  try {
    const first = agent(clock, folder, api);
    assert.equal(first.ask("web.shop"), "SERVFAIL", "nothing was learned yet: never 'no'");
    assert.equal(first.ask("other.shop"), "SERVFAIL");
    await first.source.start();
    await pass(clock, 5000, () => first.store.snapshot.synced);
    assert.equal(first.ask("web.shop"), "NOERROR");
    assert.equal(first.ask("other.shop"), "NXDOMAIN");

    await api.stop();
    await pass(clock, HOUR_MS / 2);
    assert.equal(first.source.status().state, "degraded");
    assert.equal(first.ask("web.shop"), "NOERROR");
    assert.equal(first.ask("other.shop"), "NXDOMAIN");
    await first.source.stop();
    await first.disk.stop();

    const second = agent(clock, folder, api);
    assert.equal(second.ask("web.shop"), "SERVFAIL", "before the snapshot is read");
    assert.equal(await second.disk.load(), true);
    assert.equal(second.ask("web.shop"), "NOERROR");
    assert.equal(second.ask("other.shop"), "NXDOMAIN");
    await second.source.start();
    await pass(clock, HOUR_MS / 2);
    assert.equal(second.ask("web.shop"), "NOERROR");
    assert.equal(second.store.snapshot.slicesByIp("10.1.0.1").length, 1);

    api.put(SERVICES, kubeService("other", "10.96.0.11"));
    api.delete(SERVICES, "shop/web");
    await api.start();
    const back = clock.now();
    await pass(clock, 10_000, () => second.ask("other.shop") === "NOERROR" && second.ask("web.shop") === "NXDOMAIN");
    assert.equal(second.ask("web.shop"), "NXDOMAIN");
    assert.ok(clock.now() - back <= 5000, `${clock.now() - back} ms after the API is back`);
    await second.source.stop();
    await second.disk.stop();
  } finally {
    await api.stop();
    await Deno.remove(folder, { recursive: true });
  }
  assert.equal(clock.pending, 0);
});

Deno.test("offline: a restart without any snapshot and without the API answers SERVFAIL, not NXDOMAIN", async () => {
  const folder = await Deno.makeTempDir();
  const clock = new FakeClock();
  const api = new FakeApiServer();
  await api.start();
  await api.stop();
  const lone = agent(clock, folder, api);
  try {
    assert.equal(await lone.disk.load(), false);
    await lone.source.start();
    await pass(clock, 120_000);
    assert.equal(lone.ask("web.shop"), "SERVFAIL");
  } finally {
    await lone.source.stop();
    await lone.disk.stop();
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("offline: a guard in front of a direct source refuses, shows and is revised as it is for a server", async () => {
  const folder = await Deno.makeTempDir();
  const clock = new FakeClock();
  const api = new FakeApiServer();
  await api.start();
  api.put(SERVICES, kubeService("web", "10.96.0.10"));
  api.put(SERVICES, kubeService("evil", "8.8.8.8"));
  const policy = {
    serviceCidrs: [parseCidr("10.96.0.0/12")!],
    externalCidrs: [],
    own: new Set<string>(),
    vital: new Set<string>(),
    zones: ["cluster.local"],
  };
  const guard = new Guard(policy);
  const guarded = agent(clock, folder, api, guard);
  try {
    await guarded.source.start();
    await pass(clock, 5000, () => guarded.store.snapshot.synced);
    assert.deepEqual([...guarded.store.snapshot.services()].map((s) => s.name), ["web"]);
    assert.deepEqual(guarded.source.status().problems.map((p) => [p.object, p.code]), [
      ["Service shop/evil", "META_REFUSED"],
    ]);

    api.put(SERVICES, kubeService("gone", "8.8.4.4"));
    await pass(clock, 5000, () => guard.book.size === 2);
    assert.equal(guard.book.size, 2);
    // Refused as it is, it must be seen to be gone, too, by a list that does not mention it.
    await api.stop();
    api.delete(SERVICES, "shop/gone");
    api.compact();
    await api.start();
    await pass(clock, 20_000, () => guard.book.size === 1);
    const lists = api.count(`LIST ${SERVICES}`);
    guard.policy = { ...policy, serviceCidrs: [parseCidr("0.0.0.0/0")!] };
    guarded.source.revise();
    assert.deepEqual([...guarded.store.snapshot.services()].map((s) => s.name).sort(), ["evil", "web"]);
    assert.equal(guard.book.size, 0);
    assert.equal(api.count(`LIST ${SERVICES}`), lists, "nobody was asked");
  } finally {
    await guarded.source.stop();
    await guarded.disk.stop();
    await api.stop();
    await Deno.remove(folder, { recursive: true });
  }
});
