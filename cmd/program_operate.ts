/** The operating commands of the command line: what looks at, explains and checks a mesh that exists. */
import { Argument, type Command } from "commander";
import { LOG_LEVELS } from "../lib/log.ts";
import { outputs, roles, sockets } from "./options.ts";

/** Adds them to the tree; `done` takes the exit code of the command that ran. */
export function addOperatingCommands(program: Command, done: (code: number) => void): void {
  addConfig(program, done);
  outputs(sockets(program.command("check")))
    .description("Check everything this host's agent or server needs and does, with a hint per finding")
    .option("--pre", "check a host before the agent is started or installed")
    .option("--strict", "exit code 1 on warnings too")
    .option("--category <name...>", "only these: system, network, server, agent, names, identity, mesh")
    .option("--wait [time]", "look again until nothing fails, at most so long, like 60s")
    .option("--config <file>", "configuration for --pre, if it is not the default")
    .option("--set <path=value...>", "configuration values for --pre, like --set server=wss://HOST")
    .action(async (flags) => done(await (await import("./check/check.ts")).checkCommand(flags)));
  outputs(sockets(program.command("ping <node-or-service>"), "agent"))
    .description("Measure the way to a node, or to the nodes behind a Service, and say which path each reply took")
    .option("-c, --count <n>", "pings per node; 0 = until interrupted", "10")
    .option("--timeout <time>", "how long to wait for a reply, like 5s or 500ms", "5s")
    .option("--interval <time>", "between two pings", "1s")
    .option("--no-until-direct", "go on although the path is direct")
    .addHelpText("after", "\nIt stops as soon as the path is direct. Exit code 1: no reply at all.")
    .action(async (name, flags) => done(await (await import("./ping.ts")).pingCommand(name, flags)));
  outputs(program.command("netcheck"))
    .description("Measure the way to each server; how they see this node, the NAT in between, clocks, proxies")
    .option("--run-dir <dir>", "folder of the admin sockets", "/run/edgemesh")
    .option("--config <file>", "configuration, if it is not the default")
    .option("--set <path=value...>", "configuration values, like --set server=wss://HOST before the join")
    .action(async (flags) => done(await (await import("./netcheck.ts")).netcheckCommand(flags)));
  addTables(program, done);
  outputs(program.command("support-bundle"))
    .description("Collect status, configuration, rules, routes and log lines in a file to hand over; without secrets")
    .option("--file <file>", "where to write it (default edgemesh-support-TIME.tar.gz here)")
    .option("--config <file>", "configuration, if it is not the default")
    .option("--run-dir <dir>", "folder of the admin sockets", "/run/edgemesh")
    .action(async (flags) => done(await (await import("./bundle/bundle.ts")).bundleCommand(flags)));
  program.command("completion").addArgument(new Argument("<shell>").choices(["bash", "zsh", "fish"]))
    .description("Print a completion script: source <(edgemesh completion bash)")
    .action(async (shell) => done((await import("./completion.ts")).completionCommand(shell, program)));
  sockets(program.command("log").description("What the running process says").command("level")).addArgument(
    new Argument("<level>").choices([...LOG_LEVELS]),
  )
    .description("Change the level of a running agent or server until its next start or reload")
    .action(async (level, flags) => done(await (await import("./log.ts")).logLevelCommand(level, flags)));
}

function addTables(program: Command, done: (code: number) => void): void {
  outputs(sockets(program.command("services"), "agent"))
    .description("List Services with their addresses and the ways of their endpoints")
    .option("-n, --namespace <name>", "only of this namespace")
    .action(async (flags) => done(await (await import("./services.ts")).servicesCommand(flags)));
  outputs(sockets(program.command("endpoints <service>"), "agent"))
    .description("List a Service's endpoints: node, way and why; exit code 1 when there is none")
    .action(async (name, flags) => done(await (await import("./services.ts")).endpointsCommand(name, flags)));
  outputs(sockets(program.command("connections"), "agent"))
    .description(
      "Show the connections that the agent carries (who, Service, endpoint, way, age, bytes), and sums per Service",
    )
    .action(async (flags) => done(await (await import("./services.ts")).connectionsCommand(flags)));
}

function addConfig(program: Command, done: (code: number) => void): void {
  const config = program.command("config").description("Check, show and describe the configuration");
  outputs(roles(config.command("validate [file]"), "which role's (default: by the file's name, else agent)"))
    .description("Report every problem with path, line and suggestion; exit code 2 if there is one")
    .option("--config <file>", "the same as naming the file")
    .option("--set <path=value...>", "values as given to the agent or server")
    .action(async (file, flags) => done(await (await import("./config.ts")).configValidate(file, flags)));
  outputs(roles(config.command("show"), "which role's (default: whichever has a file here, else agent)"))
    .description("Show the values in force at the next start, and where each was said; secrets are masked")
    .option("--config <file>", "configuration file, if it is not the default")
    .option("--set <path=value...>", "values as given to the agent or server")
    .action(async (flags) => done(await (await import("./config.ts")).configShow(flags)));
  outputs(config.command("convert <file>"))
    .description("Convert a configuration of KubeEdge's EdgeMesh; each line that has no place here is named")
    .addHelpText("after", "\nIt takes edgemesh-agent.yaml, edgemesh-gateway.yaml, or the ConfigMap that holds one.")
    .action(async (file, flags) => done(await (await import("./config.ts")).configConvert(file, flags)));
  outputs(config.command("schema")).addArgument(new Argument("<role>").choices(["agent", "server"]))
    .description("JSON Schema of the configuration file, for editors")
    .action(async (role, flags) => done(await (await import("./config.ts")).configSchema(role, flags)));
}
