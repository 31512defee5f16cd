package vip

import (
	"bytes"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy.mesh/tests/dnstest"
)

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// TestVIPsGiveWay wants a host whose address is declared by another to get another address, all others to keep theirs,
// and the declared one to rest when it is no longer declared.
func TestVIPsGiveWay(t *testing.T) {
	for family, name := range []string{"IPv4", "IPv6"} {
		t.Run(name, func(t *testing.T) {
			now, path := dnstest.NewClock(), filepath.Join(t.TempDir(), "vips.json")
			v := openVIPs(t, path, "240.240.0.0/16", now)
			var log bytes.Buffer
			v.log = slog.New(slog.NewTextHandler(&log, nil))
			hosts := hostNames(20)
			first := assign(t, v, hosts...)
			declared := single(first[hosts[0]][family])

			second, err := v.Assign(hosts, declared)
			if err != nil {
				t.Fatal(err)
			}
			for h, addrs := range second {
				if moved := !slices.Equal(addrs, first[h]); moved != (h == hosts[0]) {
					t.Errorf("%s had %v and has %v", h, first[h], addrs)
				}
			}
			if n := strings.Count(log.String(), "is declared by a document now"); n != 1 || !strings.Contains(log.String(), "host="+hosts[0]) {
				t.Errorf("logged %d times:\n%s", n, &log)
			}

			// Gone, the address is nobody's for the quarantine: not the host's that had it, not one's whose hash says it.
			third := assign(t, v, hosts...)
			if !slices.Equal(third[hosts[0]], second[hosts[0]]) {
				t.Errorf("%s moved again, from %v to %v", hosts[0], second[hosts[0]], third[hosts[0]])
			}
			v = openVIPs(t, path, "240.240.0.0/16", now) // as after a restart
			assign(t, v, hosts[1:]...)
			now.Add(defaultQuarantine - time.Second)
			if got := assign(t, v, hosts...)[hosts[0]]; got[0] == first[hosts[0]][0] {
				t.Errorf("%s has %v within the quarantine", hosts[0], got)
			}
		})
	}
}

// TestVIPsBesideDeclared gives many hosts addresses beside many that are declared, as the 500 static ones of a mesh with
// 100 automatic ones, and CIDRs.
func TestVIPsBesideDeclared(t *testing.T) {
	v := openVIPs(t, "", "240.240.0.0/16", dnstest.NewClock())
	declared := prefixes("240.240.0.0/17", "240.240.255.0/24", "2001:2::8000/120", "2001:2:0:1::/64", "240.240.0.0/16", "0.0.0.0/0", "2001::/16", "10.0.0.1/32")
	for i := range 500 {
		declared = append(declared, single(netip.AddrFrom4([4]byte{240, 240, byte(128 + i/250), byte(i % 250)})))
	}
	got, err := v.Assign(hostNames(2000), declared...)
	if err != nil || len(got) != 2000 {
		t.Fatalf("%d hosts, %v", len(got), err)
	}
	for h, addrs := range got {
		for i, p := range declared {
			if large := i >= 3 && i < 7; large {
				continue
			}
			for _, a := range addrs {
				if p.Contains(a) {
					t.Errorf("%s has %s of %s", h, a, p)
				}
			}
		}
	}
	if _, err := v.Assign(hostNames(1), prefixes("240.240.0.0/17", "240.240.128.0/17")...); err == nil || !strings.Contains(err.Error(), "65536 declared by documents") {
		t.Errorf("error %v", err)
	}
}
