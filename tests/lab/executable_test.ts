/**
 * The self-extracting executable as strangers start it: on read-only systems, without a network, twice at once, as any
 * user, from damaged files. Each case runs in mount and network namespaces of its own, with nothing unpacked before.
 */
import assert from "node:assert/strict";
import { exec, type ExecResult } from "../../lib/lab/exec.ts";
import { tell } from "./fixture.ts";
import { builtCommand, labTest } from "./support.ts";

const [EXE] = builtCommand();
const ROOT_DIRS = ["/var/lib/edgemesh/runtime", "/run/edgemesh-runtime", "/dev/shm/edgemesh-runtime"] as const;
const NOBODY = 65534;

/**
 * Runs a script in a fresh machine: `/` read-only, `/var/lib`, `/run`, `/dev/shm` and `/tmp` empty and of the kind
 * given, no network but a loopback that is down. `$EXE` is the executable; `/tmp/seen` is where results may go.
 */
function machine(
  script: string,
  mounts: Partial<Record<"/var/lib" | "/run" | "/dev/shm" | "/tmp", string>> = {},
  env: Record<string, string> = {},
): Promise<ExecResult> {
  const all = { "/var/lib": "rw", "/run": "rw", "/dev/shm": "rw", "/tmp": "rw,noexec", ...mounts };
  const setup = [
    "set -e",
    "mkdir -p /mnt/exe && mount -t tmpfs none /mnt && mkdir /mnt/exe && touch /mnt/exe/edgemesh",
    `mount --bind '${EXE}' /mnt/exe/edgemesh`,
    ...Object.entries(all).map(([at, options]) => `mount -t tmpfs -o ${options},mode=1777 none ${at}`),
    "mount -o remount,bind,ro /",
    "EXE=/mnt/exe/edgemesh",
    "set +e",
  ].join("\n");
  return exec(["unshare", "--mount", "--net", "sh", "-c", `${setup}\n${script}`], {
    clearEnv: true,
    env: { PATH: Deno.env.get("PATH")!, HOME: "/tmp/home", ...env },
    timeoutMs: 60_000,
  });
}

async function succeeds(...args: Parameters<typeof machine>): Promise<string> {
  const { code, stdout, stderr } = await machine(...args);
  assert.equal(code, 0, stderr || stdout);
  return stdout;
}

/** One sentence in the house's form, exit code 1. */
async function fails(says: RegExp, ...args: Parameters<typeof machine>): Promise<void> {
  const { code, stdout, stderr } = await machine(...args);
  assert.equal(code, 1, stdout + stderr);
  assert.equal(stdout, "");
  assert.match(stderr, /^error: .+; try: .+\n$/);
  assert.match(stderr, says);
  tell(stderr.trim());
}

labTest("executable: unpacks where it may, once, and nowhere that others could have written", async (t) => {
  const where =
    '"$EXE" version && ls -d /var/lib/edgemesh/runtime/* /run/edgemesh-runtime/* /dev/shm/edgemesh-runtime/*';
  const listed = (out: string) => out.trim().split("\n").slice(1);

  await t.step("in its own state folder, by preference; `version` names the form", async () => {
    const out = await machine(where);
    assert.match(out.stdout, /^edgemesh \S+ \(commit [0-9a-f]+, self-extracting, \S+, Deno \d+\.\d+\.\d+\)\n/);
    assert.match(listed(out.stdout).join(), /^\/var\/lib\/edgemesh\/runtime\/[0-9a-f]{32}$/);
  });
  await t.step("with `/` read-only and only /run writable", async () => {
    const { stdout } = await machine(where, { "/var/lib": "ro", "/dev/shm": "ro", "/tmp": "ro" });
    assert.match(listed(stdout).join(), /^\/run\/edgemesh-runtime\/[0-9a-f]{32}$/);
  });
  await t.step("with only /dev/shm writable, and /run without programs", async () => {
    const { stdout } = await machine(where, { "/var/lib": "ro", "/run": "rw,noexec", "/tmp": "ro" });
    assert.match(listed(stdout).join(), /^\/dev\/shm\/edgemesh-runtime\/[0-9a-f]{32}$/);
  });
  await t.step("nowhere: it names every folder and why", async () => {
    await fails(
      /runtime \(cannot be made\), \/run\/edgemesh-runtime \(programs there cannot run.*, \/dev\/shm.* \(cannot be made\)/,
      '"$EXE" version',
      { "/var/lib": "ro", "/run": "rw,noexec", "/dev/shm": "ro" },
    );
  });
  await t.step("four first starts at once: all run, one folder, no rests", async () => {
    const script = `for i in 1 2 3 4; do "$EXE" version >/tmp/$i 2>&1 & pids="$pids $!"; done
      for pid in $pids; do wait $pid || { cat /tmp/?; exit 1; }; done; ls -A ${ROOT_DIRS[0]}`;
    assert.match(await succeeds(script), /^[0-9a-f]{32}\n$/);
  });
  await t.step("a folder that others can write, or a link, is not used", async () => {
    const only = { "/run": "ro", "/dev/shm": "ro" };
    const dir = ROOT_DIRS[0];
    await fails(/others can write/, `mkdir -p ${dir}; chmod 777 ${dir}; "$EXE" version`, only);
    await fails(/not ours alone/, `mkdir -p ${dir}; chown ${NOBODY} ${dir}; chmod 700 ${dir}; "$EXE" version`, only);
    await fails(
      /not ours alone/,
      `mkdir -p -m 700 /tmp/x /var/lib/edgemesh; ln -s /tmp/x ${dir}; "$EXE" version`,
      only,
    );
    // What a stranger put under the right name is not run either.
    const name = '"$EXE" version >/dev/null; name=$(ls /var/lib/edgemesh/runtime); rm -rf /var/lib/edgemesh';
    await fails(
      /not ours alone/,
      `${name}; mkdir -p ${dir}/$name; chmod 777 ${dir}; printf '#!/bin/sh\\necho owned\\n' >${dir}/$name/edgemesh
       chmod 755 ${dir}/$name/edgemesh; "$EXE" version`,
      only,
    );
  });
  await t.step("EDGEMESH_RUNTIME_DIR comes first", async () => {
    const out = await succeeds('"$EXE" version >/dev/null; ls /dev/shm/mine', {}, {
      EDGEMESH_RUNTIME_DIR: "/dev/shm/mine",
    });
    assert.match(out, /^[0-9a-f]{32}\n$/);
  });
  await t.step("an unprivileged user has its own folder", async () => {
    const as = `setpriv --reuid=${NOBODY} --regid=${NOBODY} --clear-groups`;
    const home = `mkdir -p /dev/shm/home && chown ${NOBODY} /dev/shm/home`;
    const out = await succeeds(`${home}; HOME=/dev/shm/home ${as} "$EXE" version >/dev/null
      ls -d /dev/shm/home/.cache/edgemesh-runtime/*; stat -c %a /dev/shm/home/.cache/edgemesh-runtime`);
    assert.match(out, /runtime\/[0-9a-f]{32}\n700\n$/);
    // Without a home that can be written: the shared memory folder, by user number.
    assert.match(
      await succeeds(`HOME=/nonexistent ${as} "$EXE" version >/dev/null; ls -d /dev/shm/edgemesh-runtime-*`),
      /runtime-65534/,
    );
  });
  await t.step("what root has unpacked all run, but not from where others could have written", async () => {
    const as = `HOME=/dev/shm/home setpriv --reuid=${NOBODY} --regid=${NOBODY} --clear-groups`;
    const home = `mkdir -p /dev/shm/home && chown ${NOBODY} /dev/shm/home; "$EXE" version >/dev/null`;
    const out = await succeeds(`${home}; ${as} "$EXE" version >/dev/null
      stat -c '%a %u' ${ROOT_DIRS[0]} ${ROOT_DIRS[0]}/*; cd /dev/shm/home/.cache; ls; stat -c '%a %u' *`);
    // Unpacked once, by root; what a user's starts remember is the user's.
    assert.equal(out, `755 0\n755 0\nedgemesh-cache\n700 ${NOBODY}\n`);
    const unsafe = await succeeds(
      `${home}; chmod 777 ${ROOT_DIRS[0]}; ${as} "$EXE" version >/dev/null; ls /dev/shm/home/.cache`,
    );
    assert.equal(unsafe, "edgemesh-runtime\n");
  });
  await t.step("old versions that nobody runs are removed, young and running ones stay", async () => {
    const dir = ROOT_DIRS[0];
    const out = await succeeds(
      `mkdir -p -m 700 /var/lib/edgemesh ${dir} ${dir}/aaaa ${dir}/bbbb ${dir}/cccc ${dir}/.tmp.1
      (exec 9<${dir}/bbbb; flock -s 9; exec sleep 60) >/dev/null & while flock -x -n ${dir}/bbbb true; do sleep 0.01; done
      touch -d '2 hours ago' ${dir}/aaaa ${dir}/bbbb ${dir}/.tmp.1; "$EXE" version >/dev/null; kill $!; ls -A ${dir}`,
    );
    assert.deepEqual(out.trim().split("\n").filter((name) => name.length === 4), ["bbbb", "cccc"]);
    assert.doesNotMatch(out, /tmp/);
  });
  await t.step("a running version holds its folder", async () => {
    const out = await succeeds(`"$EXE" server --listen 127.0.0.1:0 --run-dir /tmp/run >/tmp/log 2>&1 & pid=$!
      until [ -S /tmp/run/server.sock ]; do sleep 0.05; kill -0 $pid || { cat /tmp/log; exit 1; }; done
      flock -x -n ${ROOT_DIRS[0]}/* true && echo free || echo held; kill $pid; wait $pid
      flock -x -n ${ROOT_DIRS[0]}/* true && echo free || echo held`);
    assert.equal(out, "held\nfree\n");
  });
});

labTest("executable: a damaged file says so; what lies about in folder and environment changes nothing", async (t) => {
  const only = { "/run": "ro", "/dev/shm": "ro" };
  for (
    const [what, damage] of [
      ["cut off", "head -c 3000000"],
      ["changed in the middle", "sh -c 'head -c 5000000; head -c 100 /dev/zero; tail -c +101'"],
    ] as const
  ) {
    await t.step(what, async () => {
      await fails(
        /The file \/var\/lib\/bad is damaged; try: copy or download it again/,
        `${damage} <"$EXE" >/var/lib/bad; chmod 755 /var/lib/bad; /var/lib/bad version`,
        only,
      );
    });
  }
  await t.step("a stranger's deno.json and Deno's own variables", async () => {
    const out = await succeeds(
      'mkdir /tmp/x; cd /tmp/x; echo "{ broken" >deno.json; echo "{ broken" >package.json; "$EXE" version',
      {},
      {
        DENO_DIR: "/nonexistent",
        DENO_NO_PACKAGE_JSON: "0",
        NODE_OPTIONS: "--require /nonexistent.js",
        DENO_V8_FLAGS: "--nonsense",
      },
    );
    assert.match(out, /^edgemesh /);
  });
  await t.step("started by a relative path, by a link, and from PATH", async () => {
    const out = await succeeds(
      `cd /mnt/exe; ./edgemesh version; ln -s /mnt/exe/edgemesh /var/lib/mesh; /var/lib/mesh version
      PATH=$PATH:/mnt/exe; edgemesh version`,
    );
    assert.equal(out.trim().split("\n").length, 3);
  });
});

labTest("executable: exit codes, suggestions, and start time", async (t) => {
  const { stdout } = await machine(`
    run() { "$EXE" "$@" >/tmp/out 2>/tmp/err; echo "$? $(wc -l </tmp/out) $(head -n 1 /tmp/err)"; }
    "$EXE" version >/dev/null
    for i in 1 2 3 4 5; do s=$(date +%s%N); "$EXE" version >/dev/null; echo "ms $((($(date +%s%N) - s) / 1000000))"; done
    run --help; run agent --help; run agnet; run agent --nodename x; run status; run token list; run agent --set nonsense=1`);
  const lines = stdout.trim().split("\n");
  const times = lines.slice(0, 5).map((line) => Number(line.slice(3)));
  const [help, agentHelp, unknown, badFlag, status, token, badSetting] = lines.slice(5);
  await t.step("help is 0 and on stdout", () => {
    assert.match(help!, /^0 [2-9]\d* $/);
    assert.match(agentHelp!, /^0 [1-9]\d* $/);
  });
  await t.step("unknown words are 2, with a suggestion", () => {
    assert.match(unknown!, /^2 0 error: .*agnet/);
    assert.match(badFlag!, /^2 0 error: .*--nodename/);
    assert.match(badSetting!, /^2 0 error: .*configuration has 1 problem/);
  });
  await t.step("nothing is running is 3", () => {
    assert.match(status!, /^3 0 error: /);
    assert.match(token!, /^3 0 error: /);
  });
  await t.step("starts fast once it is unpacked", () => {
    const best = Math.min(...times);
    tell(`${best} ms for \`edgemesh version\` (best of ${times.join(", ")})`);
    // Design: 24 ms were measured; a busy machine may take ten times as long.
    assert.ok(best < 500, `${best} ms`);
  });
});
