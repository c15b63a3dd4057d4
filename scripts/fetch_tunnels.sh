#!/bin/sh
# Builds the tunnel that `deno task bench:tunnel` is compared with (chisel, by the Go module proxy) into a cache folder.
# Prints the folder with the program. EDGEMESH_TUNNELS names a folder with another one instead.
set -eu

version=v1.10.1
dir=${EDGEMESH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/edgemesh-dev}/tunnels

if [ "$(cat "$dir/.stamp" 2>/dev/null)" != "$version" ]; then
  command -v go >/dev/null 2>&1 || {
    echo "error: go was not found; try: EDGEMESH_TUNNELS=DIR with chisel in it" >&2
    exit 1
  }
  tmp=$(mktemp -d)
  trap 'rm -rf "$tmp"' EXIT INT TERM
  # A module of its own instead of `go install`: it asks the proxy for this version and nothing else.
  printf 'module bench\n\ngo 1.23\n\nrequire github.com/jpillora/chisel %s\n' "$version" >"$tmp/go.mod"
  echo "building chisel $version into $dir" >&2
  mkdir -p "$dir"
  (cd "$tmp" && GOFLAGS=-mod=mod go build -o "$dir/chisel" github.com/jpillora/chisel) >&2
  printf '%s\n' "$version" >"$dir/.stamp"
fi
echo "$dir"
