package iptables_test

import (
	"cmp"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"understudy.mesh/iptables"
	"understudy.mesh/iptables/rule"
	"understudy.mesh/tests/capture"
)

var (
	randomConfigs = flag.Int("random-configs", 25, "how many random configurations are compared with Istio's rules")
	randomSeed    = flag.Uint64("random-seed", 1, "of the first random configuration; the next one has the next seed")
	probesEach    = flag.Int("probes-each", 120, "how many of the packets that are sent in the pod are tried with each configuration")
)

// comparison is one configuration and the packets that show what it does.
type comparison struct {
	name   string
	config iptables.Config
	probes []placedProbe
}

func comparisons() (out []comparison) {
	add := func(name string, c iptables.Config, seed uint64) {
		out = append(out, comparison{name, c, probesOf(c, rand.New(rand.NewPCG(seed, 0)), *probesEach)})
	}
	for i, g := range capture.Golden {
		c := iptables.Default()
		g.Edit(&c)
		if c.ProxyMark == 0 { // Istio has no such thing
			add(g.Name, c, uint64(i))
		}
	}
	for i := range uint64(*randomConfigs) {
		seed := *randomSeed + i
		c := randomConfig(rand.New(rand.NewPCG(seed, 1)))
		add(fmt.Sprintf("random %d", seed), c, seed)
	}
	slices.SortStableFunc(out, func(a, b comparison) int { // the proxy's servers start anew for each owner
		return cmp.Or(cmp.Compare(a.config.UIDs[0], b.config.UIDs[0]), cmp.Compare(a.config.GIDs[0], b.config.GIDs[0]))
	})
	return out
}

// Packets must land where they land with Istio's own rules.
//
// Our rules differ from Istio's on purpose in what no landing here shows: the raw table,
// where Istio's puts the proxy's own queries into the zone of applications
// (TestQueriesAndAnswersShareAZone) and answers to forwarded ones into another than the
// queries (TestForwardedQueriesAreLeftAlone); ports and addresses that share a rule, and
// addresses that others cover, which have none.
func TestPacketsLandWhereIstiosLand(t *testing.T) {
	all := comparisons()
	landed := map[rule.Backend][][]string{} // by comparison and probe; Istio's under Auto
	for _, b := range append([]rule.Backend{rule.Auto}, backends...) {
		landed[b] = make([][]string, len(all))
	}
	t.Run("each", func(t *testing.T) {
		t.Run("Istio", func(t *testing.T) {
			t.Parallel()
			measure(t, all, landed[rule.Auto], applyIstio)
		})
		for _, b := range backends {
			t.Run(string(b), func(t *testing.T) {
				t.Parallel()
				skipBackend(t, b)
				measure(t, all, landed[b], func(t *testing.T, c iptables.Config) {
					c.Backend = b
					apply(t, c)
				})
			})
		}
	})
	if t.Failed() {
		return
	}
	everyLanding(t, landed[rule.Auto])
	for _, b := range backends {
		for i, c := range all {
			for j, got := range landed[b][i] { // none where the back end was skipped
				if want := landed[rule.Auto][i][j]; got != want {
					t.Errorf("%s, %s: from the %s, %v: lands at %q, with Istio at %q\n\t%+v", b, c.name, c.probes[j].from, c.probes[j].probe, got, want, c.config)
				}
			}
		}
	}
}

// everyLanding checks that the probes tell something: that there is no place where none lands.
func everyLanding(t *testing.T, landed [][]string) {
	t.Helper()
	count := map[string]int{}
	for _, where := range slices.Concat(landed...) {
		count[where]++
	}
	t.Logf("%d probes: %v", len(slices.Concat(landed...)), count)
	for _, where := range []string{"15001", "15006", "15053", "app", "direct", "machine", "connection refused"} {
		if count[where] == 0 {
			t.Errorf("no probe lands at %q", where)
		}
	}
}

// measure applies one configuration after the other and writes down where the probes
// land. No connection of one configuration is known to the next.
func measure(t *testing.T, all []comparison, landed [][]string, apply func(*testing.T, iptables.Config)) {
	l := newLab(t)
	machine := l.attachOthers()
	spaces := map[place]string{inPod: l.pod, inWorld: l.world, inVM: machine}
	for i, c := range all {
		l.proxyIs(owner{c.config.UIDs[0], c.config.GIDs[0]})
		enter(t, l.pod)
		if i > 0 && takesMarks(all[i-1].config) {
			capture.Sh(t, noRoutes)
		}
		apply(t, c.config)
		routeMarked(t, c.config)
		if err := netlink.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
			t.Fatal(err)
		}
		landed[i] = make([]string, len(c.probes))
		for from, ns := range spaces {
			var which []int
			var probes []probe
			for j, p := range c.probes {
				if p.from == from {
					which, probes = append(which, j), append(probes, p.probe)
				}
			}
			for k, where := range l.prober(ns).land(probes) {
				landed[i][which[k]] = where
			}
		}
		if t.Failed() {
			t.Fatalf("%s: %+v", c.name, c.config)
		}
	}
}

func applyIstio(t *testing.T, c iptables.Config) {
	t.Helper()
	for _, f := range []rule.Family{rule.IPv4, rule.IPv6} {
		restore(t, rule.NFT, f, capture.IstioRules(c, f))
	}
	capture.Sh(t, "ip -6 addr del ::6/128 dev lo 2>/dev/null || true")
	if c.IPv6 {
		capture.Sh(t, "ip -6 addr add ::6/128 dev lo nodad")
	}
}

// noRoutes takes away the routes of earlier configurations.
const noRoutes = `for v in -4 -6; do
		while ip $v rule del pref 1000 2>/dev/null; do :; done
		ip $v route flush table all proto 99 2>/dev/null || true
	done`

// routeMarked sends marked packets to lo, as Istio does, unless that is done.
func routeMarked(t *testing.T, c iptables.Config) {
	t.Helper()
	if !takesMarks(c) {
		return
	}
	versions := "-4"
	if c.IPv6 {
		versions = "-4 -6"
	}
	capture.Sh(t, fmt.Sprintf(`for v in %s; do
			ip $v rule | grep -q fwmark && continue
			ip $v rule add fwmark %d lookup %d pref 1000
			ip $v route replace local default dev lo table %d proto 99
		done`, versions, c.Mark, c.RouteTable, c.RouteTable))
}

// attachOthers joins a virtual machine, which it returns, and a second cable of the
// world to the pod.
func (l *lab) attachOthers() (machine string) {
	l.t.Helper()
	machine = capture.Namespace(l.t, "-m")
	enter(l.t, l.pod)
	l.cable(machineIface, machine, "eth0", 78)
	l.cable(otherIface, l.world, "wire2", 79)
	capture.Sh(l.t, `ip -n `+machine+` route add default via 10.78.0.1; ip -n `+machine+` -6 route add default via fd78::1
		ip -n `+l.world+` route add 10.78.0.0/24 via 10.77.0.1; ip -n `+l.world+` -6 route add fd78::/64 via fd77::1
		sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=0`)
	l.serve(machine, 0, everywhere("machine")...)
	enter(l.t, l.pod)
	return machine
}
