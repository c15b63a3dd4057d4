/**
 * Runs inside a network namespace for the contract of kernel rules: holds a real rule writer, answers on endpoint
 * addresses with their own name, and connects like a client. Commands are JSON lines on stdin, answers on stdout.
 */
// deno-lint-ignore-file no-console -- answers go to stdout
import { systemClock } from "../../lib/clock.ts";
import { describe } from "../../lib/errors.ts";
import { EpollLoop } from "../../lib/linux/loop.ts";
import { nullLogger } from "../../lib/log.ts";
import type { IpPort, MeshStream } from "../../lib/net.ts";
import { idleHandler, WOULD_BLOCK } from "../../lib/net.ts";
import { NetlinkRules } from "../../lib/forward/rules/netlink.ts";
import { NftTextRules } from "../../lib/forward/rules/nft_text.ts";
import { type Ruleset, TABLE } from "../../lib/forward/rules/ruleset.ts";
import { RuleWriter } from "../../lib/forward/rules/writer.ts";

/** `[shards, tables, fragments]`: a ruleset in JSON. */
export type WireRuleset = readonly [number, Ruleset["tables"], readonly (readonly [string, unknown])[]];

export type Command =
  | { readonly do: "serve"; readonly at: readonly IpPort[] }
  | { readonly do: "connect"; readonly to: IpPort; readonly timeoutMs: number }
  | { readonly do: "ask-udp"; readonly to: IpPort; readonly timeoutMs: number }
  | { readonly do: "apply"; readonly ruleset: WireRuleset }
  | { readonly do: "repair" | "list" }
  | { readonly do: "forget"; readonly targets: readonly string[] }
  | { readonly do: "remove"; readonly which: "all" | "agent" };

/** What the probe says when it is ready for commands. */
export const READY = "ready";

if (import.meta.main) await main(Deno.args[0] ?? "none");

async function main(backend: string): Promise<void> {
  const loop = EpollLoop.open({ clock: systemClock, log: nullLogger });
  const writer = backend === "none" ? undefined : await openWriter(backend);
  console.log(JSON.stringify(READY));
  const decoder = new TextDecoderStream();
  let rest = "";
  for await (const chunk of Deno.stdin.readable.pipeThrough(decoder)) {
    const lines = (rest + chunk).split("\n");
    rest = lines.pop()!;
    for (const line of lines) {
      let answer: unknown;
      try {
        answer = { ok: await run(loop, writer, JSON.parse(line) as Command) };
      } catch (error) {
        answer = { error: describe(error) };
      }
      console.log(JSON.stringify(answer));
    }
  }
  writer?.close();
  loop.close();
}

// deno-lint-ignore require-await
async function openWriter(backend: string): Promise<RuleWriter> {
  if (backend === "netlink") return new RuleWriter(NetlinkRules.open());
  if (backend === "nft") return new RuleWriter(new NftTextRules(runNft));
  throw new Error(`No back end ${backend}`);
}

async function runNft(args: readonly string[], stdin: string) {
  const child = new Deno.Command("nft", { args: [...args], stdin: "piped", stdout: "piped", stderr: "piped" }).spawn();
  const input = child.stdin.getWriter();
  const written = input.write(new TextEncoder().encode(stdin)).then(() => input.close()).catch(() => {});
  const [output] = await Promise.all([child.output(), written]);
  const decoder = new TextDecoder();
  return { code: output.code, stdout: decoder.decode(output.stdout), stderr: decoder.decode(output.stderr) };
}

function run(loop: EpollLoop, writer: RuleWriter | undefined, command: Command): unknown {
  switch (command.do) {
    case "serve":
      for (const at of command.at) serve(loop, at);
      return true;
    case "connect":
      return connect(loop, command.to, command.timeoutMs);
    case "ask-udp":
      return askUdp(loop, command.to, command.timeoutMs);
    case "apply":
      return writer!.apply({
        shards: command.ruleset[0],
        tables: command.ruleset[1],
        tablesFrom: "",
        fragments: new Map(command.ruleset[2] as []),
      });
    case "repair":
      return writer!.repair();
    case "list":
      return writer!.list().then((state) => JSON.parse(JSON.stringify(state, plain)));
    case "forget":
      return writer!.forget(TABLE, "affinity4", (_, value) => command.targets.includes(value));
    case "remove":
      return writer!.remove(command.which);
  }
}

/** Answers every connection and datagram with `server client`. */
function serve(loop: EpollLoop, at: IpPort): void {
  const encoder = new TextEncoder();
  const name = `${at.ip} ${at.port}`;
  loop.listenTcp(at, ({ stream, remote }) => {
    const text = encoder.encode(`${name} ${remote.ip}`);
    stream.handler = { ...idleHandler, onReadable: () => drain(stream) };
    stream.write(text, 0, text.length);
    stream.closeWrite();
  });
  const udp = loop.bindUdp(at, (_bytes, _length, from) => {
    const text = encoder.encode(`${name} ${from.ip}`);
    udp.send(text, text.length, from);
  });
}

function drain(stream: MeshStream): void {
  const into = new Uint8Array(1024);
  for (let n = stream.read(into); n > 0; n = stream.read(into));
}

/** The answer's text, `reject` or `silent`. */
function connect(loop: EpollLoop, to: IpPort, timeoutMs: number): Promise<string> {
  return new Promise((resolve) => {
    const into = new Uint8Array(1024);
    let text = "";
    const stream = loop.dialTcp(to, {
      ...idleHandler,
      onReadable: () => {
        for (let n = stream.read(into); n !== WOULD_BLOCK; n = stream.read(into)) {
          if (n === 0) {
            stream.closeWrite();
            return resolve(text);
          }
          text += new TextDecoder().decode(into.subarray(0, n));
        }
      },
      onClose: (reason) => resolve(reason === "DIAL_TIMEOUT" ? "silent" : reason === undefined ? text : "reject"),
    }, { timeoutMs });
  });
}

function askUdp(loop: EpollLoop, to: IpPort, timeoutMs: number): Promise<string> {
  return new Promise((resolve) => {
    const wildcard = to.ip.includes(":") ? "::" : "0.0.0.0";
    const cancel = systemClock.timer(timeoutMs, () => done("silent"));
    const socket = loop.bindUdp({ ip: wildcard, port: 0 }, (bytes, length, from) => {
      // An answer from another address than the one asked is what a client would throw away.
      const right = from.ip === to.ip && from.port === to.port;
      done(right ? new TextDecoder().decode(bytes.subarray(0, length)) : `wrong source ${from.ip}`);
    });
    const done = (text: string) => {
      cancel();
      socket.close();
      resolve(text);
    };
    socket.send(new Uint8Array([63]), 1, to);
  });
}

function plain(_key: string, value: unknown): unknown {
  return value instanceof Map ? Object.fromEntries(value) : value;
}
