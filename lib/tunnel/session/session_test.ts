/** What a session does while nothing goes wrong. */
import assert from "node:assert/strict";
import { acceptAll, acceptFlows, open, openFlow, Owner, TARGET, World } from "../../../tests/fixtures/sessions.ts";

Deno.test("a stream opens with its first bytes, is answered, and closes without a trace", () => {
  const world = new World();
  const targets: unknown[] = [];
  const server = new Owner();
  world.b.onStream = (incoming) => {
    targets.push(incoming.target, incoming.from.node);
    server.stream = incoming.accept(server);
    server.send("answer");
    server.stream.closeWrite();
  };
  const client = open(world.a, "question");
  client.stream.closeWrite();
  world.connect();
  world.run();
  assert.deepEqual(targets, [TARGET, "node-a"]);
  assert.equal(server.text, "question");
  assert.equal(client.text, "answer");
  assert.deepEqual([client.calls, server.calls], [["open", "close undefined"], ["open", "close undefined"]]);
  world.pass(50);
  for (const { session } of [world.a, world.b]) {
    const { streams, entries, retained, unread } = session.stats();
    assert.deepEqual({ streams, entries, retained, unread }, { streams: 0, entries: 0, retained: 0, unread: 0 });
  }
  world.close();
  assert.equal(world.clock.pending, 0);
});

Deno.test("OPEN, first bytes and FIN travel in one batch", () => {
  const world = new World();
  const owners = acceptAll(world.b);
  const [near] = world.connect();
  world.run();
  near.hold();
  const client = open(world.a, "GET /");
  client.stream.closeWrite();
  world.run();
  assert.equal(near.inFlight, 1);
  near.release();
  world.run();
  assert.equal(owners[0]!.text, "GET /");
  assert.ok(owners[0]!.ended);
  world.close();
});

Deno.test("a refused stream never opens", () => {
  const world = new World();
  world.connect();
  const client = open(world.a, "question");
  world.run();
  assert.deepEqual(client.calls, ["close NO_SERVICE"]);
  world.close();
});

Deno.test("a datagram arrives whole, both ways", () => {
  const world = new World();
  world.connect();
  const served = acceptFlows(world.b);
  const client = openFlow(world.a);
  assert.ok(client.send("ping"));
  world.run();
  assert.deepEqual(served[0]!.texts, ["ping"]);
  served[0]!.send("pong");
  world.run();
  assert.deepEqual(client.texts, ["pong"]);
  client.flow.close("SHUTDOWN");
  world.run();
  assert.deepEqual(served[0]!.calls, ["close SHUTDOWN"]);
  assert.equal(world.b.session.stats().flows, 0);
  world.close();
});
