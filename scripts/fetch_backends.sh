#!/bin/sh
# Gets the back ends of the demo and the lab (nginx, redis, socat, ping, conntrack, libfaketime) from Debian's packages without
# installing them, so that no service starts on this machine: downloaded, unpacked into a cache folder, and wrapped so
# that they find their own libraries. Does nothing when they are there. The same cache rule stands in lib/lab/tools.ts.
set -eu

packages="nginx redis-server redis-tools socat iputils-ping conntrack libfaketime"
cache=${EDGEMESH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/edgemesh-dev}
dir=$cache/backends
# The list is the version: another list fetches anew.
stamp="4 $packages"

works() { "$1/bin/nginx" -v >/dev/null 2>&1 && "$1/bin/redis-server" --version >/dev/null 2>&1; }

if [ "$(cat "$dir/.stamp" 2>/dev/null)" = "$stamp" ] && works "$dir"; then exit 0; fi

for tool in apt-get dpkg-deb; do
  command -v "$tool" >/dev/null 2>&1 || {
    echo "error: $tool was not found, so nginx and redis cannot be fetched; try: install nginx, redis and socat yourself" >&2
    exit 1
  }
done

mkdir -p "$cache"
tmp=$(mktemp -d "$cache/backends.XXXXXX")
trap 'rm -rf "$tmp"' EXIT INT TERM
mkdir "$tmp/deb" "$tmp/root" "$tmp/bin"
# apt's download user must reach the folder; as plain user the option is ignored.
apt() { apt-get -o APT::Sandbox::User=root "$@"; }

# What an installation would add are the libraries this machine lacks. Not libc: another loader would not load it.
# shellcheck disable=SC2086 # a list of package names
plan() { apt -s install --no-install-recommends $packages 2>"$tmp/err" | sed -n 's/^Inst \([^ ]*\).*/\1/p'; }
needed=$(plan) || needed=
# shellcheck disable=SC2086
if ! apt-cache show $packages >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
  apt update -qq >&2 || true
  needed=$(plan) || needed=
fi
# shellcheck disable=SC2086 # lists of package names
names=$(printf '%s\n' $packages $needed | grep -vE '^(libc6|libc-bin|nginx-common)$' | sort -u)
echo "fetching nginx, redis and tools into $dir" >&2
# shellcheck disable=SC2086
if ! (cd "$tmp/deb" && apt download -qq $names >"$tmp/err" 2>&1); then
  cat "$tmp/err" >&2
  echo "error: Debian's packages cannot be downloaded; try: apt-get update, or install nginx, redis and socat yourself" >&2
  exit 1
fi
for deb in "$tmp"/deb/*.deb; do dpkg-deb -x "$deb" "$tmp/root"; done
rm -rf "$tmp/deb" "$tmp/err"

wrap() { # name, place in the packages
  [ -e "$tmp/root/$2" ] || [ -L "$tmp/root/$2" ] || { echo "error: $2 is not in Debian's package" >&2; exit 1; }
  cat >"$tmp/bin/$1" <<EOF
#!/bin/sh
root=\$(dirname "\$(dirname "\$(readlink -f "\$0")")")/root
libs=
for lib in "\$root"/usr/lib/*-linux-gnu "\$root"/lib/*-linux-gnu; do [ -d "\$lib" ] && libs=\$libs:\$lib; done
LD_LIBRARY_PATH=\${libs#:}\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH} exec "\$root/$2" "\$@"
EOF
  chmod 755 "$tmp/bin/$1"
}
wrap nginx usr/sbin/nginx
wrap redis-server usr/bin/redis-server
wrap redis-cli usr/bin/redis-cli
wrap socat usr/bin/socat
wrap conntrack usr/sbin/conntrack
if [ -e "$tmp/root/bin/ping" ]; then wrap ping bin/ping; else wrap ping usr/bin/ping; fi
works "$tmp" || { echo "error: the unpacked nginx or redis does not run on this machine; try: install nginx, redis and socat yourself" >&2; exit 1; }
printf '%s\n' "$stamp" >"$tmp/.stamp"
chmod 755 "$tmp"

rm -rf "$dir"
# Another fetch may have finished first; either result is the same.
mv -T "$tmp" "$dir" 2>/dev/null || works "$dir"
