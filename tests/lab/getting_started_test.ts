/**
 * What the first screen of the README promises, on hosts that know nothing: installer from a web server over TLS, a
 * server, a token, two agents behind two NATs, `edgemesh check`, the first request. Commands and output become
 * docs/first-request.txt when EDGEMESH_RECORD=1: that file is never typed.
 */
import assert from "node:assert/strict";
import { systemClock } from "../../lib/clock.ts";
import { startNginx } from "../../lib/lab/backends.ts";
import { serviceYaml } from "../../lib/lab/mesh.ts";
import type { Systemd } from "../../lib/lab/systemd.ts";
import { tell, withMesh } from "./fixture.ts";
import { bareHost, CA_FILE, publish, SITE } from "./publish.ts";
import { longLabTest } from "./support.ts";
import { bootNode } from "./systemd_fixture.ts";

const ROOT = new URL("../..", import.meta.url).pathname;
const RECORDING = `${ROOT}docs/first-request.txt`;
/** What is promised, from the first command to the first answer. */
const LIMIT_MS = 60_000;
const CURL = `curl -fsSL https://${SITE}/install.sh`;

longLabTest("getting started: three bare hosts, two NATs, from nothing to the first request in a minute", async () => {
  await withMesh({ cloud: "public", defaultRoute: true, web: [] }, async (mesh) => {
    const { topology } = mesh;
    const [one, two] = [topology.node("edge-1"), topology.node("edge-2")];
    await publish(topology.cloud!.host, topology.lab.dir);
    await startNginx(two.host, { port: 8080, text: "hello from edge-2\n" });
    await mesh.writeManifest(
      "shop.yaml",
      [one, two].map(({ name }) => `apiVersion: v1\nkind: Node\nmetadata: { name: ${name} }\n---\n`).join("") +
        serviceYaml({
          name: "web",
          namespace: "shop",
          clusterIP: "10.96.0.10",
          port: 80,
          targetPort: 8080,
          endpoints: [{ ip: two.address, node: two.name }],
        }),
    );
    await using server = await bareHost(await bootNode(topology.server), topology.lab.dir);
    await using edge1 = await bareHost(await bootNode(one), topology.lab.dir);
    await using edge2 = await bareHost(await bootNode(two), topology.lab.dir);
    const session = new Session();
    const join = async (host: Systemd, more: string) => {
      const made = await session.type(server, `edgemesh token create --node ${host.host.name}`);
      // The line that was printed, as it is, and what this host wants besides.
      const line = made.split("\n").find((l) => l.startsWith(`${CURL} | EDGEMESH_TOKEN=`));
      assert.ok(line !== undefined, made);
      const said = await session.type(host, `${line} ${more}`);
      assert.match(said, /edgemesh-agent is ready/);
    };

    await session.type(server, "cat /etc/edgemesh/manifests/shop.yaml");
    const flags = "--manifests /etc/edgemesh/manifests --url wss://mesh.example.com";
    assert.match(await session.type(server, `${CURL} | sh -s - server ${flags}`), /edgemesh-server is ready/);
    await join(edge1, "--set dns.integrate=auto");
    await join(edge2, "--set dns.integrate=auto --set forward.hostPorts=8080");
    const checked = await session.type(edge1, "edgemesh check");
    assert.equal(await session.type(edge1, "curl -s http://web.shop.svc.cluster.local"), "hello from edge-2\n");
    const ms = session.elapsedMs;
    tell(`from the first command to the first answer: ${(ms / 1000).toFixed(1)} s`);
    assert.ok(ms < LIMIT_MS, `${ms} ms`);
    const checked2 = await session.type(edge2, "edgemesh check");
    for (const text of [checked, checked2]) assert.doesNotMatch(text, /[×‼]/, text);
    assert.match(await session.type(edge1, "edgemesh ping edge-2 -c 2"), /reply|from/);
    await session.type(edge1, "edgemesh status");
    const head =
      "Recorded by `./scripts/deno task lab:install`: three hosts in network namespaces, each with its own systemd,\n" +
      "two of them behind NATs of their own, 20 ms away from everything else.\n" +
      `From the first command to the first answer: ${(ms / 1000).toFixed(1)} s.\n\n`;
    if (Deno.env.get("EDGEMESH_RECORD") === "1") await Deno.writeTextFile(RECORDING, head + session.text);
    else tell(head + session.text);
  });
});

/** What a person types on several hosts, and what they see. */
class Session {
  #text = "";
  readonly #started = systemClock.now();

  get elapsedMs(): number {
    return systemClock.now() - this.#started;
  }

  get text(): string {
    return this.#text;
  }

  /** Types a line on a host; what it prints. A failure is one of the test. */
  async type(host: Systemd, line: string): Promise<string> {
    const at = systemClock.now();
    const { code, stdout, stderr } = await host.exec(["bash", "-c", `${line} 2>&1`], {
      env: { CURL_CA_BUNDLE: CA_FILE, LANG: "C.UTF-8" },
      timeoutMs: 90_000,
    });
    tell(`${host.host.name}: ${line.slice(0, 60)}: ${((systemClock.now() - at) / 1000).toFixed(1)} s`);
    // A token of a lab that is gone opens nothing, but looks as if it did.
    const shown = `root@${host.host.name}:~# ${line}\n${stdout}${stderr}\n`.replace(
      /(em_[a-z0-9]+)\.[a-z0-9]+/g,
      "$1.…",
    );
    this.#text += shown;
    assert.equal(code, 0, shown);
    return stdout;
  }
}
