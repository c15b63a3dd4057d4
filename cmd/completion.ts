/** `edgemesh completion`: shell completion generated from the command tree, so that it cannot lag behind it. */
import type { Command } from "commander";
import { print } from "./output.ts";

export type Shell = "bash" | "zsh" | "fish";

/** Prints the script for a shell. */
export function completionCommand(shell: Shell, program: Command): number {
  print(completionScript(shell, program).trimEnd());
  return 0;
}

/** One place in the command tree. */
export interface Level {
  /** Words that lead here, without the program's name: `config validate`; empty at the top. */
  readonly path: string;
  readonly commands: readonly Word[];
  readonly options: readonly (Word & { readonly choices: readonly string[]; readonly takesFile: boolean })[];
  /** Fixed values of the first argument. */
  readonly values: readonly string[];
}

interface Word {
  readonly name: string;
  readonly help: string;
}

/** The visible tree, top first. */
export function levels(command: Command, path = ""): Level[] {
  const visible = command.createHelp().visibleCommands(command).filter((c) => c.name() !== "help");
  const own: Level = {
    path,
    commands: visible.map((c) => ({ name: c.name(), help: c.description() })),
    options: command.createHelp().visibleOptions(command).flatMap((o) => {
      const choices = o.argChoices ?? [];
      const takesFile = /<(file|dir)>/.test(o.flags);
      return [o.short, o.long].filter((n) => n !== undefined && n !== null).map((name) => ({
        name,
        help: o.description,
        choices,
        takesFile,
      }));
    }),
    values: command.registeredArguments[0]?.argChoices ?? [],
  };
  return [own, ...visible.flatMap((c) => levels(c, path === "" ? c.name() : `${path} ${c.name()}`))];
}

/** The script as text; `program` is the tree. */
export function completionScript(shell: Shell, program: Command): string {
  const all = levels(program);
  switch (shell) {
    case "bash":
      return bash(all);
    case "zsh":
      return zsh(all);
    case "fish":
      return fish(all);
  }
}

function words(level: Level): string {
  return [...level.commands.map((c) => c.name), ...level.values, ...level.options.map((o) => o.name)].join(" ");
}

function choiceCases(all: readonly Level[], line: (names: string, choices: string) => string): string {
  const seen = new Map<string, Set<string>>();
  for (const { path, options } of all) {
    for (const o of options) {
      if (o.choices.length > 0) add(seen, o.choices.join(" "), `${path} ${o.name}`);
    }
  }
  return [...seen].map(([choices, names]) => line([...names].map((n) => `'${n}'`).join("|"), choices)).join("\n");
}

function bash(all: readonly Level[]): string {
  const paths = all.filter((l) => l.path !== "").map((l) => `'${l.path}'`).join("|");
  return `# edgemesh completion for bash: source <(edgemesh completion bash)
_edgemesh() {
  local cur="\${COMP_WORDS[COMP_CWORD]}" prev="\${COMP_WORDS[COMP_CWORD-1]}" path="" word next list=""
  for word in "\${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    next="\${path:+$path }$word"
    case "$next" in ${paths}) path="$next" ;; esac
  done
  case "$path $prev" in
${choiceCases(all, (names, choices) => `    ${names}) list='${choices}' ;;`)}
  esac
  if [ -z "$list" ]; then
    case "$path" in
${all.map((l) => `      '${l.path}') list='${words(l)}' ;;`).join("\n")}
    esac
  fi
  mapfile -t COMPREPLY < <(compgen -W "$list" -- "$cur")
}
complete -o default -F _edgemesh edgemesh
`;
}

function zsh(all: readonly Level[]): string {
  const paths = all.filter((l) => l.path !== "").map((l) => `'${l.path}'`).join("|");
  return `#compdef edgemesh
# edgemesh completion for zsh: edgemesh completion zsh > "\${fpath[1]}/_edgemesh"
_edgemesh() {
  local path="" word next
  local -a list
  for word in "\${words[@]:1:$((CURRENT-2))}"; do
    next="\${path:+$path }$word"
    case "$next" in (${paths}) path="$next" ;; esac
  done
  case "$path \${words[CURRENT-1]}" in
${choiceCases(all, (names, choices) => `    (${names}) compadd -- ${choices}; return ;;`)}
  esac
  case "$path" in
${
    all.map((l) => {
      const items = [...l.commands, ...l.values.map((name) => ({ name, help: "" })), ...l.options];
      return `    ('${l.path}') list=(${
        items.map((w) => quote(`${w.name.replaceAll(":", "\\:")}${w.help ? `:${w.help}` : ""}`)).join(" ")
      }) ;;`;
    }).join("\n")
  }
  esac
  _describe 'edgemesh' list || _files
}
if [ "$funcstack[1]" = "_edgemesh" ]; then _edgemesh "$@"; else compdef _edgemesh edgemesh; fi
`;
}

function fish(all: readonly Level[]): string {
  const known = all.filter((l) => l.path !== "").map((l) => quote(l.path)).join(" ");
  const lines = all.flatMap((l) => {
    const at = `-n '__edgemesh_at "${l.path}"'`;
    return [
      ...l.commands.map((c) => `complete -c edgemesh -f ${at} -a ${c.name} -d ${quote(c.help)}`),
      ...l.values.map((v) => `complete -c edgemesh -f ${at} -a ${v}`),
      ...l.options.map((o) => {
        const name = o.name.startsWith("--") ? `-l ${o.name.slice(2)}` : `-s ${o.name.slice(1)}`;
        const value = o.choices.length > 0 ? ` -xa '${o.choices.join(" ")}'` : o.takesFile ? " -rF" : "";
        return `complete -c edgemesh ${at} ${name}${value} -d ${quote(o.help)}`;
      }),
    ];
  });
  return `# edgemesh completion for fish: edgemesh completion fish > ~/.config/fish/completions/edgemesh.fish
function __edgemesh_at
  set -l path ''
  for word in (commandline -opc)[2..-1]
    set -l next (string trim -- "$path $word")
    contains -- $next ${known}; and set path $next
  end
  test "$path" = "$argv[1]"
end
${lines.join("\n")}
`;
}

/** In single quotes for any of the three shells. */
function quote(text: string): string {
  return `'${text.replaceAll("'", "’")}'`;
}

function add(to: Map<string, Set<string>>, key: string, value: string): void {
  const set = to.get(key);
  if (set) set.add(value);
  else to.set(key, new Set([value]));
}
