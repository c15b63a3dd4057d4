#!/bin/sh
# Builds the executable and runs the real mesh on this machine, in network namespaces of its own: two sites behind
# NATs, a cloud node, a server that relays without reading. Nothing outside those namespaces is changed.
#   ./scripts/demo.sh [--keep | --clean]
set -eu
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "error: the demo makes network namespaces, which needs root; try: sudo ./scripts/demo.sh" >&2; exit 1; }
[ "$(uname -s)" = Linux ] || { echo "error: the demo needs Linux" >&2; exit 1; }
./scripts/need.sh demo
./scripts/deno task --quiet build
exec ./dist/edgemesh demo "$@"
