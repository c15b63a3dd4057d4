/** Broken networks between a node and its server, produced for real: what status, check and netcheck say about each. */
import assert from "node:assert/strict";
import { until } from "../../../lib/lab/exec.ts";
import type { Site } from "../../../lib/lab/site.ts";
import { builtCommand, longLabTest } from "../support.ts";
import { type Bed, errorSays, lineSays, onBed, row, warningSays } from "./bed.ts";

const PROXY = { HTTPS_PROXY: "http://192.168.1.250:3128" } as const;
/** Long enough for three silent pings and the waits between them. */
const HALF_OPEN_MS = 90_000;
/** From the first packet to the end of an attempt in which nothing comes back. */
const ATTEMPT_MS = 30_000;

longLabTest("broken networks: each is said with its reason and what to do", async (t) => {
  await onBed({ sites: [{ nat: "cone", strict: true }] }, async (bed) => {
    const site = bed.mesh.topology.sites[0]!;
    const step = (situation: string, fn: (say: (who: string, sentence: string) => void) => Promise<void>) =>
      t.step(situation, () => fn((who, sentence) => row(situation, who, sentence)));

    await step("unreachable server (name does not resolve)", async (say) => {
      await bed.agent({ flags: ["--server", "wss://mesh.example.test"] }, async () => {
        say("check", lineSays(await bed.line("connected", "fail"), /EAI_AGAIN|ENOTFOUND/, /the name does not resolve/));
      });
    });
    await step("HTTP proxy needed", (say) => proxyNeeded(bed, site, say));
    await step("MTU black hole", (say) => mtuHole(bed, site, say));
    await step("half-open NAT", (say) => halfOpen(bed, site, say));
    await step("unreachable server (silence)", (say) => silence(bed, say));
  });
});

type Say = (who: string, sentence: string) => void;

/** The site lets nothing out but to its proxy. */
async function proxyNeeded(bed: Bed, site: Site, say: Say): Promise<void> {
  await firewall(site, "forward", "tcp dport 443 drop");
  try {
    const hint = /where only an HTTP proxy leads out, set HTTPS_PROXY or `proxy`/;
    const pre = (await bed.check(["--pre"])).find((line) => line.name === "reach")!;
    say("check --pre", lineSays(pre, /no answer from 203\.0\.113\.1:443 within 5 s/, hint));
    // A proxy that is not there is named, not the server behind it.
    const named = (await bed.check(["--pre"], PROXY)).filter((line) => ["reach", "http-proxy"].includes(line.name));
    assert.ok(
      named.some((line) => line.state === "fail" && line.text.includes("192.168.1.250:3128")),
      JSON.stringify(named),
    );
    const token = await bed.mesh.token();
    await Deno.writeTextFile(bed.node.host.path("/run/token"), token.token);
    const join = await bed.node.host.exec(
      [
        ...builtCommand(),
        ...["agent", "--node-name", "edge-7", "--server", token.url, "--ca-pin", token.pin],
        ...["--token-file", "/run/token", "--state-dir", "/run/edge-7", "--run-dir", "/run/edge-7-run"],
      ],
      { timeoutMs: ATTEMPT_MS },
    );
    assert.equal(join.code, 1);
    say("agent", errorSays(join.stderr, /there was no answer from 203\.0\.113\.1:443 within \d+ s/, hint));
  } finally {
    await site.router.nft("delete table inet broken");
  }
}

/** A link with a smaller MTU in the way, and nobody who says so: what large packets there are is lost. */
async function mtuHole(bed: Bed, site: Site, say: Say): Promise<void> {
  await site.router.ip("link set wan mtu 1100");
  await firewall(site, "output", "icmp type destination-unreachable drop");
  try {
    await bed.agent({}, async () => {
      const warning = await until(
        "the attempt to end",
        async () => (await bed.status().catch(() => undefined))?.warnings.find((w) => /TLS|within/.test(w.text)),
        ATTEMPT_MS,
      );
      say(
        "status",
        warningSays(warning, /no server is connected \(.*TLS handshake/, /netcheck: it tries small packets/),
      );
      const { code, stdout } = await bed.node.run(["netcheck"], { timeoutMs: ATTEMPT_MS });
      assert.equal(code, 1);
      assert.match(stdout, /mtu failed: TLS completes with segments of 500 bytes only/);
      const line = (await bed.check(["--pre"])).find((l) => l.name === "reach")!;
      say(
        "check --pre",
        lineSays(line, /larger packets to or from 203\.0\.113\.1 are lost.*MTU black hole/, /mtu 1280/),
      );
    });
  } finally {
    await site.router.nft("delete table inet broken");
    await site.router.ip("link set wan mtu 1500");
  }
}

/** The NAT forgets the connection and lets no packet of it through: neither side is told. */
async function halfOpen(bed: Bed, site: Site, say: Say): Promise<void> {
  await bed.agent({ ready: /agent ready/ }, async (agent) => {
    await until("the connection", async () => (await bed.status()).mode === "online" || undefined);
    await site.reboot();
    await agent.waitFor({ log: /no connection to server.*PEER_GONE|no connection to server.*TIMEOUT/ }, HALF_OPEN_MS);
    const line = (await agent.log()).split("\n").findLast((l) => l.includes("no connection to server"))!;
    const { error, reason } = JSON.parse(line) as { readonly error: string; readonly reason: string };
    assert.match(error, /no (answer|reply)|silent|did not answer|nothing/i);
    say("log", `no connection to server: ${reason}: ${error}`);
    await until("the connection to be back", async () => (await bed.status()).mode === "online" || undefined);
  });
}

async function silence(bed: Bed, say: Say): Promise<void> {
  const { internet } = bed.mesh.topology;
  await internet.cut(bed.mesh.topology.leg(bed.mesh.topology.server));
  await bed.agent({}, async () => {
    const warning = await until(
      "the attempt to end",
      async () => (await bed.status().catch(() => undefined))?.warnings.find((w) => /No answer/.test(w.text)),
      ATTEMPT_MS,
    );
    say("status", warningSays(warning, /No answer from wss:\/\/203\.0\.113\.1 within \d+ ms/, /a firewall drops it/));
  });
}

async function firewall(site: Site, hook: string, rule: string): Promise<void> {
  await site.router.nft(`table inet broken {
    chain c { type filter hook ${hook} priority 0; policy accept; ${rule}; }
  }`);
}
