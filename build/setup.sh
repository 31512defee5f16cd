#!/usr/bin/env bash
# Installs the Debian packages that a target needs and that this machine lacks.
# Usage: build/setup.sh demo|demo-wasm|test|envoy|cluster|images
#
# A package is asked for only when the file or command it brings is missing, so a complete
# machine, Debian or not, needs neither apt nor a network.
set -euo pipefail

# What to look for, and the package that brings it.
readonly envoy_needs='
python3            python3
python3:ensurepip  python3-venv
'
readonly demo_needs="$envoy_needs
ip                 iproute2
iptables           iptables
nft                nftables
dig                bind9-dnsutils
knotd              knot
nginx              nginx-light
socat              socat
curl               curl
openssl            openssl
setpriv            util-linux
ps                 procps
/etc/ssl/certs/ca-certificates.crt  ca-certificates
"
readonly registry_needs='
docker-registry    docker-registry
htpasswd           apache2-utils
'
readonly demo_wasm_needs="$demo_needs
$registry_needs
wat2wasm           wabt
"
readonly test_needs="$demo_needs
$registry_needs
git                git
gcc                gcc
/usr/include/stdlib.h  libc6-dev
kdig               knot-dnsutils
dnsperf            dnsperf
unbound            unbound
conntrack          conntrack
nc                 netcat-openbsd
capsh              libcap2-bin
strace             strace
musl-gcc           musl-tools
qemu-aarch64-static  qemu-user-static
/usr/include/ares.h libc-ares-dev
shellcheck         shellcheck
w3m                w3m
prometheus         prometheus
"
readonly cluster_needs="
runc               runc
/usr/lib/cni/bridge  containernetworking-plugins
iptables           iptables
nft                nftables
conntrack          conntrack
nsenter            util-linux
"
readonly images_needs="
apt-get            apt
dpkg-deb           dpkg
/usr/share/keyrings/debian-archive-keyring.gpg  debian-archive-keyring
"
# Debian's sbin directories are not in every user's PATH.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

have() {
  case $1 in
    /*) [[ -e $1 ]] ;;
    python3:*) python3 -c "import ${1#*:}" 2>/dev/null ;;
    *) command -v "$1" >/dev/null ;;
  esac
}

missing_packages() {
  local what package
  while read -r what package; do
    [[ -z $what ]] || have "$what" || echo "$package"
  done <<<"$1"
}

# Debian starts a server's daemon when its package is installed. Ours are started by the demo and
# the tests, in namespaces; on the machine itself they would take ports 53 and 80.
start_no_daemons() {
  local policy=/usr/sbin/policy-rc.d
  if [[ ! -e $policy ]]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 0755 "$policy"
    # shellcheck disable=SC2064 # the path is known now and gone by then
    trap "rm -f '$policy'" EXIT
  fi
}

install_packages() {
  local try
  for try in 1 2 3; do
    if apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
      apt-get install -y -qq --no-install-recommends -o Acquire::Retries=3 "$@" >/dev/null; then
      return 0
    fi
    echo "setup: apt-get failed (try $try of 3)" >&2
    sleep $((try * 3)) # a mirror in the middle of an update is whole again a moment later
  done
  return 1
}

case ${1:-} in
  envoy) needs=$envoy_needs ;;
  demo) needs=$demo_needs ;;
  demo-wasm) needs=$demo_wasm_needs ;;
  test) needs=$test_needs ;;
  cluster) needs=$cluster_needs ;;
  images) needs=$images_needs ;;
  *) echo "usage: $0 demo|demo-wasm|test|envoy|cluster|images" >&2; exit 2 ;;
esac

if ! have go && [[ $1 != envoy ]]; then
  echo 'setup: no Go in PATH: install Go 1.26 or later from https://go.dev/dl/' >&2
  exit 1
fi
if [[ $1 != envoy && $1 != images && $EUID -ne 0 ]]; then
  echo "setup: make $1 makes network namespaces and needs root (uid 0, this is $EUID): run it in a root shell" >&2
  exit 1
fi

mapfile -t packages < <(missing_packages "$needs")
if ((${#packages[@]} == 0)); then
  exit 0
fi
if ! command -v apt-get >/dev/null || ((EUID != 0)); then
  echo "setup: missing here: ${packages[*]} (names of Debian packages): install them, or run this as root on Debian" >&2
  exit 1
fi
echo "setup: installing ${packages[*]}"
start_no_daemons
install_packages "${packages[@]}"
