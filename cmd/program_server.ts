/** `edgemesh server` and the commands about servers below it. */
import type { Command } from "commander";
import { daemon, outputs, sockets } from "./options.ts";

export function addServerCommands(program: Command, done: (code: number) => void): void {
  const server = daemon(program.command("server"), "server")
    .description("Run the server: authority, rendezvous, relay, metadata")
    // A command below has flags of the same names: what follows its name is its own.
    .enablePositionalOptions()
    .option("--name <name>", "name of this server in its certificate")
    .option("--listen <address:port>", "control connections and relay (default 0.0.0.0:443)")
    .option("--url <url>", "address that agents use, printed in join commands")
    .action(async (flags) => done(await (await import("./server.ts")).serverCommand(flags)));

  server.command("join").description("Make this host another server of a mesh; run once, before it is started")
    .requiredOption("--server <url>", "a server of the mesh, like wss://mesh.example.com")
    .requiredOption("--ca-pin <pin>", "sha256:… of the mesh's authority, from `edgemesh token create --server NAME`")
    .requiredOption("--token-file <file>", "the token, or - for stdin; deleted after the join")
    .option("--name <name>", "name of this server in its certificate")
    .option("--url <url>", "address under which agents and the other servers find this one")
    .option("--config <file>", "configuration file (default /etc/edgemesh/server.yaml, if it exists)")
    .option("--set <path=value...>", "any configuration value")
    .option("--state-dir <dir>", "state, default /var/lib/edgemesh/server")
    .action(async (flags) => done(await (await import("./server/join.ts")).serverJoin(flags)));
  outputs(sockets(server.command("list"), "server")).description("List the servers of this mesh")
    .action(async (flags) => done(await (await import("./servers.ts")).serverList(flags)));
  const ca = server.command("ca").description("Replace the authority of the mesh, without anybody joining again");
  outputs(sockets(ca.command("status"), "server")).description("Show the authority, and how far a rotation is")
    .action(async (flags) => done(await (await import("./authority.ts")).caStatus(flags)));
  outputs(sockets(ca.command("rotate"), "server")).description("Make a new authority and announce it to all agents")
    .option("--overlap <duration>", "how long both are trusted, like 1h, 30d", "30d")
    .action(async (flags) => done(await (await import("./authority.ts")).caStep("rotate", flags)));
  for (
    const [step, description] of [
      ["switch", "Give nodes certificates of the new authority now"],
      ["finish", "Drop the authority that is leaving now"],
    ] as const
  ) {
    outputs(sockets(ca.command(step), "server")).description(description)
      .option("--force", "also where nodes are left behind that were not connected since")
      .action(async (flags) => done(await (await import("./authority.ts")).caStep(step, flags)));
  }
  outputs(sockets(ca.command("rollback"), "server")).description("Take a rotation back")
    .action(async (flags) => done(await (await import("./authority.ts")).caStep("rollback", flags)));
  sockets(server.command("remove <name>"), "server").description("Take a server out of the mesh")
    .action(async (name, flags) => done(await (await import("./servers.ts")).serverRemove(name, flags)));
}
