package inspect

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"understudy.mesh/iptables"
	"understudy.mesh/iptables/internal/nftables"
	"understudy.mesh/iptables/internal/saved"
	"understudy.mesh/iptables/rule"
	"understudy.mesh/tests/capture"
)

func from(uid uint32, proto rule.Proto, to string) Flow {
	return Flow{Local: true, UID: uid, GID: uid, Proto: proto, Dst: netip.MustParseAddrPort(to)}
}

func fromOutside(to string) Flow { return Flow{Proto: rule.TCP, Dst: netip.MustParseAddrPort(to)} }

func traced(t *testing.T, s *Snapshot, f Flow) Traced {
	t.Helper()
	tr, err := s.Trace(f, false)
	if err != nil {
		t.Fatal(err)
	}
	if len(tr.Outcomes) == 0 {
		t.Fatal("no outcome")
	}
	return tr
}

// before puts rules before those of a table, in iptables-restore's input.
func before(text, table, rules string) string {
	if !strings.Contains(text, "*"+table+"\n") {
		return "*" + table + "\n" + rules + "COMMIT\n" + text
	}
	head, tail, _ := strings.Cut(text, "*"+table+"\n")
	chains, body, _ := strings.Cut(tail, "-A ")
	return head + "*" + table + "\n" + chains + rules + "-A " + body
}

func TestTraceSaysWhatItCannotEvaluate(t *testing.T) {
	c := capture.Full()
	app := from(1000, rule.TCP, "1.2.3.4:80")
	for _, tt := range []struct {
		name, Table, rules string
		flow               Flow
		want               []string // places
		blind              string
	}{
		{"a set that takes packets", "nat", "-A OUTPUT -m set --match-set x dst -j RETURN\n", app, []string{"envoy-outbound", "direct"}, "set --match-set x dst"},
		{"a set that does not matter", "nat", "-A OUTPUT -m set --match-set x dst -j LOG\n", app, []string{"envoy-outbound"}, "set --match-set x dst"},
		{"a set for another port", "nat", "-A OUTPUT -p tcp -m set --match-set x dst -m tcp --dport 81 -j RETURN\n", app, []string{"envoy-outbound"}, ""},
		{"a negated set", "nat", "-A OUTPUT -m set ! --match-set x dst -j ACCEPT\n", app, []string{"envoy-outbound", "direct"}, "! set --match-set x dst"},
		{"a mask with holes", "nat", "-A OUTPUT -d 1.0.3.0/255.0.255.0 -j ACCEPT\n", app, []string{"envoy-outbound", "direct"}, "-d 1.0.3.0/255.0.255.0"},
		{"an unknown target", "nat", "-A OUTPUT -j NFQUEUE --queue-num 1\n", app, []string{"envoy-outbound", "undecided"}, "what NFQUEUE does"},
		{"an unknown client", "nat", "-A PREROUTING -s 10.0.0.0/8 -j ACCEPT\n", fromOutside(capture.PodV4 + ":4000"), []string{"envoy-inbound", "local"}, "-s 10.0.0.0/8"},
		{"a client that is not the pod", "nat", "-A PREROUTING -s " + capture.PodV4 + "/32 -j ACCEPT\n", fromOutside(capture.PodV4 + ":4000"), []string{"envoy-inbound"}, ""},
		{"a statistic", "filter", "-A OUTPUT -m statistic --mode random --probability 0.5 -j DROP\n", from(1337, rule.TCP, "1.2.3.4:80"), []string{"direct", "dropped"}, "statistic --mode random"},
		{"a policy", "filter", ":OUTPUT DROP [0:0]\n-A OUTPUT -p udp -j ACCEPT\n", app, []string{"dropped"}, ""},
		{"no conntrack", "raw", "-A OUTPUT -p tcp -j NOTRACK\n", app, []string{"direct"}, ""},
		{"a chain that falls off", "nat", ":A - [0:0]\n-A OUTPUT -j A\n-A A -p udp -j ACCEPT\n", app, []string{"envoy-outbound"}, ""},
		{"goto", "nat", ":A - [0:0]\n-A OUTPUT -g A\n-A A -p udp -j ACCEPT\n", app, []string{"direct"}, ""},
		{"a chain that leads to itself", "nat", ":A - [0:0]\n-A OUTPUT -j A\n-A A -j A\n", app, []string{"envoy-outbound"}, ""},
		{"marks", "mangle", "-A OUTPUT -p tcp -j MARK --set-xmark 0x6/0xff\n-A OUTPUT -j CONNMARK --save-mark --nfmask 0xff --ctmask 0xffff\n" +
			"-A OUTPUT -m connmark --mark 0x6/0xf -m mark ! --mark 0x7 -j DROP\n", app, []string{"dropped"}, ""},
		{"the first packet's state and flags", "filter", "-A OUTPUT -p tcp -m state --state NEW -m tcp --tcp-flags FIN,SYN,RST,ACK SYN --sport 32768:60999 -j DROP\n", app, []string{"dropped"}, ""},
		{"redirected to the interface's address", "filter", "-A INPUT -d " + capture.PodV4 + "/32 -p tcp -m tcp --dport 15006 -j DROP\n", fromOutside(capture.PodV4 + ":4000"), []string{"dropped"}, ""},
		{"redirected to loopback", "filter", "-A INPUT -d 127.0.0.1/32 -i lo -p tcp -m tcp --dport 15001 -j DROP\n", app, []string{"dropped"}, ""},
		{"types and ranges of addresses", "filter", "-A INPUT -m addrtype --dst-type LOCAL -m iprange --src-range 10.77.0.0-10.77.0.9 -j DROP\n", app, []string{"dropped"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rules := iptables.Rules(c)
			s := onPaper(c, before(string(iptables.Render(rules, rule.IPv4)), tt.Table, tt.rules), string(iptables.Render(rules, rule.IPv6)))
			tr := traced(t, s, tt.flow)
			var got []string
			for _, o := range tr.Outcomes {
				got = append(got, string(o.Place))
				if len(o.If) == 0 && len(tt.want) > 1 {
					t.Errorf("%s: of several outcomes, one without a condition", o.Place)
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(tt.want) {
				t.Errorf("lands at %v, want %v", got, tt.want)
			}
			if tr.Decided() != (len(tt.want) == 1) {
				t.Errorf("decided: %v", tr.Decided())
			}
			blind := strings.Join(tr.Blind, "; ")
			if tt.blind == "" && blind != "" || !strings.Contains(blind, strings.TrimPrefix(tt.blind, "-m ")) {
				t.Errorf("says of what it cannot evaluate %q, want %q", blind, tt.blind)
			}
		})
	}
}

// More unknown rules than can be followed: no answer rather than half of one.
func TestTraceGivesUpInTime(t *testing.T) {
	c := capture.Full()
	rules := ""
	for i := range 40 {
		rules += fmt.Sprintf("-A OUTPUT -m set --match-set s%d dst -j LOG\n", i)
	}
	s := onPaper(c, before(string(iptables.Render(iptables.Rules(c), rule.IPv4)), "nat", rules), "")
	if tr := traced(t, s, from(1000, rule.TCP, "1.2.3.4:80")); tr.Decided() {
		t.Error("decided")
	}
}

// Two back ends with rules in one hook: whichever comes first.
func TestTraceKnowsThatOrderIsUnknown(t *testing.T) {
	c := capture.Full()
	s := rendered(c)
	other := saved.Parse("*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -d 1.2.3.4/32 -p tcp -j DNAT --to-destination 5.6.7.8\nCOMMIT\n")
	s.views[2] = viewOf(rule.Legacy, rule.IPv4, other)
	tr := traced(t, s, from(1000, rule.TCP, "1.2.3.4:80"))
	if len(tr.Outcomes) != 2 || tr.Outcomes[0].Place != placeEnvoyOutbound || tr.Outcomes[1].Addr != netip.MustParseAddrPort("5.6.7.8:80") {
		t.Errorf("%+v", tr.Outcomes)
	}
	if tr := traced(t, s, from(1000, rule.TCP, "1.2.3.5:80")); !tr.Decided() {
		t.Errorf("not decided, although both orders lead to the same place: %+v", tr.Outcomes)
	}
}

func TestTraceSaysWhy(t *testing.T) {
	full, listed := capture.Full(), capture.Listed()
	v4only := capture.Full()
	v4only.IPv6 = false
	for _, tt := range []struct {
		config iptables.Config
		flow   Flow
		want   string // Reason
		detail string // Purpose
	}{
		{full, from(1000, rule.TCP, "1.2.3.4:7011"), "excluded outbound port", "excluded outbound port"},
		{full, from(1000, rule.TCP, "192.168.0.1:80"), "excluded destination", "excluded destination"},
		{full, from(1337, rule.TCP, "1.2.3.4:80"), "from the proxy", "from the proxy"},
		{full, from(1000, rule.TCP, "127.0.0.1:4000"), "the application calls itself", "the application calls itself"},
		{full, from(1000, rule.UDP, "8.8.8.8:53"), "queries are captured only to 9.9.9.9, 2001:db8::53", "queries of applications"},
		{full, from(1000, rule.UDP, "8.8.8.8:99"), "of UDP, only DNS is captured", ""},
		{full, fromOutside(capture.PodV4 + ":22"), "excluded inbound port", "excluded inbound port"},
		{full, fromOutside(capture.PodV4 + ":15008"), "mesh tunnel", "mesh tunnel"},
		{listed, fromOutside(capture.PodV4 + ":22"), "the inbound ports that are captured are 4000", "inbound port"},
		{listed, from(1000, rule.TCP, "1.2.3.4:80"), "captured are only destinations 192.168.0.0/16, 240.240.0.0/16, 2001:db8:1::/48, 2001:2::/48 and ports 8443", "destination"},
		{iptables.Default(), from(1000, rule.TCP, "1.2.3.4:80"), "no outbound destination is captured at all", "destination"},
		{iptables.Default(), from(1000, rule.UDP, "1.2.3.4:53"), "DNS is not captured", "DNS"},
		{iptables.Default(), fromOutside(capture.PodV4 + ":22"), "no inbound port is captured at all", "inbound port"},
		{v4only, from(1000, rule.TCP, "[2001:db8::1]:80"), "there are no capture rules for IPv6", ""},
		{full, from(1000, rule.TCP, "1.2.3.4:80"), "every other destination", "every other destination"},
	} {
		for name, s := range map[string]*Snapshot{"ours": rendered(tt.config), "Istio's": withoutComments(tt.config)} {
			o := traced(t, s, tt.flow).Outcomes[0]
			if o.Reason != tt.want || o.Purpose != tt.detail {
				t.Errorf("%s: %+v: %s because %q (%q), want %q (%q)", name, tt.flow, o.Place, o.Reason, o.Purpose, tt.want, tt.detail)
			}
		}
	}
}

// withoutComments is rules as Istio would have them.
func withoutComments(c iptables.Config) *Snapshot {
	strip := func(f rule.Family) string {
		var out strings.Builder
		for line := range strings.Lines(string(iptables.Render(iptables.Rules(c), f))) {
			if head, tail, ok := strings.Cut(line, ` -m comment --comment "`); ok {
				_, tail, _ = strings.Cut(tail, `" `)
				line = head + " " + tail
			}
			out.WriteString(line)
		}
		return out.String()
	}
	return onPaper(c, strip(rule.IPv4), strip(rule.IPv6))
}

// Whatever iptables-save prints, reading and following it ends, and what is read of a
// rule is all there.
func FuzzTrace(f *testing.F) {
	for _, g := range capture.Golden {
		c := iptables.Default()
		g.Edit(&c)
		f.Add(string(iptables.Render(iptables.Rules(c), rule.IPv4)))
	}
	f.Add(capture.OthersRules(rule.NFT))
	f.Add("*nat\n-A OUTPUT -m\n-A OUTPUT -j\n-A OUTPUT !\n-A OUTPUT -d\n-A OUTPUT -j REDIRECT --to-ports\n-A OUTPUT -p tcp -j DNAT --to-destination :1-9\nCOMMIT\n")
	f.Fuzz(func(t *testing.T, text string) {
		s := onPaper(iptables.Default(), text, text)
		for _, flow := range []Flow{from(1000, rule.TCP, "1.2.3.4:80"), from(0, rule.UDP, "9.9.9.9:53"), fromOutside(capture.PodV4 + ":80")} {
			traced(t, s, flow)
		}
		if c, ok := s.Infer(); ok && c.Validate() == nil {
			verified(t, s, c)
		}
	})
}

func TestTraceSaysWhichChainsItDoesNotSee(t *testing.T) {
	c := nftables.Chain{Family: rule.IPv4, Table: "nat", Iptables: true}
	s := rendered(iptables.Default())
	s.net.nftChains = func() ([]nftables.Chain, error) { return []nftables.Chain{c}, nil }
	if seen := traced(t, s, from(1000, rule.TCP, "1.2.3.4:80")); !seen.Decided() {
		t.Error("iptables-nft's own table is said not to be seen")
	}
	s.states = s.states[2:] // without the binaries of iptables-nft
	if unseen := traced(t, s, from(1000, rule.TCP, "1.2.3.4:80")); unseen.Decided() || len(unseen.Unseen) != 1 {
		t.Errorf("decided without the rules that nobody read: %+v", unseen)
	}
	if other := traced(t, s, from(1000, rule.TCP, "[2001:db8::1]:80")); !other.Decided() {
		t.Errorf("an IPv4 table counts for IPv6: %+v", other)
	}
}
