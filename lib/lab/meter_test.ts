import assert from "node:assert/strict";
import { meterRules, parseMeter, sumFlows } from "./meter.ts";

/** As nft 1.0.6 prints it, shortened. */
const LISTED = JSON.stringify({
  nftables: [
    { metainfo: { version: "1.0.6", json_schema_version: 1 } },
    { table: { family: "inet", name: "lab_meter_x", handle: 1 } },
    {
      set: {
        family: "inet",
        name: "in4",
        table: "lab_meter_x",
        elem: [
          { elem: { val: { concat: ["eth0", "10.0.0.1", "10.0.0.2", "tcp"] }, counter: { packets: 2, bytes: 100 } } },
          { elem: { val: { concat: ["eth1", "10.0.0.1", "10.0.0.3", 132] }, counter: { packets: 1, bytes: 40 } } },
        ],
      },
    },
    {
      set: {
        family: "inet",
        name: "out6",
        table: "lab_meter_x",
        elem: [
          {
            elem: { val: { concat: ["eth0", "2001:db8::2", "2001:db8::1", "udp"] }, counter: { packets: 3, bytes: 9 } },
          },
        ],
      },
    },
    { set: { family: "inet", name: "out4", table: "lab_meter_x" } },
    { chain: { family: "inet", table: "lab_meter_x", name: "incoming", handle: 5 } },
  ],
});

Deno.test("a listed table reads as flows, empty sets and other objects left out", () => {
  assert.deepEqual(parseMeter(LISTED), [
    {
      iface: "eth0",
      direction: "in",
      source: "10.0.0.1",
      destination: "10.0.0.2",
      protocol: "tcp",
      packets: 2,
      bytes: 100,
    },
    {
      iface: "eth1",
      direction: "in",
      source: "10.0.0.1",
      destination: "10.0.0.3",
      protocol: "132",
      packets: 1,
      bytes: 40,
    },
    {
      iface: "eth0",
      direction: "out",
      source: "2001:db8::2",
      destination: "2001:db8::1",
      protocol: "udp",
      packets: 3,
      bytes: 9,
    },
  ]);
});

Deno.test("flows add up by interface, direction, protocol, one end or both ends in either order", () => {
  const flows = parseMeter(LISTED);
  assert.deepEqual(sumFlows(flows), { packets: 6, bytes: 149 });
  assert.deepEqual(sumFlows(flows, { iface: "eth1" }), { packets: 1, bytes: 40 });
  assert.deepEqual(sumFlows(flows, { direction: "out" }), { packets: 3, bytes: 9 });
  assert.deepEqual(sumFlows(flows, { protocol: "tcp" }), { packets: 2, bytes: 100 });
  assert.deepEqual(sumFlows(flows, { address: "10.0.0.1" }), { packets: 3, bytes: 140 });
  assert.deepEqual(sumFlows(flows, { between: ["10.0.0.2", "10.0.0.1"] }), { packets: 2, bytes: 100 });
  assert.deepEqual(sumFlows(flows, { between: ["10.0.0.2", "10.0.0.3"] }), { packets: 0, bytes: 0 });
});

Deno.test("a label becomes a table name of its own", () => {
  assert.match(meterRules("at server"), /^add table inet lab_meter_at_server\ndelete table inet lab_meter_at_server\n/);
});
