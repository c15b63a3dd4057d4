import assert from "node:assert/strict";
import { FakeClock } from "../../clock.ts";
import { makeAuthority } from "../../../tests/kube/certificates.ts";
import type { FakeOptions } from "../../../tests/kube/fake_apiserver.ts";
import { FakeApiServer } from "../../../tests/kube/fake_apiserver.ts";
import { SERVICES } from "../../../tests/kube/objects.ts";
import { FetchApi } from "./kube_api.ts";
import type { AccessDeps, LoadAccess } from "./kube_config.ts";
import { inClusterAccess, kubeconfigAccess, metaServerAccess } from "./kube_config.ts";

const authority = await makeAuthority();

function deps(files: Record<string, string>, env: Record<string, string> = {}): AccessDeps {
  return {
    readText: (path) =>
      files[path] === undefined ? Promise.reject(new Deno.errors.NotFound(path)) : Promise.resolve(files[path]),
    env: (name) => env[name],
  };
}

function kubeconfig(cluster: unknown, user: unknown): string {
  return JSON.stringify({
    apiVersion: "v1",
    kind: "Config",
    "current-context": "c",
    contexts: [{ name: "c", context: { cluster: "k", user: "u" } }, {
      name: "other",
      context: { cluster: "k", user: "v" },
    }],
    clusters: [{ name: "k", cluster }],
    users: [{ name: "u", user }, { name: "v", user: { token: "other-token" } }],
  });
}

/** Asks a fake server once with this access; the status, or the error's text. */
async function ask(load: LoadAccess): Promise<number | string> {
  const api = new FetchApi(load, { clock: new FakeClock(), address: "" });
  try {
    const answer = await api.get(SERVICES, new AbortController().signal);
    await answer.body?.cancel();
    return answer.status;
  } catch (error) {
    return `${error} ${(error as Error).cause ?? ""}`;
  } finally {
    api.close();
  }
}

async function withServer(options: FakeOptions, work: (api: FakeApiServer) => Promise<void>): Promise<void> {
  const api = new FakeApiServer(options);
  await api.start();
  try {
    await work(api);
  } finally {
    await api.stop();
  }
}

const data = (text: string) => btoa(text);
const tlsCluster = (api: FakeApiServer) => ({ server: api.url, "certificate-authority-data": data(authority.ca) });

Deno.test("kubeconfig: client certificate, in the file or beside it, checked both ways", async () => {
  await withServer({ tls: { ...authority.server, clientCa: authority.ca } }, async (api) => {
    const cluster = { server: `${api.url}/`, "certificate-authority-data": data(authority.ca) };
    const { cert, key } = authority.client;
    const inline = { "client-certificate-data": data(cert), "client-key-data": data(key) };
    const load = (files: Record<string, string>) => kubeconfigAccess("/etc/k/config", { deps: deps(files) });
    assert.equal(await ask(load({ "/etc/k/config": kubeconfig(cluster, inline) })), 200);
    const beside = kubeconfig({ server: api.url, "certificate-authority": "ca.pem" }, {
      "client-certificate": "pki/c.pem",
      "client-key": "/abs/k.pem",
    });
    const files = {
      "/etc/k/config": beside,
      "/etc/k/ca.pem": authority.ca,
      "/etc/k/pki/c.pem": cert,
      "/abs/k.pem": key,
    };
    assert.equal(await ask(load(files)), 200);
    assert.notEqual(await ask(load({ "/etc/k/config": kubeconfig(cluster, {}) })), 200, "without one it is refused");
    const strange = await makeAuthority();
    const wrong = { server: api.url, "certificate-authority-data": data(strange.ca) };
    assert.match(String(await ask(load({ "/etc/k/config": kubeconfig(wrong, inline) }))), /certificate|UnknownIssuer/i);
  });
});

Deno.test("kubeconfig: tokens, token files, passwords, another context", async () => {
  await withServer({}, async (api) => {
    api.tokens.add("good").add("from-file").add("other-token");
    const load = (user: unknown, context?: string) =>
      kubeconfigAccess("/k", {
        deps: deps({ "/k": kubeconfig({ server: api.url }, user), "/token": "from-file\n" }),
        ...(context ? { context } : {}),
      });
    assert.equal(await ask(load({ token: "good" })), 200);
    assert.equal(await ask(load({ token: "bad" })), 401);
    assert.equal(await ask(load({ tokenFile: "/token", token: "bad" })), 200);
    assert.equal(await ask(load({ token: "bad" }, "other")), 200);
    assert.equal(
      await ask(load({ username: "u", password: "p" })),
      401,
      "a password is sent, this server wants tokens",
    );
    assert.match(String(await ask(load({}, "missing"))), /context missing is not in it/);
  });
});

Deno.test("kubeconfig: an exec plugin is run through client-node, and anew after a refusal", async () => {
  const folder = await Deno.makeTempDir();
  try {
    await withServer({ tls: authority.server }, async (api) => {
      api.tokens.add("token-2");
      const script = `#!/bin/sh
n=$(($(cat ${folder}/runs 2>/dev/null || echo 0) + 1)); echo $n >${folder}/runs
echo '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"token-'$n'"}}'
`;
      await Deno.writeTextFile(`${folder}/plugin`, script, { mode: 0o700 });
      const exec = {
        apiVersion: "client.authentication.k8s.io/v1",
        command: `${folder}/plugin`,
        interactiveMode: "Never",
      };
      const files = { "/k": kubeconfig(tlsCluster(api), { exec }) };
      const clock = new FakeClock();
      const fetchApi = new FetchApi(kubeconfigAccess("/k", { deps: deps(files) }), { clock, address: "" });
      const get = async () => {
        const answer = await fetchApi.get(SERVICES, new AbortController().signal);
        await answer.body?.cancel();
        return answer.status;
      };
      assert.equal(await get(), 401);
      clock.advance(1000);
      await fetchApi.reauthenticate();
      assert.equal(await get(), 200);
      clock.advance(120_000);
      assert.equal(await get(), 200, "the plugin's answer is remembered");
      assert.equal((await Deno.readTextFile(`${folder}/runs`)).trim(), "2");
      fetchApi.close();
    });
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("kubeconfig: an OIDC id-token that is valid is sent as it is", async () => {
  const part = (value: unknown) =>
    btoa(JSON.stringify(value)).replaceAll("=", "").replaceAll("+", "-").replaceAll("/", "_");
  const idToken = `${part({ alg: "none" })}.${part({ exp: Math.floor(Date.now() / 1000) + 3600 })}.${part("s")}`;
  await withServer({ tls: authority.server }, async (api) => {
    api.tokens.add(idToken);
    const config = {
      "id-token": idToken,
      "idp-issuer-url": "https://issuer.invalid",
      "client-id": "x",
      "refresh-token": "r",
    };
    const user = { "auth-provider": { name: "oidc", config } };
    const load = kubeconfigAccess("/k", { deps: deps({ "/k": kubeconfig(tlsCluster(api), user) }) });
    assert.equal(await ask(load), 200);
  });
});

Deno.test("kubeconfig: what cannot be used is said with the file's name", async () => {
  const cases: [string, RegExp][] = [
    ["{}", /\/k cannot be used: no context is current/],
    [kubeconfig({}, {}), /names no cluster with a server/],
    [kubeconfig({ server: "https://x", "tls-server-name": "y" }, {}), /tls-server-name cannot be honoured/],
    [kubeconfig({ server: "https://x", "certificate-authority-data": "%%%" }, {}), /is not base64/],
    [kubeconfig({ server: "https://x", "certificate-authority": "/missing" }, {}), /missing/],
  ];
  for (const [text, expected] of cases) {
    await assert.rejects(kubeconfigAccess("/k", { deps: deps({ "/k": text }) })(false), expected);
  }
});

Deno.test("in-cluster: server, authority and token of the pod's account", async () => {
  const account = "/var/run/secrets/kubernetes.io/serviceaccount";
  const files = { [`${account}/ca.crt`]: authority.ca, [`${account}/token`]: "t\n" };
  const env = { KUBERNETES_SERVICE_HOST: "fd00::1", KUBERNETES_SERVICE_PORT: "6443" };
  assert.deepEqual(await inClusterAccess(deps(files, env))(false), {
    server: "https://[fd00::1]:6443",
    caCerts: [authority.ca],
    token: "t",
  });
  await assert.rejects(inClusterAccess(deps(files))(false), /KUBERNETES_SERVICE_HOST is not set/);
});

Deno.test("MetaServer: plain; A32 one-way TLS unchecked; A33 mutual TLS", async () => {
  const account = "/var/run/secrets/kubernetes.io/serviceaccount";
  const { cert, key } = authority.client;
  const files = { [`${account}/token`]: "t", "/ca": authority.ca, "/cert": cert, "/key": key };
  await withServer({}, async (api) => {
    assert.equal(await ask(metaServerAccess({ server: api.url }, deps({}))), 200);
  });
  await withServer({ tls: authority.server }, async (api) => {
    api.tokens.add("t");
    const server = api.url.replace("https:", "http:");
    const oneWay = { server, requireAuthorization: true, insecureSkipTLSVerify: true };
    assert.equal(await ask(metaServerAccess(oneWay, deps(files))), 200);
    const checked = { server, requireAuthorization: true };
    assert.match(String(await ask(metaServerAccess(checked, deps(files)))), /certificate|UnknownIssuer/i);
  });
  await withServer({ tls: { ...authority.server, clientCa: authority.ca } }, async (api) => {
    api.tokens.add("t");
    const mutual = {
      server: api.url,
      requireAuthorization: true,
      tlsCaFile: "/ca",
      tlsCertFile: "/cert",
      tlsPrivateKeyFile: "/key",
    };
    assert.equal(await ask(metaServerAccess(mutual, deps(files))), 200);
  });
});

Deno.test("access: a file that cannot be read for a moment does not take away what works", async () => {
  await withServer({}, async (api) => {
    const clock = new FakeClock();
    let readable = true;
    const load = () => readable ? Promise.resolve({ server: api.url, caCerts: [] }) : Promise.reject(new Error("gone"));
    const fetchApi = new FetchApi(load, { clock, address: "" });
    const get = async () => {
      const answer = await fetchApi.get(SERVICES, new AbortController().signal);
      await answer.body?.cancel();
      return answer.status;
    };
    assert.equal(await get(), 200);
    readable = false;
    clock.advance(61_000);
    assert.equal(await get(), 200);
    fetchApi.close();
    const never = new FetchApi(() => Promise.reject(new Error("gone")), { clock, address: "" });
    await assert.rejects(never.get(SERVICES, new AbortController().signal), { code: "CONFIG_INVALID" });
  });
});

Deno.test("T41: a relative path in a kubeconfig stays in its folder", async () => {
  for (
    const [cluster, user] of [
      [{ server: "https://127.0.0.1:1", "certificate-authority": "../ca.crt" }, { token: "t" }],
      [{ server: "https://127.0.0.1:1" }, { tokenFile: "pki/../../token" }],
    ]
  ) {
    const files = {
      "/etc/edgemesh/kubeconfig": kubeconfig(cluster, user),
      "/etc/ca.crt": authority.ca,
      "/etc/token": "t",
    };
    await assert.rejects(
      kubeconfigAccess("/etc/edgemesh/kubeconfig", { deps: deps(files) })(false),
      /(\.\.\/ca\.crt|\.\.\/token) leads out of its folder/,
    );
  }
});
