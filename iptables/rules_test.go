package iptables_test

import (
	"net/netip"
	"path/filepath"
	"slices"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"understudy.mesh/iptables"
	"understudy.mesh/iptables/rule"
	"understudy.mesh/tests/capture"
	"understudy.mesh/tests/golden"
)

func TestGolden(t *testing.T) {
	for _, g := range capture.Golden {
		t.Run(g.Name, func(t *testing.T) {
			c := iptables.Default()
			g.Edit(&c)
			if err := c.Validate(); err != nil {
				t.Fatal(err)
			}
			rules := iptables.Rules(c)
			got := txtar.Format(&txtar.Archive{Files: []txtar.File{
				{Name: "iptables-restore", Data: iptables.Render(rules, rule.IPv4)},
				{Name: "ip6tables-restore", Data: iptables.Render(rules, rule.IPv6)},
				{Name: "nft", Data: iptables.RenderNative(rules)},
			}})
			golden.Check(t, filepath.Join("testdata", "golden", g.Name+".txtar"), string(got))
		})
	}
}

// The kernel's own print of every golden input must be what was given to it:
// otherwise a second Apply would not know its own rules.
func TestGoldenReadsBack(t *testing.T) {
	eachBackend(t, func(t *testing.T, b rule.Backend) {
		for _, g := range capture.Golden {
			c := iptables.Default()
			c.Backend = b
			g.Edit(&c)
			apply(t, c)
			asWanted(t, c, b)
			if t.Failed() {
				t.Fatal(g.Name)
			}
		}
	})
}

func TestWithVIPs(t *testing.T) {
	vips := capture.Prefixes("240.240.0.0/16", "2001:2::/48")
	for _, tt := range []struct {
		name     string
		in, want iptables.Prefixes
	}{
		{"everything", iptables.Prefixes{All: true}, iptables.Prefixes{All: true}},
		{"nothing", iptables.Prefixes{}, iptables.Prefixes{}},
		{"a list", iptables.Prefixes{List: capture.Prefixes("10.0.0.0/8")}, iptables.Prefixes{List: slices.Concat(capture.Prefixes("10.0.0.0/8"), vips)}},
		{"there already", iptables.Prefixes{List: vips}, iptables.Prefixes{List: vips}},
	} {
		c := iptables.Config{IncludeCIDRs: tt.in}.WithVIPs().WithVIPs()
		if !slices.Equal(c.IncludeCIDRs.List, tt.want.List) || c.IncludeCIDRs.All != tt.want.All {
			t.Errorf("%s: %v, want %v", tt.name, c.IncludeCIDRs, tt.want)
		}
	}
}

func TestPodHasIPv6(t *testing.T) {
	for _, tt := range []struct {
		name  string
		addrs []string
		dual  bool
		want  bool
		fails bool
	}{
		{"IPv4 only", []string{"127.0.0.1", "10.0.0.1"}, true, false, false},
		{"IPv6 only", []string{"::1", "fe80::1", "2001:db8::1"}, false, true, false},
		{"IPv4 first", []string{"10.0.0.1", "2001:db8::1"}, false, false, false},
		{"IPv4 first, dual stack", []string{"10.0.0.1", "2001:db8::1"}, true, true, false},
		{"IPv6 first", []string{"2001:db8::1", "10.0.0.1"}, false, true, false},
		{"IPv4 link-local does not count", []string{"169.254.1.1", "2001:db8::1"}, false, true, false},
		{"no network", []string{"127.0.0.1", "::1", "fe80::1"}, true, false, true},
	} {
		var addrs []netip.Addr
		for _, a := range tt.addrs {
			addrs = append(addrs, netip.MustParseAddr(a))
		}
		got, err := iptables.PodHasIPv6(addrs, tt.dual)
		if got != tt.want || (err != nil) != tt.fails {
			t.Errorf("%s: %v, %v", tt.name, got, err)
		}
	}
}

func TestValidate(t *testing.T) {
	c := iptables.Default()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	c.ProxyPort, c.UIDs, c.GIDs, c.Backend = 0, nil, nil, "iptable"
	c.LoopbackV4 = netip.MustParsePrefix("10.0.0.0/8")
	c.IncludeGroups = make([]uint32, 65)
	err := c.Validate()
	if err == nil {
		t.Fatal("no error")
	}
	if n := len(err.(interface{ Unwrap() []error }).Unwrap()); n != 5 {
		t.Errorf("%d errors, want all 5 at once: %v", n, err)
	}
}
