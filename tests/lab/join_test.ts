/** Joining and its refusals: what a person at the edge host sees. */
import assert from "node:assert/strict";
import type { LabNode } from "../../lib/lab/node.ts";
import type { ExecResult } from "../../lib/lab/exec.ts";
import type { JoinToken, Mesh } from "../../lib/lab/mesh.ts";
import type { FakeTime } from "../../lib/lab/process.ts";
import { pause } from "../../lib/clock.ts";
import { curl, outcome, startAll, tell, webService, withMesh } from "./fixture.ts";
import { labTest } from "./support.ts";

/** A second agent on a node must leave the first one's link, ports and rules alone. */
const JOIN_ONLY = ["dns", "forward", "tunnel"].flatMap((module) => ["--set", `${module}.enabled=false`])
  .concat("--set", "mesh.interface=t0");

labTest("join: refusals say what is wrong and what to do", async (t) => {
  await withMesh({ sites: [{ nat: "cone" }], cloud: "none", web: [] }, async (mesh) => {
    const node = mesh.topology.node("edge-1");
    await mesh.startServer();

    await t.step("never joined and nothing to join with: one sentence, exit code 2", async () => {
      const result = await node.run(["agent", "--node-name", "edge-1"]);
      assert.equal(result.code, 2);
      assert.match(
        result.stderr,
        /^error: This machine has not joined a mesh yet, and --server, --ca-pin, --token-file are not given; try: run `edgemesh token create`/,
      );
      assert.equal(result.stderr.trim().split("\n").length, 1);
    });
    await t.step("a wrong token", async () => {
      const good = await mesh.token();
      const result = await tryJoin(mesh, node, { ...good, token: good.token.slice(0, -4) + "aaaa" });
      refused(result, /token/, /token create/);
    });
    await t.step("an expired token", async () => {
      const token = await mesh.token(["--ttl", "1s"]);
      await pause(1100);
      refused(await tryJoin(mesh, node, token), /expired/, /token create/);
    });
    await t.step("a token that is bound to another name", async () => {
      refused(await tryJoin(mesh, node, await mesh.token(["--node", "other"])), /other/, /./);
    });
    await t.step("a wrong pin", async () => {
      const good = await mesh.token();
      const pin = good.pin.replace(/[0-9a-f]{4}$/, (end) => end === "0000" ? "1111" : "0000");
      const result = await tryJoin(mesh, node, { ...good, pin });
      refused(result, /sha256:/, /./);
      assert.ok(result.stderr.includes(good.pin) && result.stderr.includes(pin), "both pins are named");
    });
    await t.step("a clock that is an hour off: the sentence names the skew", async () => {
      const result = await tryJoin(mesh, node, await mesh.token(), { clock: { offsetSeconds: 3600 } });
      refused(result, /the clock of this machine is 1 h ahead/, /`date -u -s @\d+`.*NTP/);
    });
    await t.step("nothing of the refusals is left: a good token still joins, and is deleted", async () => {
      const agent = await mesh.join(node);
      assert.match(await agent.log(), /joined/);
      await assert.rejects(Deno.stat(node.host.path("/etc/edgemesh/join-token")), Deno.errors.NotFound);
    });
    await t.step("a used-up token", async () => {
      const used = await mesh.token();
      const apart = (dir: string) => ({ flags: ["--state-dir", dir, "--run-dir", `${dir}-run`, ...JOIN_ONLY] });
      const args = await joinArgs(mesh, node, used, { name: "edge-x", ...apart("/var/lib/first") });
      const first = await node.start("first", args, { ready: { log: /"joined"/ } });
      await first.stop();
      const second = await tryJoin(mesh, node, used, { name: "edge-y", ...apart("/var/lib/second") });
      refused(second, /used/, /token create/);
    });
    await t.step("a known node name with another key is never taken over by a token", async () => {
      const result = await tryJoin(mesh, node, await mesh.token(), {
        flags: ["--state-dir", "/var/lib/thief", "--run-dir", "/run/thief"],
      });
      refused(result, /edge-1/, /./);
      assert.match(result.stderr, /key/);
    });
  });
});

labTest("join: afterwards the name alone suffices, also with the server gone", async () => {
  await withMesh({ sites: [{ nat: "cone" }], cloud: "none", web: [] }, async (mesh) => {
    const node = mesh.topology.node("edge-1");
    await startAll(mesh);
    await mesh.stopAgent(node);
    await mesh.startAgent(node);
    await mesh.stopAgent(node);
    await mesh.stopServer("kill");
    const agent = await mesh.startAgent(node);
    assert.match(await agent.log(), /metadata loaded from disk/);
  });
});

labTest("clock: a joined agent works with its clock at 1970 and a week ahead", async (t) => {
  await withMesh({ sites: [{ nat: "cone" }, { nat: "cone" }], cloud: "none" }, async (mesh) => {
    const { topology } = mesh;
    await mesh.writeManifest("web.yaml", webService("web", "10.96.0.10", [topology.pod("edge-2-pod-1")]));
    await startAll(mesh);
    const node = topology.node("edge-1");
    const clocks: Record<string, FakeTime> = {
      "1970": { startAt: new Date(0) },
      "a week ahead": { offsetSeconds: 7 * 86400 },
    };
    for (const [name, clock] of Object.entries(clocks)) {
      await t.step(name, async () => {
        await mesh.stopAgent(node);
        await mesh.startAgent(node, { clock });
        const { body, stderr } = await curl(topology.pod("edge-1-pod-1"), "http://10.96.0.10/");
        assert.equal(body, "edge-2-pod-1 on edge-2", stderr);
        const status = await mesh.status(node);
        const warning = status.warnings.find((w) => w.code === "CLOCK_SKEW");
        assert.ok(warning, "status says nothing of the clock");
        tell(warning.text);
      });
    }
  });
});

labTest("server: a second one on the same state is refused with a sentence", async () => {
  await withMesh({ sites: [], cloud: "none", web: [] }, async (mesh) => {
    await mesh.startServer();
    const second = await mesh.topology.server.start("second", ["server", "--listen", "127.0.0.1:9443"]);
    const { code, log } = await outcome(second);
    assert.equal(code, 1);
    assert.match(log, /Another edgemesh server uses the state/);
  });
});

interface Attempt {
  readonly name?: string;
  readonly flags?: readonly string[];
  readonly clock?: FakeTime;
}

/** Runs the agent with a token to its end: what a refusal looks like. */
async function tryJoin(mesh: Mesh, node: LabNode, token: JoinToken, options: Attempt = {}): Promise<ExecResult> {
  const args = await joinArgs(mesh, node, token, options);
  if (!options.clock) return await node.run(args, { timeoutMs: 15_000 });
  const process = await node.start("attempt", args, { clock: options.clock });
  const { code, log } = await outcome(process);
  return { code, stdout: "", stderr: log, ms: 0 };
}

async function joinArgs(mesh: Mesh, node: LabNode, token: JoinToken, options: Attempt): Promise<string[]> {
  const file = "/etc/edgemesh/attempt";
  await Deno.mkdir(node.host.path("/etc/edgemesh"), { recursive: true });
  await Deno.writeTextFile(node.host.path(file), token.token);
  const join = ["--server", mesh.url, "--ca-pin", token.pin, "--token-file", file];
  return ["agent", "--node-name", options.name ?? node.name, ...join, ...options.flags ?? []];
}

function refused(result: ExecResult, what: RegExp, hint: RegExp): void {
  const sentence = result.stderr.trim().split("\n").find((line) => line.startsWith("error: ")) ?? "";
  assert.equal(result.code, 1, result.stderr);
  assert.match(sentence, what);
  assert.match(sentence, /; try: /);
  assert.match(sentence.slice(sentence.indexOf("; try: ")), hint);
  tell(sentence);
}
