#!/bin/sh
# Gets the proxies that `deno task bench:forward` is compared with (HAProxy, nginx with its stream module) from Debian's
# packages without installing them: downloaded, unpacked into a cache folder, wrapped so that they find their libraries.
# Prints the folder with the programs. EDGEMESH_PEERS names a folder with other ones instead.
set -eu

packages="haproxy nginx libnginx-mod-stream"
cache=${EDGEMESH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/edgemesh-dev}
dir=$cache/peers
stamp="1 $packages"

if [ "$(cat "$dir/.stamp" 2>/dev/null)" != "$stamp" ]; then
  for tool in apt-get dpkg-deb; do
    command -v "$tool" >/dev/null 2>&1 || {
      echo "error: $tool was not found; try: EDGEMESH_PEERS=DIR with haproxy and nginx in it" >&2
      exit 1
    }
  done
  mkdir -p "$cache"
  tmp=$(mktemp -d "$cache/peers.XXXXXX")
  trap 'rm -rf "$tmp"' EXIT INT TERM
  mkdir "$tmp/deb" "$tmp/root" "$tmp/bin"
  # shellcheck disable=SC2086 # a list of package names
  plan() { apt-get -s -o APT::Sandbox::User=root install --no-install-recommends $packages | sed -n 's/^Inst \([^ ]*\).*/\1/p'; }
  needed=$(plan) || { apt-get update -qq >&2; needed=$(plan); }
  # shellcheck disable=SC2086
  names=$(printf '%s\n' $packages $needed | grep -vE '^(libc6|libc-bin|nginx-common)$' | sort -u)
  echo "fetching haproxy and nginx into $dir" >&2
  # shellcheck disable=SC2086
  (cd "$tmp/deb" && apt-get -o APT::Sandbox::User=root download -qq $names >&2)
  for deb in "$tmp"/deb/*.deb; do dpkg-deb -x "$deb" "$tmp/root"; done
  rm -rf "$tmp/deb"
  for name in haproxy nginx; do
    cat >"$tmp/bin/$name" <<EOF
#!/bin/sh
root=\$(dirname "\$(dirname "\$(readlink -f "\$0")")")/root
libs=
for lib in "\$root"/usr/lib/*-linux-gnu "\$root"/lib/*-linux-gnu; do [ -d "\$lib" ] && libs=\$libs:\$lib; done
LD_LIBRARY_PATH=\${libs#:}\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH} exec "\$root/usr/sbin/$name" "\$@"
EOF
    chmod 755 "$tmp/bin/$name"
  done
  printf '%s\n' "$stamp" >"$tmp/.stamp"
  rm -rf "$dir"
  mv "$tmp" "$dir"
fi
echo "$dir"
