/** nginx that asks for a client's certificate, with an authority of its own. */
import { exec } from "../../lib/lab/exec.ts";
import type { Host } from "../../lib/lab/host.ts";
import type { HostProcess } from "../../lib/lab/process.ts";
import { requireTools } from "../../lib/lab/tools.ts";
import { MeshError } from "../../lib/errors.ts";

/** Paths of PEM files, on every machine of the lab. */
export interface TlsFiles {
  readonly ca: string;
  readonly cert: string;
  readonly key: string;
}

const CERTIFICATES = `set -e
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=lab-ca -keyout ca.key -out ca.crt
for who in server client; do
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=$who -keyout $who.key -out $who.csr
  printf 'subjectAltName=DNS:%s\\n' "$1" > $who.ext
  openssl x509 -req -in $who.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 1 -extfile $who.ext -out $who.crt
done`;

/** Serves `text` to clients that show a certificate of its authority; resolves with what such a client needs. */
export async function startMutualTls(
  host: Host,
  options: { readonly port: number; readonly name: string; readonly text: string },
): Promise<{ readonly process: HostProcess; readonly client: TlsFiles }> {
  const { nginx } = await requireTools(["nginx", "openssl"]);
  const dir = `${host.logDir}/tls-${options.port}`;
  await Deno.mkdir(`${dir}/tmp`, { recursive: true });
  const made = await exec(["sh", "-c", `cd "$0" && ${CERTIFICATES}`, dir, options.name]);
  if (made.code !== 0) throw new MeshError("INTERNAL", `openssl failed: ${made.stderr}`);
  await Deno.writeTextFile(`${dir}/answer.txt`, options.text);
  await Deno.writeTextFile(
    `${dir}/nginx.conf`,
    `daemon off;
user root;
worker_processes 1;
pid ${dir}/nginx.pid;
events { worker_connections 256; }
http {
  access_log off;
  default_type text/plain;
  client_body_temp_path ${dir}/tmp/body; proxy_temp_path ${dir}/tmp/proxy; fastcgi_temp_path ${dir}/tmp/fastcgi;
  uwsgi_temp_path ${dir}/tmp/uwsgi; scgi_temp_path ${dir}/tmp/scgi;
  server {
    listen ${options.port} ssl;
    ssl_certificate ${dir}/server.crt;
    ssl_certificate_key ${dir}/server.key;
    ssl_client_certificate ${dir}/ca.crt;
    ssl_verify_client on;
    location / { root ${dir}; try_files /answer.txt =404; }
  }
}
`,
  );
  const argv = [nginx, "-p", dir, "-e", "stderr", "-c", `${dir}/nginx.conf`];
  const process = await host.start(`tls-${options.port}`, argv, { ready: { port: options.port } });
  return { process, client: { ca: `${dir}/ca.crt`, cert: `${dir}/client.crt`, key: `${dir}/client.key` } };
}
