/**
 * What the documents tell a reader to type, typed: the `sh` blocks of README.md on hosts that know nothing, those of
 * docs/getting-started.md on such ones again, and those of docs/operations.md on what stands then.
 */
import assert from "node:assert/strict";
import type { Mesh } from "../../lib/lab/mesh.ts";
import type { Systemd } from "../../lib/lab/systemd.ts";
import { snippets } from "../snippets.ts";
import { tell, webService, withMesh } from "./fixture.ts";
import { bareHost, CA_FILE, publish } from "./publish.ts";
import { longLabTest } from "./support.ts";
import { bootNode } from "./systemd_fixture.ts";

const STARTS = ["README.md", "docs/getting-started.md"];

longLabTest("docs: every block that can be pasted does what it says", async (t) => {
  await withMesh({ cloud: "public", defaultRoute: true }, async (mesh) => {
    const { topology } = mesh;
    const { dir } = topology.lab;
    await publish(topology.cloud!.host, dir);
    const web = webService("web", "10.96.0.10", [topology.pod("edge-2-pod-1")]).replaceAll("default", "shop");
    await mesh.writeManifest("shop.yaml", web);
    await using server = await bareHost(await bootNode(topology.server), dir);
    await using edge = await bareHost(await bootNode(topology.node("edge-1")), dir);
    const hosts = { server, edge };
    for (const file of STARTS) {
      await t.step(file, () => paste(file, mesh, hosts));
      if (file === STARTS.at(-1)) break;
      await mesh.stopAgent(topology.node("edge-2"));
      for (const host of [edge, server]) await host.execOk(["edgemesh-install", "uninstall", "--purge"]);
      await topology.node("edge-2").run(["cleanup", "--state"]);
      await mesh.writeManifest("shop.yaml", web);
    }
    await t.step("docs/operations.md", () => paste("docs/operations.md", mesh, hosts));
  });
});

/** Types a document's blocks in order, each on its host. */
async function paste(file: string, mesh: Mesh, hosts: { readonly server: Systemd; readonly edge: Systemd }) {
  const neighbour = mesh.topology.node("edge-2");
  let given: { readonly token: string; readonly pin: string } | undefined;
  for (const { code, where, how } of await snippets(file)) {
    if (how === undefined || "skip" in how) {
      tell(`${where} is not run: ${how?.skip}`);
      continue;
    }
    const host = hosts[how.run as keyof typeof hosts];
    assert.ok(host, `${where} names no host of this test: ${how.run}`);
    // What a reader copies from the server's answer.
    const pasted = given === undefined ? code : code.replace("em_…", given.token).replace("sha256:…", given.pin);
    assert.doesNotMatch(pasted.replace(/#.*$/gm, ""), /…/, `${where} has something to fill in`);
    const { code: status, stdout, stderr } = await host.exec(["bash", "-exo", "pipefail", "-c", pasted], {
      env: { CURL_CA_BUNDLE: CA_FILE },
      timeoutMs: 120_000,
    });
    assert.equal(status, 0, `${where} on ${how.run}:\n${stderr}\n${stdout}`);
    tell(`${where} on ${how.run}: ${pasted.split("\n").length} lines`);
    const [, token, , pin] = /echo (\S+) \| .* --server (\S+) --ca-pin (\S+)/.exec(stdout) ?? [];
    if (token !== undefined) given = { token, pin: pin! };
    if (/curl .*web\.shop\.svc/.test(code)) assert.match(stdout, /^edge-2-pod-1 on edge-2$/m);
    // The other site that the text speaks of.
    if (STARTS.includes(file) && how.run === "server") {
      const made = await host.execOk(["edgemesh", "token", "create", "-o", "json"]);
      await mesh.join(neighbour, { token: { ...JSON.parse(made.stdout), url: mesh.url } });
    }
  }
}
