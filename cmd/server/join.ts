/** `edgemesh server join`: makes this host another server of a mesh. Run once, before the server is started. */
import { systemClock } from "../../lib/clock.ts";
import { MeshError } from "../../lib/errors.ts";
import { joinServers } from "../../lib/identity/server_join_client.ts";
import { readToken } from "../agent/join.ts";
import { type DaemonFlags, readConfig } from "../daemon/daemon.ts";
import { print } from "../output.ts";
import { openStateDir } from "../daemon/state_dir.ts";

export interface ServerJoinFlags extends Pick<DaemonFlags, "config" | "set" | "stateDir" | "name" | "url"> {
  /** The server of the mesh that is asked. */
  readonly server: string;
  readonly caPin: string;
  readonly tokenFile: string;
}

export async function serverJoin(flags: ServerJoinFlags): Promise<number> {
  const { server, caPin, tokenFile, ...own } = flags;
  const config = await readConfig("server", own);
  if (config.url === undefined) {
    throw new MeshError("CONFIG_INVALID", "The address under which agents will find this server is not given", {
      hint: "--url wss://HOST",
    });
  }
  await using state = await openStateDir(config.stateDir, "server");
  const grant = await joinServers({
    files: state.files,
    clock: systemClock,
    server,
    pin: caPin,
    token: await readToken(tokenFile),
    name: config.name,
    url: config.url,
    trustDomain: config.trustDomain,
  });
  if (tokenFile !== "-") await Deno.remove(tokenFile);
  print(
    `joined as server ${grant.name}: ${grant.state.nodes.length} nodes and ` +
      `${grant.state.revocations.entries.length} revocations were taken over from ${grant.server}`,
  );
  const differs = [
    ...(config.zone === grant.zone ? [] : [`zone: ${grant.zone}`]),
    ...(same(config.serviceCIDRs, grant.serviceCidrs) ? [] : [`serviceCIDRs: ${JSON.stringify(grant.serviceCidrs)}`]),
  ];
  if (differs.length > 0) print(`${grant.server} is configured with ${differs.join(" and ")}: set the same here`);
  print(
    `start it with --name ${grant.name} --url ${config.url}, and the same manifests or kubeconfig as ${grant.server}`,
  );
  print(`agents use it when they list it: --server ${server} --server ${config.url}`);
  return 0;
}

function same(a: readonly string[], b: readonly string[]): boolean {
  return [...a].sort().join() === [...b].sort().join();
}
