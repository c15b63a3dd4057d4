/** A real control plane on loopback for one test run: etcd, kube-apiserver, kube-controller-manager. */
import { generateKeyPairSync } from "node:crypto";

const NAMES = ["etcd", "kube-apiserver", "kube-controller-manager"] as const;
const ADMIN_TOKEN = "test-admin";
const READY_MS = 120_000;

/** The folder with the binaries: EDGEMESH_KUBE_BIN, or where scripts/build_kube.sh puts them. Undefined: none there. */
export async function kubeBinaries(): Promise<string | undefined> {
  const given = Deno.env.get("EDGEMESH_KUBE_BIN");
  const script = new URL("../../scripts/build_kube.sh", import.meta.url).pathname;
  const asked = await new Deno.Command(script, { args: ["--path"], stdout: "piped" }).output();
  const folder = given ?? new TextDecoder().decode(asked.stdout).trim();
  for (const name of NAMES) {
    if (!await Deno.stat(`${folder}/${name}`).then((s) => s.isFile, () => false)) return undefined;
  }
  return folder;
}

export class ControlPlane implements AsyncDisposable {
  readonly #bin: string;
  readonly #folder: string;
  readonly #processes = new Map<string, Deno.ChildProcess>();
  #etcdPort = 0;
  readonly port: number;
  #client: Deno.HttpClient | undefined;

  private constructor(bin: string, folder: string, ports: readonly number[]) {
    this.#bin = bin;
    this.#folder = folder;
    this.#etcdPort = ports[0]!;
    this.port = ports[1]!;
  }

  /** Starts everything; the API is ready when this resolves. */
  static async start(bin: string): Promise<ControlPlane> {
    const folder = await Deno.makeTempDir({ prefix: "edgemesh-kube-" });
    const plane = new ControlPlane(bin, folder, freePorts(2));
    try {
      const { privateKey, publicKey } = generateKeyPairSync("rsa", {
        modulusLength: 2048,
        privateKeyEncoding: { type: "pkcs1", format: "pem" },
        publicKeyEncoding: { type: "spki", format: "pem" },
      });
      await Deno.writeTextFile(`${folder}/sa.key`, privateKey, { mode: 0o600 });
      await Deno.writeTextFile(`${folder}/sa.pub`, publicKey);
      await Deno.writeTextFile(`${folder}/tokens.csv`, `${ADMIN_TOKEN},admin,1,"system:masters"\n`, { mode: 0o600 });
      const [peer] = freePorts(1);
      plane.#spawn("etcd", [
        `--data-dir=${folder}/etcd`,
        `--listen-client-urls=http://127.0.0.1:${plane.#etcdPort}`,
        `--advertise-client-urls=http://127.0.0.1:${plane.#etcdPort}`,
        `--listen-peer-urls=http://127.0.0.1:${peer}`,
        // The data lives as long as the test; without fsync a busy disk does not slow it down.
        "--unsafe-no-fsync",
      ]);
      await plane.startApi();
      plane.#spawn("kube-controller-manager", [
        `--kubeconfig=${await plane.adminKubeconfig()}`,
        `--service-account-private-key-file=${folder}/sa.key`,
        `--root-ca-file=${folder}/certs/apiserver.crt`,
        "--use-service-account-credentials=false",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        `--secure-port=${freePorts(1)[0]}`,
        `--cert-dir=${folder}/kcm`,
        "--controllers=endpointslice-controller,endpointslice-mirroring-controller,endpoints-controller,namespace-controller,serviceaccount-controller,serviceaccount-token-controller,garbage-collector-controller",
      ]);
    } catch (error) {
      await plane[Symbol.asyncDispose]();
      throw error;
    }
    return plane;
  }

  /** Starts the API server, on the same port each time, and waits until it is ready. */
  async startApi(): Promise<void> {
    const folder = this.#folder;
    this.#spawn("kube-apiserver", [
      `--etcd-servers=http://127.0.0.1:${this.#etcdPort}`,
      "--bind-address=127.0.0.1",
      `--secure-port=${this.port}`,
      "--advertise-address=127.0.0.1",
      `--cert-dir=${folder}/certs`,
      `--service-account-key-file=${folder}/sa.pub`,
      `--service-account-signing-key-file=${folder}/sa.key`,
      "--service-account-issuer=https://kubernetes.default.svc",
      `--token-auth-file=${folder}/tokens.csv`,
      "--authorization-mode=RBAC",
      "--service-cluster-ip-range=10.96.0.0/16",
      // Pods without a kubelet have no account mounted.
      "--disable-admission-plugins=ServiceAccount",
      "--max-requests-inflight=1000",
      "--max-mutating-requests-inflight=500",
    ]);
    const end = Date.now() + READY_MS;
    for (;;) {
      const ready = await this.request("GET", "/readyz").then((r) => r.status === 200, () => false);
      if (ready) return;
      if (Date.now() > end) throw new Error(`kube-apiserver is not ready; its log: ${folder}/kube-apiserver.log`);
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
  }

  async stopApi(): Promise<void> {
    await this.#kill("kube-apiserver");
  }

  /** PEM of the authority behind the API server's certificate. */
  async caCert(): Promise<string> {
    return await Deno.readTextFile(`${this.#folder}/certs/apiserver.crt`);
  }

  /** One request as administrator. The body of the answer is read. */
  async request(method: string, path: string, body?: unknown, type = "application/json"): Promise<ApiResult> {
    this.#client ??= Deno.createHttpClient({ caCerts: [await this.caCert()], http2: false });
    const response = await fetch(`https://127.0.0.1:${this.port}${path}`, {
      method,
      client: this.#client,
      headers: { authorization: `Bearer ${ADMIN_TOKEN}`, "content-type": type },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    return { status: response.status, text: await response.text() };
  }

  /** As {@link request}, but anything but success is an error with the server's words. */
  async must(method: string, path: string, body?: unknown, type?: string): Promise<Record<string, unknown>> {
    const { status, text } = await this.request(method, path, body, type);
    if (status >= 300) throw new Error(`${method} ${path}: ${status} ${text.slice(0, 500)}`);
    return JSON.parse(text) as Record<string, unknown>;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#client?.close();
    for (const name of [...this.#processes.keys()].reverse()) await this.#kill(name);
    await Deno.remove(this.#folder, { recursive: true });
  }

  #spawn(name: typeof NAMES[number], args: string[]): void {
    const log = `${this.#folder}/${name}.log`;
    // The shell only redirects, then becomes the process: its id is the one to stop.
    const child = new Deno.Command("/bin/sh", {
      args: ["-c", `exec "$0" "$@" >>'${log}' 2>&1`, `${this.#bin}/${name}`, ...args],
      stdin: "null",
      stdout: "null",
      stderr: "null",
    }).spawn();
    this.#processes.set(name, child);
  }

  async #kill(name: string): Promise<void> {
    const child = this.#processes.get(name);
    if (!child) return;
    this.#processes.delete(name);
    try {
      child.kill("SIGKILL");
    } catch {
      // It ended by itself.
    }
    await child.status;
  }

  /** File with the administrator's kubeconfig. */
  async adminKubeconfig(): Promise<string> {
    const path = `${this.#folder}/admin.kubeconfig`;
    const cluster = {
      server: `https://127.0.0.1:${this.port}`,
      "certificate-authority-data": btoa(await this.caCert()),
    };
    await Deno.writeTextFile(path, kubeconfigText(cluster, { token: ADMIN_TOKEN }), { mode: 0o600 });
    return path;
  }
}

export interface ApiResult {
  readonly status: number;
  readonly text: string;
}

/** A kubeconfig with one context. JSON is YAML. */
export function kubeconfigText(cluster: unknown, user: unknown): string {
  return JSON.stringify({
    apiVersion: "v1",
    kind: "Config",
    "current-context": "c",
    contexts: [{ name: "c", context: { cluster: "k", user: "u" } }],
    clusters: [{ name: "k", cluster }],
    users: [{ name: "u", user }],
  });
}

function freePorts(count: number): number[] {
  const listeners = Array.from({ length: count }, () => Deno.listen({ hostname: "127.0.0.1", port: 0 }));
  const ports = listeners.map((l) => (l.addr as Deno.NetAddr).port);
  for (const l of listeners) l.close();
  return ports;
}
