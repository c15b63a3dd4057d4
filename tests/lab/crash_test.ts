/** Crashes under load: what users of kernel-way Services and of the others see, and how soon a restart heals it. */
import assert from "node:assert/strict";
import { pause, systemClock } from "../../lib/clock.ts";
import { until } from "../../lib/lab/exec.ts";
import type { LabNode } from "../../lib/lab/node.ts";
import type { Pod } from "../../lib/lab/pod.ts";
import { allowed, curl, startAll, tell, webService, withMesh } from "./fixture.ts";
import { labTest } from "./support.ts";

const NEAR = "10.96.0.10";
const FAR = "10.96.0.11";
const REFUSED = 7;
const AT_ONCE_MS = 500;
const HEAL_MS = 1000;
const REPAIR_MS = 2000;
/** Requests of the load that runs over the crash, and how many a second: some seconds before, during and after it. */
const LOAD = { requests: 240, perSecond: 40 } as const;

for (const backend of ["netlink", "nft"] as const) {
  labTest(
    `crash (${backend}): no error for own-node Services, a refusal for others, healed by a restart`,
    async (t) => {
      await withMesh({ cloud: "none", podsPerNode: 2 }, async (mesh) => {
        const { topology } = mesh;
        const node = topology.node("edge-1");
        const pod = topology.pod("edge-1-pod-1");
        const flags = ["--set", `forward.backend=${backend}`];
        await mesh.writeManifest("near.yaml", webService("near", NEAR, [topology.pod("edge-1-pod-2")]));
        await mesh.writeManifest("far.yaml", webService("far", FAR, [topology.pod("edge-2-pod-1")]));
        await startAll(mesh);
        await mesh.stopAgent(node);
        await mesh.startAgent(node, { flags });
        assert.equal((await curl(pod, `http://${FAR}/`)).body, "edge-2-pod-1 on edge-2");

        await t.step("killed and restarted under load: not one request to an own-node Service fails", async () => {
          const load = separateRequests(pod, NEAR);
          await pause(1500);
          await mesh.stopAgent(node, "kill");
          await pause(1500);
          await mesh.startAgent(node, { flags });
          const { answered, failed } = await load;
          tell(`${answered} answered, ${failed} failed`);
          assert.deepEqual({ answered, failed }, { answered: LOAD.requests, failed: 0 });
        });
        await t.step("killed: what needs the agent is refused at once", async () => {
          await mesh.stopAgent(node, "kill");
          if (backend === "nft") await until("the rules to say so", () => refused(pod));
          for (const from of [pod, node]) {
            const { code, ms, stderr } = await curl(from, `http://${FAR}/`);
            assert.equal(code, REFUSED, stderr);
            assert.ok(ms < allowed(AT_ONCE_MS), `refused after ${Math.round(ms)} ms`);
          }
        });
        await t.step("a restart heals it within a second", async () => {
          const started = systemClock.now();
          const process = await mesh.startAgent(node, { flags, waitReady: false });
          await until("an answer from the other site", async () => {
            return (await curl(pod, `http://${FAR}/`, ["--max-time", "3"])).code === 0 || undefined;
          });
          const ms = Math.round(systemClock.now() - started);
          const ready = Number(/"agent ready".*"ms":(\d+)/.exec(await process.log())?.[1] ?? NaN);
          tell(`answered ${ms} ms after exec; the agent called itself ready after ${ready} ms`);
          assert.ok(ms < allowed(HEAL_MS), `only after ${ms} ms`);
        });
        await t.step("somebody flushes all rules: ours are there again within two seconds", async () => {
          await node.host.execOk(["nft", "flush", "ruleset"]);
          const flushed = systemClock.now();
          await until("both ways to answer", async () => {
            const answers = await Promise.all(
              [NEAR, FAR].map((ip) => curl(pod, `http://${ip}/`, ["--max-time", "0.3"])),
            );
            return answers.every((answer) => answer.code === 0) || undefined;
          });
          const ms = Math.round(systemClock.now() - flushed);
          tell(`repaired ${ms} ms after the flush`);
          assert.ok(ms < allowed(REPAIR_MS), `only after ${ms} ms`);
        });
        await t.step("somebody deletes one of our tables: it is there again", async () => {
          const before = await tables(node);
          await node.host.execOk(["nft", "delete", "table", "inet", "edgemesh"]);
          await until("the table to be as before", async () => await tables(node) === before || undefined, 5_000);
        });
      });
    },
  );
}

/** Requests of one connection each at an even pace; resolves when all are over. */
async function separateRequests(pod: Pod, ip: string): Promise<{ readonly answered: number; readonly failed: number }> {
  const { stdout } = await pod.host.exec([
    ...["curl", "-sS", "--max-time", "20", "-H", "Connection: close", "--rate", `${LOAD.perSecond}/s`],
    ...["--connect-timeout", "2", "-o", "/dev/null", "-w", "%{http_code}\n", `http://${ip}/[1-${LOAD.requests}]`],
  ], { timeoutMs: 60_000 });
  const codes = stdout.trim().split("\n");
  const answered = codes.filter((code) => code === "200").length;
  return { answered, failed: codes.length - answered };
}

async function refused(pod: Pod): Promise<true | undefined> {
  return (await curl(pod, `http://${FAR}/`, ["--max-time", "1"])).code === REFUSED || undefined;
}

/** All rules without counters, in an order that does not depend on which table was made first. */
async function tables(node: LabNode): Promise<string> {
  const { stdout } = await node.host.execOk(["nft", "list", "ruleset"]);
  return stdout.replace(/packets \d+ bytes \d+/g, "").split(/^(?=table )/m).sort().join("");
}
