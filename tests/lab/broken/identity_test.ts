/** Two machines with one identity, and an agent of another version, produced for real: what is said about each. */
import assert from "node:assert/strict";
import { until } from "../../../lib/lab/exec.ts";
import { longLabTest } from "../support.ts";
import { lineSays, onBed, row, warningSays } from "./bed.ts";

const STATE = "/var/lib/edgemesh/agent";
const ROOT = new URL("../../..", import.meta.url).pathname;

longLabTest("two nodes with one name, and another version: named where a person looks", async (t) => {
  await onBed({ sites: [{ nat: "cone" }, { nat: "cone" }], web: [] }, async (bed) => {
    const { topology } = bed.mesh;
    await t.step("two nodes with one name", async () => {
      await bed.agent({ ready: /connected to server/ }, async () => {
        // A machine that was cloned with its disk: the same name, and the same key.
        const clone = topology.node("edge-2");
        await Deno.mkdir(clone.host.path(STATE), { mode: 0o700 });
        for await (const { name, isFile } of Deno.readDir(bed.node.host.path(STATE))) {
          if (!isFile || name === "lock") continue;
          await Deno.copyFile(bed.node.host.path(`${STATE}/${name}`), clone.host.path(`${STATE}/${name}`));
        }
        const other = await clone.start("agent", ["agent"], { ready: { log: /connected to server/ } });
        const warning = await bed.warning("REPLACED");
        const what = /node edge-1 connected again from 203\.0\.113\.20/;
        row(
          "two nodes with one name",
          "status",
          warningSays(warning, what, /another machine runs with this node's name/),
        );
        lineSays(await bed.line("connected", "fail"), what, /another machine runs with this node's name/);
        assert.match(await bed.mesh.server.log(), /agent connected anew, older connection closed/);
        await other.stop();
      });
    });
    // Programs of the checkout with another number in them: what another release is.
    await t.step("version skew, compatible", async () => {
      const agent = await variant("lib/version.ts", 'VERSION = "0.1.0"', 'VERSION = "0.0.9"');
      const running = await bed.node.host.start("agent", [...agent, "agent"], {
        ready: { log: /connected to server/ },
      });
      const line = await until("check to compare", async () => {
        const { stdout } = await bed.node.host.exec([...agent, "check", "-o", "json"]);
        const { checks } = JSON.parse(stdout) as {
          checks: { name: string; state: "warn"; text: string; hint: string }[];
        };
        return checks.find((c) => c.name === "version" && c.text.startsWith("the server is"));
      });
      row(
        "version skew",
        "check",
        lineSays(line, /the server is 0\.1\.0, this agent 0\.0\.9/, /upgrade the server first/),
      );
      const server = await topology.server.run(["check", "--role", "server"]);
      assert.match(server.stdout, /‼ edge-1 is 0\.0\.9, this server 0\.1\.0\n {4}try: upgrade edge-1/);
      await running.stop();
    });
    await t.step("version skew, nothing in common", async () => {
      const agent = await variant("lib/tunnel/control/message.ts", "CONTROL_VERSION = 1", "CONTROL_VERSION = 9");
      const running = await bed.node.host.start("agent", [...agent, "agent"]);
      const warning = await until("the server's refusal", async () => {
        return (await bed.status().catch(() => undefined))?.warnings.find((w) => /control version/.test(w.text));
      });
      const what = /server speaks control version 1, not 9/;
      row("version skew, incompatible", "status", warningSays(warning, what, /upgrade the older of the two/));
      await running.stop();
    });

    /** The checkout with one line changed, as a command. */
    async function variant(file: string, from: string, to: string): Promise<readonly string[]> {
      const dir = `${topology.lab.dir}/variant-${crypto.randomUUID().slice(0, 8)}`;
      await Deno.mkdir(dir);
      const copy = new Deno.Command("cp", {
        args: ["-r", ...["lib", "cmd", "main.ts", "deno.json", "deno.lock"].map((name) => ROOT + name), dir],
      });
      assert.ok((await copy.output()).success);
      const text = await Deno.readTextFile(`${dir}/${file}`);
      assert.ok(text.includes(from), `${file} has no ${from}`);
      await Deno.writeTextFile(`${dir}/${file}`, text.replace(from, to));
      return [`${ROOT}scripts/deno`, "run", "-A", "--quiet", `${dir}/main.ts`];
    }
  });
});
