/** A web server on the lab's internet that has a release, as whoever runs a mesh publishes it: over TLS, by name. */
import { execOk } from "../../lib/lab/exec.ts";
import type { Host } from "../../lib/lab/host.ts";
import type { Systemd } from "../../lib/lab/systemd.ts";
import { SERVER_ADDRESSES } from "../../lib/lab/topology.ts";
import { builtCommand, fixture } from "./support.ts";

const ROOT = new URL("../..", import.meta.url).pathname;
const ARCH = Deno.build.arch === "aarch64" ? "arm64" : "amd64";
/** Name of the web server, as the documents have it. */
export const SITE = "get.mesh.example.com";
/** Where {@link bareHost} puts the authority of the web server's certificate. */
export const CA_FILE = "/srv/lab-ca.pem";

/** Makes a release of the built executable in `dir` and serves it on the host (the lab's cloud node). */
export async function publish(host: Host, dir: string): Promise<void> {
  const [exe] = builtCommand();
  const base = `https://${SITE}`;
  await execOk([
    `${ROOT}scripts/release.sh`,
    "--out",
    `${dir}/release`,
    "--base",
    base,
    "--prebuilt",
    `${ARCH}=${exe}`,
  ]);
  const files = ["-keyout", `${dir}/key.pem`, "-out", `${dir}/cert.pem`];
  const name = ["-subj", `/CN=${SITE}`, "-addext", `subjectAltName=DNS:${SITE}`];
  const kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
  await execOk(["openssl", "req", ...kind, ...files, ...name]);
  const argv = [...fixture("release_server"), `${dir}/release`, "203.0.113.3:443", `${dir}/cert.pem`, `${dir}/key.pem`];
  await host.start("web", argv, { ready: { log: /listening 443/ } });
}

/** Tells a host the names that public DNS would know, and the authority of the web server's certificate. */
export async function bareHost(host: Systemd, dir: string): Promise<Systemd> {
  const names = `${SERVER_ADDRESSES[0]} mesh.example.com\\n203.0.113.3 ${SITE}\\n`;
  const line = `cat >${CA_FILE}; printf '${names}' >>/etc/hosts`;
  await host.execOk(["sh", "-ec", line], { stdin: await Deno.readTextFile(`${dir}/cert.pem`) });
  return host;
}
