/**
 * The house rules that a program can check. Each rule says why it exists; a failure names file, line and rule.
 * Reads sources as text: imports are static in this code base by rule, so no module graph is needed.
 */
import assert from "node:assert/strict";

const ROOT = new URL("..", import.meta.url).pathname;
const MAX_LINES = 400;

interface Source {
  readonly path: string;
  readonly text: string;
  readonly lines: readonly string[];
  readonly isTest: boolean;
  readonly imports: readonly { readonly line: number; readonly target: string }[];
}

/** Which folder of lib/ may import which; `base` is lib/*.ts. */
const DIRECTIONS: Record<string, { readonly may: readonly string[]; readonly why: string }> = {
  base: { may: ["base"], why: "the base is what everything rests on; it rests on nothing" },
  linux: { may: ["base"], why: "the kernel's face knows no product" },
  identity: { may: ["base"], why: "trust must be checkable without the rest" },
  meta: { may: ["base"], why: "metadata is testable from literals" },
  dns: { may: ["base", "meta:model", "meta:reader"], why: "DNS sees the cluster through MetaReader only" },
  forward: {
    may: ["base", "meta:model", "meta:reader", "meta:filters", "linux:nftables"],
    why: "forwarding must not know how bytes reach a node",
  },
  tunnel: { may: ["base"], why: "the tunnel knows peers, not services: reusable and fuzzable alone" },
  lab: { may: ["base", "linux"], why: "the lab builds machines; what runs on them is the built executable" },
};

const ONLY_IN: readonly { readonly pattern: RegExp; readonly allowed: RegExp; readonly why: string }[] = [
  {
    pattern: /Deno\.dlopen|UnsafePointer/,
    allowed: /^lib\/linux\/|^tests\//,
    why: "FFI in one folder: one place to audit",
  },
  {
    pattern: /from "(npm:)?dns-packet"/,
    allowed: /^lib\/dns\/|^tests\//,
    why: "dns-packet lets malformed names through; it stays behind our guard",
  },
  {
    pattern: /from "node:tls"|from "node:https"|from "ws"/,
    allowed:
      /^lib\/tunnel\/(carriers|control)\/|^lib\/identity\/|^lib\/meta\/(kube_plugins|insecure_https)\.ts$|^tests\//,
    why: "TLS and WebSocket of the mesh in one place: certificates are checked there and nowhere else",
  },
  {
    pattern: /import\("(yaml|dns-packet\/|ws|commander|ipaddr\.js|lru-cache)"\)/,
    allowed: /^tests\//,
    why: "a CommonJS package imported dynamically has its names elsewhere in the bundle: lib/yaml.ts shows the way",
  },
  {
    pattern: /from "zod"/,
    allowed: /^lib\/config\.ts$|^lib\/meta\/|^tests\//,
    why: "zod is heavy: only where outside data enters",
  },
  {
    pattern: /\b(Date\.now|performance\.now|setTimeout|setInterval)\(/,
    allowed: /^lib\/clock\.ts$|^lib\/log\.ts$|^scripts\/|_test\.ts$|^tests\//,
    why: "time is handed in as a Clock",
  },
  {
    pattern: /\bconsole\.|from "node:console"/,
    allowed: /_test\.ts$|^tests\/|^scripts\//,
    why: "lines go through lib/log.ts or cmd/output.ts",
  },
];

const FORBIDDEN: readonly { readonly pattern: RegExp; readonly why: string }[] = [
  { pattern: /\b(TODO|FIXME|XXX|HACK)\b/, why: "unfinished work goes into an issue" },
  {
    pattern: /:\s*any\s*([,;=)\]|&>{]|$)|<any>|\bas any\b|@ts-ignore|@ts-nocheck/,
    why: "any hides what the compiler could tell",
  },
  { pattern: /^export default/, why: "named exports only" },
  { pattern: /(^|["'`\s(=])\/(work|root)\/[a-z]/, why: "no path of a developer's machine" },
];

Deno.test("sources keep to the dependency direction", async () => {
  const broken: string[] = [];
  for (const source of await sources()) {
    if (source.isTest) continue;
    const from = folder(source.path);
    if (!from) continue;
    const rule = DIRECTIONS[from]!;
    for (const { line, target } of source.imports) {
      if (!target.startsWith(".")) continue;
      const path = resolve(source.path, target);
      const to = folder(path);
      if (to === from) continue;
      const file = path.split("/").pop()!.replace(/\.ts$/, "");
      if (
        to &&
        (rule.may.includes(to) || rule.may.includes(`${to}:${file}`) ||
          rule.may.some((m) => m.startsWith(`${to}:`) && path.includes(`/${m.split(":")[1]}/`)))
      ) {
        continue;
      }
      broken.push(`${source.path}:${line} imports ${path}: ${rule.why}`);
    }
  }
  assert.deepEqual(broken, []);
});

Deno.test("sources use heavy or dangerous things only where they belong", async () => {
  const broken: string[] = [];
  for (const source of await sources()) {
    source.lines.forEach((line, i) => {
      if (/^\s*(\*|\/\/|\/\*)/.test(line)) return;
      for (const rule of ONLY_IN) {
        if (rule.pattern.test(line) && !rule.allowed.test(source.path)) {
          broken.push(`${source.path}:${i + 1}: ${rule.why}`);
        }
      }
    });
  }
  assert.deepEqual(broken, []);
});

Deno.test("sources hold nothing unfinished or tied to one machine", async () => {
  const broken: string[] = [];
  for (const source of await sources()) {
    if (source.path === "tests/arch_test.ts") continue;
    source.lines.forEach((line, i) => {
      if (/^\s*(\*|\/\*\*)/.test(line) && !/TODO|FIXME/.test(line)) return;
      for (const rule of FORBIDDEN) {
        if (rule.pattern.test(line)) broken.push(`${source.path}:${i + 1}: ${rule.why}: ${line.trim()}`);
      }
    });
  }
  assert.deepEqual(broken, []);
});

Deno.test(`sources are at most ${MAX_LINES} lines and begin with what they are`, async () => {
  const broken: string[] = [];
  for (const source of await sources()) {
    const lines = source.lines.length - 1;
    if (!source.isTest && lines > MAX_LINES) broken.push(`${source.path} has ${lines} lines: one idea each`);
    if (!source.isTest && !/^\/\*\*/.test(source.text)) broken.push(`${source.path} does not begin with a doc comment`);
  }
  assert.deepEqual(broken, []);
});

Deno.test("imports have no cycles", async () => {
  const graph = new Map<string, string[]>();
  for (const source of await sources()) {
    if (!source.isTest) {
      graph.set(
        source.path,
        source.imports.filter((i) => i.target.startsWith(".")).map((i) => resolve(source.path, i.target)),
      );
    }
  }
  const state = new Map<string, "open" | "done">();
  const cycles: string[] = [];
  const visit = (node: string, trail: readonly string[]) => {
    if (state.get(node) === "done") return;
    if (state.get(node) === "open") {
      cycles.push([...trail.slice(trail.indexOf(node)), node].join(" → "));
      return;
    }
    state.set(node, "open");
    for (const next of graph.get(node) ?? []) visit(next, [...trail, node]);
    state.set(node, "done");
  };
  for (const node of graph.keys()) visit(node, []);
  assert.deepEqual(cycles, []);
});

/** Folder of lib/ a file belongs to; undefined for cmd, main, tests and scripts, which may import everything. */
function folder(path: string): string | undefined {
  const m = /^lib\/(?:([a-z0-9_]+)\/)?[^/]+/.exec(path);
  if (!m) return undefined;
  const name = m[1] ?? "base";
  return name in DIRECTIONS ? name : "base";
}

function resolve(from: string, target: string): string {
  return new URL(target, `file:///${from}`).pathname.slice(1);
}

let cache: Source[] | undefined;
async function sources(): Promise<readonly Source[]> {
  if (cache) return cache;
  const out: Source[] = [];
  const walk = async (dir: string) => {
    for await (const entry of Deno.readDir(ROOT + dir)) {
      const path = dir === "" ? entry.name : `${dir}/${entry.name}`;
      if (entry.isDirectory) {
        if (/^(main\.ts|cmd|lib|tests|scripts)(\/|$)/.test(path)) await walk(path);
      } else if (/\.ts$/.test(path) && /^(main\.ts$|cmd\/|lib\/|tests\/|scripts\/)/.test(path)) {
        const text = await Deno.readTextFile(ROOT + path);
        out.push({
          path,
          text,
          lines: text.split("\n"),
          isTest: path.startsWith("tests/") || path.endsWith("_test.ts"),
          imports: importsOf(text),
        });
      }
    }
  };
  await walk("");
  return cache = out;
}

/** Static imports and re-exports that remain at run time; type-only ones make no dependency. */
function importsOf(text: string): { line: number; target: string }[] {
  const out: { line: number; target: string }[] = [];
  for (const m of text.matchAll(/^(?:import|export)\s+(?!type\b)[^;]*?from\s+"([^"]+)"|^import\s+"([^"]+)"/gm)) {
    const names = /\{([^}]*)\}/.exec(m[0]);
    if (
      names && names[1]!.split(",").map((n) => n.trim()).filter((n) => n !== "").every((n) => n.startsWith("type "))
    ) continue;
    out.push({ line: text.slice(0, m.index).split("\n").length, target: (m[1] ?? m[2])! });
  }
  return out;
}
