#!/usr/bin/env bash
# Runs the fuzz targets of the module, one after the other: all of them, or those whose names match a
# regular expression. Usage: build/fuzz.sh DURATION [NAMES]
set -euo pipefail
cd "$(dirname "$0")/.."

readonly each=${1:?usage: build/fuzz.sh DURATION [NAMES], such as 20s}
readonly names=${2:-.}
log=$(mktemp)
readonly log
trap 'rm -f "$log"' EXIT

# run fuzzes one target. Its duration ends in a race of Go's own, before 1.27 (https://go.dev/issue/75804):
# a deadline that is told as a failure, without an input that made it.
run() {
  local status=0
  # Without minimizing: a target of some milliseconds a run would do nothing else.
  go test -tags vtprotobuf,grpcnotrace -run '^$' -fuzz "^$2\$" -fuzztime "$each" -fuzzminimizetime 1x "./$1" </dev/null |
    tee "$log" || status=$?
  if ((status != 0)) && ! grep -q 'Failing input' "$log" && grep -q '^    context deadline exceeded$' "$log"; then
    echo "=== $2: out of time, no finding"
    return
  fi
  return "$status"
}

while IFS=: read -r file target; do
  [[ $target =~ $names ]] || continue
  printf '=== %s %s (%s)\n' "$(dirname "$file")" "$target" "$each"
  run "$(dirname "$file")" "$target"
done < <(grep -rEo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+' . | sed 's|^\./||; s|func ||' | sort)
