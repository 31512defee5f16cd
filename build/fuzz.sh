#!/usr/bin/env bash
# Runs every fuzz target of the module, one after the other. Usage: build/fuzz.sh DURATION
set -euo pipefail
cd "$(dirname "$0")/.."

readonly each=${1:?usage: build/fuzz.sh DURATION, such as 20s}

while IFS=: read -r file target; do
  printf '=== %s %s (%s)\n' "$(dirname "$file")" "$target" "$each"
  # Without minimizing: a target of some milliseconds a run would do nothing else.
  go test -tags vtprotobuf,grpcnotrace -run '^$' -fuzz "^$target\$" -fuzztime "$each" -fuzzminimizetime 1x "./$(dirname "$file")" </dev/null
done < <(grep -rEo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+' . | sed 's|^\./||; s|func ||' | sort)
