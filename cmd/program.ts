/**
 * The command line: names, flags, help and exit codes. Each command's work is in its own file, loaded only when it is
 * called, so that `edgemesh version` and the agent pay for nothing they do not use.
 *
 * Exit codes: 0 done; 1 it failed; 2 wrong usage or configuration; 3 nothing is running to ask.
 */
import { Command, CommanderError } from "commander";
import { describe, MeshError } from "../lib/errors.ts";
import { NotRunningError } from "./admin_client.ts";
import { daemon, outputs, sockets } from "./options.ts";
import { printError } from "./output.ts";
import { addOperatingCommands } from "./program_operate.ts";
import { addServerCommands } from "./program_server.ts";

export const EXIT = { ok: 0, failed: 1, usage: 2, notRunning: 3 } as const;

/** Runs one command line and returns the exit code. */
export async function runProgram(args: readonly string[]): Promise<number> {
  let code: number = EXIT.ok;
  const program = buildProgram((result) => code = result);
  try {
    await program.parseAsync([...args], { from: "user" });
    return code;
  } catch (e) {
    if (e instanceof CommanderError) return e.exitCode === 0 ? EXIT.ok : EXIT.usage;
    printError(describe(e));
    if (e instanceof NotRunningError) return EXIT.notRunning;
    return e instanceof MeshError && e.code === "CONFIG_INVALID" ? EXIT.usage : EXIT.failed;
  }
}

/** Builds the command tree; `done` takes the exit code of the command that ran. Exported for completion and docs tests. */
export function buildProgram(done: (code: number) => void): Command {
  const program = new Command("edgemesh")
    .description("Service mesh for edge nodes behind NATs: one agent per node, one server in the cloud.")
    .configureHelp({ sortSubcommands: false, showGlobalOptions: false })
    .exitOverride()
    // What follows a command's name is that command's: `server join --name` is not `server --name`.
    .enablePositionalOptions()
    .showHelpAfterError("(run with --help for usage)")
    .showSuggestionAfterError(true)
    .addHelpText(
      "after",
      `
Start here:
  server host   edgemesh server --manifests /etc/edgemesh/manifests
                edgemesh token create                     prints the join command for a node
  edge host     edgemesh agent --node-name edge-1 --server wss://HOST --ca-pin sha256:… --token-file FILE
                edgemesh agent --node-name edge-1         ever after
                edgemesh status
  one machine   sudo edgemesh demo                        the whole mesh in network namespaces, in a minute`,
    );
  program.helpCommand("help [command]", "show help for a command");

  daemon(program.command("agent"), "agent")
    .description("Run the agent of this node")
    .option("--node-name <name>", "name of this node (one DNS label)")
    .option("--server <url...>", "server to join and stay connected to, like wss://mesh.example.com; up to three")
    .option("--token-file <file>", "join token, or - for stdin; deleted after the join")
    .option("--ca-pin <pin>", "sha256:… of the server's authority, from the join command")
    .action(async (flags) => done(await (await import("./agent.ts")).agentCommand(flags)));

  addServerCommands(program, done);

  outputs(sockets(program.command("status"))).description("Show what the agent or server on this host does and why")
    .option("--services", "only Services: each endpoint, its way and the reason")
    .option("--peers", "only peers: path, round trip, and why it is not better")
    .option("-w, --watch [interval]", "again and again, like every 2s, until interrupted")
    .action(async (flags) => done(await (await import("./status.ts")).statusCommand(flags)));

  outputs(program.command("resolve <name> [type]")).description(
    "Ask this node's DNS for a name and say why it answers so",
  )
    .option("--run-dir <dir>", "folder of the admin sockets", "/run/edgemesh")
    .action(async (name, type, flags) =>
      done(await (await import("./resolve.ts")).resolveCommand(name, type ?? "A", flags))
    );

  addOperatingCommands(program, done);

  const token = program.command("token").description("Join tokens, on the server host");
  outputs(sockets(token.command("create"), "server")).description("Create a token and print the join command")
    .option("--node <name>", "only this node may use it")
    .option("--server <name>", "for a server of this name, which gets the authority's key with it")
    .option("--ttl <duration>", "how long it is good for, like 30m, 1h, 7d", "1h")
    .option("--uses <count>", "how many nodes may join with it", "1")
    .action(async (flags) => done(await (await import("./token.ts")).tokenCreate(flags)));
  outputs(sockets(token.command("list"), "server")).description("List tokens; secrets are not kept and cannot be shown")
    .action(async (flags) => done(await (await import("./token.ts")).tokenList(flags)));
  sockets(token.command("revoke <id>"), "server").description("Revoke a token")
    .action(async (id, flags) => done(await (await import("./token.ts")).tokenRevoke(id, flags)));

  const node = program.command("node").description("Enrolled nodes, on the server host");
  outputs(sockets(node.command("list"), "server")).description("List enrolled nodes")
    .action(async (flags) => done(await (await import("./node.ts")).nodeList(flags)));
  sockets(node.command("reset <name>"), "server").description(
    "Let a re-imaged machine join again under its name; revokes its old key",
  )
    .action(async (name, flags) => done(await (await import("./node.ts")).nodeReset(name, flags)));
  sockets(node.command("remove <name>"), "server").description("Revoke a decommissioned or stolen node")
    .action(async (name, flags) => done(await (await import("./node.ts")).nodeRemove(name, flags)));

  program.command("demo [command...]").description(
    "Run the whole mesh on this machine in network namespaces and show what it does",
  )
    .option("--keep", "leave everything running for a look; remove it later with --clean")
    .option("--enter <machine>", "a shell, or a command after --, on a machine of a demo that was kept")
    .option("--clean", "remove what an earlier demo left, also after a crash")
    .action(async (command, flags) => done(await (await import("./demo/demo.ts")).demoCommand(command, flags)));

  program.command("cleanup").description("Remove rules, links and routes that an agent left on this host")
    .option("--state", "also remove the node's identity and snapshot: it must join again")
    .option("--config <file>", "configuration of the agent, if it is not the default")
    .action(async (flags) => done(await (await import("./cleanup.ts")).cleanupCommand(flags)));

  outputs(program.command("version")).description("Version, commit and form of this executable")
    .action(async (flags) => done(await (await import("./version.ts")).versionCommand(flags)));

  program.command("service-hook <when>", { hidden: true })
    .action(async (when) => done(await (await import("./service_hook.ts")).serviceHookCommand(when)));

  program.command("lab-delay", { hidden: true }).allowUnknownOption().allowExcessArguments()
    .action(async (_flags, command: Command) =>
      done(await (await import("./lab_delay.ts")).labDelayCommand(command.args))
    );
  return program;
}
