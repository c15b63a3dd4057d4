#!/bin/sh
# Builds what `deno task test:kube` runs against: kube-apiserver, kube-controller-manager and kube-proxy from the
# Go module proxy, etcd from Debian's etcd-server package (unpacked, not installed). Everything lands in one cache
# folder, printed at the end; a second run finds it there. Needs Go 1.26 or newer, apt, and 15 to 40 minutes of two cores.
set -eu

version=${EDGEMESH_KUBE_VERSION:-v1.36.3}
cache=${EDGEMESH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/edgemesh-dev}
home=$cache/kube-$version

fail() {
  echo "error: $1" >&2
  exit 1
}

[ "${1:-}" = "--path" ] && { echo "$home"; exit 0; }
mkdir -p "$home" "$cache/tmp"
work=$(mktemp -d "$cache/tmp/kube.XXXXXX")
trap 'rm -rf "$work"' EXIT INT TERM

if [ ! -x "$home/etcd" ]; then
  echo "unpacking etcd from Debian's etcd-server" >&2
  command -v apt-get >/dev/null 2>&1 || fail "apt-get was not found; try: put an etcd binary at $home/etcd"
  (cd "$work" && apt-get download etcd-server >&2) || fail "etcd-server could not be downloaded; try: apt-get update"
  dpkg-deb -x "$work"/etcd-server_*.deb "$work/etcd"
  cp "$work/etcd/usr/bin/etcd" "$home/etcd.new"
  mv "$home/etcd.new" "$home/etcd"
fi

if [ ! -x "$home/kube-apiserver" ] || [ ! -x "$home/kube-controller-manager" ] || [ ! -x "$home/kube-proxy" ]; then
  command -v go >/dev/null 2>&1 || fail "go was not found; try: install Go 1.26 or newer, or set EDGEMESH_KUBE_BIN"
  echo "building Kubernetes $version" >&2
  module=$work/module
  mkdir -p "$module"
  cd "$module"
  export GOFLAGS=-mod=mod
  gomod=$(go mod download -json "k8s.io/kubernetes@$version" | sed -n 's/.*"GoMod": "\(.*\)".*/\1/p')
  [ -n "$gomod" ] || fail "k8s.io/kubernetes $version is not at the module proxy"
  # Inside its repository Kubernetes replaces its own libraries by folders; outside, their released versions stand in.
  library=v0.${version#v1.}
  {
    echo "module edgemesh.test/kube"
    sed -n 's/^go /go /p' "$gomod"
    echo "require k8s.io/kubernetes $version"
    sed -n 's#^\t*\(k8s.io/[a-z-]*\) => ./staging/src/.*#replace \1 => \1 '"$library"'#p' "$gomod"
    sed -n 's#^replace \(k8s.io/[a-z-]*\) => ./staging/src/.*#replace \1 => \1 '"$library"'#p' "$gomod"
  } >go.mod
  printf 'package kube\n\nimport (\n\t_ "k8s.io/kubernetes/cmd/kube-apiserver/app"\n\t_ "k8s.io/kubernetes/cmd/kube-controller-manager/app"\n\t_ "k8s.io/kubernetes/cmd/kube-proxy/app"\n)\n' >kube.go
  go mod tidy >/dev/null 2>"$work/tidy.log" || { tail -n 20 "$work/tidy.log" >&2; fail "the module graph could not be resolved"; }
  minor=${version#v1.}
  minor=${minor%%.*}
  stamp="-s -w"
  for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    stamp="$stamp -X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=$minor"
  done
  for name in kube-apiserver kube-controller-manager kube-proxy; do
    [ -x "$home/$name" ] && continue
    CGO_ENABLED=0 nice go build -p "${EDGEMESH_BUILD_JOBS:-1}" -trimpath -ldflags "$stamp" -o "$home/$name.new" "k8s.io/kubernetes/cmd/$name"
    mv "$home/$name.new" "$home/$name"
  done
fi
echo "$home"
