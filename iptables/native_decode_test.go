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
	for _, t := range nativeTables(everyMatchAndTarget()) {
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

func cidrs(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// everyMatchAndTarget are rules that have among them all that a Rule can say.
func everyMatchAndTarget() []Rule {
	loopback := cidrs("127.0.0.1/32", "::1/128")
	return []Rule{
		{Family: Both, Table: Raw, Chain: output, Match: Match{Proto: UDP, SrcPort: 15053, Owners: []Owner{{ID: 1337}}}, Target: conntrackZone(2), Why: "answer of the proxy"},
		{Family: Both, Table: Raw, Chain: output, Match: Match{Proto: UDP, DstPorts: []uint16{53}, Dsts: cidrs("9.9.9.9/32", "2001:db8::53/128")}, Target: conntrackZone(2), Why: "query"},
		{Family: Both, Table: Mangle, Chain: preRouting, Match: Match{State: Invalid}, Target: drop, Why: "packets that conntrack cannot place"},
		{Family: Both, Table: Mangle, Chain: preRouting, Match: Match{Proto: TCP, Mark: 1337}, Target: connMark(saveMark)},
		{Family: Both, Table: Mangle, Chain: output, Match: Match{Proto: TCP, ConnMark: 1337}, Target: connMark(restoreMark)},
		{Family: Both, Table: Mangle, Chain: inbound, Match: Match{In: loopbackIface, Mark: 1338, NotMark: true, State: Established}, Target: jump(divert)},
		{Family: Both, Table: Mangle, Chain: divert, Target: setMark(1337)},
		{Family: Both, Table: Mangle, Chain: divert, Target: Target{Verdict: "ACCEPT"}},
		{Family: Both, Table: Mangle, Chain: transparent, Match: Match{Dsts: loopback, NotDst: true, Proto: TCP}, Target: tproxy(15006, 1337), Why: "to Envoy, inbound"},
		{Family: Both, Table: NAT, Chain: preRouting, Top: true, Match: Match{In: "tap+"}, Target: accept},
		{Family: Both, Table: NAT, Chain: output, Match: Match{Srcs: passthrough, Out: loopbackIface}, Target: accept},
		{Family: Both, Table: NAT, Chain: outbound, Match: Match{Out: loopbackIface, Dsts: loopback, NotDst: true, Proto: TCP, DstPorts: []uint16{53, 15008}, NotPorts: true, Owners: []Owner{{ID: 1337}}}, Target: jump(inRedirect), Why: "the pod calls itself by a service"},
		{Family: Both, Table: NAT, Chain: outbound, Match: Match{Owners: []Owner{{ID: 1, Group: true, Not: true}, {ID: 2, Group: true, Not: true}}}, Target: accept, Why: "owner group not included"},
		{Family: Both, Table: NAT, Chain: outbound, Match: Match{Dsts: cidrs("10.0.0.0/8", "11.1.0.0/16", "2001:db8::/32")}, Target: jump(outRedirect), Why: "excluded destination"},
		{Family: IPv4, Table: NAT, Chain: outRedirect, Match: Match{Proto: TCP}, Target: redirect(15001), Why: "to Envoy, outbound"},
	}
}
