package table

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/miekg/dns"

	"understudy.mesh/dnsproxy/internal/wire"
	"understudy.mesh/tests/dnstest"
)

func TestNewTableSkipsAndMerges(t *testing.T) {
	long := strings.Repeat("a", 64) + ".example"
	table := New([]Host{
		{Name: "UPPER.example.", Addrs: dnstest.IPs("10.0.0.1")},
		{Name: "upper.example", Addrs: dnstest.IPs("10.0.0.2", "10.0.0.1", "::ffff:10.0.0.3")},
		{Name: "none.example"}, {Name: "", Addrs: dnstest.IPs("10.0.0.1")}, {Name: "*", Addrs: dnstest.IPs("10.0.0.1")},
		{Name: "*.", Addrs: dnstest.IPs("10.0.0.1")}, {Name: "a..b", Addrs: dnstest.IPs("10.0.0.1")}, {Name: long, Addrs: dnstest.IPs("10.0.0.1")},
	})
	want := []Host{{Name: "upper.example", Addrs: dnstest.IPs("10.0.0.1", "10.0.0.2", "10.0.0.3")}}
	if diff := cmp.Diff(want, table.Hosts(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}

func TestParseReverse(t *testing.T) {
	for _, a := range dnstest.IPs("240.240.0.1", "0.0.0.0", "255.1.20.3", "2001:2::ab", "::", "fd00:1234:5678:9abc:def0::ff") {
		name, err := dns.ReverseAddr(a.String())
		if err != nil {
			t.Fatal(err)
		}
		wire, _ := wire.AppendName(nil, strings.TrimSuffix(name, "."))
		got, ok := parseReverse(wire[:len(wire)-1])
		if !ok || got != a {
			t.Errorf("%s -> %s -> %s, %v", a, name, got, ok)
		}
	}
	for _, bad := range []string{"", "in-addr.arpa", "1.2.3.in-addr.arpa", "1.2.3.4.5.in-addr.arpa", "256.1.1.1.in-addr.arpa",
		"01.1.1.1.in-addr.arpa", "a.1.1.1.in-addr.arpa", "1.ip6.arpa", "1.2.3.4.example"} {
		wire, _ := wire.AppendName(nil, bad)
		if a, ok := parseReverse(bytes.TrimSuffix(wire, []byte{0})); ok {
			t.Errorf("%q is read as %s", bad, a)
		}
	}
}

// everything is what a table says: its hosts, and who each VIP belongs to.
func everything(t *Table) map[string]string {
	all := map[string]string{}
	for _, h := range t.Hosts() {
		all[h.Name] = fmt.Sprint(h.Addrs, h.VIP, h.Forwarded)
	}
	t.reverse.all(func(key, value []byte) { all[fmt.Sprintf("%x", key)] = fmt.Sprintf("%q", value) })
	return all
}

// However a table came about by changes, it is the one made from what is there
// in the end.
func TestWithIsNewTable(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	names := make([]string, 60)
	for i := range names {
		names[i] = fmt.Sprintf("h%d.example", i)
		if i%5 == 0 {
			names[i] = "*." + names[i]
		}
	}
	have := map[string]Host{}
	table := New(nil)
	for round := range 300 {
		var set []Host
		var gone []string
		for range 1 + random.IntN(8) {
			name := names[random.IntN(len(names))]
			if slices.ContainsFunc(set, func(h Host) bool { return h.Name == name }) || slices.Contains(gone, name) {
				continue
			}
			if random.IntN(3) == 0 {
				gone = append(gone, name)
				delete(have, name)
				continue
			}
			h := Host{Name: name, VIP: random.IntN(2) == 0, Forwarded: random.IntN(2) == 0}
			for range random.IntN(3) { // few addresses, so that hosts share them; none: it leaves, or is forwarded
				h.Addrs = append(h.Addrs, netip.AddrFrom4([4]byte{240, 240, 0, byte(random.IntN(20))}))
			}
			set = append(set, h)
			have[name] = h
		}
		random.Shuffle(len(set), func(i, j int) { set[i], set[j] = set[j], set[i] })
		before := everything(table)
		next := table.With(set, gone)
		if diff := cmp.Diff(before, everything(table)); diff != "" {
			t.Fatalf("round %d changed the table that was in force: %s", round, diff)
		}
		table = next
		var hosts []Host
		for _, h := range have {
			hosts = append(hosts, h)
		}
		want := New(hosts)
		if diff := cmp.Diff(everything(want), everything(table)); diff != "" {
			t.Fatalf("round %d, set %v, gone %v: %s", round, set, gone, diff)
		}
		if table.Len() != want.Len() || table.Len() != len(table.Hosts()) {
			t.Fatalf("round %d: %d names, want %d", round, table.Len(), want.Len())
		}
		for name, h := range have {
			if m, ok := table.lookup(wireOf(t, strings.Replace(name, "*", "x", 1))); ok != (len(h.Addrs) > 0 || h.Forwarded) {
				t.Fatalf("round %d: %s in the table: %v, %v", round, name, ok, m)
			}
		}
	}
}

func wireOf(t *testing.T, name string) []byte {
	wire, ok := wire.AppendName(nil, name)
	if !ok {
		t.Fatalf("no name: %q", name)
	}
	return wire[:len(wire)-1]
}

var sameAddr = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func TestWithOneNameTwice(t *testing.T) {
	old := New([]Host{{Name: "a.example", Addrs: dnstest.IPs("10.0.0.1")}, {Name: "b.example", Addrs: dnstest.IPs("10.0.0.2")}})
	for _, tc := range []struct {
		set  []Host
		gone []string
		want []Host
	}{
		{nil, []string{"A.example.", "a.example", "c.example"}, old.Hosts()[1:]},
		{[]Host{{Name: "A.example", Addrs: dnstest.IPs("10.0.0.1")}}, []string{"a.example"}, old.Hosts()},
		{[]Host{{Name: "a.example"}}, nil, old.Hosts()[1:]},
		{[]Host{{Name: "b.example", Addrs: dnstest.IPs("fd00::1")}, {Name: "B.example", Addrs: dnstest.IPs("10.0.0.9"), VIP: true}}, nil,
			[]Host{old.Hosts()[0], {Name: "b.example", Addrs: dnstest.IPs("10.0.0.9", "fd00::1")}}},
	} {
		if diff := cmp.Diff(tc.want, old.With(tc.set, tc.gone).Hosts(), sameAddr, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("set %v, gone %v: %s", tc.set, tc.gone, diff)
		}
	}
}

// A change of one host leaves all of the memory in place but the shards that it
// is in; no change leaves all of it.
func TestWithCostsWhatChanges(t *testing.T) {
	hosts := numbered(10_000)
	old := New(hosts)
	moved := hosts[4711]
	moved.Addrs = dnstest.IPs("240.1.2.3")
	shared := func(table *Table) (copied int) {
		for _, m := range [][2]*shards{{old.exact, table.exact}, {old.wildcards, table.wildcards}, {old.reverse, table.reverse}} {
			for i := range m[0].part {
				if m[0].part[i] != m[1].part[i] {
					copied++
				}
			}
		}
		return copied
	}
	const moves = 3 // the name's shard, and those of both its VIPs
	for name, tc := range map[string]struct {
		table  *Table
		copied int
	}{
		"nothing":    {old.With(nil, nil), 0},
		"the same":   {old.With(hosts, []string{"never.example"}), 0},
		"one moves":  {old.With([]Host{moved}, nil), moves},
		"one goes":   {old.With(nil, []string{moved.Name}), moves - 1},
		"one comes":  {old.With([]Host{{Name: "new.example", Addrs: dnstest.IPs("10.0.0.1")}}, nil), 1},
		"one of all": {old.With(slices.Concat(hosts[:4711], []Host{moved}, hosts[4712:]), nil), moves},
	} {
		if n := shared(tc.table); n > tc.copied || n == 0 && tc.copied > 0 {
			t.Errorf("%s: %d shards were copied, want %d", name, n, tc.copied)
		}
	}
}

func numbered(n int) []Host {
	hosts := make([]Host, n)
	for i := range hosts {
		hosts[i] = Host{Name: fmt.Sprintf("svc-%d.mesh.example", i), VIP: true,
			Addrs: []netip.Addr{netip.AddrFrom4([4]byte{240, byte(i >> 16), byte(i >> 8), byte(i)})}}
	}
	return hosts
}
