package nftables

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"understudy.mesh/iptables/rule"
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
		if got := appendRange(nil, netip.MustParseAddr(tt.from), after); !slices.Equal(got, cidrs(tt.want...)) {
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
		made := addressSet(cidrs(list...))
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
		err := explain(`make rule "outbound"`, tt.err)
		if !strings.HasPrefix(err.Error(), `make rule "outbound": `) || !strings.Contains(err.Error(), tt.want) || !errors.Is(err, errors.Unwrap(err)) {
			t.Errorf("%v: %q, want %q", tt.err, err, tt.want)
		}
	}
	for _, says := range []error{unix.EINVAL, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT} { // no module, no netfilter, gVisor
		if err := absent(says); !errors.Is(err, rule.ErrAbsent) || !strings.Contains(err.Error(), "nf_tables") {
			t.Errorf("%v: %v, want one that says that it is not there", says, err)
		}
	}
	if err := absent(unix.EPERM); errors.Is(err, rule.ErrAbsent) || !strings.Contains(err.Error(), "NET_ADMIN") {
		t.Errorf("without privilege: %v", err)
	}
}

// Whatever expressions somebody has put into our tables: reading them does not panic,
// and what is understood is understood whole, as it can be written and read again.
func FuzzNativeRule(f *testing.F) {
	for _, t := range tables(everyMatchAndTarget()) {
		for _, chain := range t.chains {
			for _, r := range chain.rules {
				f.Add(string(t.name), r.exprs, r.userdata)
			}
		}
	}
	f.Fuzz(func(t *testing.T, name string, exprs, userdata []byte) {
		sets := []*nfSet{numberSet(keyPort, []uint32{53, 80}), numberSet(keyGroup, []uint32{1, 2}), addressSet(cidrs("10.0.0.0/8", "11.1.0.0/16"))}
		for i, s := range sets {
			s.name = []string{"the-pod-calls-itself-by-a-service", "owner-group-not-included", "excluded-destination-ipv4"}[i]
		}
		table := &nfTable{name: rule.Table(name), sets: sets, chains: []*nfChain{{name: "output", rules: []nfRule{{exprs: exprs, userdata: userdata}}}}}
		table.decode()
		read := table.chains[0].rules[0]
		if read.err != nil {
			return
		}
		again := &nfTable{name: rule.Table(name)}
		again.chains = []*nfChain{{name: "output", rules: []nfRule{again.encode(read.rule)}}}
		again.decode()
		if back := again.chains[0].rules[0]; back.err != nil || ruleText(back.rule) != ruleText(read.rule) {
			t.Errorf("read as %+v\nthen as %+v (%v)", read.rule, back.rule, back.err)
		}
	})
}

// ruleText spells out a rule, without its comment, which userdata of any form may hold.
func ruleText(r rule.Rule) string {
	r.Why = ""
	r.Match.Owners = slices.SortedFunc(slices.Values(r.Match.Owners), func(a, b rule.Owner) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	return fmt.Sprintf("%+v", r)
}

func cidrs(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// everyMatchAndTarget are rules that have among them all that a Rule can say.
func everyMatchAndTarget() []rule.Rule {
	loopback := cidrs("127.0.0.1/32", "::1/128")
	return []rule.Rule{
		{Family: rule.Both, Table: rule.Raw, Chain: rule.Output, Match: rule.Match{Proto: rule.UDP, SrcPort: 15053, Owners: []rule.Owner{{ID: 1337}}}, Target: rule.Zone(2), Why: "answer of the proxy"},
		{Family: rule.Both, Table: rule.Raw, Chain: rule.Output, Match: rule.Match{Proto: rule.UDP, DstPorts: []uint16{53}, Dsts: cidrs("9.9.9.9/32", "2001:db8::53/128")}, Target: rule.Zone(2), Why: "query"},
		{Family: rule.Both, Table: rule.Mangle, Chain: rule.PreRouting, Match: rule.Match{State: rule.Invalid}, Target: rule.Drop, Why: "packets that conntrack cannot place"},
		{Family: rule.Both, Table: rule.Mangle, Chain: rule.PreRouting, Match: rule.Match{Proto: rule.TCP, Mark: 1337}, Target: rule.ConnMark(rule.SaveMark)},
		{Family: rule.Both, Table: rule.Mangle, Chain: rule.Output, Match: rule.Match{Proto: rule.TCP, ConnMark: 1337}, Target: rule.ConnMark(rule.RestoreMark)},
		{Family: rule.Both, Table: rule.Mangle, Chain: rule.Inbound, Match: rule.Match{In: rule.Loopback, Mark: 1338, NotMark: true, State: rule.Established}, Target: rule.Jump(rule.Divert)},
		{Family: rule.Both, Table: rule.Mangle, Chain: rule.Divert, Target: rule.SetMark(1337)},
		{Family: rule.Both, Table: rule.Mangle, Chain: rule.Divert, Target: rule.Target{Verdict: "ACCEPT"}},
		{Family: rule.Both, Table: rule.Mangle, Chain: rule.Transparent, Match: rule.Match{Dsts: loopback, NotDst: true, Proto: rule.TCP}, Target: rule.TProxy(15006, 1337), Why: "to Envoy, inbound"},
		{Family: rule.Both, Table: rule.NAT, Chain: rule.PreRouting, Top: true, Match: rule.Match{In: "tap+"}, Target: rule.Leave},
		{Family: rule.Both, Table: rule.NAT, Chain: rule.Output, Match: rule.Match{Srcs: rule.Passthrough, Out: rule.Loopback}, Target: rule.Leave},
		{Family: rule.Both, Table: rule.NAT, Chain: rule.Outbound, Match: rule.Match{Out: rule.Loopback, Dsts: loopback, NotDst: true, Proto: rule.TCP, DstPorts: []uint16{53, 15008}, NotPorts: true, Owners: []rule.Owner{{ID: 1337}}}, Target: rule.Jump(rule.InRedirect), Why: "the pod calls itself by a service"},
		{Family: rule.Both, Table: rule.NAT, Chain: rule.Outbound, Match: rule.Match{Owners: []rule.Owner{{ID: 1, Group: true, Not: true}, {ID: 2, Group: true, Not: true}}}, Target: rule.Leave, Why: "owner group not included"},
		{Family: rule.Both, Table: rule.NAT, Chain: rule.Outbound, Match: rule.Match{Dsts: cidrs("10.0.0.0/8", "11.1.0.0/16", "2001:db8::/32")}, Target: rule.Jump(rule.OutRedirect), Why: "excluded destination"},
		{Family: rule.IPv4, Table: rule.NAT, Chain: rule.OutRedirect, Match: rule.Match{Proto: rule.TCP}, Target: rule.Redirect(15001), Why: "to Envoy, outbound"},
	}
}
