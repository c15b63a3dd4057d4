/** The service while the installer is given a release that cannot be had whole. */
import assert from "node:assert/strict";
import { execOk } from "../../lib/lab/exec.ts";
import type { Installed } from "./systemd_user.ts";
import { EXE } from "./systemd_fixture.ts";
import { builtCommand, fixture } from "./support.ts";

const SCRIPTS = new URL("../../scripts", import.meta.url).pathname;
const ARCH = Deno.build.arch === "aarch64" ? "arm64" : "amd64";

/** Steps of a test; the agent's service runs before and after. */
export async function releaseSteps(
  t: Deno.TestContext,
  { edge, webAnswers }: Omit<Installed, "kernel">,
): Promise<void> {
  await t.step("T43: a wrong hash or half a download leaves the running service and its files alone", async () => {
    const dir = await Deno.makeTempDir({ prefix: "edgemesh-release-" });
    try {
      // Another build, short, so that it is quickly downloaded.
      const exe = `${dir}/edgemesh`;
      const text = `#!/bin/sh\n${"# padding\n".repeat(20_000)}[ -e ${EXE} ] && exec ${EXE} "$@"\nexec ${
        builtCommand()[0]
      } "$@"\n`;
      await Deno.writeTextFile(exe, text, { mode: 0o755 });
      await execOk([`${SCRIPTS}/release.sh`, "--out", `${dir}/release`, "--prebuilt", `${ARCH}=${exe}`]);
      const web = await edge.host.start("web", [...fixture("release_server"), `${dir}/release`], {
        ready: { log: /listening \d+/ },
      });
      const port = /listening (\d+)/.exec(await web.log())![1]!;
      const state = async () => {
        const line =
          "systemctl show -p MainPID -p InvocationID -p ActiveState edgemesh-agent; ls -lA --time-style=full-iso /usr/local/bin /etc/systemd/system; " +
          "sha256sum /usr/local/bin/edgemesh* /etc/edgemesh/* /etc/systemd/system/edgemesh-*; find /tmp /var/tmp -name 'tmp.*'";
        return (await edge.execOk(["sh", "-c", line])).stdout;
      };
      const before = await state();
      assert.match(before, /ActiveState=active/);
      for (const how of ["changed", "sums", "short", "broken", "half", "gone"]) {
        const { code, stderr } = await edge.exec([
          "edgemesh-install",
          "agent",
          "--release",
          `http://127.0.0.1:${port}/${how}`,
        ]);
        assert.equal(code, 1, how);
        assert.match(stderr, /^\[ERROR\] .*(is damaged or not what was published|cannot be downloaded).*; try: /, how);
        assert.equal(await state(), before, how);
      }
      await webAnswers();
      await web.kill();
    } finally {
      await Deno.remove(dir, { recursive: true });
    }
  });
}
