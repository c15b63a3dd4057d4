/**
 * Two servers that count their states on their own, swapped and restarted while everything changes: an agent must never
 * apply a difference of one to what it has of the other. Each server's endpoints are told apart by their third byte.
 */
import assert from "node:assert/strict";
import { pause } from "../../lib/clock.ts";
import { until } from "../../lib/lab/exec.ts";
import { type Mesh, serviceYaml } from "../../lib/lab/mesh.ts";
import type { LabNode } from "../../lib/lab/node.ts";
import type { HostProcess } from "../../lib/lab/process.ts";
import { tell, withMesh } from "./fixture.ts";
import { longLabTest } from "./support.ts";
import { connected, joinSecond, startFirst, startSecond, STATE, URLS } from "./two_servers.ts";

const FOLDERS = ["/etc/edgemesh/manifests", "/etc/edgemesh/manifests-2"] as const;
const SOURCES = ["server:server", "server:server-2"] as const;
/** Services, each in a file of its own, of which the next is changed every so often: a file is read once it rests. */
const SERVICES = 10;
const CHANGE_MS = 40;
/** Endpoints of a Service at a time, of so many that come and go. */
const HELD = 8;
const ALL = 30;
const NAMES = Array.from({ length: SERVICES }, (_, i) => `app-${i}.default.svc.cluster.local`);

type Which = 0 | 1;

longLabTest("servers swapped, killed and restarted empty under changes: no difference to the wrong base", async (t) => {
  await withMesh({ sites: [{ nat: "cone" }], cloud: "none", defaultRoute: true, web: [] }, async (mesh) => {
    const node = mesh.topology.node("edge-1");
    await Promise.all(FOLDERS.map((folder) => Deno.mkdir(hostPath(mesh, folder), { recursive: true })));
    const load = new Load(mesh);
    await load.writeAll();
    const servers: HostProcess[] = [await startFirst(mesh)];
    await mesh.join(node);
    await mesh.stopAgent(node);
    await joinSecond(mesh);
    servers.push(await startSecond(mesh, FOLDERS[1]));
    await mesh.startAgent(node, { flags: URLS.flatMap((url) => ["--server", url]) });
    await bothConnected(mesh, node);

    const watch = new Watch(node);
    const running = [load.run(), watch.run()];
    const swap = async (which: Which, restart: () => Promise<HostProcess>) => {
      const other = which === 0 ? 1 : 0;
      await until(`server ${which + 1} to be followed`, () => follows(mesh, node, which));
      const before = watch.seen[which];
      await until("some changes of it", () => watch.seen[which] >= before + 5 || undefined);
      await servers[which]!.kill();
      await until(`server ${other + 1} to be followed`, () => follows(mesh, node, other));
      const since = watch.seen[other];
      await until("some changes of the other", () => watch.seen[other] >= since + 5 || undefined);
      servers[which] = await restart();
      await bothConnected(mesh, node);
    };
    const first = await until("one of them to be followed", async () => {
      return await follows(mesh, node, 0) ? 0 : await follows(mesh, node, 1) ? 1 : undefined;
    });
    const again: Readonly<Record<Which, () => Promise<HostProcess>>> = {
      0: () => startFirst(mesh),
      1: () => startSecond(mesh, FOLDERS[1]),
    };
    const second = first === 0 ? 1 : 0;
    await t.step("the followed one is killed and starts anew", () => swap(first, again[first]));
    await t.step("so is the other", () => swap(second, again[second]));
    await t.step("the second one loses its disk, joins again and is followed", async () => {
      if (await follows(mesh, node, 0)) await swap(0, again[0]);
      await swap(1, async () => {
        await Deno.remove(hostPath(mesh, STATE[1]), { recursive: true });
        const { server } = mesh.topology;
        await server.host.execOk([...server.command, "server", "remove", "server-2"]);
        await joinSecond(mesh);
        return await again[1]();
      });
      await swap(0, again[0]);
    });
    await t.step("when changes end, the agent has exactly what the followed server has", async () => {
      load.stop();
      await until("the last change", async () => {
        const which = await follows(mesh, node, 0) ? 0 : 1;
        const answers = await addresses(node);
        const [answer, wanted] = [NAMES.map((name) => answers.get(name)), load.now[which]].map(String);
        return answer === wanted || undefined;
      });
      watch.stop();
      await Promise.all(running);
      tell(`${load.changes} changes; answers seen of either: ${watch.seen.join(", ")}; of both: ${watch.mixed.length}`);
      assert.deepEqual(watch.mixed, [], "endpoints of both servers in one answer");
      assert.doesNotMatch(await mesh.agent("edge-1").log(), /code=PROTOCOL/);
    });
  });
});

/** Rewrites the Services of both servers in turn, each server's with endpoints of its own, until stopped. */
class Load {
  readonly #mesh: Mesh;
  #stopped = false;
  changes = 0;
  /** What each server holds: the sorted addresses of each Service. */
  readonly now: readonly [string[], string[]] = [[], []];

  constructor(mesh: Mesh) {
    this.#mesh = mesh;
  }

  async writeAll(): Promise<void> {
    for (let i = 0; i < SERVICES; i++) await this.#writeNext();
  }

  async run(): Promise<void> {
    while (!this.#stopped) {
      await this.#writeNext();
      await pause(CHANGE_MS);
    }
  }

  stop(): void {
    this.#stopped = true;
  }

  async #writeNext(): Promise<void> {
    const service = this.changes % SERVICES;
    for (const which of [0, 1] as const) {
      const ips = Array.from({ length: HELD }, (_, i) => `10.9.${which}.${1 + (this.changes * 7 + i) % ALL}`);
      const endpoints = ips.map((ip) => ({ ip }));
      const yaml = serviceYaml({ name: `app-${service}`, clusterIP: "None", port: 80, targetPort: 80, endpoints });
      const file = hostPath(this.#mesh, `${FOLDERS[which]}/app-${service}.yaml`);
      await Deno.writeTextFile(`${file}.tmp`, yaml);
      await Deno.rename(`${file}.tmp`, file);
      this.now[which][service] = ips.sort().join();
    }
    this.changes++;
  }
}

/** Asks the agent all the time which endpoints the Services have. */
class Watch {
  readonly #node: LabNode;
  #stopped = false;
  readonly #last = new Map<string, string>();
  /** Answers that differ from the one before, by whose they were. */
  readonly seen: [number, number] = [0, 0];
  /** Answers with endpoints of both servers. */
  readonly mixed: string[] = [];

  constructor(node: LabNode) {
    this.#node = node;
  }

  async run(): Promise<void> {
    while (!this.#stopped) {
      for (const [name, answer] of await addresses(this.#node)) {
        if (answer === this.#last.get(name)) continue;
        this.#last.set(name, answer);
        const whose = new Set(answer.split(",").map((ip) => Number(ip.split(".")[2]) as Which));
        if (whose.size > 1) this.mixed.push(`${name}: ${answer}`);
        else for (const which of whose) this.seen[which]++;
      }
    }
  }

  stop(): void {
    this.#stopped = true;
  }
}

/** Name → its sorted addresses, where it has any. */
async function addresses(node: LabNode): Promise<ReadonlyMap<string, string>> {
  const dig = ["dig", "+noall", "+answer", "+time=1", "+tries=1", "@169.254.96.16"];
  const { stdout } = await node.host.exec([...dig, ...NAMES]);
  const found = Map.groupBy(stdout.matchAll(/^(\S+)\.\s+\d+\s+IN\s+A\s+(\S+)$/gm), ([, name]) => name!);
  return new Map([...found].map(([name, lines]) => [name, lines.map(([, , ip]) => ip!).sort().join()]));
}

async function follows(mesh: Mesh, node: LabNode, which: Which): Promise<true | undefined> {
  const { metadata } = await mesh.status(node);
  return metadata.source === SOURCES[which] && metadata.follows.state === "synced" || undefined;
}

async function bothConnected(mesh: Mesh, node: LabNode): Promise<void> {
  await until("both servers to be connected", async () => {
    return (await connected(mesh, node)).length === 2 || undefined;
  }, 30_000);
}

function hostPath(mesh: Mesh, path: string): string {
  return mesh.topology.server.host.path(path);
}
