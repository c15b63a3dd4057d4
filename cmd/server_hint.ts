/** What to do about a server that cannot be reached, by what the system said about it. */

/** One step for a person on this host. `text`: the sentence of the failure. */
export function serverHint(text: string): string {
  return HINTS.find(([said]) => said.test(text))?.[1] ?? "edgemesh netcheck shows which step to the server fails";
}

const HINTS: readonly (readonly [RegExp, string])[] = [
  [
    /HTTP proxy/,
    "check the proxy's address (HTTPS_PROXY, or `proxy` in the configuration) and that it lets CONNECT to the server through",
  ],
  [
    /connected again from/,
    "another machine runs with this node's name and key: stop it, remove its state directory, and join it under a name of its own",
  ],
  [
    /was revoked/,
    "if that was a mistake: edgemesh node reset NAME on the server host, then join it again with a new token",
  ],
  [
    /ENETUNREACH|EHOSTUNREACH|ENETDOWN|unreachable|No route/i,
    "this host has no route there: ip route; is the uplink there, with an address?",
  ],
  [/ECONNREFUSED|connection refused/i, "nothing listens there: on the server host, systemctl status edgemesh-server"],
  [
    /getaddrinfo|EAI_|lookup|resolve/i,
    "the name does not resolve: getent hosts NAME, and the nameservers in /etc/resolv.conf",
  ],
  [/(control|protocol) version|VERSION/, "upgrade the older of the two: edgemesh version, here and on the server host"],
  [
    /TLS handshake/,
    "edgemesh netcheck: it tries small packets, too, and so tells a lossy MTU from something that answers instead of the server",
  ],
  [
    /no answer|did not answer|within \d/i,
    "a firewall drops it, or the address is wrong: open 443/tcp to it from here; where only an HTTP proxy leads out, set HTTPS_PROXY or `proxy`",
  ],
];
