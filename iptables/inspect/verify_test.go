package inspect

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"understudy.mesh/iptables"
	"understudy.mesh/iptables/internal/nftables"
	"understudy.mesh/iptables/internal/saved"
	"understudy.mesh/iptables/rule"
	"understudy.mesh/tests/capture"
)

// paperNetwork is a pod with eth0 (10.77.0.1, fd77::1) and a default route, with
// whatever else a configuration needs.
func paperNetwork(c iptables.Config) network {
	pod := []netip.Addr{netip.MustParseAddr(capture.PodV4), netip.MustParseAddr(capture.PodV6)}
	local := func(a netip.Addr) bool { return a.IsLoopback() || slices.Contains(pod, a) }
	own := func(a netip.Addr) netip.Addr {
		if a.Is4() {
			return pod[0]
		}
		return pod[1]
	}
	return network{
		isLocal: local,
		route: func(to netip.Addr, _ uint32) (string, netip.Addr, error) {
			if local(to) {
				return rule.Loopback, to, nil
			}
			return "eth0", own(to), nil
		},
		arrives: func(_, _ netip.Addr) string { return "eth0" },
		primary: func(_ string, like netip.Addr) netip.Addr { return own(like) },
		tables: func(f rule.Family, mark uint32) ([]uint32, error) {
			if c.TPROXY && mark == c.Mark && (f == rule.IPv4 || c.IPv6) && (c.InboundPorts.All || len(c.InboundPorts.List) > 0) {
				return []uint32{c.RouteTable}, nil
			}
			return nil, nil
		},
		allLocal:    func(rule.Family, uint32) (bool, error) { return true, nil },
		nftChains:   func() ([]nftables.Chain, error) { return nil, nil },
		listens:     func(_ rule.Proto, port uint16) (bool, error) { return port != c.InboundPort, nil },
		passthrough: func() (bool, error) { return c.IPv6, nil },
	}
}

// onPaper is the state after text was given to iptables-nft-restore and to
// ip6tables-nft-restore, in a pod with the routes of c.
func onPaper(c iptables.Config, v4, v6 string) *Snapshot {
	var states []saved.State
	for i, text := range []string{v4, v6, "", ""} {
		b, f := rule.NFT, rule.IPv4
		if i > 1 {
			b = rule.Legacy
		}
		if i%2 == 1 {
			f = rule.IPv6
		}
		s := saved.Parse(text)
		h := rule.Holding{Backend: b, Family: f}
		if len(s.Ours()) > 0 {
			h.Used = rule.UsedByUs
		}
		states = append(states, saved.State{Holding: h, All: s, Ours: s.Ours()})
	}
	return newSnapshot(states, paperNetwork(c))
}

func rendered(c iptables.Config) *Snapshot {
	rules := iptables.Rules(c)
	return onPaper(c, string(iptables.Render(rules, rule.IPv4)), string(iptables.Render(rules, rule.IPv6)))
}

func texts(list []Difference) (out []string) {
	for _, d := range list {
		out = append(out, d.Text)
	}
	return out
}

func verified(t *testing.T, s *Snapshot, c iptables.Config) []string {
	t.Helper()
	list, err := s.Verify(c)
	if err != nil {
		t.Fatal(err)
	}
	return texts(list)
}

// Every golden configuration is right when it is in force, and can be told from the
// rules alone: those that are inferred from them are the same rules.
func TestGoldenVerifiesAndIsInferred(t *testing.T) {
	for _, g := range capture.Golden {
		c := iptables.Default()
		g.Edit(&c)
		s := rendered(c)
		if d := verified(t, s, c); len(d) > 0 {
			t.Errorf("%s: %q", g.Name, d)
		}
		got, ok := s.Infer()
		if !ok {
			t.Errorf("%s: nothing inferred", g.Name)
		}
		for _, f := range []rule.Family{rule.IPv4, rule.IPv6} {
			if d := cmp.Diff(string(iptables.Render(iptables.Rules(c), f)), string(iptables.Render(iptables.Rules(got), f))); d != "" {
				t.Errorf("%s: %v: inferred %+v:\n%s", g.Name, f, got, d)
			}
		}
		if c.TPROXY != got.TPROXY || c.TPROXY && c.Mark != got.Mark {
			t.Errorf("%s: inferred TPROXY %v with mark %d", g.Name, got.TPROXY, got.Mark)
		}
	}
}

// Istio has one rule for each port, in another order, without comments, and CIDRs
// that others contain.
func TestRulesOfIstioAreRight(t *testing.T) {
	c := iptables.Default()
	c.InboundPorts.All, c.ExcludeInboundPorts = true, []uint16{15090, 15021}
	c.ExcludeOutboundPorts = []uint16{7011, 7012}
	c.IncludeCIDRs.List = capture.Prefixes("10.0.0.0/8", "10.1.0.0/16")
	s := onPaper(c, `*nat
:ISTIO_INBOUND - [0:0]
:ISTIO_REDIRECT - [0:0]
:ISTIO_IN_REDIRECT - [0:0]
:ISTIO_OUTPUT - [0:0]
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_INBOUND -p tcp -m tcp --dport 15008 -j RETURN
-A ISTIO_INBOUND -p tcp -m tcp --dport 15090 -j RETURN
-A ISTIO_INBOUND -p tcp -m tcp --dport 15021 -j RETURN
-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT
-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
-A ISTIO_OUTPUT -p tcp -m tcp --dport 7011 -j RETURN
-A ISTIO_OUTPUT -p udp -m udp --dport 7011 -j RETURN
-A ISTIO_OUTPUT -p tcp -m tcp --dport 7012 -j RETURN
-A ISTIO_OUTPUT -p udp -m udp --dport 7012 -j RETURN
-A ISTIO_OUTPUT -s 127.0.0.6/32 -o lo -j RETURN
-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -p tcp -m tcp ! --dport 15008 -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -m owner ! --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -p tcp -m tcp ! --dport 15008 -m owner --gid-owner 1337 -j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -m owner ! --gid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN
-A ISTIO_OUTPUT -d 10.0.0.0/8 -j ISTIO_REDIRECT
-A ISTIO_OUTPUT -d 10.1.0.0/16 -j ISTIO_REDIRECT
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
COMMIT
`, "")
	if d := verified(t, s, c); len(d) > 0 {
		t.Errorf("%q", d)
	}
	inferred, _ := s.Infer()
	if d := verified(t, s, inferred); len(d) > 0 {
		t.Errorf("inferred %+v: %q", inferred, d)
	}
}

// Istio's rules for DNS lose what the pod forwards. That is named, and nothing else of them.
func TestZonesOfIstioAreNamed(t *testing.T) {
	c := iptables.Default()
	c.DNS = capture.Nameservers("10.96.0.10")
	named := false
	for _, d := range verified(t, onPaper(c, capture.IstioRules(c, rule.IPv4), ""), c) {
		named = named || d == "IPv4 raw ISTIO_INBOUND: not wanted: the chain with its rules, of which there are 1"
		if !strings.HasPrefix(d, "IPv4 raw ") {
			t.Error(d)
		}
	}
	if !named {
		t.Error("the zone of answers is not named")
	}
}

func TestVerifySaysWhatIsWrong(t *testing.T) {
	base := iptables.Default()
	base.InboundPorts.All, base.ExcludeInboundPorts = true, []uint16{22, 23}
	base.IncludeCIDRs.All, base.ExcludeCIDRs = true, capture.Prefixes("192.168.0.0/16", "172.16.0.0/12")
	base.IPv6 = true
	const tag = `-m comment --comment "understudy: `
	for _, tt := range []struct {
		name     string
		old, new string // in what iptables-restore was given; "" is its first COMMIT
		wants    func(*iptables.Config)
		want     []string
	}{
		{name: "nothing"},
		{name: "a missing jump", old: `-A OUTPUT ` + tag + `outbound" -j ISTIO_OUTPUT` + "\n",
			want: []string{"IPv4 nat OUTPUT: missing: -j ISTIO_OUTPUT (outbound)"}},
		{name: "a jump twice", old: `-A OUTPUT ` + tag + `outbound" -j ISTIO_OUTPUT`, new: `-A OUTPUT -j ISTIO_OUTPUT` + "\n-A OUTPUT -j ISTIO_OUTPUT",
			want: []string{"IPv4 nat OUTPUT: there more than once: -j ISTIO_OUTPUT"}},
		{name: "an empty chain", old: `-A ISTIO_REDIRECT -p tcp ` + tag + `to Envoy, outbound" -j REDIRECT --to-ports 15001` + "\n",
			want: []string{"IPv4 nat ISTIO_REDIRECT: missing: the chain with its rules, of which there are 1"}},
		{name: "another port", old: "--to-ports 15001", new: "--to-ports 15991",
			want: []string{"IPv4 nat ISTIO_REDIRECT: should be -p tcp -j REDIRECT --to-ports 15001, but is -p tcp -j REDIRECT --to-ports 15991 (to Envoy, outbound)"}},
		{name: "an excluded port less", old: "-m multiport --dports 22,23", new: "-m tcp --dport 22",
			want: []string{"IPv4 nat ISTIO_INBOUND: missing: -p tcp --dport 23 -j RETURN (excluded inbound port)"}},
		{name: "a rule more", new: "-A ISTIO_OUTPUT -d 9.9.9.9/32 -j RETURN\nCOMMIT",
			want: []string{"IPv4 nat ISTIO_OUTPUT: not wanted: -d 9.9.9.9/32 -j RETURN"}},
		{name: "the last rule first", old: ` ` + tag + `every other destination" -j ISTIO_REDIRECT` + "\n", new: " -j RETURN\n",
			want: []string{"IPv4 nat ISTIO_OUTPUT: missing: -j ISTIO_REDIRECT (every other destination)", "IPv4 nat ISTIO_OUTPUT: not wanted: -j RETURN"}},
		{name: "out of order", old: `-A ISTIO_OUTPUT -s 127.0.0.6/32 -o lo ` + tag + `Envoy to its own application" -j RETURN`,
			new:   "-A ISTIO_OUTPUT -p tcp -m tcp --dport 9 -j ISTIO_REDIRECT\n-A ISTIO_OUTPUT -s 127.0.0.6/32 -o lo -j RETURN",
			wants: func(c *iptables.Config) { c.IncludeOutboundPorts = []uint16{9} },
			want:  []string{"IPv4 nat ISTIO_OUTPUT: out of order: -p tcp --dport 9 -j ISTIO_REDIRECT comes before -s 127.0.0.6/32 -o lo -j RETURN"}},
		{name: "somebody else first", old: `-A OUTPUT ` + tag + `outbound"`, new: "-A OUTPUT -p icmp -j ACCEPT\n-A OUTPUT -p tcp -m tcp --dport 99 -j MINE\n-A MINE -d 1.1.1.1/32 -j RETURN\n-A MINE -j REDIRECT --to-ports 98\n" + `-A OUTPUT ` + tag + `outbound"`,
			want: []string{"IPv4 nat OUTPUT: a rule that is not ours takes packets before ours can: -p tcp --dport 99 -j MINE (MINE -j REDIRECT --to-ports 98)"}},
		{name: "somebody else later", new: "-A OUTPUT -j ACCEPT\nCOMMIT"},
		{name: "TPROXY", wants: func(c *iptables.Config) { c.TPROXY, c.InboundPorts = true, iptables.Ports{} },
			want: []string{"IPv4 mangle PREROUTING: missing"}},
		{name: "no IPv6", wants: func(c *iptables.Config) { c.IPv6 = false },
			want: []string{"IPv6 nat PREROUTING: not wanted", "IPv6: address ::6 of lo is there and not wanted"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v4, v6 := string(iptables.Render(iptables.Rules(base), rule.IPv4)), string(iptables.Render(iptables.Rules(base), rule.IPv6))
			if tt.old == "" {
				tt.old = "COMMIT"
			}
			if tt.new == "" && tt.old == "COMMIT" {
				tt.new = "COMMIT"
			}
			broken := strings.Replace(strings.Replace(v4, ":ISTIO_OUTPUT", ":MINE - [0:0]\n:ISTIO_OUTPUT", 1), tt.old, tt.new, 1)
			if !strings.Contains(v4, tt.old) {
				t.Fatalf("nothing to break in:\n%s", v4)
			}
			c := base
			if tt.wants != nil {
				tt.wants(&c)
			}
			got := verified(t, onPaper(base, broken, v6), c)
			for i, want := range tt.want {
				if !slices.ContainsFunc(got, func(line string) bool { return strings.HasPrefix(line, want) }) {
					t.Errorf("not said: %s\n%s", want, strings.Join(got, "\n"))
				}
				if i >= len(got) {
					break
				}
			}
			if len(tt.want) == 0 && len(got) > 0 || tt.wants == nil && len(got) != len(tt.want) {
				t.Errorf("says %d things, want %d:\n%s", len(got), len(tt.want), strings.Join(got, "\n"))
			}
		})
	}
}

// The order of rules that no packet can tell is nobody's business.
func TestOrderThatDoesNotMatter(t *testing.T) {
	rules := func(lines ...string) *heldChain {
		text := "*nat\n:A - [0:0]\n"
		for _, line := range lines {
			text += "-A A " + line + "\n"
		}
		return viewOf(rule.NFT, rule.IPv4, saved.Parse(text)).chain(rule.NAT, "A")
	}
	for _, tt := range []struct {
		name  string
		a, b  string
		alike bool
	}{
		{"one target", "-s 127.0.0.6/32 -j RETURN", "-d 10.0.0.0/8 -j RETURN", true},
		{"two targets", "-s 127.0.0.6/32 -j RETURN", "-d 10.0.0.0/8 -j B", false},
		{"two ports", "-p tcp -m tcp --dport 80 -j B", "-p tcp -m tcp --dport 81 -j C", true},
		{"two protocols", "-p tcp -j B", "-p udp -j C", true},
		{"two destinations", "-d 10.0.0.0/8 -j B", "-d 11.0.0.0/8 -j C", true},
		{"one in the other", "-d 10.0.0.0/8 -j B", "-d 10.1.0.0/16 -j C", false},
		{"a port and another negated", "-p tcp -m tcp --dport 80 -j B", "-p tcp -m tcp ! --dport 81 -j C", false},
		{"a port and itself negated", "-p tcp -m tcp --dport 80 -j B", "-p tcp -m tcp ! --dport 80 -j C", true},
		{"a range", "-p tcp -m tcp --dport 80 -j B", "-p tcp -m tcp --dport 70:90 -j C", false},
		{"two users", "-m owner --uid-owner 1 -j B", "-m owner --uid-owner 2 -j C", true},
	} {
		got := compareChains(rule.Output, rules(tt.b, tt.a), rules(tt.a, tt.b))
		if (len(got) == 0) != tt.alike {
			t.Errorf("%s: %+v", tt.name, got)
		}
	}
}

func TestVerifyRouting(t *testing.T) {
	c := iptables.Default()
	c.TPROXY, c.InboundPorts.All, c.IPv6 = true, true, true
	s := rendered(c)
	s.net.tables = func(rule.Family, uint32) ([]uint32, error) { return nil, nil }
	s.net.allLocal = func(f rule.Family, _ uint32) (bool, error) { return f == rule.IPv4, nil }
	s.net.passthrough = func() (bool, error) { return false, nil }
	want := []string{
		"IPv6: address ::6 of lo is missing: Envoy reaches the application from it",
		"IPv4: ip rule fwmark 0x539 lookup 133 is missing: TPROXY's answers find back to Envoy by it",
		"IPv6: ip rule fwmark 0x539 lookup 133 is missing: TPROXY's answers find back to Envoy by it",
		"IPv6: ip route local default dev lo table 133 is missing: TPROXY's answers find back to Envoy by it",
	}
	if d := cmp.Diff(want, verified(t, s, c)); d != "" {
		t.Error(d)
	}
}

func TestVerifyBackends(t *testing.T) {
	c := capture.Full()
	elsewhere := rendered(c)
	elsewhere.views[2] = viewOf(rule.Legacy, rule.IPv4, saved.Parse("*nat\n-A OUTPUT -p tcp -m tcp --dport 1 -j ACCEPT\n-A OUTPUT -p tcp -m tcp --dport 2 -j DNAT --to-destination 1.1.1.1\nCOMMIT\n"))
	if d := cmp.Diff([]string{"IPv4 nat OUTPUT: a rule that is not ours takes packets before ours can: -p tcp --dport 2 -j DNAT --to-destination 1.1.1.1"}, verified(t, elsewhere, c)); d != "" {
		t.Error(d)
	}
	s := rendered(c)
	for i := range s.states {
		s.states[i].All, s.states[i].Ours = s.states[i%2].All, s.states[i%2].Ours
	}
	want := []string{
		"IPv4: captured twice: iptables-legacy has capture rules, too",
		"IPv6: captured twice: iptables-legacy has capture rules, too",
	}
	if d := cmp.Diff(want, verified(t, s, c)); d != "" {
		t.Error(d)
	}
	want = []string{
		"IPv4: nothing is captured: iptables-nft has no rules of ours",
		"IPv6: nothing is captured: iptables-nft has no rules of ours",
	}
	if d := cmp.Diff(want, verified(t, onPaper(c, "", ""), c)); d != "" {
		t.Error(d)
	}
	if _, ok := onPaper(c, "", "").Infer(); ok {
		t.Error("a configuration was inferred from nothing")
	}
}

func TestUnheard(t *testing.T) {
	c := capture.Full()
	list, err := rendered(c).Unheard(c)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"nobody listens on tcp port 15006: inbound traffic goes there, to Envoy"}, texts(list)); d != "" {
		t.Error(d)
	}
}

func TestListens(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	port := func(a net.Addr) uint16 { return netip.MustParseAddrPort(a.String()).Port() }
	for _, tt := range []struct {
		proto rule.Proto
		port  uint16
		want  bool
	}{{rule.TCP, port(l.Addr()), true}, {rule.UDP, port(c.LocalAddr()), true}} {
		if got, err := listens(tt.proto, tt.port); got != tt.want || err != nil {
			t.Errorf("%s %d: %v, %v", tt.proto, tt.port, got, err)
		}
	}
	gone := port(l.Addr())
	l.Close()
	if got, err := listens(rule.TCP, gone); got || err != nil {
		t.Errorf("closed: %v, %v", got, err)
	}
}
