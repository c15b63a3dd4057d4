#!/bin/sh
# Runs every test from a fresh clone: format, lint, types, unit, contract and the lab with the built executable.
#   ./scripts/test.sh            the default run (CI's)
#   ./scripts/test.sh --full     the long lab and fuzz runs as well
# Ends with one line: N passed, N failed
set -eu
cd "$(dirname "$0")/.."
full=${1:-}
deno=./scripts/deno
log=$(mktemp -d)
trap 'rm -rf "$log"' EXIT
passed=0
failed=0

./scripts/need.sh test

say() { printf '\n== %s\n' "$1"; }

# A plain check counts as one test.
check() { # name, command…
  name=$1
  shift
  if "$@" >"$log/out" 2>&1; then
    passed=$((passed + 1))
    echo "$name ... ok"
  else
    failed=$((failed + 1))
    cat "$log/out"
    echo "$name ... FAILED"
  fi
}

# A test run: its own numbers are added up.
tests() { # name, deno test arguments…
  say "$1"
  shift
  status=0
  NO_COLOR=1 $deno test -A --quiet "$@" >"$log/out" 2>&1 || status=$?
  grep -vE '^(running [0-9]+ tests? from|$)' "$log/out" || true
  line=$(grep -E '^(ok|FAILED) \| ' "$log/out" | tail -n 1)
  p=$(printf '%s' "$line" | sed -n 's/.*| \([0-9]*\) passed.*/\1/p')
  f=$(printf '%s' "$line" | sed -n 's/.*| \([0-9]*\) failed.*/\1/p')
  passed=$((passed + ${p:-0}))
  failed=$((failed + ${f:-0}))
  # A run that broke before it could count is a failure, too.
  if [ "$status" != 0 ] && [ "${f:-0}" = 0 ]; then failed=$((failed + 1)); fi
}

say "house"
check "format" $deno fmt --check --quiet
check "lint" $deno lint --quiet
check "types" $deno check --quiet main.ts cmd/ lib/ tests/ scripts/
check "shell scripts" shellcheck -S warning scripts/deno scripts/*.sh .ci/run
say "build"
check "build" $deno task --quiet build
tests "unit" --parallel cmd/ lib/ tests/arch_test.ts tests/docs_test.ts
tests "contract" tests/contract/
tests "fuzz" tests/fuzz/
tests "conformance" tests/conformance/
if [ "${EDGEMESH_LAB:-}" = skip ]; then
  echo "lab: skipped because EDGEMESH_LAB=skip"
else
  tests "lab" tests/lab/
fi
if [ "$full" = --full ]; then
  say "full"
  for task in fuzz lab:full; do check "$task" $deno task --quiet "$task"; done
fi

printf '\n%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" = 0 ]
