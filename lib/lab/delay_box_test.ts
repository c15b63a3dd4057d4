import assert from "node:assert/strict";
import { runDelayBox } from "./delay_box.ts";

/** Runs with the standard error of this process replaced, as the box writes for the person who started it. */
async function refused(...args: string[]): Promise<{ code: number; said: string }> {
  const real = Deno.stderr.writeSync;
  let said = "";
  Deno.stderr.writeSync = (bytes) => {
    said += new TextDecoder().decode(bytes);
    return bytes.length;
  };
  try {
    return { code: await runDelayBox(args), said };
  } finally {
    Deno.stderr.writeSync = real;
  }
}

Deno.test("the delay box refuses options it does not know or cannot use", async () => {
  assert.deepEqual(await refused("--delay-ms", "20"), { code: 2, said: "error: Option --tun is missing\n" });
  assert.match((await refused("--tun", "t", "--fast", "1")).said, /^error: Unknown or incomplete option --fast/);
  assert.match((await refused("--tun", "t", "--delay-ms")).said, /incomplete option --delay-ms/);
  assert.match((await refused("--tun", "t", "--delay-ms", "-1")).said, /--delay-ms -1 is not a number from 0 up/);
  assert.match((await refused("--tun", "t", "--loss", "1.5")).said, /Loss 1.5 is above 1/);
  assert.match((await refused("--tun", "t", "--queue-mib", "0")).said, /--queue-mib 0 is not an integer/);
  assert.match((await refused("--tun", "a-name-that-is-too-long")).said, /must have 1 to 15 bytes/);
});
