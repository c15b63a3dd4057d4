/** `edgemesh demo`: the whole mesh on one machine, with the executable that is running. */
import { systemClock } from "../../lib/clock.ts";
import { describe, MeshError } from "../../lib/errors.ts";
import { records } from "../../lib/lab/registry.ts";
import { print } from "../output.ts";
import { cleanDemo, enterDemo, keepDemo } from "./keep.ts";
import { offlineSteps } from "./offline_steps.ts";
import { pathSteps } from "./path_steps.ts";
import { difference, milliseconds, must, Report } from "./report.ts";
import { costSteps, joinSteps, securitySteps, survivalSteps, trafficSteps } from "./steps.ts";
import { buildWorld, type World } from "./world.ts";

export interface DemoFlags {
  readonly keep?: boolean;
  readonly clean?: boolean;
  /** Name of a machine of the kept demo. */
  readonly enter?: string;
}

/**
 * 0 = everything was shown; 1 = something was not, and where the logs are. With `enter` it is the exit code of `command`,
 * which runs on a machine of a kept demo.
 */
export async function demoCommand(command: readonly string[], flags: DemoFlags): Promise<number> {
  if (flags.clean) return await cleanDemo();
  if (flags.enter !== undefined) return await enterDemo(flags.enter, command, ownCommand()[0]!);
  if (command.length > 0) {
    throw new MeshError("CONFIG_INVALID", `A command needs a machine to run on: ${command.join(" ")}`, {
      hint: `edgemesh demo --enter edge-1 -- ${command.join(" ")}`,
    });
  }
  const started = systemClock.now();
  const host = await hostState();
  print(
    "Three sites behind NATs, a cloud node and a server, in network namespaces of this machine; 40 ms to the server.",
  );
  const world = await buildWorld(ownCommand());
  const report = new Report();
  let logs: string | undefined;
  try {
    if (await joinSteps(world, report)) {
      await trafficSteps(world, report);
      await pathSteps(world, report);
      await survivalSteps(world, report);
      await offlineSteps(world, report);
      await securitySteps(world, report);
      await costSteps(world, report);
    }
    if (report.failed.length > 0) logs = await keepLogs(world);
  } catch (e) {
    logs = await keepLogs(world).catch(() => world.topology.lab.dir);
    print(`error: ${describe(e)}`);
  } finally {
    if (!flags.keep) await world.topology.close();
  }
  if (!flags.keep) {
    await report.step("this machine is as it was", async () => {
      const after = await hostState();
      must(after === host, `namespaces, links, routes or rules differ:\n${difference(host, after)}`);
      must(!(await records()).some((r) => r.id === world.topology.lab.id), "the lab is still registered");
      return { value: "namespaces, links, rules compared" };
    });
  }
  report.summary();
  const time = milliseconds(systemClock.now() - started);
  if (flags.keep) print(await keepDemo(world));
  if (report.failed.length > 0 || logs !== undefined) {
    print(`\ndemo: failed: ${report.failed.join("; ") || "see above"}\nlogs: ${logs ?? world.topology.lab.dir}`);
    return 1;
  }
  print(`\ndemo: ok (${time})`);
  return 0;
}

/** How this very executable is started: the built file, or the pinned Deno in a checkout. */
function ownCommand(): readonly string[] {
  const exe = Deno.env.get("EDGEMESH_EXE");
  if (exe) return [exe];
  const main = new URL("../../main.ts", import.meta.url);
  if (main.protocol === "file:" && Deno.execPath().endsWith("deno")) {
    return [Deno.execPath(), "run", "-A", main.pathname];
  }
  if (!Deno.execPath().endsWith("deno")) return [Deno.execPath()];
  throw new MeshError("INTERNAL", "The path of this executable is not known");
}

/** The machine's own namespaces, links and rules: what the demo must leave alone. */
async function hostState(): Promise<string> {
  const { stdout } = await new Deno.Command("sh", {
    args: ["-c", "ip netns list | grep -v '^em-' | sort; ip -br link; ip route show table all; nft list ruleset"],
    stderr: "null",
  }).output();
  return new TextDecoder().decode(stdout);
}

/** Copies the logs out of the lab's folder, which goes with the lab. */
async function keepLogs(world: World): Promise<string> {
  const from = world.topology.lab.dir;
  const to = await Deno.makeTempDir({ prefix: "edgemesh-demo-logs-" });
  for await (const host of Deno.readDir(from)) {
    if (!host.isDirectory || host.name.endsWith(".root")) continue;
    for await (const file of Deno.readDir(`${from}/${host.name}`)) {
      if (file.name.endsWith(".log")) {
        await Deno.copyFile(`${from}/${host.name}/${file.name}`, `${to}/${host.name}.${file.name}`);
      }
    }
  }
  return to;
}
