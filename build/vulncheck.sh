#!/usr/bin/env bash
# Looks for known vulnerabilities in what the commands call, by govulncheck. VULNDB is its database: by default Go's
# own, or file:///DIR, a copy (`unzip -d DIR vulndb.zip` of the one that Go's offers whole).
# Usage: build/vulncheck.sh [PACKAGES]   Exit: 0 none, 3 some, 75 no database.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly db=${VULNDB:-https://vuln.go.dev}
if ! curl --fail --silent --show-error --location --max-time 30 --output /dev/null "$db/index/db.json"; then
  echo "vulncheck: no database of vulnerabilities at $db: give a copy of it, VULNDB=file:///DIR" >&2
  exit 75
fi
packages=("$@")
# -C twice: go runs the tool of that module, the tool looks at this one.
exec go -C build/release tool govulncheck -C ../.. -db "$db" -tags vtprotobuf,grpcnotrace "${packages[@]:-./cmd/...}"
