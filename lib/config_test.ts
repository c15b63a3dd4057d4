import assert from "node:assert/strict";
import { configPaths, parseConfig } from "./config.ts";
import { envName, filePaths, loadConfig } from "./config_load.ts";
import { MeshError } from "./errors.ts";
import { nearest } from "./nearest.ts";

const none = { flags: {}, env: {} };

Deno.test("loadConfig without any source gives the defaults of both roles", () => {
  const agent = loadConfig("agent", none).config;
  assert.equal(agent.mesh.address, "169.254.96.16");
  assert.equal(agent.dns.zone, "cluster.local");
  assert.equal(agent.tunnel.listen, "[::]:20006");
  const server = loadConfig("server", none).config;
  assert.equal(server.listen, "0.0.0.0:443");
  assert.ok(server.serviceCIDRs.length > 0);
});

Deno.test("loadConfig lets flags win over environment over file and says where each value came from", () => {
  const { config, origin } = loadConfig("agent", {
    flags: { nodeName: "from-flag" },
    env: { EDGEMESH_NODE_NAME: "from-env", EDGEMESH_DNS_ZONE: "env.zone" },
    file: { name: "agent.yaml", text: "nodeName: from-file\ndns: { zone: file.zone, port: 5353 }\n" },
  });
  assert.equal(config.nodeName, "from-flag");
  assert.equal(config.dns.zone, "env.zone");
  assert.equal(config.dns.port, 5353);
  assert.deepEqual([origin.get("nodeName"), origin.get("dns.zone"), origin.get("dns.port")], [
    "flag",
    "environment EDGEMESH_DNS_ZONE",
    "agent.yaml:2",
  ]);
});

Deno.test("loadConfig reads lists from the environment separated by commas, also a single value", () => {
  const one = loadConfig("agent", { flags: {}, env: { EDGEMESH_SERVER: "wss://a.example" } }).config;
  assert.deepEqual(one.server, ["wss://a.example"]);
  const two =
    loadConfig("agent", { flags: {}, env: { EDGEMESH_SERVER: "wss://a.example, wss://b.example:8443" } }).config;
  assert.deepEqual(two.server, ["wss://a.example", "wss://b.example:8443"]);
});

Deno.test("T41: loadConfig reports every problem at once with path, place and suggestion", () => {
  const error = failure(() =>
    loadConfig("agent", {
      flags: { "mesh.address": "010.0.0.1" },
      env: { EDGEMESH_DNS_ENABLE: "true", EDGEMESH_DNS_PORT: "0" },
      file: { name: "a.yaml", text: "nodeNam: x\nforward:\n  udpIdleMs: soon\n" },
    })
  );
  assert.equal(error.code, "CONFIG_INVALID");
  for (
    const part of [
      "nodeNam is not a known key; did you mean nodeName?",
      "(a.yaml:1)",
      "(a.yaml:3)",
      "mesh.address must be an IP address",
      "(flag)",
      "EDGEMESH_DNS_ENABLE is not a known variable; did you mean EDGEMESH_DNS_ENABLED? (environment)",
      "dns.port",
      "forward.udpIdleMs",
    ]
  ) assert.ok(error.message.includes(part), `${part} is missing in:\n${error.message}`);
});

Deno.test("T41: a wrong value is answered with what it must be, what it is, and its line", () => {
  const text = [
    "dsn:",
    "  enabled: true",
    "dns: { enabled: maybe, ttlSeconds: -3, port: 99999 }",
    "server: 7",
    "log: { level: chatty }",
    "tunnel: { punchPorts: 9-1, listen: 7 }",
    "mesh: { interface: A LINK, address6: none }",
    "forward: on",
  ].join("\n");
  const { message } = failure(() => loadConfig("agent", { ...none, file: { name: "a.yaml", text } }));
  const lines = message.split("\n  ").slice(1);
  assert.deepEqual(lines.sort(), [
    'dns.enabled must be true or false, not "maybe" (a.yaml:3)',
    "dns.port must be at most 65535, not 99999 (a.yaml:3)",
    "dns.ttlSeconds must be at least 0, not -3 (a.yaml:3)",
    "dsn is not a known key; did you mean dns? (a.yaml:1)",
    'forward must be a group of keys and values, not "on" (a.yaml:8)',
    'log.level must be trace, debug, info, warn or error, not "chatty" (a.yaml:5)',
    "mesh.address6 must be an IP address in canonical form, like fd00::1, or off (a.yaml:7)",
    "mesh.interface must be 1 to 15 of a-z, 0-9, '.', '_' and '-' (a.yaml:7)",
    "server must be a list, not 7 (a.yaml:4)",
    "tunnel.listen must be address:port, like 0.0.0.0:443, or off (a.yaml:6)",
    "tunnel.punchPorts must be a list of the first and the last port, like [20100, 29999] (a.yaml:6)",
  ]);
});

Deno.test("loadConfig names the line of broken YAML", () => {
  const error = failure(() => loadConfig("agent", { ...none, file: { name: "a.yaml", text: "dns:\n  zone: [\n" } }));
  assert.match(error.message, /a\.yaml:[23]: /);
});

Deno.test("T41: loadConfig refuses keys that would change objects, at any depth", () => {
  const hosts = (text: string) => ({ ...none, file: { name: "a.yaml", text } });
  for (
    const [text, path, line] of [
      ["__proto__: { admin: true }\n", "__proto__", 1],
      ["log: { level: info }\nconstructor: 1\n", "constructor", 2],
      ["dns:\n  hosts:\n    __proto__: [10.0.0.1]\n", "dns.hosts.__proto__", 3],
      ["dns:\n  forwards: [{ prototype: 1, zone: a, upstreams: [1.1.1.1] }]\n", "dns.forwards.0.prototype", 2],
    ] as const
  ) {
    const { message } = failure(() => loadConfig("agent", hosts(text)));
    assert.ok(message.includes(`${path} is not a known key (a.yaml:${line})`), message);
  }
  for (const flag of ["constructor.prototype.x", "dns.__proto__.admin"]) {
    assert.match(failure(() => loadConfig("agent", { flags: { [flag]: 1 }, env: {} })).message, /is not a valid path/);
  }
  assert.equal(({} as { admin?: boolean }).admin, undefined);
});

Deno.test("T41: an alias bomb is a problem of its file, said at once", () => {
  const levels = Array.from(
    { length: 30 },
    (_, i) => `l${i}: &l${i} [${Array(9).fill(i ? `*l${i - 1}` : 1).join(",")}]`,
  );
  const { message } = failure(() =>
    loadConfig("agent", { ...none, file: { name: "a.yaml", text: levels.join("\n") } })
  );
  assert.match(message, /refers to its own parts so often.*\(?a\.yaml|a\.yaml: refers to its own parts so often/);
  const few = "nodeName: &n edge-1\ndns: { searchNamespaces: [*n] }\n";
  assert.deepEqual(loadConfig("agent", { ...none, file: { name: "a.yaml", text: few } }).config.dns.searchNamespaces, [
    "edge-1",
  ]);
});

Deno.test("parseConfig refuses server addresses that are not plain wss", () => {
  for (const bad of ["ws://a", "https://a", "wss://a/path", "wss://u:p@a", "wss://a?x", "a"]) {
    assert.ok("issues" in parseConfig("agent", { server: [bad] }), bad);
  }
});

Deno.test("envName of every path is unique and round-trips through the loader", () => {
  for (const role of ["agent", "server"] as const) {
    const names = configPaths(role).map(envName);
    assert.equal(new Set(names).size, names.length);
  }
});

Deno.test("a list of one is a list, whichever way it is said", () => {
  for (const said of ["9090", "[9090]", 9090, [9090]]) {
    const { config } = loadConfig("agent", { flags: { "forward.hostPorts": said }, env: {} });
    assert.deepEqual(config.forward.hostPorts, [9090], JSON.stringify(said));
  }
  const { config } = loadConfig("agent", { flags: {}, env: { EDGEMESH_FORWARD_HOST_PORTS: "9090" } });
  assert.deepEqual(config.forward.hostPorts, [9090]);
});

Deno.test("nearest finds slips and stays silent for strangers", () => {
  assert.equal(nearest("sttaus", ["status", "server"]), "status");
  assert.equal(nearest("kubernetes", ["status", "server"]), undefined);
});

function failure(act: () => unknown): MeshError {
  try {
    act();
  } catch (e) {
    assert.ok(e instanceof MeshError, String(e));
    return e;
  }
  throw new assert.AssertionError({ message: "Nothing was refused" });
}

Deno.test("loadConfig refuses two sources on an agent, and what is no address of a MetaServer", () => {
  const both = failure(() =>
    loadConfig("agent", {
      flags: { kubeconfig: "in-cluster", "metaServer.server": "http://127.0.0.1:10550" },
      env: {},
    })
  );
  assert.match(both.message, /metaServer\.server cannot be given beside kubeconfig/);
  for (const bad of ["127.0.0.1:10550", "http://u@h", "http://h/path", "ftp://h"]) {
    const error = failure(() => loadConfig("agent", { ...none, flags: { "metaServer.server": bad } }));
    assert.match(error.message, /metaServer\.server must be http:/, bad);
  }
  const { metaServer } = loadConfig("agent", { ...none, flags: { "metaServer.server": "http://[::1]:10550" } }).config;
  assert.equal(metaServer.security.tlsCertFile, "/etc/edgemesh/metaserver/server.crt");
});

Deno.test("T41: a path in the configuration is absolute and leaves no folder it names", () => {
  for (
    const key of ["stateDir", "runDir", "manifests", "kubeconfig", "dns.resolvConf", "metaServer.security.tlsCaFile"]
  ) {
    for (const bad of ["../etc/shadow", "/etc/edgemesh/../shadow", "relative/file"]) {
      const error = failure(() => loadConfig("agent", { flags: { [key]: bad }, env: {} }));
      assert.match(error.message, /must be (in-cluster or )?an absolute path without '\.\.'/, `${key}=${bad}`);
    }
  }
  assert.match(
    failure(() => loadConfig("agent", { flags: { tokenFile: "/run/../token" }, env: {} })).message,
    /must be a path without/,
  );
});

Deno.test("T41: every file that a configuration refers to is looked at for links that lead outside", () => {
  assert.deepEqual(filePaths("server"), ["kubeconfig"]);
  const named = [
    "tokenFile",
    "kubeconfig",
    ...["tlsCaFile", "tlsCertFile", "tlsPrivateKeyFile", "tokenFile"].map((k) => `metaServer.security.${k}`),
  ];
  assert.deepEqual(filePaths("agent"), named);
  const leadsOutside = (path: string) => path.startsWith("/etc/edgemesh/link") ? "/etc/shadow" : undefined;
  for (const path of named) {
    const keys = path.split(".");
    const text = keys.map((key, i) => `${"  ".repeat(i)}${key}:`).join("\n") + " /etc/edgemesh/link\n";
    const error = failure(() => loadConfig("agent", { ...none, file: { name: "a.yaml", text }, leadsOutside }));
    assert.match(
      error.message,
      new RegExp(`${path} is a link that leads out of its folder, to /etc/shadow.*\\(a\\.yaml:${keys.length}\\)`),
    );
  }
  loadConfig("agent", { flags: { tokenFile: "/etc/edgemesh/token", kubeconfig: "in-cluster" }, env: {}, leadsOutside });
});
