/** A TCP connection of the loop as what node:tls runs on. */
import net from "node:net";

/**
 * Adopts the descriptor of an open connection; it belongs to the leg from now on. Its options (no delay, keep-alive)
 * were set by whoever opened it. `resetAndDestroy` of the result sends RST.
 */
export function legOfFd(fd: number): net.Socket {
  // The types of node:net lack what its documentation promises for descriptors of sockets.
  return new net.Socket({ fd, readable: true, writable: true } as net.SocketConstructorOpts);
}
