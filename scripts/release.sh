#!/bin/sh
# Makes a release: one folder that any web server can publish and scripts/install.sh can install from.
#
#   edgemesh-linux-amd64, edgemesh-linux-arm64    the executable per machine type, self-extracting
#   install.sh                                    the installer; --base URL makes that its default release
#   SHA256SUMS                                    of all of them (sha256sum -c)
#   manifest.json                                 version, commit, size and hash of each; whether it was run on this machine
#
#   ./scripts/release.sh [--out dist/release] [--base https://HOST/FOLDER] [--arch amd64,arm64]
#   ./scripts/release.sh --prebuilt amd64=FILE …  packs what was built elsewhere
#
# The runtime of another machine type comes from npm's packages of Deno, whose integrity npm checks. The same commit
# makes the same bytes.
set -eu
cd "$(dirname "$0")/.."

out=dist/release
base=
# Which are asked for: those must be made. Without --arch, what can be made here.
arches=
prebuilt=
die() {
  echo "error: $1; try: $2" >&2
  exit 1
}
while [ $# -gt 0 ]; do
  case $1 in
    --out) out=${2:?--out needs a folder} ;;
    --base) base=${2:?--base needs a URL} ;;
    --arch) arches=${2:?--arch needs a list} ;;
    --prebuilt) prebuilt="$prebuilt ${2:?--prebuilt needs ARCH=FILE}" ;;
    *) die "Unknown word $1" "release.sh [--out DIR] [--base URL] [--arch LIST] [--prebuilt ARCH=FILE]" ;;
  esac
  shift 2
done
case $base in '' | https://*) ;; *) die "--base $base is no https:// address" "where the folder will be published" ;; esac

deno_version=$(sed -n 's/^version=//p' scripts/deno)
case $(uname -m) in x86_64 | amd64) own=amd64 ;; aarch64 | arm64) own=arm64 ;; *) own= ;; esac
mkdir -p "$(dirname "$out")"
out=$(CDPATH='' cd -- "$(dirname "$out")" && pwd)/$(basename "$out")
stage=$(mktemp -d "$out.XXXXXX")
trap 'rm -rf "$stage"' EXIT
trap 'exit 130' INT TERM HUP

# Deno's binary for another machine type, from the package that npm would install there.
runtime() { # npm's name of the machine type
  cache=${EDGEMESH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/edgemesh-dev}/deno-$deno_version-linux-$1
  if [ ! -x "$cache/package/deno" ]; then
    mkdir -p "$cache"
    (cd "$cache" && npm pack --loglevel=silent "@deno/linux-$1-glibc@$deno_version" >/dev/null && tar -xzf ./*.tgz && rm ./*.tgz) ||
      return 1
    chmod 755 "$cache/package/deno"
  fi
  echo "$cache/package/deno"
}

build() { # arch
  case $1 in
    amd64) npm_name=x64 target=x86_64-unknown-linux-gnu ;;
    arm64) npm_name=arm64 target=aarch64-unknown-linux-gnu ;;
    *) die "There is no Deno for $1" "--arch amd64,arm64" ;;
  esac
  if [ "$1" = "$own" ]; then ./scripts/deno run -A scripts/build.ts --form self-extracting --out "$2"
  elif binary=$(runtime $npm_name); then ./scripts/deno run -A scripts/build.ts --runtime "$binary" --target $target --out "$2"
  elif [ -n "$arches" ]; then die "Deno $deno_version for $1 cannot be had from npm" "the same with npm's own registry, or --arch $own"
  else echo "left out: $1, because Deno $deno_version for it cannot be had from npm here" >&2; fi
}

if [ -n "$prebuilt" ]; then
  for pair in $prebuilt; do
    [ -f "${pair#*=}" ] || die "There is no file ${pair#*=}" "--prebuilt ARCH=FILE"
    cp "${pair#*=}" "$stage/edgemesh-linux-${pair%%=*}"
  done
else
  for arch in $(echo "${arches:-amd64,arm64}" | tr , ' '); do build "$arch" "$stage/edgemesh-linux-$arch"; done
fi
chmod 755 "$stage"/edgemesh-linux-*
sed "s|^published=.*|published='$base'|" scripts/install.sh >"$stage/install.sh"
(cd "$stage" && sha256sum edgemesh-linux-* install.sh >SHA256SUMS)

list=
for file in "$stage"/edgemesh-linux-*; do
  arch=${file##*-}
  ran=false
  # What cannot run here says so; whoever publishes it has not seen it start.
  if [ "$arch" = "$own" ]; then
    "$file" version >/dev/null || die "$file does not start" "./scripts/deno task build, and its error"
    ran=true
  fi
  hash=$(sed -n "s/  edgemesh-linux-$arch\$//p" "$stage/SHA256SUMS")
  list="$list${list:+,}
    { \"name\": \"edgemesh-linux-$arch\", \"os\": \"linux\", \"arch\": \"$arch\", \"libc\": \"glibc\", \"form\": \"self-extracting\", \"size\": $(wc -c <"$file"), \"sha256\": \"$hash\", \"ranHere\": $ran }"
done
cat >"$stage/manifest.json" <<JSON
{
  "apiVersion": "edgemesh.release/v1",
  "version": "$(sed -n 's/^export const VERSION = "\(.*\)";/\1/p' lib/version.ts)",
  "commit": "$(git rev-parse HEAD 2>/dev/null || echo unknown)",
  "deno": "$deno_version",
  "minGlibc": "$(sed -n 's/^min_glibc=//p' scripts/install.sh)",
  "artefacts": [$list
  ]
}
JSON
chmod 755 "$stage"
rm -rf "$out"
mv "$stage" "$out"
echo "released into $out:"
cat "$out/SHA256SUMS"
