package iptables

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAppendRange(t *testing.T) {
	for _, tt := range []struct {
		from, after string // after "" is the end of all addresses
		want        []string
	}{
		{"10.0.0.0", "10.0.0.1", []string{"10.0.0.0/32"}},
		{"10.0.0.0", "11.0.0.0", []string{"10.0.0.0/8"}},
		{"10.0.0.1", "10.0.0.8", []string{"10.0.0.1/32", "10.0.0.2/31", "10.0.0.4/30"}},
		{"10.0.0.0", "10.0.0.3", []string{"10.0.0.0/31", "10.0.0.2/32"}},
		{"0.0.0.0", "", []string{"0.0.0.0/0"}},
		{"255.255.255.0", "", []string{"255.255.255.0/24"}},
		{"255.255.255.255", "", []string{"255.255.255.255/32"}},
		{"::", "", []string{"::/0"}},
		{"2001:db8::", "2001:db9::", []string{"2001:db8::/32"}},
		{"::ffff:ffff:ffff:ffff", "0:0:0:1::2", []string{"::ffff:ffff:ffff:ffff/128", "0:0:0:1::/127"}},
		{"ffff::", "", []string{"ffff::/16"}},
		{"10.0.0.0", "10.0.0.0", nil},
	} {
		var after netip.Addr
		if tt.after != "" {
			after = netip.MustParseAddr(tt.after)
		}
		if got := appendRange(nil, netip.MustParseAddr(tt.from), after); !slices.Equal(got, prefixes(tt.want...)) {
			t.Errorf("%s to %s: %v, want %v", tt.from, tt.after, got, tt.want)
		}
	}
}

// The elements of a set, in any order, are read back as what it was made of.
func TestSetReadsBack(t *testing.T) {
	for _, list := range [][]string{
		{"10.0.0.0/25", "10.0.0.128/25", "10.0.2.0/24", "10.0.1.1/32"}, // the end of one is the start of the next
		{"0.0.0.0/1", "128.0.0.0/1"},
		{"::/128", "::1/128", "ffff::/16"},
		{"192.168.0.0/16"},
	} {
		made := addressSet(prefixes(list...))
		elements, err := readElements(made.elements)
		if err != nil {
			t.Fatal(err)
		}
		slices.Reverse(elements)
		var reversed []byte
		for _, e := range elements {
			flags := uint32(0)
			if e.end {
				flags = unix.NFT_SET_ELEM_INTERVAL_END
			}
			reversed = made.appendElement(reversed, e.key, flags)
		}
		attrs := appendName(bytes.Clone(made.attrs), unix.NFTA_SET_NAME, "x")
		if read := readSet(attrs, [][]byte{reversed}); read.err != nil || !read.sameContent(made) {
			t.Errorf("%v: read back as %v, %v", list, read.prefixes, read.err)
		}
	}
}

func TestExplainNative(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{unix.EPERM, "NET_ADMIN"},
		{unix.ENOENT, "nft_tproxy"},
		{unix.EOPNOTSUPP, "Linux 5.2"},
		{unix.EMSGSIZE, "net.core.wmem_max"},
		{fmt.Errorf("receive: %w", unix.ENOBUFS), "net.core.rmem_max"},
		{unix.EINVAL, "invalid argument"},
	} {
		err := explainNative(`make rule "outbound"`, tt.err)
		if !strings.HasPrefix(err.Error(), `make rule "outbound": `) || !strings.Contains(err.Error(), tt.want) || !errors.Is(err, errors.Unwrap(err)) {
			t.Errorf("%v: %q, want %q", tt.err, err, tt.want)
		}
	}
	for _, says := range []error{unix.EINVAL, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT} { // no module, no netfilter, gVisor
		if err := absentNative(says); !errors.Is(err, errAbsent) || !strings.Contains(err.Error(), "nf_tables") {
			t.Errorf("%v: %v, want one that says that it is not there", says, err)
		}
	}
	if err := absentNative(unix.EPERM); errors.Is(err, errAbsent) || !strings.Contains(err.Error(), "NET_ADMIN") {
		t.Errorf("without privilege: %v", err)
	}
}

// Whatever expressions somebody has put into our tables: reading them does not panic,
// and what is understood is understood whole, as it can be written and read again.
func FuzzNativeRule(f *testing.F) {
	for _, edit := range []func(*Config){func(c *Config) { c.TPROXY = true }, func(c *Config) { c.IncludeGroups = []uint32{1, 2} }} {
		c := fullConfig()
		edit(&c)
		for _, t := range nativeTables(Rules(c)) {
			for _, chain := range t.chains {
				for _, r := range chain.rules {
					f.Add(string(t.name), r.exprs, r.userdata)
				}
			}
		}
	}
	f.Fuzz(func(t *testing.T, name string, exprs, userdata []byte) {
		sets := []*nfSet{numberSet(keyPort, []uint32{53, 80}), numberSet(keyGroup, []uint32{1, 2}), addressSet(prefixes("10.0.0.0/8", "11.1.0.0/16"))}
		for i, s := range sets {
			s.name = []string{"the-pod-calls-itself-by-a-service", "owner-group-not-included", "excluded-destination-ipv4"}[i]
		}
		table := &nfTable{name: Table(name), sets: sets, chains: []*nfChain{{name: "output", rules: []nfRule{{exprs: exprs, userdata: userdata}}}}}
		table.decode()
		read := table.chains[0].rules[0]
		if read.err != nil {
			return
		}
		again := &nfTable{name: Table(name)}
		again.chains = []*nfChain{{name: "output", rules: []nfRule{again.encode(read.rule)}}}
		again.decode()
		if back := again.chains[0].rules[0]; back.err != nil || back.rule.text() != read.rule.text() {
			t.Errorf("read as %+v\nthen as %+v (%v)", read.rule, back.rule, back.err)
		}
	})
}

// text spells out a rule, without its comment, which userdata of any form may hold.
func (r Rule) text() string {
	r.Why = ""
	r.Match.Owners = slices.SortedFunc(slices.Values(r.Match.Owners), func(a, b Owner) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	return fmt.Sprintf("%+v", r)
}
