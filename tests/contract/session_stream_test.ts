/** Streams of a tunnel session keep the contract of MeshStream: two sessions joined by memory carriers. */
import assert from "node:assert/strict";
import type { MeshStream, StreamHandler } from "../../lib/net.ts";
import { DEFAULT_LIMITS } from "../../lib/tunnel/constants.ts";
import { TARGET, World } from "../fixtures/sessions.ts";
import { streamContract, type StreamFactory } from "./stream_contract.ts";

for (const switching of [false, true]) {
  const name = switching ? "session streams, a new carrier every few turns" : "session streams";
  streamContract(name, () => {
    const world = new World({ throwFaults: true });
    world.connect();
    let turns = 0;
    const turn = () => {
      if (switching && ++turns % 3 === 0) world.connect();
      world.run();
      world.clock.advance(1);
      world.run();
    };
    const factory: StreamFactory = {
      pair(near, far) {
        let accepted: MeshStream | undefined;
        world.b.onStream = (incoming) => {
          accepted = incoming.accept(far);
        };
        const stream = world.a.session.openStream(TARGET, undefined, near);
        // Both ends exist as soon as the OPEN has arrived; their callbacks come later.
        world.run();
        assert.ok(accepted);
        return Promise.resolve([stream, accepted]);
      },
      failingDial(handler: StreamHandler) {
        world.b.onStream = (incoming) => incoming.refuse("DIAL_REFUSED");
        return world.a.session.openStream(TARGET, undefined, handler);
      },
      turn,
      quiet() {
        for (let i = 0; i < 50; i++) turn();
        return Promise.resolve();
      },
      // Nothing is taken from a writer beyond the reader's window.
      capacity: DEFAULT_LIMITS.maxWindow,
      get size() {
        const [a, b] = [world.a.session.stats(), world.b.session.stats()];
        return a.streams + b.streams;
      },
      close() {
        world.close();
        assert.equal(world.clock.pending, 0);
        return Promise.resolve();
      },
    };
    return Promise.resolve(factory);
  });
}
