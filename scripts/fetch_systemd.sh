#!/bin/sh
# Gets Debian's systemd without installing it, for the tests that run it as PID 1 of a namespace of its own: downloaded,
# unpacked into a cache folder, laid out with everything below usr. Prints the folder. A second run finds it there.
set -eu

packages="systemd libsystemd-shared libsystemd0"
cache=${EDGEMESH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/edgemesh-dev}
dir=$cache/systemd
stamp="1 $packages"

if [ "$(cat "$dir/.stamp" 2>/dev/null)" != "$stamp" ]; then
  for tool in apt-get dpkg-deb; do
    command -v "$tool" >/dev/null 2>&1 || {
      echo "error: $tool was not found, so systemd cannot be fetched; try: a Debian or Ubuntu machine" >&2
      exit 1
    }
  done
  mkdir -p "$cache"
  tmp=$(mktemp -d "$cache/systemd.XXXXXX")
  trap 'rm -rf "$tmp"' EXIT INT TERM
  mkdir "$tmp/deb"
  # shellcheck disable=SC2086 # a list of package names
  plan() { apt-get -s -o APT::Sandbox::User=root install --no-install-recommends $packages | sed -n 's/^Inst \([^ ]*\).*/\1/p'; }
  if ! needed=$(plan); then
    apt-get update -qq >&2
    needed=$(plan)
  fi
  # Libraries this machine lacks come along; nothing that only other packages' upgrades ask for, and no other libc.
  # shellcheck disable=SC2086
  names=$(printf '%s\n' $packages $needed | grep -E '^(systemd|lib)' | grep -vE '^(libc6|libc-bin|libnss-|libpam-)' | sort -u)
  echo "fetching systemd into $dir" >&2
  # shellcheck disable=SC2086
  get() { (cd "$tmp/deb" && apt-get -o APT::Sandbox::User=root download -qq $names >&2); }
  # Lists may be older than what the archive has.
  get 2>/dev/null || { apt-get update -qq >&2 && get; } || {
    echo "error: Debian's systemd cannot be downloaded; try: apt-get update" >&2
    exit 1
  }
  for deb in "$tmp"/deb/*.deb; do dpkg-deb -x "$deb" "$tmp/root"; done
  rm -rf "$tmp/deb"
  # Older packages have /lib and /bin beside /usr; machines have them inside.
  for part in lib bin sbin; do
    [ -d "$tmp/root/$part" ] || continue
    mkdir -p "$tmp/root/usr/$part"
    cp -a "$tmp/root/$part/." "$tmp/root/usr/$part/"
    rm -rf "$tmp/root/$part"
  done
  [ -x "$tmp/root/usr/lib/systemd/systemd" ] || { echo "error: Debian's package has no usr/lib/systemd/systemd" >&2; exit 1; }
  printf '%s\n' "$stamp" >"$tmp/.stamp"
  chmod 755 "$tmp"
  rm -rf "$dir"
  # Another fetch may have finished first; either result is the same.
  mv -T "$tmp" "$dir" 2>/dev/null || [ -d "$dir/root" ]
fi
echo "$dir/root"
