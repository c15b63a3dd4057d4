import assert from "node:assert/strict";
import { parseCidr } from "../addr.ts";
import { lanAddresses } from "./lan.ts";
import { OUR_MARK } from "./links.ts";
import type { Link, LinkAddress } from "./rtnetlink.ts";

const link = (index: number, kind: string | undefined, more: Partial<Link> = {}): Link => ({
  index,
  name: `l${index}`,
  kind,
  up: true,
  running: true,
  loopback: false,
  mtu: 1500,
  group: 0,
  alias: undefined,
  master: undefined,
  ...more,
});
const address = (index: number, ip: string, bits = 24, more: Partial<LinkAddress> = {}): LinkAddress => ({
  index,
  ip,
  bits,
  tentative: false,
  protocol: 0,
  ...more,
});

Deno.test("a host with everything on it: only the LAN's addresses are left", () => {
  const links = [
    link(1, undefined, { loopback: true }),
    link(2, undefined),
    link(3, undefined, { running: false }),
    link(4, "bridge", { group: OUR_MARK }),
    link(5, "bridge"), // docker0: ports of containers
    link(6, "veth", { master: 5 }),
    link(7, "bridge"), // br0: the LAN's own
    link(8, undefined, { master: 7 }),
    link(9, "veth", { master: 7 }),
    link(10, "dummy"), // kube-ipvs0
    link(11, "wireguard"),
    link(12, "vlan"),
    link(13, "bridge"), // virbr0: virtual machines
    link(14, "tun", { master: 13 }),
    link(15, "veth"), // eth0 of a container that runs the agent
    link(16, "bridge"), // empty
  ];
  const addresses = [
    address(1, "127.0.0.1", 8),
    address(2, "192.168.1.2"),
    address(2, "2001:db8::2", 64),
    address(2, "fe80::1", 64),
    address(2, "2001:db8::3", 64, { tentative: true }),
    address(2, "192.168.1.200", 32, { protocol: OUR_MARK }),
    address(2, "10.244.7.1"),
    address(3, "192.168.3.2"),
    address(4, "169.254.96.16", 32),
    address(5, "172.17.0.1", 16),
    address(7, "10.0.0.5"),
    address(10, "10.96.0.1", 32),
    address(11, "10.200.0.2"),
    address(12, "10.50.0.2"),
    address(13, "192.168.122.1"),
    address(15, "10.60.0.2"),
    address(16, "10.70.0.1"),
    address(99, "10.80.0.1"),
  ];
  const exclude = [parseCidr("10.244.0.0/16")!];
  assert.deepEqual(lanAddresses(links, addresses, exclude), [
    { ip: "192.168.1.2", bits: 24, link: 2 },
    { ip: "2001:db8::2", bits: 64, link: 2 },
    { ip: "10.0.0.5", bits: 24, link: 7 },
    { ip: "10.50.0.2", bits: 24, link: 12 },
    { ip: "10.60.0.2", bits: 24, link: 15 },
  ]);
});
