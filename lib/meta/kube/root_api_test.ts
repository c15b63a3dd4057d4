import assert from "node:assert/strict";
import { createLogger, memorySink } from "../../log.ts";
import type { ApiAnswer, KubeApi } from "./kube_api.ts";
import { RootApi } from "./root_api.ts";

class Answers implements KubeApi {
  readonly address = "http://127.0.0.1:10550";
  asked = 0;
  closed = 0;
  cancelled = 0;
  /** Runs between the request and the answer. */
  meanwhile = () => {};

  get(): Promise<ApiAnswer> {
    this.asked++;
    this.meanwhile();
    const body = new ReadableStream<Uint8Array>({ cancel: () => void this.cancelled++ });
    return Promise.resolve({ status: 200, retryAfterMs: undefined, contentType: "application/json", body });
  }

  reauthenticate(): Promise<void> {
    return Promise.resolve();
  }

  close(): void {
    this.closed++;
  }
}

function rig() {
  const inner = new Answers();
  const sink = memorySink("info");
  const port = { owners: [0] as number[] };
  const api = new RootApi(inner, { owners: () => Promise.resolve(port.owners), log: createLogger(sink) });
  return { inner, lines: sink.lines, port, api, get: () => api.get("/api/v1/services", new AbortController().signal) };
}

Deno.test("root api: asked while root listens, and only then", async () => {
  const { inner, port, api, lines, get } = rig();
  assert.equal((await get()).status, 200);
  port.owners = [65534];
  await assert.rejects(get(), /user 65534, not by root/);
  await assert.rejects(get(), /user 65534/);
  assert.equal(inner.asked, 1, "a stranger was asked");
  assert.match(api.problem!, /not believed/);
  assert.equal(lines.length, 1, "one line per holder");
  port.owners = [];
  await assert.rejects(get(), /Nobody listens/);
  assert.equal(api.problem, undefined);
  port.owners = [0, 0];
  assert.equal((await get()).status, 200);
});

Deno.test("root api: a port that changed hands while it was asked is not believed, and its connections end", async () => {
  const { inner, port, get } = rig();
  inner.meanwhile = () => port.owners = [0, 1000];
  await assert.rejects(get(), /user 1000/);
  assert.deepEqual([inner.asked, inner.cancelled, inner.closed], [1, 1, 1]);
});
