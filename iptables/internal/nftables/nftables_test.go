package nftables_test

import (
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netns"

	"understudy.mesh/iptables"
	"understudy.mesh/iptables/internal/nftables"
	"understudy.mesh/iptables/internal/saved"
	"understudy.mesh/iptables/rule"
	"understudy.mesh/tests/capture"
)

// needNFTables skips a test where the kernel has no nf_tables.
func needNFTables(t *testing.T) {
	t.Helper()
	if _, err := nftables.Look(capture.Quiet()); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

func nativeNow(t *testing.T) nftables.State {
	t.Helper()
	n, err := nftables.Look(capture.Quiet())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func mustBecome(t *testing.T, rules []rule.Rule) {
	t.Helper()
	if _, err := nativeNow(t).Make(t.Context(), saved.Want(rules)); err != nil {
		t.Fatal(err)
	}
}

// What a dry run prints is what the kernel gets: nft lists the same, wherever it comes
// from, and what nft makes of the text is nothing that Apply would change.
func TestNativeTextIsWhatIsApplied(t *testing.T) {
	capture.NewPod(t)
	needNFTables(t)
	list := func() string { return capture.NFT(t, "list ruleset") }
	for _, g := range capture.Golden {
		c := iptables.Default()
		g.Edit(&c)
		c.ExcludeInterfaces = append(c.ExcludeInterfaces, "tap+", "odd*", "+")
		rules := iptables.Rules(c)
		mustBecome(t, rules)
		ours := list()
		mustBecome(t, nil)
		capture.NFT(t, string(iptables.RenderNative(rules)))
		if d := cmp.Diff(ours, list()); d != "" {
			t.Errorf("%s: by netlink - and by the text +:\n%s", g.Name, d)
		}
		if left := nativeNow(t).ToDo(rules); left != "" {
			t.Errorf("%s: after nft took the text there is still to do:\n%s", g.Name, left)
		}
		mustBecome(t, nil)
	}
}

var equateLists = cmp.Options{cmpopts.EquateComparable(netip.Prefix{}), cmpopts.EquateEmpty()}

// asRead returns rules as actual gives them, by chain: each in its order of evaluation,
// lists in the order of their elements, and of the IP versions that their addresses have.
func asRead(rules []rule.Rule) map[string][]rule.Rule {
	out := map[string][]rule.Rule{}
	for _, r := range rules {
		var versions rule.Family
		m := r.Match
		r.Match.Srcs, r.Match.Dsts = nil, nil
		for _, f := range []rule.Family{rule.IPv4, rule.IPv6} {
			if part, ok := (rule.Rule{Family: r.Family, Match: m}).ForFamily(f); ok {
				versions |= f
				r.Match.Srcs = append(r.Match.Srcs, slices.SortedFunc(slices.Values(part.Match.Srcs), netip.Prefix.Compare)...)
				r.Match.Dsts = append(r.Match.Dsts, slices.SortedFunc(slices.Values(part.Match.Dsts), netip.Prefix.Compare)...)
			}
		}
		r.Family = versions
		r.Match.DstPorts = slices.Sorted(slices.Values(m.DstPorts))
		r.Match.Owners = slices.SortedFunc(slices.Values(m.Owners), func(a, b rule.Owner) int { return int(a.ID) - int(b.ID) })
		key := string(r.Table) + " " + r.Chain
		at := len(out[key])
		if r.Top {
			at = 0
		}
		r.Top = false
		out[key] = slices.Insert(out[key], at, r)
	}
	return out
}

// What is in force is read back as the rules that were asked for.
func TestNativeActual(t *testing.T) {
	capture.NewPod(t)
	needNFTables(t)
	for _, g := range capture.Golden {
		if g.Name == "overlapping-cidrs" { // 0.0.0.0/0 for IPv4 is any IPv4 there
			continue
		}
		c := iptables.Default()
		g.Edit(&c)
		mustBecome(t, iptables.Rules(c))
		got, err := nativeNow(t).ActualRules()
		if err != nil {
			t.Fatal(g.Name, err)
		}
		if d := cmp.Diff(asRead(iptables.Rules(c)), asRead(got), equateLists); d != "" {
			t.Fatalf("%s: -want +got:\n%s", g.Name, d)
		}
	}
}

// handMade are changes by somebody who knows nft, each to be found and undone.
var handMade = []struct{ name, commands string }{
	{"element added", "add element inet istio-proxy-nat excluded-destination-ipv4 { 10.9.9.9 }"},
	{"element removed", "delete element inet istio-proxy-nat excluded-destination-ipv4 { 10.1.0.0/16 }"},
	{"port removed", "delete element inet istio-proxy-nat inbound-port { 4001 }"},
	{"rule before ours", "insert rule inet istio-proxy-nat istio-output return"},
	{"rule behind ours", "add rule inet istio-proxy-nat output tcp dport 9 accept"},
	{"rule that says more", "insert rule inet istio-proxy-nat istio-output limit rate 1/second tcp dport { 1-5, 9 } return"},
	{"rule with a map", "insert rule inet istio-proxy-nat output tcp dport vmap { 80 : accept, 81 : return }"},
	{"rule with a mask", "insert rule inet istio-proxy-nat output meta mark and 0xf == 1 return"},
	{"jump without return", "insert rule inet istio-proxy-nat output goto istio-output"},
	{"two actions", "insert rule inet istio-proxy-nat output meta mark set 1 return"},
	{"chain emptied", "flush chain inet istio-proxy-nat istio-redirect"},
	{"all rules gone", "flush table inet istio-proxy-nat"},
	{"table gone", "delete table inet istio-proxy-raw"},
	{"table asleep", "add table inet istio-proxy-nat { flags dormant; }"},
	{"policy", "chain inet istio-proxy-nat output { policy drop; }"},
	{"chain and set more", "add chain inet istio-proxy-nat x { type filter hook input priority 0; }; add set inet istio-proxy-nat x { type mark; timeout 1h; }"},
	{"another hook", "flush chain inet istio-proxy-nat prerouting; delete chain inet istio-proxy-nat prerouting; add chain inet istio-proxy-nat prerouting { type nat hook input priority 0; }"},
	{"all of it Istio's", "delete table inet istio-proxy-nat; delete table inet istio-proxy-raw; " + capture.IstioNFT},
}

func handConfig() iptables.Config {
	c := capture.Listed()
	c.InboundPorts.List = []uint16{4000, 4001}
	c.ExcludeCIDRs = capture.Prefixes("10.1.0.0/16", "10.3.0.0/16", "10.2.0.0/16", "255.255.255.0/24")
	c.Backend = rule.Native
	return c
}

func TestNativeChangesByHand(t *testing.T) {
	capture.NewPod(t)
	needNFTables(t)
	rules := iptables.Rules(handConfig())
	mustBecome(t, rules)
	list := func() []string { return slices.Sorted(strings.Lines(capture.NFT(t, "list ruleset"))) }
	for _, tt := range handMade { // no subtests: they would run in the test's own namespace
		capture.NFT(t, tt.commands)
		odd := nativeNow(t)
		if odd.ToDo(rules) == "" {
			t.Errorf("%s: not seen", tt.name)
		}
		before := list()
		mustBecome(t, rules)
		if left := nativeNow(t).ToDo(rules); left != "" {
			t.Errorf("%s: still to do:\n%s", tt.name, left)
		}
		// An undo gives back whatever it was, understood or not.
		if err := odd.PutBack(t.Context()); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if d := cmp.Diff(before, list()); d != "" {
			t.Errorf("%s: not put back as it was:\n%s", tt.name, d)
		}
		mustBecome(t, rules)
	}
}

// What cannot be understood is reported in its place.
func TestNativeReportsWhatItDoesNotUnderstand(t *testing.T) {
	capture.NewPod(t)
	needNFTables(t)
	c := handConfig()
	if err := iptables.Apply(t.Context(), c, capture.Quiet()); err != nil {
		t.Fatal(err)
	}
	whole, err := nativeNow(t).ActualRules()
	if err != nil {
		t.Fatal(err)
	}
	capture.NFT(t, `insert rule inet istio-proxy-nat output limit rate 1/second drop comment "by hand"`)
	got, err := nativeNow(t).ActualRules()
	if err == nil || !strings.Contains(err.Error(), `rule 1 of chain output of table inet istio-proxy-nat "by hand": limit: is none that this agent makes`) {
		t.Errorf("error %v", err)
	}
	at := slices.IndexFunc(got, func(r rule.Rule) bool { return r.Target.Verdict == nftables.NotUnderstoodVerdict })
	if at < 0 || got[at].Chain != rule.Output || got[at].Table != rule.NAT || got[at+1].Why != "outbound" {
		t.Errorf("not in its place: %+v", got)
	}
	if d := cmp.Diff(whole, slices.Delete(got, at, at+1), equateLists); d != "" {
		t.Errorf("the other rules: %s", d)
	}

	// A TPROXY rule of Istio's lets go on what no socket takes.
	capture.NFT(t, `delete table inet istio-proxy-nat; delete table inet istio-proxy-raw; table inet istio-proxy-mangle {
		chain prerouting { type filter hook prerouting priority mangle; ip daddr != 127.0.0.0/8 meta l4proto tcp counter tproxy ip to :15006 meta mark set 1337 accept; }; }`)
	got, err = nativeNow(t).ActualRules()
	want := []rule.Rule{{Family: rule.IPv4, Table: rule.Mangle, Chain: rule.PreRouting, Match: rule.Match{Dsts: capture.Prefixes("127.0.0.0/8"), NotDst: true, Proto: rule.TCP},
		Target: rule.Target{Verdict: rule.TPROXY, Port: 15006, Mark: 1337, Option: nftables.GoesOnOption}}}
	if d := cmp.Diff(want, got, equateLists); d != "" || err != nil {
		t.Errorf("%v\n%s", err, d)
	}
}

func manyConfig(cidrs, ports int) iptables.Config {
	c := capture.Full()
	c.Backend, c.ExcludeCIDRs, c.ExcludeOutboundPorts = rule.Native, nil, nil
	for i := range cidrs {
		c.ExcludeCIDRs = append(c.ExcludeCIDRs, netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}), 32))
		if i%2 == 1 { // no two are one
			c.ExcludeCIDRs[i] = netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 0x0d, 0xb8, byte(i >> 16), byte(i >> 8), byte(i)}), 64)
		}
	}
	for i := range ports {
		c.ExcludeOutboundPorts = append(c.ExcludeOutboundPorts, uint16(20000+i))
	}
	return c
}

// Lists are longer than a message and than the socket's buffers, but no packet meets
// more rules.
func TestNativeLongLists(t *testing.T) {
	capture.NewPod(t)
	needNFTables(t)
	count := func() int { return nativeNow(t).Count() }
	mustBecome(t, iptables.Rules(manyConfig(4, 2)))
	few := count()
	for _, n := range []int{5_000, 100_000} {
		rules := iptables.Rules(manyConfig(n, 200))
		mustBecome(t, rules)
		if left := nativeNow(t).ToDo(rules); left != "" {
			t.Errorf("%d CIDRs: still to do:\n%s", n, left)
		}
		if many := count(); many != few {
			t.Errorf("%d rules with %d CIDRs, %d with 4", many, n, few)
		}
	}
	mustBecome(t, nil)
	if n := nativeNow(t); n.Holding().Used != rule.Unused {
		t.Errorf("left behind:\n%s", capture.NFT(t, "list ruleset"))
	}
}

// Of several at once each wins or is told why not; the state is never a mixture.
func TestNativeAppliesAtOnce(t *testing.T) {
	capture.NewPod(t)
	needNFTables(t)
	ns, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	configs := []iptables.Config{handConfig(), capture.Full(), manyConfig(300, 3)}
	const each = 10
	var all sync.WaitGroup
	for _, c := range configs {
		rules := iptables.Rules(c)
		all.Go(func() {
			runtime.LockOSThread() // and the thread ends with this goroutine
			if err := netns.Set(ns); err != nil {
				t.Error(err)
				return
			}
			for range each {
				n, err := nftables.Look(capture.Quiet())
				if err == nil {
					_, err = n.Make(t.Context(), saved.Want(rules))
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	now := nativeNow(t)
	if !slices.ContainsFunc(configs, func(c iptables.Config) bool { return now.ToDo(iptables.Rules(c)) == "" }) {
		t.Errorf("the state is none of those that were asked for:\n%s", capture.NFT(t, "list ruleset"))
	}
}
