#!/bin/sh
# edgemesh @VERSION@ (@COMMIT@, @TARGET@): one file. Behind this text is an archive with the runtime and the program; it is
# unpacked once into a folder that only you can write, named by its hash, and started from there ever after.
set -eu
umask 077
hash=@HASH@
skip=@SKIP@

fail() {
  echo "error: $1; try: $2" >&2
  exit 1
}

# The folder itself must be ours and closed to others: whoever can write there would run code as us.
closed() {
  [ -d "$1" ] && [ ! -L "$1" ] && [ -O "$1" ] && case $(stat -c %a "$1") in 700) true ;; *) false ;; esac
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
  export DENO_DIR="$1/cache" DENO_NO_UPDATE_CHECK=1 DENO_NO_PROMPT=1
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

if [ "$(id -u)" = 0 ]; then
  set -- "/var/lib/edgemesh/runtime" "/run/edgemesh-runtime" "/dev/shm/edgemesh-runtime" -- "$@"
else
  set -- "${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/edgemesh-runtime" "/dev/shm/edgemesh-runtime-$(id -u)" -- "$@"
fi
[ -z "${EDGEMESH_RUNTIME_DIR:-}" ] || set -- "$EDGEMESH_RUNTIME_DIR" "$@"

# First pass: already unpacked somewhere.
places=
while [ "$1" != -- ]; do
  if [ -x "$1/$hash/edgemesh" ] && closed "$1" && closed "$1/$hash"; then
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
  if [ -x "$base/$hash/edgemesh" ] && closed "$base/$hash"; then run "$base/$hash" "$@"; fi
  why "$base" "was changed while unpacking"
done
fail "No folder to unpack into; tried:$tried" "set EDGEMESH_RUNTIME_DIR to a folder of yours with mode 0700, on a disk that allows programs"
exit 1
