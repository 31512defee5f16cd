#!/usr/bin/env bash
# Runs every fuzz target of the module, one after the other. Usage: build/fuzz.sh DURATION
set -euo pipefail
cd "$(dirname "$0")/.."

readonly each=${1:?usage: build/fuzz.sh DURATION, such as 20s}

while IFS=: read -r file target; do
  printf '=== %s %s (%s)\n' "$(dirname "$file")" "$target" "$each"
  go test -tags vtprotobuf,grpcnotrace -run '^$' -fuzz "^$target\$" -fuzztime "$each" "./$(dirname "$file")" </dev/null
done < <(grep -rEo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+' . | sed 's|^\./||; s|func ||' | sort)
