#!/bin/sh
# Makes sure the tools for a purpose are here: need.sh demo|test. As root with apt the missing ones are installed;
# back ends that would start services on this machine (nginx, redis) and what comes with them are unpacked into a cache
# folder instead.
set -eu
purpose=${1:-demo}
here=$(dirname "$0")

commands="ip:iproute2 nft:nftables curl:curl dig:dnsutils iptables-nft:iptables openssl:openssl"
[ "$purpose" = demo ] || commands="$commands shellcheck:shellcheck tcpdump:tcpdump socat:socat wrk:wrk"
missing=
for entry in $commands; do
  command -v "${entry%%:*}" >/dev/null 2>&1 || missing="$missing ${entry#*:}"
done
if [ -n "$missing" ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing:$missing" >&2
    apt-get update -qq >/dev/null
    # shellcheck disable=SC2086 # a list of package names
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
  else
    echo "error: missing Debian packages:$missing; try: apt-get install$missing" >&2
    exit 1
  fi
fi
exec "$here/fetch_backends.sh"
