# shellcheck shell=bash
# The stage: two network namespaces joined by a cable, and what stands in the outer one.
#
#   us-pod      192.0.2.2      the application, the agent, Envoy
#   us-outside  192.0.2.1      the rest of the world: a name server, web servers, two "databases"
#
# All addresses are from the ranges kept for documentation (RFC 5737, RFC 3849) or local (RFC 4193).

readonly POD=us-pod OUTSIDE=us-outside
readonly POD_IP=192.0.2.2 POD_IP6=fd00:de:300::2
readonly ROUTER_IP=192.0.2.1 ROUTER_IP6=fd00:de:300::1
readonly ALIYUN_IP=198.51.100.10 ALIYUN_IP6=2001:db8::10
readonly SHOP_IP=198.51.100.20 DB_ONE_IP=198.51.100.31 DB_TWO_IP=198.51.100.32
readonly LATE_IP=203.0.113.40 ELSEWHERE_IP=203.0.113.50
readonly APP_PORT=8080 DB_PORT=3306

# uid 1337 is Istio's for the proxy: iptables lets its traffic pass. Any other uid is captured.
readonly PROXY_UID=1337 APP_UID=1000

# No command of the story takes longer, unless something is wrong.
readonly COMMAND_SECONDS=30

# as_WHO COMMAND...: who runs a command, where, and with which rights. The words in front of the
# command are an array, because a process in the background is started by exec and not by a function.
readonly NO_RIGHTS='--clear-groups --inh-caps=-all --bounding-set=-all'

enter_outside() { ENTER=(ip netns exec "$OUTSIDE" env -i PATH="$PATH"); }
enter_container() {
  ENTER=(nsenter --target "$(cat "$WORK/container.pid")" --net --mount --root env -i PATH="$WORK/bin:$PATH")
}
enter_as_app() {
  # shellcheck disable=SC2206 # NO_RIGHTS is several words
  ENTER=(ip netns exec "$POD" env -i PATH="$PATH" CURL_CA_BUNDLE="$WORK/ca.pem"
    setpriv --reuid "$APP_UID" --regid "$APP_UID" $NO_RIGHTS)
}
enter_as_agent() {
  enter_container
  # shellcheck disable=SC2206
  ENTER+=(setpriv --reuid "$PROXY_UID" --regid "$PROXY_UID" $NO_RIGHTS)
}

as_outside() { enter_outside && "${ENTER[@]}" "$@"; }
as_app() { enter_as_app && timeout "$COMMAND_SECONDS" "${ENTER[@]}" "$@"; }
as_agent() { enter_as_agent && timeout "$COMMAND_SECONDS" "${ENTER[@]}" "$@"; }
# The init step is root with two capabilities, as in Istio's pod template.
as_init() {
  enter_container
  timeout "$COMMAND_SECONDS" "${ENTER[@]}" setpriv --inh-caps=-all --bounding-set=-all,+net_admin,+net_raw "$@"
}

# in_background LOG COMMAND...: outlives this script (KEEP=1), and Ctrl-C does not reach it before
# the clean-up does. The process id is left in $!.
in_background() {
  local log=$1
  shift
  setsid "$@" >"$log" 2>&1 </dev/null &
}

make_namespaces() {
  ip netns add "$OUTSIDE"
  ip netns add "$POD"
  ip -n "$OUTSIDE" link add pod0 type veth peer name eth0 netns "$POD"
  ip -n "$OUTSIDE" link set lo up
  ip -n "$OUTSIDE" link set pod0 up
  ip -n "$POD" link set lo up
  ip -n "$POD" link set eth0 up

  ip -n "$OUTSIDE" addr add "$ROUTER_IP/24" dev pod0
  ip -n "$POD" addr add "$POD_IP/24" dev eth0
  ip -n "$POD" route add default via "$ROUTER_IP"
  local address
  for address in "$ALIYUN_IP" "$SHOP_IP" "$DB_ONE_IP" "$DB_TWO_IP" "$LATE_IP" "$ELSEWHERE_IP"; do
    ip -n "$OUTSIDE" addr add "$address/32" dev lo
  done

  # nodad: an address of ours is no duplicate, and would be unusable for a second otherwise.
  if ip -n "$OUTSIDE" addr add "$ROUTER_IP6/64" dev pod0 nodad 2>/dev/null; then
    IPV6=yes
    ip -n "$POD" addr add "$POD_IP6/64" dev eth0 nodad
    ip -n "$POD" route add default via "$ROUTER_IP6"
    ip -n "$OUTSIDE" addr add "$ALIYUN_IP6/128" dev lo nodad
  fi

  # `ip netns exec` shows this file as /etc/resolv.conf inside the namespace.
  mkdir -p "/etc/netns/$POD"
  printf 'search demo.svc.cluster.local svc.cluster.local cluster.local\nnameserver %s\n' \
    "$ROUTER_IP" >"/etc/netns/$POD/resolv.conf"
}

# One zone is the whole world, so whatever is not in it does not exist (NXDOMAIN). A second one is
# never asked by anybody but the check that counts its queries.
start_name_server() {
  local dir=$WORK/dns ipv6_address=''
  [[ $IPV6 != yes ]] || ipv6_address="aliyun.com. AAAA $ALIYUN_IP6"
  mkdir -p "$dir"
  cat >"$dir/world.zone" <<ZONE
\$TTL 60
.                       SOA  ns.example. hostmaster.example. 1 3600 600 86400 60
.                       NS   ns.example.
ns.example.             A    $ROUTER_IP
aliyun.com.             A    $ALIYUN_IP
$ipv6_address
shop.example.com.       A    $SHOP_IP
db-one.example.com.     A    $DB_ONE_IP
db-two.example.com.     A    $DB_TWO_IP
late.example.com.       A    $LATE_IP
elsewhere.example.net.  A    $ELSEWHERE_IP
counted.example.        NS   ns.example.
ZONE
  cat >"$dir/counted.zone" <<ZONE
\$TTL 60
counted.example.      SOA  ns.example. hostmaster.example. 1 3600 600 86400 60
counted.example.      NS   ns.example.
www.counted.example.  A    $ELSEWHERE_IP
ZONE
  cat >"$dir/knot.conf" <<CONF
server:
    rundir: "$dir"
    listen: $ROUTER_IP@53
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
log:
  - target: stderr
    any: warning
database:
    storage: "$dir"
template:
  - id: default
    storage: "$dir"
zone:
  - domain: .
    file: world.zone
  - domain: counted.example.
    file: counted.zone
    module: mod-stats
CONF
  enter_outside
  in_background "$dir/log" "${ENTER[@]}" knotd -c "$dir/knot.conf"
}

# counted_queries: how often the name server was asked for a name under counted.example. knotc says
# nothing, and fails, as long as that is never.
counted_queries() {
  local statistics
  statistics=$(knotc -s "$WORK/dns/knot.sock" zone-stats counted.example. 2>/dev/null) || true
  awk '/server-operation\[query\]/ { n = $NF } END { print n + 0 }' <<<"$statistics"
}

make_certificates() {
  local dir=$WORK/tls
  mkdir -p "$dir"
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj '/CN=demo CA' \
    -keyout "$dir/ca.key" -out "$WORK/ca.pem" 2>/dev/null
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj '/CN=aliyun.com' \
    -keyout "$dir/server.key" -out "$dir/server.csr" 2>/dev/null
  openssl x509 -req -in "$dir/server.csr" -CA "$WORK/ca.pem" -CAkey "$dir/ca.key" -CAcreateserial -days 1 \
    -extfile <(echo 'subjectAltName=DNS:aliyun.com') -out "$dir/server.pem" 2>/dev/null
}

# nginx_config DIR SERVERS: an nginx that writes nowhere but in DIR and answers with a line of text.
nginx_config() {
  local dir=$1
  mkdir -p "$dir"
  cat >"$dir/nginx.conf" <<CONF
daemon off;
master_process off;
pid $dir/nginx.pid;
error_log stderr warn;
events { }
http {
  access_log off;
  default_type text/plain;
  client_body_temp_path $dir/body;
  proxy_temp_path $dir/proxy;
  fastcgi_temp_path $dir/fastcgi;
  uwsgi_temp_path $dir/uwsgi;
  scgi_temp_path $dir/scgi;
$2
}
CONF
}

start_web_servers() {
  local dir=$WORK/web ipv6_listen=''
  [[ $IPV6 != yes ]] || ipv6_listen="listen [$ALIYUN_IP6]:443 ssl;"
  # $remote_addr is nginx's.
  # shellcheck disable=SC2016
  local answer='return 200 "$host here, port $server_port; you came from $remote_addr\n";'
  nginx_config "$dir" "
  server { listen $ALIYUN_IP:443 ssl; $ipv6_listen
           ssl_certificate $WORK/tls/server.pem; ssl_certificate_key $WORK/tls/server.key;
           location / { $answer } }
  server { listen $SHOP_IP:80; listen $LATE_IP:80; listen $ELSEWHERE_IP:80;
           location / { $answer } }"
  enter_outside
  in_background "$dir/log" "${ENTER[@]}" nginx -e stderr -c "$dir/nginx.conf"
}

start_databases() {
  enter_outside
  in_background "$WORK/db-one.log" "${ENTER[@]}" \
    socat "TCP-LISTEN:$DB_PORT,bind=$DB_ONE_IP,fork,reuseaddr" SYSTEM:'echo this is db-one'
  in_background "$WORK/db-two.log" "${ENTER[@]}" \
    socat "TCP-LISTEN:$DB_PORT,bind=$DB_TWO_IP,fork,reuseaddr" SYSTEM:'echo this is db-two'
}

# The application of the pod, an ordinary web server of an ordinary user.
start_app() {
  local dir=$WORK/app
  # shellcheck disable=SC2016
  nginx_config "$dir" "
  server { listen $APP_PORT; location / { return 200 \"the application; you came from \$remote_addr\n\"; } }"
  chown -R "$APP_UID" "$dir"
  enter_as_app
  in_background "$WORK/app.log" "${ENTER[@]}" nginx -e stderr -c "$dir/nginx.conf"
}

# A container's file system, as far as the agent minds: /var/lib/istio/data of its own. It lives in
# the private mount namespace that `ip netns exec` makes, so the machine never sees it.
start_container() {
  # shellcheck disable=SC2016
  in_background "$WORK/container.log" ip netns exec "$POD" sh -c '
    mount -t tmpfs tmpfs /var/lib && mkdir -p /var/lib/istio/data && chown "$1" /var/lib/istio/data &&
    mount --bind "$2" "$4/bin/pilot-agent" && mount --bind "$3" "$4/bin/envoy" &&
    touch "$4/container.ready" && exec sleep infinity' \
    container "$PROXY_UID" "$ROOT/bin/pilot-agent" "$(readlink -f "$ROOT/bin/envoy")" "$WORK"
  echo $! >"$WORK/container.pid"
  within 5 test -e "$WORK/container.ready" ||
    fail "the container did not start: $(cat "$WORK/container.log")"
}

answers_dns() { [[ -n $(as_outside dig "@$ROUTER_IP" +short +time=1 +tries=1 aliyun.com 2>/dev/null) ]]; }
accepts() { as_outside bash -c "exec 3<>/dev/tcp/$1/$2" 2>/dev/null; }

make_world() {
  make_namespaces
  make_certificates
  start_name_server
  start_web_servers
  start_databases
  start_app
  start_container
  within 10 answers_dns || fail "the name server does not answer: $(cat "$WORK/dns/log")"
  local server
  for server in "$ALIYUN_IP 443" "$SHOP_IP 80" "$DB_ONE_IP $DB_PORT" "$DB_TWO_IP $DB_PORT" "$POD_IP $APP_PORT"; do
    # shellcheck disable=SC2086 # address and port are two words
    within 5 accepts $server || fail "no server at $server: $(cat "$WORK"/web/log "$WORK"/*.log)"
  done
}

processes_of_the_world() {
  ip netns pids "$POD" 2>/dev/null || true
  ip netns pids "$OUTSIDE" 2>/dev/null || true
}
none_left() { [[ -z $(processes_of_the_world) ]]; }

remove_world() {
  local -a pids
  mapfile -t pids < <(processes_of_the_world)
  kill -TERM "${pids[@]}" 2>/dev/null || true
  if ! within 5 none_left; then
    mapfile -t pids < <(processes_of_the_world)
    kill -KILL "${pids[@]}" 2>/dev/null || true
    within 5 none_left || true
  fi
  ip netns del "$POD" 2>/dev/null || true
  ip netns del "$OUTSIDE" 2>/dev/null || true
  rm -rf "/etc/netns/$POD"
  rmdir --ignore-fail-on-non-empty /etc/netns 2>/dev/null || true
  rm -rf "$WORK"
}
