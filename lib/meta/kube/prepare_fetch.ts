/** What Deno loads at the first `fetch` of a process, loaded before it and in pieces. */

/** Each takes one to four milliseconds in Deno 2.9.6 the first time and nothing afterwards. */
const PIECES: readonly (() => unknown)[] = [
  () => new Headers(),
  () => new ReadableStream(),
  () => new URL("http://localhost"),
  () => new FormData(),
  () => new Response(),
  () => Deno.createHttpClient({}).close(),
  () => new Request("http://localhost"),
  async () => await (await fetch("data:,")).body?.cancel(),
];

/**
 * All of it in one turn of the event loop, as a first `fetch` does it, holds traffic for fifteen to twenty
 * milliseconds. `rest` lets the loop turn.
 */
export async function prepareFetch(rest: () => Promise<void>): Promise<void> {
  for (const load of PIECES) {
    await load();
    await rest();
  }
}
