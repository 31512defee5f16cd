package iptables

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "write the golden files anew")

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func servers(list ...string) DNS {
	d := DNS{Capture: true}
	for _, s := range list {
		d.Servers = append(d.Servers, netip.MustParseAddr(s))
	}
	return d
}

// golden are the inputs that Istio tests its own rules with, under its names, and
// after them what its tests leave out.
var golden = []struct {
	name string
	edit func(c *Config)
}{
	{"empty", func(c *Config) {}},
	{"ipv6-empty-inbound-ports", func(c *Config) { c.IPv6 = true }},
	{"ip-range", func(c *Config) {
		c.ExcludeCIDRs, c.IncludeCIDRs.List = prefixes("1.1.0.0/16"), prefixes("9.9.0.0/16")
		c.UIDs, c.GIDs, c.DNS = []uint32{3, 4}, []uint32{1, 2}, servers("127.0.0.53")
	}},
	{"ipv6-inbound-ports", func(c *Config) { c.InboundPorts.List, c.IPv6 = []uint16{4000, 5000}, true }},
	{"ipv6-virt-interfaces", func(c *Config) {
		c.InboundPorts.List, c.VirtInterfaces, c.IPv6 = []uint16{4000, 5000}, []string{"eth0", "eth1"}, true
	}},
	{"ipv6-ipnets", func(c *Config) {
		c.InboundPorts.List, c.ExcludeInboundPorts = []uint16{4000, 5000}, []uint16{6000, 7000}
		c.VirtInterfaces, c.IPv6 = []string{"eth0", "eth1"}, true
		c.ExcludeCIDRs, c.IncludeCIDRs.List = prefixes("2001:db8::/32"), prefixes("2001:db8::/32")
	}},
	{"ipv6-uid-gid", func(c *Config) {
		c.InboundPorts.List, c.ExcludeInboundPorts = []uint16{4000, 5000}, []uint16{6000, 7000}
		c.VirtInterfaces, c.IPv6 = []string{"eth0", "eth1"}, true
		c.ExcludeCIDRs, c.IncludeCIDRs.List = prefixes("2001:db8::/32"), prefixes("2001:db8::/32")
		c.UIDs, c.GIDs = []uint32{3, 4}, []uint32{1, 2}
	}},
	{"ipv6-outbound-ports", func(c *Config) { c.IncludeOutboundPorts, c.IPv6 = []uint16{32000, 31000}, true }},
	{"kube-virt-interfaces", func(c *Config) { c.VirtInterfaces, c.IncludeCIDRs.All = []string{"eth1", "eth2"}, true }},
	{"ipnets", func(c *Config) { c.IncludeCIDRs.List = prefixes("10.0.0.0/8") }},
	{"ipnets-with-kube-virt-interfaces", func(c *Config) {
		c.VirtInterfaces, c.IncludeCIDRs.List = []string{"eth1", "eth2"}, prefixes("10.0.0.0/8")
	}},
	{"inbound-ports-include", func(c *Config) { c.InboundPorts.List = []uint16{32000, 31000} }},
	{"inbound-ports-wildcard", func(c *Config) { c.InboundPorts.All = true }},
	{"dns-uid-gid", func(c *Config) {
		c.DNS, c.IPv6 = servers("127.0.0.53", "::127.0.0.53"), true
		c.UIDs, c.GIDs = []uint32{3, 4}, []uint32{1, 2}
	}},
	{"ipv6-dns-uid-gid", func(c *Config) { c.UIDs, c.GIDs, c.IPv6 = []uint32{3, 4}, []uint32{1, 2}, true }},
	{"outbound-owner-groups", func(c *Config) { c.IncludeGroups = []uint32{2001, 202} }},
	{"outbound-owner-groups-exclude", func(c *Config) { c.ExcludeGroups = []uint32{888, 21} }},
	{"ipv6-dns-outbound-owner-groups", func(c *Config) { c.IncludeGroups, c.IPv6 = []uint32{2001, 202}, true }},
	{"ipv6-dns-outbound-owner-groups-exclude", func(c *Config) { c.ExcludeGroups, c.IPv6 = []uint32{888, 21}, true }},
	{"outbound-ports-include", func(c *Config) { c.IncludeOutboundPorts = []uint16{32000, 31000} }},
	{"loopback-outbound-iprange", func(c *Config) {
		c.IncludeCIDRs.List, c.DNS = prefixes("127.1.2.3/32"), servers("127.0.0.53")
		c.UIDs, c.GIDs = []uint32{3, 4}, []uint32{1, 2}
	}},
	{"basic-exclude-nic", func(c *Config) { c.ExcludeInterfaces = []string{"not-istio-nic"} }},
	{"drop-invalid", func(c *Config) { c.DropInvalid = true }},
	{"tproxy", func(c *Config) {
		c.TPROXY, c.InboundPorts.All, c.IPv6 = true, true, true
		c.ExcludeCIDRs, c.IncludeCIDRs.List = prefixes("1.1.0.0/16"), prefixes("9.9.0.0/16")
		c.DNS, c.ExcludeInterfaces = servers("127.0.0.53"), []string{"not-istio-nic"}
	}},
	{"inbound-ports-tproxy", func(c *Config) { c.TPROXY, c.InboundPorts.List = true, []uint16{32000, 31000} }},
	{"inbound-ports-wildcard-tproxy", func(c *Config) { c.TPROXY, c.InboundPorts.All = true, true }},
	{"host-ipv4-loopback-cidr", func(c *Config) { c.LoopbackV4 = netip.MustParsePrefix("127.0.0.0/8") }},

	{"capture-all-dns", func(c *Config) { c.DNS, c.IPv6 = DNS{Capture: true, All: true}, true }},
	{"dns-servers-of-one-family", func(c *Config) { c.DNS, c.IPv6 = servers("10.96.0.10"), true }},
	{"inbound-wildcard-exclude", func(c *Config) {
		c.InboundPorts.All, c.ExcludeInboundPorts = true, []uint16{15090, 15021}
	}},
	{"outbound-ports-exclude", func(c *Config) {
		c.IncludeCIDRs.All, c.ExcludeOutboundPorts = true, []uint16{7015, 7016}
	}},
	{"inbound-wildcard-exclude-tproxy", func(c *Config) {
		c.TPROXY, c.InboundPorts.All, c.ExcludeInboundPorts, c.DropInvalid = true, true, []uint16{15090, 15021}, true
	}},
	{"inbound-ports-empty-tproxy", func(c *Config) { c.TPROXY = true }},
	{"many-ports", func(c *Config) {
		for p := uint16(1); p <= 40; p++ {
			c.ExcludeOutboundPorts = append(c.ExcludeOutboundPorts, 7000+p)
			c.InboundPorts.List = append(c.InboundPorts.List, 8000+p)
		}
	}},
	{"overlapping-cidrs", func(c *Config) {
		c.IPv6 = true
		c.ExcludeCIDRs = prefixes("10.1.0.0/16", "10.0.0.0/8", "192.168.1.0/24", "10.0.0.0/8", "2001:db8::/32", "2001:db8:1::/48", "192.168.0.0/24")
		c.IncludeCIDRs.List = prefixes("0.0.0.0/0", "9.9.9.9/32")
	}},
	{"proxy-mark", func(c *Config) {
		c.ProxyMark, c.InboundPorts.All, c.IncludeCIDRs.All, c.DNS = 0x5357, true, true, servers("10.96.0.10")
	}},
	{"proxy-mark-alone", func(c *Config) {
		c.UIDs, c.GIDs, c.ProxyMark, c.IPv6 = nil, nil, 0x5357, true
		c.InboundPorts.All, c.IncludeCIDRs.All, c.DNS = true, true, DNS{Capture: true, All: true}
	}},
	{"proxy-mark-alone-tproxy", func(c *Config) {
		c.UIDs, c.GIDs, c.ProxyMark, c.TPROXY = nil, nil, 0x5357, true
		c.InboundPorts.All, c.IncludeCIDRs.All = true, true
	}},
	{"vips-among-listed-cidrs", func(c *Config) {
		c.IncludeCIDRs.List, c.DNS, c.IPv6 = prefixes("10.0.0.0/8"), servers("10.96.0.10"), true
		*c = c.WithVIPs()
	}},
}

func TestGolden(t *testing.T) {
	for _, g := range golden {
		t.Run(g.name, func(t *testing.T) {
			c := Default()
			g.edit(&c)
			if err := c.Validate(); err != nil {
				t.Fatal(err)
			}
			rules := Rules(c)
			got := txtar.Format(&txtar.Archive{Files: []txtar.File{
				{Name: "iptables-restore", Data: Render(rules, IPv4)},
				{Name: "ip6tables-restore", Data: Render(rules, IPv6)},
				{Name: "nft", Data: RenderNative(rules)},
			}})
			path := filepath.Join("testdata", "golden", g.name+".txtar")
			if *update {
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), string(got)); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

// The kernel's own print of every golden input must be what was given to it:
// otherwise a second Apply would not know its own rules.
func TestGoldenReadsBack(t *testing.T) {
	eachBackend(t, func(t *testing.T, b Backend) {
		for _, g := range golden {
			c := Default()
			c.Backend = b
			g.edit(&c)
			apply(t, c)
			asWanted(t, c, b)
			if t.Failed() {
				t.Fatal(g.name)
			}
		}
	})
}

func TestWithVIPs(t *testing.T) {
	vips := prefixes("240.240.0.0/16", "2001:2::/48")
	for _, tt := range []struct {
		name     string
		in, want Prefixes
	}{
		{"everything", Prefixes{All: true}, Prefixes{All: true}},
		{"nothing", Prefixes{}, Prefixes{}},
		{"a list", Prefixes{List: prefixes("10.0.0.0/8")}, Prefixes{List: slices.Concat(prefixes("10.0.0.0/8"), vips)}},
		{"there already", Prefixes{List: vips}, Prefixes{List: vips}},
	} {
		c := Config{IncludeCIDRs: tt.in}.WithVIPs().WithVIPs()
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
		got, err := PodHasIPv6(addrs, tt.dual)
		if got != tt.want || (err != nil) != tt.fails {
			t.Errorf("%s: %v, %v", tt.name, got, err)
		}
	}
}

func TestValidate(t *testing.T) {
	c := Default()
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
