/** A demo that stays: its agents run again, and a shell on each of its machines is one command away. */
import { basename, dirname } from "node:path";
import { MeshError } from "../../lib/errors.ts";
import { enterCommand, machines } from "../../lib/lab/host.ts";
import { type LabRecord, records, removeLab, sweep } from "../../lib/lab/registry.ts";
import { print } from "../output.ts";
import type { World } from "./world.ts";

/** Starts the agents that the last step stopped, and leaves everything standing; returns what to say about it. */
export async function keepDemo(world: World): Promise<string> {
  await Promise.all(world.topology.nodes.map((node) => world.mesh.startAgent(node)));
  await world.topology.internet.stay();
  await world.topology.lab.keep();
  return `
Everything is running and stays. Look around, for example:
  edgemesh demo --enter edge-1                               a shell on a node; also: ${
    world.topology.nodes.slice(1).map((node) => node.name).join(", ")
  }, server, edge-1-pod-1 ...
  edgemesh demo --enter edge-1 -- edgemesh status
  edgemesh demo --enter edge-1 -- edgemesh ping edge-2 -c 3
  edgemesh demo --enter edge-1-pod-1 -- curl -s http://web-edge.default.svc.cluster.local/
  edgemesh demo --enter server -- edgemesh node list
Remove it with: edgemesh demo --clean`;
}

/** Removes whatever demos and labs left on this machine whose process is gone, and a kept demo. */
export async function cleanDemo(): Promise<number> {
  await sweep();
  for (const record of await records()) await removeLab(record);
  print("demo: nothing is left of earlier runs");
  return 0;
}

/**
 * Runs a command, by default a shell, on a machine of the kept demo, with this executable in PATH. Returns its exit code.
 * Throws MeshError CONFIG_INVALID without a kept demo or such a machine.
 */
export async function enterDemo(machine: string, command: readonly string[], executable: string): Promise<number> {
  const lab = await keptLab();
  const argv = await enterCommand(lab, machine, [
    "env",
    `PATH=${dirname(executable)}:${Deno.env.get("PATH") ?? ""}`,
    ...command.length > 0 ? command : [Deno.env.get("SHELL") ?? "/bin/sh"],
  ]);
  if (argv === undefined) {
    throw new MeshError("CONFIG_INVALID", `The demo has no machine ${JSON.stringify(machine)}`, {
      hint: `one of: ${(await machines(lab)).join(", ")}`,
    });
  }
  if (command.length === 0) print(`On ${machine}; ${basename(executable)} is in PATH; leave with: exit`);
  const [program, ...args] = argv;
  const child = new Deno.Command(program!, { args, stdin: "inherit", stdout: "inherit", stderr: "inherit" }).spawn();
  // Ctrl-C is for the program in front, as in any shell.
  const ignore = () => {};
  Deno.addSignalListener("SIGINT", ignore);
  const { code } = await child.status;
  Deno.removeSignalListener("SIGINT", ignore);
  return code;
}

async function keptLab(): Promise<LabRecord> {
  const kept = (await records()).filter((record) => record.kept);
  if (kept.length === 0) {
    throw new MeshError("CONFIG_INVALID", "No demo was kept", { hint: "edgemesh demo --keep" });
  }
  return kept.at(-1)!;
}
