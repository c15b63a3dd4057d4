import assert from "node:assert/strict";
import { findTool, missingTools, requireTools } from "./tools.ts";

Deno.test("missing tools are one error with the Debian packages", () => {
  const error = missingTools(["socat", "ip", "dig"]);
  assert.equal(error.code, "TOOL_MISSING");
  assert.equal(error.message, "The lab needs programs that are not installed: dig, ip, socat");
  assert.equal(error.hint, "apt-get install bind9-dnsutils iproute2 socat");
});

Deno.test("back ends that can be unpacked instead of installed say so", () => {
  assert.equal(
    missingTools(["redis-server", "nginx"]).hint,
    "scripts/fetch_backends.sh, or apt-get install nginx redis-server",
  );
});

Deno.test("tools are found by absolute path", async () => {
  const { nsenter } = await requireTools(["nsenter"]);
  assert.match(nsenter, /^\/.*\/nsenter$/);
  assert.equal(await findTool("nsenter"), nsenter);
});
