import assert from "node:assert/strict";
import { Duplex } from "node:stream";
import { ConnectAnswer, connectRequest, isProxyUrl, proxyChoice, throughProxy } from "./http_proxy.ts";

const env = (values: Record<string, string>) => (name: string) => values[name];
const SERVER = { host: "mesh.example.com", port: 443 };
const PROXY = { host: "proxy.lan", port: 3128 };
const bytes = (text: string) => new TextEncoder().encode(text);

Deno.test("http proxy: the setting decides, and `auto` asks the environment", () => {
  assert.equal(proxyChoice("off", env({ HTTPS_PROXY: "http://proxy.lan:3128" }))(SERVER), undefined);
  assert.equal(proxyChoice("auto", env({}))(SERVER), undefined);
  assert.equal(proxyChoice("auto", env({ HTTPS_PROXY: "" }))(SERVER), undefined);
  assert.deepEqual(proxyChoice("auto", env({ https_proxy: "http://proxy.lan:3128/" }))(SERVER), PROXY);
  assert.deepEqual(proxyChoice("auto", env({ ALL_PROXY: "proxy.lan" }))(SERVER), { host: "proxy.lan", port: 80 });
  assert.deepEqual(proxyChoice("http://proxy.lan:3128", env({ NO_PROXY: "*" }))(SERVER), PROXY);
  assert.deepEqual(proxyChoice("http://[2001:db8::1]:80", env({}))(SERVER), { host: "2001:db8::1", port: 80 });
  for (const url of ["https://proxy.lan:3128", "socks5://proxy.lan", "http://proxy.lan/path", "http://", ""]) {
    assert.equal(isProxyUrl(url), false, url);
    assert.throws(() => proxyChoice(url, env({})), { code: "CONFIG_INVALID" }, url);
  }
});

for (
  const [except, host, port, direct] of [
    ["*", "mesh.example.com", 443, true],
    ["example.com", "mesh.example.com", 443, true],
    [".example.com", "mesh.example.com", 443, true],
    ["ample.com", "mesh.example.com", 443, false],
    ["MESH.example.com", "mesh.EXAMPLE.com", 443, true],
    ["mesh.example.com:8443", "mesh.example.com", 443, false],
    ["mesh.example.com:443", "mesh.example.com", 443, true],
    ["localhost, 10.0.0.0/8", "10.1.2.3", 443, true],
    ["10.0.0.0/8", "11.1.2.3", 443, false],
    ["10.1.2.3", "10.1.2.3", 443, true],
    ["2001:db8::/32", "2001:db8::5", 443, true],
    ["2001:db8::5", "2001:DB8::5", 443, true],
    ["2001:db8::/32", "10.1.2.3", 443, false],
    ["other.example", "mesh.example.com", 443, false],
  ] as const
) {
  Deno.test(`http proxy: NO_PROXY=${except} and ${host}:${port}: ${direct ? "direct" : "through it"}`, () => {
    const choice = proxyChoice("auto", env({ HTTPS_PROXY: "http://proxy.lan:3128", NO_PROXY: except }));
    assert.equal(choice({ host, port }) === undefined, direct);
  });
}

Deno.test("http proxy: the request names the server, and says who asks where that is wanted", () => {
  const text = (target: typeof SERVER, url = "http://proxy.lan:3128") =>
    new TextDecoder().decode(connectRequest(proxyChoice(url, env({}))(target)!, target));
  assert.equal(text(SERVER), "CONNECT mesh.example.com:443 HTTP/1.1\r\nHost: mesh.example.com:443\r\n\r\n");
  assert.match(text({ host: "2001:db8::1", port: 443 }), /^CONNECT \[2001:db8::1\]:443 /);
  // user "us", password "p:ä"
  assert.match(text(SERVER, "http://us:p%3A%C3%A4@proxy.lan"), /\r\nProxy-Authorization: Basic dXM6cDrDpA==\r\n/);
});

Deno.test("http proxy: its answer, in pieces of any size", () => {
  const good = "HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n";
  for (let cut = 0; cut <= good.length; cut++) {
    const answer = new ConnectAnswer();
    const first = answer.push(bytes(good.slice(0, cut)), PROXY);
    assert.equal(first || answer.push(bytes(good.slice(cut)), PROXY), true);
    assert.equal(first, cut === good.length);
  }
  const said = (text: string) => () => new ConnectAnswer().push(bytes(text), PROXY);
  assert.throws(said("HTTP/1.1 403 Forbidden\r\n\r\n<html>"), {
    code: "SERVER_UNREACHABLE",
    message: /proxy\.lan:3128 refuses .*403 Forbidden/,
  });
  assert.throws(said("HTTP/1.0 407 Who\r\n\r\n"), { hint: /name and a password/ });
  assert.throws(said("SSH-2.0-x\r\n\r\n"), { code: "PROTOCOL" });
  assert.throws(said(`HTTP/1.1 200 OK\r\nX: ${"x".repeat(9000)}`), { code: "PROTOCOL" });
  assert.throws(said("HTTP/1.1 200 OK\r\n\r\nmore"), { code: "PROTOCOL", message: /more than it should/ });
});

Deno.test("http proxy: a connection is a pipe after the answer, and its end before that is an error", async () => {
  const fake = (answer: string | undefined) => {
    const stream: Duplex = new Duplex({
      read() {},
      write(_chunk, _encoding, done) {
        done();
        if (answer === undefined) stream.destroy();
        else stream.push(answer);
      },
    });
    return stream;
  };
  const open = fake("HTTP/1.1 200 OK\r\n\r\n");
  await throughProxy(open, PROXY, SERVER);
  assert.equal(open.listenerCount("data") + open.listenerCount("close"), 0);
  await assert.rejects(throughProxy(fake("HTTP/1.1 502 Bad\r\n\r\n"), PROXY, SERVER), { code: "SERVER_UNREACHABLE" });
  await assert.rejects(throughProxy(fake(undefined), PROXY, SERVER), { message: /ended the connection/ });
});
