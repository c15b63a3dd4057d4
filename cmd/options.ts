/** Flags that several commands share, so that they are called and explained alike. */
import { type Command, Option } from "commander";

/** Flags of a long-running role. */
export function daemon(command: Command, role: "agent" | "server"): Command {
  return command
    .option("--config <file>", `configuration file (default /etc/edgemesh/${role}.yaml, if it exists)`)
    .option("--set <path=value...>", "any configuration value, like --set dns.zone=edge.local")
    .option("--manifests <dir>", "folder of Kubernetes YAML")
    .option("--state-dir <dir>", `state, default /var/lib/edgemesh/${role}`)
    .option("--run-dir <dir>", "admin socket, default /run/edgemesh")
    .addOption(new Option("--log-level <level>", "trace, debug, info, warn or error"));
}

/** Text for people, or a document for programs. */
export function outputs(command: Command): Command {
  return command.addOption(
    new Option("-o, --output <format>", "text, json or yaml").choices(["text", "json", "yaml"]).default("text"),
  );
}

/** Where the running process is found; `only`: one role alone can answer. */
export function sockets(command: Command, only?: "agent" | "server"): Command {
  command.option("--run-dir <dir>", "folder of the admin sockets", "/run/edgemesh");
  return only ? command : roles(command, "which of the two to ask");
}

/** `--role`, for commands that make sense for both. */
export function roles(command: Command, help: string): Command {
  return command.addOption(new Option("--role <role>", help).choices(["agent", "server"]));
}
