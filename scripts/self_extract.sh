#!/bin/sh
# edgemesh @VERSION@ (@COMMIT@, @TARGET@): one file. Behind this text is an archive with the runtime and the program; it is
# unpacked once into a folder that only you can write, named by its hash, and started from there ever after. What root has
# unpacked all may use: the services do, which are not root.
set -eu
umask 077
me=$(id -u)
hash=@HASH@
skip=@SKIP@

fail() {
  echo "error: $1; try: $2" >&2
  exit 1
}

# The folder itself must be ours or root's, and nobody else's to write: whoever can write there would run code as us.
closed() {
  [ -d "$1" ] && [ ! -L "$1" ] && case $(stat -c %u:%a "$1") in "$me:700" | 0:700 | 0:755) true ;; *) false ;; esac
}

# Whether this version is in a folder.
unpacked() { [ -x "$1/$hash/edgemesh" ] && closed "$1" && closed "$1/$hash"; }

# Where the compiled code of earlier starts is kept: with the program; or, where that is root's, with its user.
cache_of() {
  cache=$1/cache
  if [ -w "$1" ]; then return; fi
  of_user=${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/edgemesh-cache
  cache=$of_user/${1##*/}
  if closed "$of_user" && [ -d "$cache" ]; then return; fi
  # That of other versions only takes room.
  rm -rf "$of_user" 2>/dev/null || true
  mkdir -p "$cache" 2>/dev/null || true
}

# Remembers why a folder was not taken.
why() { tried="$tried${tried:+,} $1 ($2)"; }

# Whether the archive is what was built: a damaged runtime might start, and fail much later.
intact() { case $(tail -c "+$skip" "$0" | sha256sum) in "$hash"*) true ;; *) false ;; esac; }

run() {
  # EDGEMESH_EXE: how the program finds its own single file, to start itself again (demo, install).
  case $0 in /*) EDGEMESH_EXE=$0 ;; *) EDGEMESH_EXE=$(cd "$(dirname "$0")" && pwd)/$(basename "$0") ;; esac
  export EDGEMESH_EXE
  # Settings for other programs of the user's shell.
  unset NODE_OPTIONS DENO_V8_FLAGS DENO_COMPAT DENO_CONDITIONS
  umask 077
  cache_of "$1"
  export DENO_DIR="$cache" DENO_NO_UPDATE_CHECK=1 DENO_NO_PROMPT=1
  # One heap of the C library for all threads: all but one hardly allocate, and heaps of their own keep 2 MB that nobody uses.
  export MALLOC_ARENA_MAX=1
  # Held as long as the program runs, and seen from every container that shares the folder: nobody removes it meanwhile.
  exec 9<"$1"
  flock -s -n 9 2>/dev/null || true
  main=$1/app/main.js
  exe=$1/edgemesh
  shift
  exec "$exe" run --quiet --no-config --no-lock --no-remote --no-npm --allow-all @V8FLAGS@ "$main" "$@"
}

if [ "$me" = 0 ]; then
  set -- "/var/lib/edgemesh/runtime" "/run/edgemesh-runtime" "/dev/shm/edgemesh-runtime" -- "$@"
else
  for base in /var/lib/edgemesh/runtime /run/edgemesh-runtime /dev/shm/edgemesh-runtime; do
    if [ -z "${EDGEMESH_RUNTIME_DIR:-}" ] && unpacked "$base"; then run "$base/$hash" "$@"; fi
  done
  set -- "${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/edgemesh-runtime" "/dev/shm/edgemesh-runtime-$me" -- "$@"
fi
[ -z "${EDGEMESH_RUNTIME_DIR:-}" ] || set -- "$EDGEMESH_RUNTIME_DIR" "$@"

# First pass: already unpacked somewhere.
places=
while [ "$1" != -- ]; do
  if unpacked "$1"; then
    found=$1/$hash
    while [ "$1" != -- ]; do shift; done
    shift
    run "$found" "$@"
  fi
  places="$places
$1"
  shift
done
shift

# Second pass: unpack into the first folder that takes files and lets them run.
[ "$me" != 0 ] || umask 022
intact || fail "The file $0 is damaged" "copy or download it again"
tried=
old_ifs=$IFS
IFS='
'
for base in $places; do
  IFS=$old_ifs
  mkdir -p "$(dirname "$base")" 2>/dev/null || { why "$base" "cannot be made"; continue; }
  mkdir "$base" 2>/dev/null || true
  if [ ! -d "$base" ]; then why "$base" "cannot be made"; continue; fi
  # Of an earlier version of this script, which let nobody else in.
  if [ "$me" = 0 ] && [ "$base" != "${EDGEMESH_RUNTIME_DIR:-}" ] && closed "$base"; then chmod 755 "$base" 2>/dev/null || true; fi
  if ! closed "$base"; then why "$base" "not ours alone: others can write there"; continue; fi
  tmp=$base/.tmp.$$
  rm -rf "$tmp"
  if ! mkdir "$tmp" 2>/dev/null; then why "$base" "read-only"; continue; fi
  trap 'rm -rf "$tmp"' EXIT INT TERM HUP
  if ! tail -c "+$skip" "$0" | gzip -dc 2>/dev/null | tar -xf - -C "$tmp" 2>/dev/null; then
    rm -rf "$tmp"
    why "$base" "no room"
    continue
  fi
  if ! said=$("$tmp/edgemesh" --version 2>&1 >/dev/null); then
    rm -rf "$tmp"
    case $said in
      *"version \`GLIBC"*) # No other folder would help.
        lacks=$(printf '%s' "$said" | grep -o 'GLIBC_[0-9.]*' | sort -u | tr '\n' ' ')
        has=$(getconf GNU_LIBC_VERSION 2>/dev/null) || has="an older one"
        fail "This system's C library is too old: it lacks ${lacks% }; edgemesh needs glibc 2.28 or newer, here is $has" "a newer system (Debian 11, Ubuntu 20.04, RHEL 8 or later), or a container with one"
        ;;
    esac
    why "$base" "programs there cannot run: mounted noexec?"
    continue
  fi
  # Versions that nobody runs any more, and what broken starts left, only take room. Young ones may be starting right now.
  for old in "$base"/[0-9a-f]* "$base"/.tmp.*; do
    [ -d "$old" ] && [ "$old" != "$base/$hash" ] && [ -n "$(find "$old" -prune -mmin +60 2>/dev/null)" ] || continue
    flock -x -n "$old" rm -rf "$old" 2>/dev/null || true
  done
  # Another start may have finished first: its result is the same.
  mv -T "$tmp" "$base/$hash" 2>/dev/null || true
  rm -rf "$tmp"
  trap - EXIT INT TERM HUP
  if unpacked "$base"; then run "$base/$hash" "$@"; fi
  why "$base" "was changed while unpacking"
done
fail "No folder to unpack into; tried:$tried" "set EDGEMESH_RUNTIME_DIR to a folder of yours with mode 0700, on a disk that allows programs"
exit 1
