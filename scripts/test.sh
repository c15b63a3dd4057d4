#!/bin/sh
# Runs every test from a fresh clone: format, lint, types, unit, contract and the lab with the built executable.
#   ./scripts/test.sh            the default run (CI's)
#   ./scripts/test.sh --full     with the long runs: 10^6 fuzz inputs, and the tests that EDGEMESH_TEST=full asks for
# EDGEMESH_LAB=skip leaves the lab out, and says so. Ends with one line: N passed, N failed
set -eu
cd "$(dirname "$0")/.."
full=
case ${1:-} in '' | --one) ;; --full) full=1 ;; *) echo "usage: $0 [--full]" >&2 && exit 2 ;; esac
deno=./scripts/deno
export NO_COLOR=1 DENO_NO_UPDATE_CHECK=1
# Lab files mostly wait, for round trips and timers: three at once keep two cores busy.
jobs=${EDGEMESH_TEST_JOBS:-3}
if [ -n "$full" ]; then export EDGEMESH_TEST=full EDGEMESH_TEST_FILE_SECONDS=1800; fi
# One file's run. Most take less than half a minute.
file_seconds=${EDGEMESH_TEST_FILE_SECONDS:-480}

log=$(mktemp -d)
# What a broken-off lab leaves is removed by the next one.
trap 'exit 130' INT TERM HUP
trap 'rm -rf "$log"' EXIT
passed=0
failed=0
skipped=0
broken=
started=$(date +%s)
section=$started

say() { printf '\n== %s\n' "$1"; }
took() {
  now=$(date +%s)
  printf -- '-- %s: %d s\n' "$1" $((now - section))
  section=$now
}

# A plain check counts as one test.
check() { # name, command…
  name=$1
  shift
  if "$@" >"$log/out" 2>&1; then
    passed=$((passed + 1))
    echo "$name ... ok"
  else
    failed=$((failed + 1))
    broken="$broken
  $name"
    cat "$log/out"
    echo "$name ... FAILED"
  fi
}

# What a test run said, without what only the runner finds interesting.
show() {
  grep -vE '^(running [0-9]+ tests? from .*|------- output -------|----- output end -----|Stack backtrace:|   0: <unknown>|)$' "$1" || true
}

# Adds a test run's own numbers up.
add_up() { # name, file with its output, exit code
  line=$(grep -E '^(ok|FAILED) \| ' "$2" | tail -n 1)
  count() { printf '%s' "$line" | sed -n "s/.*| \([0-9]*\) $1.*/\1/p"; }
  p=$(count passed)
  f=$(count failed)
  i=$(count ignored)
  # A run that broke before it could count, or found no test at all, is a failure, too.
  why=
  if [ "$3" = 124 ]; then
    why="took longer than $file_seconds s"
  elif [ "$3" != 0 ] && [ "${f:-0}" = 0 ]; then
    why="ended with exit code $3"
  elif [ "$((${p:-0} + ${f:-0} + ${i:-0}))" = 0 ]; then
    why="has no tests"
  fi
  [ -z "$why" ] || f=$((${f:-0} + 1))
  passed=$((passed + ${p:-0}))
  failed=$((failed + ${f:-0}))
  skipped=$((skipped + ${i:-0}))
  [ "${f:-0}" = 0 ] || broken="$broken
  $1: $why$(sed -n 's/ => \.\/.*//p' "$2" | sort -u | sed '2,$s/^/    /')"
}

# Those that take minutes come first, then the largest: the last one should not be alone.
slowest_first() { # files…
  for file in tests/kube/real_test.ts tests/lab/memory_after_test.ts tests/lab/path_test.ts tests/lab/udp_test.ts; do
    case " $* " in *" $file "*) echo "$file" ;; esac
  done >"$log/order"
  # shellcheck disable=SC2012 # our own names: no blanks, no line breaks
  ls -S "$@" >>"$log/order"
  awk '!seen[$0]++' "$log/order"
}

# Every file in a process of its own, several at a time; each file's output is shown in one piece when it is through.
apart() { # name, files…
  name=$1
  say "$name"
  shift
  slowest_first "$@" | xargs -P "$jobs" -I '{}' ./scripts/test.sh --one "$log" '{}' || true
  for file in "$@"; do
    out=$log/$(printf '%s' "$file" | tr / -)
    # Files that run beside others share the machine, and some tests look at times: what failed is run once more, alone.
    if [ "$(cat "$out.status" 2>/dev/null || echo 1)" != 0 ]; then
      say "again, alone: $file"
      rm -f "$out" "$out.status"
      ./scripts/test.sh --one "$log" "$file" || true
    fi
    add_up "$file" "$out" "$(cat "$out.status" 2>/dev/null || echo 1)"
  done
  took "$name"
  echo "the files that took longest:"
  sort -rn "$log/times" | head -n 12
}

# One file of `apart`, in a process of its own: types were checked for all sources at once before.
one() { # folder for results, file
  out=$1/$(printf '%s' "$2" | tr / -)
  status=0
  began=$(date +%s)
  timeout -k 10 "$file_seconds" $deno test -A --quiet --no-check "$2" >"$out" 2>&1 || status=$?
  echo "$status" >"$out.status"
  echo "$(($(date +%s) - began)) s  $2" >>"$1/times"
  { echo "$2" && show "$out"; } >"$out.shown"
  flock "$1" cat "$out.shown"
}

# Files with tests in folders.
tests_in() { find "$@" -name '*_test.ts' | LC_ALL=C sort; }

if [ "${1:-}" = --one ]; then
  trap - EXIT
  rmdir "$log"
  one "$2" "$3"
  exit
fi

./scripts/need.sh test
say "house"
check "format" $deno fmt --check
check "lint" $deno lint --quiet
check "types" $deno check --quiet main.ts cmd/ lib/ tests/ scripts/
check "shell scripts" shellcheck -S warning scripts/deno scripts/*.sh deploy/*.sh .ci/run
took house
say "build"
check "build" $deno task --quiet build
took build
say unit
status=0
$deno test -A --quiet --no-check --parallel cmd/ lib/ tests/arch_test.ts tests/docs_test.ts >"$log/out" 2>&1 || status=$?
show "$log/out"
if [ "$status" = 0 ]; then
  add_up unit "$log/out" 0
else
  # The same for unit tests: the failed files once more, one after the other; the rest has passed.
  grep -E '^(ok|FAILED) \| ' "$log/out" | tail -n 1 | sed 's/ [0-9]* failed/ 0 failed/' >"$log/rest"
  files=$(sed -n 's/.* => \.\/\([^:]*_test\.ts\):.*/\1/p' "$log/out" | sort -u)
  if [ -n "$files" ]; then
    add_up unit "$log/rest" 0
    # shellcheck disable=SC2086 # names without blanks
    for file in $files; do
      say "again, alone: $file"
      ./scripts/test.sh --one "$log" "$file" || true
      out=$log/$(printf '%s' "$file" | tr / -)
      add_up "$file" "$out" "$(cat "$out.status" 2>/dev/null || echo 1)"
    done
  else
    add_up unit "$log/out" "$status"
  fi
fi
took unit
folders=
for folder in contract fuzz conformance kube lab; do
  if [ $folder = lab ] && [ "${EDGEMESH_LAB:-}" = skip ]; then
    echo "the lab is skipped because EDGEMESH_LAB=skip"
  elif [ -d tests/$folder ]; then
    folders="$folders tests/$folder"
  fi
done
# shellcheck disable=SC2046,SC2086 # lists of names without blanks
apart "$(echo $folders)" $(tests_in $folders)
if [ -n "$full" ]; then
  say "full"
  check "fuzz, 10^6 inputs" $deno task --quiet fuzz
  took full
fi

printf '\n'
[ "$skipped" = 0 ] || printf '%d skipped: the lines above with "ignored" say which, and the lines before them why\n' "$skipped"
[ -z "$broken" ] || printf 'failed:%s\n' "$broken"
printf 'in %d s\n' $(($(date +%s) - started))
printf '%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" = 0 ]
