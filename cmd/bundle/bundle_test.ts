import assert from "node:assert/strict";
import { bundleCommand } from "./bundle.ts";
import { knownSecrets, masker } from "./secrets.ts";
import { tar } from "./tar.ts";

const CANARY = "canary-in-the-mine-4711";

async function unpack(archive: string): Promise<{ readonly names: readonly string[]; readonly text: string }> {
  const run = async (...args: string[]) => {
    const { code, stdout, stderr } = await new Deno.Command("tar", { args }).output();
    assert.equal(code, 0, new TextDecoder().decode(stderr));
    return new TextDecoder().decode(stdout);
  };
  return {
    names: (await run("-tzf", archive)).trim().split("\n").map((n) => n.slice(n.indexOf("/") + 1)),
    text: await run("-xzOf", archive),
  };
}

Deno.test("bundle: tar reads what was written, names, bytes and ends of blocks", async () => {
  const dir = await Deno.makeTempDir();
  try {
    const files = [0, 1, 511, 512, 513, 2000].map((n) => ({
      name: `a/${n}.txt`,
      text: "ü".repeat(n / 2) + "x".repeat(n % 2),
    }));
    await Deno.writeFile(`${dir}/x.tar`, tar(files, 1_700_000_000));
    const { code, stderr } = await new Deno.Command("tar", { args: ["-xf", "x.tar"], cwd: dir }).output();
    assert.equal(code, 0, new TextDecoder().decode(stderr));
    assert.equal(stderr.length, 0);
    for (const { name, text } of files) assert.equal(await Deno.readTextFile(`${dir}/${name}`), text);
    assert.equal((await Deno.stat(`${dir}/a/1.txt`)).mtime?.getTime(), 1_700_000_000_000);
    assert.throws(() => tar([{ name: "x".repeat(101), text: "" }], 0), /too long/);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
});

Deno.test("bundle: secrets are known by where they are, whatever they look like", async () => {
  const secrets = await knownSecrets({ tokenFile: "/etc/token" }, {
    env: {
      MY_TOKEN: `${CANARY}-1`,
      AWS_SECRET_ACCESS: `${CANARY}-2`,
      TOKEN_FILE: "/etc/token",
      HTTPS_PROXY: `http://mesh:${CANARY}-3@proxy:3128`,
      HOME: "/home/x",
      SHORT_TOKEN: "yes",
    },
    readText: (path) => Promise.resolve(path === "/etc/token" ? `${CANARY}-4-long\n` : undefined),
  });
  assert.deepEqual([...secrets].sort(), [1, 2, 3].map((n) => `${CANARY}-${n}`).concat(`${CANARY}-4-long`));
  const mask = masker(secrets);
  assert.equal(mask(`a ${CANARY}-4-long b ${CANARY}-1 c yes`), "a *** b *** c yes");
});

Deno.test("bundle: a canary in configuration, environment and token file is in none of its files", async () => {
  const dir = await Deno.makeTempDir();
  const before = Deno.env.get("OPERATE_TEST_TOKEN");
  try {
    await Deno.writeTextFile(`${dir}/token`, `${CANARY}-file\n`);
    // The token file's content also stands in the configuration, where nobody expects it.
    await Deno.writeTextFile(
      `${dir}/agent.yaml`,
      `tokenFile: ${dir}/token\nkubeconfig: /etc/${CANARY}-file\nrunDir: ${dir}\nstateDir: ${dir}/state\nnodeName: edge-7\n`,
    );
    Deno.env.set("OPERATE_TEST_TOKEN", `${CANARY}-env`);
    const file = `${dir}/bundle.tar.gz`;
    assert.equal(await bundleCommand({ runDir: dir, output: "json", file, config: `${dir}/agent.yaml` }), 0);
    assert.equal((await Deno.stat(file)).mode! & 0o777, 0o600);
    const { names, text } = await unpack(file);
    for (
      const name of [
        "version.json",
        "config-agent.json",
        "status-agent.json",
        "netcheck.json",
        "rules.txt",
        "routes.txt",
      ]
    ) {
      assert.ok(names.includes(name), name);
    }
    assert.ok(!text.includes(CANARY), text.slice(Math.max(0, text.indexOf(CANARY) - 200), text.indexOf(CANARY) + 50));
    assert.ok(text.includes("edge-7"), "what is no secret is there");
    assert.match(text, /No edgemesh agent is running here/);
  } finally {
    if (before === undefined) Deno.env.delete("OPERATE_TEST_TOKEN");
    await Deno.remove(dir, { recursive: true });
  }
});
