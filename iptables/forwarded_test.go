package iptables_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"understudy.mesh/iptables"
	"understudy.mesh/iptables/rule"
	"understudy.mesh/tests/capture"
)

const bridge = "docker0"

// attachContainer joins a container to the pod by a bridge, as Docker in a pod and
// KubeVirt do: what it sends leaves the pod under the pod's address, and the world's
// queries to the pod are its own to answer. Firewalls count by the binaries of b.
func (l *lab) attachContainer(b rule.Backend) (container string) {
	l.t.Helper()
	container = capture.Namespace(l.t, "-c")
	enter(l.t, l.pod)
	kind := "nft"
	if b == rule.Legacy {
		kind = "legacy"
	}
	capture.Sh(l.t, strings.NewReplacer("NS", container, "BRIDGE", bridge, "KIND", kind).Replace(`
		ip link add BRIDGE type bridge; ip addr add 172.17.0.1/16 dev BRIDGE; ip addr add fd17::1/64 dev BRIDGE nodad; ip link set BRIDGE up
		ip link add inner type veth peer name eth0 address 02:00:00:00:17:02 netns NS; ip link set inner master BRIDGE up
		ip -n NS addr add 172.17.0.2/16 dev eth0; ip -n NS addr add fd17::2/64 dev eth0 nodad; ip -n NS link set eth0 up
		ip neigh add 172.17.0.2 lladdr 02:00:00:00:17:02 dev BRIDGE; ip neigh add fd17::2 lladdr 02:00:00:00:17:02 dev BRIDGE
		ip -n NS route add default via 172.17.0.1; ip -n NS -6 route add default via fd17::1
		sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=0
		iptables-KIND -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o BRIDGE -j MASQUERADE
		ip6tables-KIND -t nat -A POSTROUTING -s fd17::/64 ! -o BRIDGE -j MASQUERADE
		iptables-KIND -t nat -A PREROUTING -i eth0 -p udp --dport 53 -j DNAT --to-destination 172.17.0.2:53
		ip6tables-KIND -t nat -A PREROUTING -i eth0 -p udp --dport 53 -j DNAT --to-destination [fd17::2]:53`))
	l.serve(container, 0, everywhere("container")...)
	enter(l.t, l.pod)
	return container
}

// What the pod only forwards must pass as if nothing were captured, and so must the
// queries of the pod's own that are left alone: the pod changes their addresses, and
// can undo that only where answers are tracked as the queries were (istio#54689).
func TestForwardedQueriesAreLeftAlone(t *testing.T) {
	configs := map[string]func(*iptables.Config){
		"listed":             func(*iptables.Config) {},
		"all":                func(c *iptables.Config) { c.DNS.All = true },
		"virtual interface":  func(c *iptables.Config) { c.VirtInterfaces = []string{bridge} },
		"excluded interface": func(c *iptables.Config) { c.ExcludeInterfaces, c.DNS.All = []string{bridge}, true },
		"mark":               func(c *iptables.Config) { c.UIDs, c.GIDs, c.ProxyMark = nil, nil, testMark },
		"invalid dropped":    func(c *iptables.Config) { c.DropInvalid = true },
		"TPROXY":             func(c *iptables.Config) { c.TPROXY, c.DNS.All = true, true },
	}
	for _, b := range backends {
		t.Run(string(b), func(t *testing.T) {
			l := newLab(t)
			skipBackend(t, b)
			container := l.attachContainer(b)
			for name, edit := range configs {
				c := capture.Full()
				c.Backend = b
				edit(&c)
				apply(t, c)
				if err := netlink.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
					t.Fatal(err)
				}
				for _, q := range []struct{ from, to, want string }{
					{container, "9.9.9.9:53", "direct"},
					{container, "[2001:db8::53]:53", "direct"},
					{container, "8.8.8.8:53", "direct"},
					{container, "9.9.9.9:4000", "direct"},
					{l.world, capture.PodV4 + ":53", "container"},
					{l.world, "[" + capture.PodV6 + "]:53", "container"},
					{l.pod, "9.9.9.9:53", "15053"},
					{l.pod, "[2001:db8::53]:53", "15053"},
				} {
					for range 2 {
						if got := l.landing(q.from, 1000, "udp", q.to); got != q.want {
							t.Errorf("%s: UDP from %s to %s: lands at %q, want %q", name, q.from, q.to, got, q.want)
						}
					}
				}
			}
		})
	}
}

// The bridge's addresses are masqueraded whoever has them, so a query from one shows
// whether it was left alone.
func TestQueriesNotWantedAreLeftAlone(t *testing.T) {
	asGroup := owner{1000, 888}
	for name, tt := range map[string]struct {
		who  owner
		edit func(*iptables.Config)
	}{
		"from the proxy":           {owner{capture.ProxyUID, 1000}, func(*iptables.Config) {}},
		"from the proxy's group":   {owner{1000, capture.ProxyUID}, func(*iptables.Config) {}},
		"excluded port":            {owner{1000, 1000}, func(c *iptables.Config) { c.ExcludeOutboundPorts = []uint16{iptables.DNSPort} }},
		"excluded interface":       {owner{1000, 1000}, func(c *iptables.Config) { c.ExcludeInterfaces = []string{"eth0"} }},
		"excluded owner group":     {asGroup, func(c *iptables.Config) { c.ExcludeGroups = []uint32{888} }},
		"owner group not included": {asGroup, func(c *iptables.Config) { c.IncludeGroups = []uint32{777, 778} }},
	} {
		t.Run(name, func(t *testing.T) {
			for _, b := range backends {
				t.Run(string(b), func(t *testing.T) {
					l := newLab(t)
					skipBackend(t, b)
					l.attachContainer(b)
					c := capture.Full()
					c.Backend, c.DNS.All = b, true
					tt.edit(&c)
					apply(t, c)
					for from, to := range map[string]string{"172.17.0.1": "9.9.9.9:53", "fd17::1": "[2001:db8::53]:53"} {
						q := probe{owner: tt.who, network: "udp", source: netip.MustParseAddr(from), to: netip.MustParseAddrPort(to)}
						if got := l.prober(l.pod).land([]probe{q})[0]; got != "direct" {
							t.Errorf("%v: lands at %q, want it to be left alone", q, got)
						}
					}
				})
			}
		})
	}
}
