import { strict as assert } from "node:assert";
import { FakeClock } from "../clock.ts";
import { pollNetwork } from "./network_poll.ts";
import { inNamespace, mayMakeNamespaces, run } from "./testing.ts";
import "./preload.ts";

Deno.test("a change is told once, and nothing after the end", () => {
  const clock = new FakeClock();
  let state = "a";
  let told = 0;
  const stop = pollNetwork(clock, () => told++, () => state);
  clock.advance(10_000);
  assert.equal(told, 0);
  state = "b";
  clock.advance(2_000);
  assert.equal(told, 1);
  clock.advance(10_000);
  assert.equal(told, 1);
  stop();
  state = "c";
  clock.advance(10_000);
  assert.equal(told, 1);
});

Deno.test({
  name: "addresses and routes of the host are looked at",
  ignore: !mayMakeNamespaces("lib/linux/network_poll_test.ts"),
  fn: () =>
    inNamespace(() => {
      const clock = new FakeClock();
      let told = 0;
      const stop = pollNetwork(clock, () => told++);
      const after = (what: () => void, times: number) => {
        told = 0;
        what();
        clock.advance(2_000);
        assert.equal(told, times);
      };
      after(() => {}, 0);
      after(() => void run("ip", "addr", "add", "192.0.2.1/24", "dev", "lo"), 1);
      after(() => void run("ip", "route", "add", "198.51.100.0/24", "via", "192.0.2.7"), 1);
      after(() => void run("ping", "-c", "1", "192.0.2.1"), 0);
      after(() => void run("ip", "route", "del", "198.51.100.0/24"), 1);
      stop();
    }),
});
