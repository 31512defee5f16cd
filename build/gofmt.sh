#!/usr/bin/env bash
# Fails with the names of the Go files that gofmt would change.
set -euo pipefail
cd "$(dirname "$0")/.."

unformatted=$(find . -name '*.go' -not -path './.envoy/*' -print0 | xargs -0r gofmt -l -s)
if [[ -n $unformatted ]]; then
  printf 'gofmt: make fmt would change:\n%s\n' "$unformatted" >&2
  exit 1
fi
