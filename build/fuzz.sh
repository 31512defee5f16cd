#!/usr/bin/env bash
# Runs the fuzz targets of the module, one after the other: all of them, or those whose names match a
# regular expression. Usage: build/fuzz.sh DURATION [NAMES]
set -euo pipefail
cd "$(dirname "$0")/.."

readonly each=${1:?usage: build/fuzz.sh DURATION [NAMES], such as 20s}
readonly names=${2:-.}

while IFS=: read -r file target; do
  [[ $target =~ $names ]] || continue
  printf '=== %s %s (%s)\n' "$(dirname "$file")" "$target" "$each"
  # Without minimizing: a target of some milliseconds a run would do nothing else.
  go test -tags vtprotobuf,grpcnotrace -run '^$' -fuzz "^$target\$" -fuzztime "$each" -fuzzminimizetime 1x "./$(dirname "$file")" </dev/null
done < <(grep -rEo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+' . | sed 's|^\./||; s|func ||' | sort)
