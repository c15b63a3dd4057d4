/** Buffers that the process keeps for its next busy time, whichever session or carrier had them. */
import { batchPool } from "./carriers/pool.ts";
import { datagramPool } from "./session/datagrams.ts";
import { segmentPool } from "./session/send_log.ts";
import { largeChunks, smallChunks } from "./session/unread.ts";

/** Lets them go when told: up to 10 MB after bulk transfers. What is in use is not touched. */
export const spareBuffers = {
  trim(): void {
    for (const pool of [batchPool, datagramPool, segmentPool, smallChunks, largeChunks]) pool.trim();
  },
} as const;
