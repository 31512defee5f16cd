#!/usr/bin/env bash
# The main job of Understudy on one machine: names, capture, Envoy, from end to end.
#
#   demo/demo.sh run      the story; KEEP=1 leaves the pod running at its end
#   demo/demo.sh clean    removes what KEEP=1 left
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly ROOT
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
IPV6=no
WORK=''
# Where a kept demo's working directory is written down.
readonly STATE_FILE=/run/understudy-demo

# shellcheck source=demo/lib.sh
source "$ROOT/demo/lib.sh"
# shellcheck source=demo/world.sh
source "$ROOT/demo/world.sh"

# A change of the configuration must work within this time.
readonly CHANGE_SECONDS=2
readonly ADMIN=http://127.0.0.1:15000 AGENT=http://127.0.0.1:15020

fail() {
  printf 'demo: %s\n' "$*" >&2
  exit 1
}

show_the_agents_log() {
  if [[ -s $WORK/log/agent.log ]]; then
    title 'The last lines of the log of the agent and of Envoy'
    tail -n 40 "$WORK/log/agent.log"
  fi
}

# on_exit runs however the script ends. A failed demo shows the agent's log; what was made goes,
# unless the demo succeeded and was asked to stay.
on_exit() {
  local status=$?
  trap - EXIT INT TERM
  if ((status != 0)); then
    show_the_agents_log
  fi
  if ((status == 0)) && [[ ${KEEP:-} == 1 ]]; then
    how_to_enter
  else
    remove_world
    rm -f "$STATE_FILE"
  fi
  exit "$status"
}

how_to_enter() {
  local container
  container="nsenter --target $(cat "$WORK/container.pid") --net --mount --root"
  title 'The pod goes on running'
  say 'as the application:' \
    "  ip netns exec $POD env CURL_CA_BUNDLE=$WORK/ca.pem setpriv --reuid $APP_UID --regid $APP_UID --clear-groups bash" \
    "in the agent's container:" \
    "  $container $WORK/bin/pilot-agent dns table" \
    "its configuration, to be changed while it runs:  $WORK/config" \
    "its log:                                         $WORK/log/agent.log" \
    'to end it:                                       make demo-clean'
}

# as_you runs on the machine itself, as the one who started the demo.
as_you() { "$@"; }

prepare() {
  [[ $EUID -eq 0 ]] || fail "network namespaces need root (uid 0, this is $EUID): run it in a root shell"
  [[ -x $ROOT/bin/pilot-agent && -x $ROOT/bin/envoy ]] || fail 'bin/pilot-agent or bin/envoy is missing: use make demo'
  if [[ -e $STATE_FILE || -e /run/netns/$POD || -e /run/netns/$OUTSIDE ]]; then
    fail 'a demo is here already (left by KEEP=1, or in another terminal): make demo-clean removes it'
  fi
  WORK=$(mktemp -d "${TMPDIR:-/tmp}/understudy-demo.XXXXXX")
  trap on_exit EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  echo "$WORK" >"$STATE_FILE"
  chmod 0755 "$WORK"
  mkdir -p "$WORK"/{bin,config,proxy,log}
  touch "$WORK"/bin/{pilot-agent,envoy} # what the container mounts the binaries on
  chown "$PROXY_UID" "$WORK/proxy" "$WORK/log"
  cp "$ROOT"/demo/config/*.yaml "$WORK/config/"
  echo "accessLogFile: $WORK/log/access.log" >"$WORK/mesh.yaml"
  make_world
}

# Envoy writes its access log once a second, its counters at once.
access_log_says() { grep -qE -- "$1" "$WORK/log/access.log" 2>/dev/null; }
agents_log_says() { grep -qE -- "$1" "$WORK/log/agent.log"; }
app_resolves_to_vip() { quietly app dig +short +time=1 +tries=1 "$1" && is_vip; }
app_resolves_to() { quietly app dig +short +time=1 +tries=1 "$1" && says_exactly "$2"; }
app_gets() { quietly app curl -sS --max-time 1 "$1" && says "$2"; }
vip_answers() { app_resolves_to_vip "$1" && app_gets "http://$1" "$1 here"; }

before_capture() {
  title '1. Before: a pod like any other'
  say "Two network namespaces: a pod ($POD_IP), and the world outside with a name server and web servers." \
    "The application (app, uid $APP_UID) asks for a name and gets the real address."
  run app dig +short aliyun.com
  check 'aliyun.com resolves to the address outside' says_exactly "$ALIYUN_IP"
  run app curl -sS https://aliyun.com
  check "the server saw the application itself, at $POD_IP" says "aliyun.com here.*from $POD_IP"
}

capture() {
  title '2. The init step: capture'
  say 'Root with NET_ADMIN and NET_RAW writes the iptables rules: TCP goes to Envoy, DNS to the agent,' \
    "and only uid $PROXY_UID, Envoy's and the agent's, passes."
  run init env ISTIO_META_DNS_CAPTURE=true pilot-agent istio-iptables \
    -p 15001 -z 15006 -u "$PROXY_UID" -m REDIRECT -i '*' -x '' -b '*' -d 15090,15021,15020
  check 'the rules are in place' succeeds
}

start_the_agent() {
  local proxy_config="{\"configPath\":\"$WORK/proxy\",\"binaryPath\":\"$WORK/bin/envoy\"\
,\"terminationDrainDuration\":\"1s\",\"proxyStatsMatcher\":{\"inclusionPrefixes\":[\"cluster.outbound\"]}}"
  local -a command=(env POD_NAME=app-0 POD_NAMESPACE=demo "INSTANCE_IP=$POD_IP"
    ISTIO_META_DNS_CAPTURE=true ISTIO_META_DNS_AUTO_ALLOCATE=true "PROXY_CONFIG=$proxy_config"
    pilot-agent proxy sidecar --configDir "$WORK/config" --meshConfig "$WORK/mesh.yaml")

  title '3. The agent, without a control plane'
  say "It runs as uid $PROXY_UID without any capability, reads Istio YAML from a directory, answers DNS," \
    'and starts and feeds a real Envoy. "wait" returns when the pod is ready for its application.'
  show agent "${command[@]}" '&'
  enter_as_agent
  in_background "$WORK/log/agent.log" "${ENTER[@]}" "${command[@]}"
  agent_pid=$!
  run agent pilot-agent wait --timeoutSeconds 20
  check 'the agent is ready' succeeds
  run agent grep -E '^(Uid|CapEff|CapBnd)' "/proc/$agent_pid/status"
  check "it is uid $PROXY_UID and has no capability" says '^CapBnd:\s*0+$'
  run agent pilot-agent dns table
  check 'its name table has aliyun.com' says 'aliyun\.com'
}

the_manuals_service_entry() {
  title "4. The manual's ServiceEntry: aliyun.com, 443, TLS"
  say 'It has no address, so the agent gives it one that exists nowhere (a VIP), and Envoy' \
    'puts the real one in its place.'
  run app dig +short aliyun.com
  check 'aliyun.com resolves to 240.240.x.x now' is_vip
  SHOW='Trying|Connected to|subject:|SSL certificate verify|< HTTP|aliyun.com here' run app curl -sv https://aliyun.com
  check 'curl was connected to the VIP' says 'Connected to aliyun.com \(240\.240\.'
  check 'and aliyun.com itself answered, with its own certificate' says 'aliyun.com here, port 443'
  if [[ $IPV6 == yes ]]; then
    run app dig +short aliyun.com AAAA
    check 'the pod has IPv6, so there is a VIP of 2001:2::/48 too' is_vip6
    run app curl -6 -sS https://aliyun.com
    check 'and it leads to the same server' says 'aliyun.com here, port 443'
  fi
  title '5. The same for HTTP'
  run app dig +short shop.example.com
  check 'shop.example.com has a VIP' is_vip
  SHOW='< HTTP|< server|shop.example.com here' run app curl -sv http://shop.example.com
  check 'it answers' says 'shop.example.com here, port 80'
}

envoy_was_there() {
  title '6. Was it Envoy?'
  say 'Its counters know these connections, and its access log has a line for each.'
  run app curl -sS "$ADMIN/stats?usedonly&filter=(aliyun|shop).*upstream_cx_total"
  check 'Envoy counted connections to aliyun.com' says 'aliyun\.com.*upstream_cx_total: [1-9]'
  check 'and to shop.example.com' says 'shop\.example\.com.*upstream_cx_total: [1-9]'
  within 5 access_log_says 'shop\.example\.com' || true
  SHOW='aliyun|shop' run agent tail -n 4 "$WORK/log/access.log"
  check "aliyun.com's real address is in the access log" access_log_says "\"($ALIYUN_IP|\[$ALIYUN_IP6\]):443\".*aliyun\.com"
  check "and a request to shop.example.com" access_log_says '"?GET / HTTP/1\.1.*shop\.example\.com'
}

two_hosts_on_one_port() {
  title '7. Two TCP hosts on one port'
  say 'TCP carries no name. A VIP for each host is what tells them apart.'
  run app socat -T5 -u "TCP:db-one.example.com:$DB_PORT" -
  check 'db-one answers for db-one' says_exactly 'this is db-one'
  run app socat -T5 -u "TCP:db-two.example.com:$DB_PORT" -
  check 'db-two answers for db-two' says_exactly 'this is db-two'
}

a_change_while_running() {
  local began
  title '8. A ServiceEntry comes and goes'
  run app dig +short late.example.com
  check 'nobody declared late.example.com: the address outside' says_exactly "$LATE_IP"
  run you cp "$ROOT/demo/later/late.yaml" "$WORK/config/"
  began=${EPOCHREALTIME/./}
  check "within $CHANGE_SECONDS s it has a VIP, and answers" within "$CHANGE_SECONDS" vip_answers late.example.com
  say "(it took $(((${EPOCHREALTIME/./} - began) / 1000)) ms)"
  run you rm "$WORK/config/late.yaml"
  check "within $CHANGE_SECONDS s it resolves to the address outside again" \
    within "$CHANGE_SECONDS" app_resolves_to late.example.com "$LATE_IP"
}

everything_else() {
  local before after
  title '9. Names that the mesh does not know'
  say 'They are forwarded to the name server of resolv.conf, and connections to them pass through.'
  run app curl -sS http://elsewhere.example.net
  check 'an undeclared host is reached, at its own address' says 'elsewhere.example.net here'
  SHOW='status:' run app dig nosuch.example.net
  check 'a name that does not exist does not exist (NXDOMAIN)' says 'status: NXDOMAIN'
  say "The agent's own question must not be captured and come back to it: the name server counts."
  before=$(counted_queries)
  run app dig +short www.counted.example
  check 'the name resolves' says_exactly "$ELSEWHERE_IP"
  after=$(counted_queries)
  say "questions that reached the name server: $((after - before))"
  check 'one question inside is one question outside' test "$((after - before))" -eq 1
  quietly app dig +short www.counted.example
  check 'and the second time none: the answer is cached' test "$(counted_queries)" -eq "$after"
}

inbound() {
  title '10. A request from outside'
  run outside curl -sS "http://$POD_IP:$APP_PORT/inbound"
  check 'the application answers' says 'the application'
  check 'Envoy brought it the request: it came from 127.0.0.6' says 'from 127\.0\.0\.6'
  within 5 access_log_says '/inbound' || true
  check "and it is in Envoy's access log" access_log_says 'GET /inbound HTTP/1\.1'
}

a_broken_file() {
  local table_before
  title '11. A broken file'
  quietly agent pilot-agent dns table
  table_before=$OUT
  run you cp "$ROOT/demo/later/broken.yaml" "$WORK/config/"
  check "the agent's log names it" within "$CHANGE_SECONDS" agents_log_says 'broken\.yaml'
  SHOW='broken\.yaml' run agent tail -n 5 "$WORK/log/agent.log"
  SHOW='broken|field|reason' run app curl -sS "$AGENT/debug/configz"
  check 'so does its configuration page' says 'broken\.yaml'
  quietly agent pilot-agent dns table
  check 'the name table is what it was' says_exactly "$table_before"
  run app curl -sS https://aliyun.com
  check 'and everything works as before' says 'aliyun.com here'
  quietly you rm "$WORK/config/broken.yaml"
}

# no_process_of_the_proxy: neither the agent nor Envoy is left; the application and the container are.
no_process_of_the_proxy() {
  local uids
  uids=$(ip netns pids "$POD" | xargs ps -o uid= -p) || true
  ! grep -qw "$PROXY_UID" <<<"$uids"
}

the_end() {
  if [[ ${KEEP:-} == 1 ]]; then
    return
  fi
  title '12. The end'
  say 'SIGTERM: readiness goes, connections end, then Envoy, then the agent.'
  run you kill -TERM "$agent_pid"
  RC=0
  wait "$agent_pid" || RC=$?
  OUT=$(tail -n 2 "$WORK/log/agent.log")
  check 'the agent ended with status 0' succeeds
  check 'and left no process' within 1 no_process_of_the_proxy
}

tell() {
  prepare
  local began=$EPOCHSECONDS
  before_capture
  capture
  start_the_agent
  the_manuals_service_entry
  envoy_was_there
  two_hosts_on_one_port
  a_change_while_running
  everything_else
  inbound
  a_broken_file
  the_end
  title "The story took $((EPOCHSECONDS - began)) s."
  title "demo: $checks checks, $failures failed"
  ((failures == 0))
}

clean() {
  if [[ ! -e $STATE_FILE && ! -e /run/netns/$POD && ! -e /run/netns/$OUTSIDE ]]; then
    return
  fi
  [[ $EUID -eq 0 ]] || fail 'removing the demo needs root'
  WORK=$(cat "$STATE_FILE" 2>/dev/null || true)
  [[ $WORK == */understudy-demo.* ]] || WORK=/nonexistent
  remove_world
  rm -f "$STATE_FILE"
  echo 'demo: removed'
}

case ${1:-} in
  run) tell ;;
  clean) clean ;;
  *) fail "usage: $0 run|clean" ;;
esac
