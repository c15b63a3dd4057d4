/** Real programs to serve something on a lab host; each resolves when the port is open. */
import type { Host } from "./host.ts";
import type { HostProcess, Ready } from "./process.ts";
import { requireTools } from "./tools.ts";

/** nginx that answers every request with `text`. */
export async function startNginx(
  host: Host,
  options: { readonly port: number; readonly text: string },
): Promise<HostProcess> {
  const { nginx } = await requireTools(["nginx"]);
  const dir = `${host.logDir}/nginx-${options.port}`;
  await Deno.mkdir(`${dir}/tmp`, { recursive: true });
  const temp = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map((t) => `  ${t}_temp_path ${dir}/tmp/${t};\n`);
  await Deno.writeTextFile(
    `${dir}/nginx.conf`,
    `daemon off;
user root;
worker_processes 1;
pid ${dir}/nginx.pid;
events { worker_connections 1024; }
http {
  access_log off;
  default_type text/plain;
  keepalive_requests 1000000;
${temp.join("")}  server {
    listen ${options.port} backlog=4096;
    listen [::]:${options.port} backlog=4096;
    location / {
      root ${dir};
      try_files /answer.txt =404;
    }
  }
}
`,
  );
  await Deno.writeTextFile(`${dir}/answer.txt`, options.text);
  const argv = [nginx, "-p", dir, "-e", "stderr", "-c", `${dir}/nginx.conf`];
  return await host.start(`nginx-${options.port}`, argv, { ready: { port: options.port } });
}

/** redis without persistence. */
export async function startRedis(host: Host, options: { readonly port: number }): Promise<HostProcess> {
  const tools = await requireTools(["redis-server"]);
  const settings = ["--port", String(options.port), "--save", "", "--appendonly", "no", "--protected-mode", "no"];
  const argv = [tools["redis-server"], ...settings, "--dir", host.logDir];
  return await host.start(`redis-${options.port}`, argv, { ready: { port: options.port } });
}

/** TCP or UDP echo (socat; one process per connection or datagram, so not for load). */
export async function startEcho(
  host: Host,
  options: { readonly port: number; readonly protocol?: "tcp" | "udp" },
): Promise<HostProcess> {
  const { socat } = await requireTools(["socat"]);
  const protocol = options.protocol ?? "tcp";
  const listen = protocol === "tcp"
    ? `TCP4-LISTEN:${options.port},fork,reuseaddr,backlog=128`
    : `UDP4-RECVFROM:${options.port},fork`;
  const ready: Ready = { port: options.port, protocol };
  return await host.start(`echo-${protocol}-${options.port}`, [socat, listen, "PIPE"], { ready });
}

/** Tells each TCP client the address and port it comes from, as `address:port` and a newline, and closes. */
export async function startObserver(
  host: Host,
  options: { readonly port: number; readonly address?: string },
): Promise<HostProcess> {
  const { socat } = await requireTools(["socat"]);
  const bind = options.address === undefined ? "" : `,bind=${options.address}`;
  const argv = [
    socat,
    `TCP4-LISTEN:${options.port},fork,reuseaddr${bind}`,
    'SYSTEM:echo "$SOCAT_PEERADDR\\:$SOCAT_PEERPORT"',
  ];
  const name = `observer-${options.address ?? "any"}-${options.port}`;
  // Several observers may share the port on different addresses, so the port alone does not show that this one is up.
  const ready: Ready = { log: /listening on/ };
  return await host.start(name, [argv[0]!, "-d", "-d", ...argv.slice(1)], { ready });
}
