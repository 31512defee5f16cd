package iptables

import (
	"net/netip"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netns"
)

// foreignNFT and istioNFT are in nftables what foreignRules and istioRules are.
const (
	foreignNFT = `
	table inet mine {
		map verdicts { type inet_service : verdict; elements = { 99 : drop }; }
		chain output { type nat hook output priority -100; policy accept; oifname "eth9" return comment "understudy: not really"; }
		chain istio-output { tcp dport vmap @verdicts; }
	}
	table ip istio-proxy-nat {
		chain mine { tcp dport 98 drop; }
	}
	`
	istioNFT = `
	table inet istio-proxy-nat {
		chain prerouting { type nat hook prerouting priority dstnat; policy accept; meta l4proto tcp counter jump istio-inbound; }
		chain output { type nat hook output priority -100; policy accept; counter jump istio-output; }
		chain istio-inbound { tcp dport 15008 counter return; tcp dport { 4000, 5000 } counter jump istio-in-redirect; }
		chain istio-redirect { meta l4proto tcp counter redirect to :15001; }
		chain istio-in-redirect { meta l4proto tcp counter redirect to :15006; }
		chain istio-output { oifname "lo" ip saddr 127.0.0.6 counter return; meta skuid 1337 counter return; ip daddr 10.0.0.0/8 counter jump istio-redirect; }
		chain old { limit rate 1/second drop; }
	}
	table inet istio-proxy-raw {
		chain output { type filter hook output priority raw; policy accept; udp dport 53 meta skuid 1337 counter ct zone set 1; }
	}
	`
)

func foreign(t *testing.T, b Backend) { inNamespace(t, b, foreignRules, foreignNFT) }
func istio(t *testing.T, b Backend)   { inNamespace(t, b, istioRules, istioNFT) }

func inNamespace(t *testing.T, b Backend, text, nft string) {
	t.Helper()
	if b == Native {
		nftRuns(t, nft)
		return
	}
	sh(t, script(text, b))
}

// nftRuns gives nft some commands and returns what it prints.
func nftRuns(t *testing.T, text string) string {
	t.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(text)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", text, err, out)
	}
	return string(out)
}

func nativeNow(t *testing.T) native {
	t.Helper()
	n, err := lookNative(quiet())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func mustBecome(t *testing.T, rules []Rule) {
	t.Helper()
	if _, err := nativeNow(t).make(t.Context(), desireRules(rules)); err != nil {
		t.Fatal(err)
	}
}

// What a dry run prints is what the kernel gets: nft lists the same, wherever it comes
// from, and what nft makes of the text is nothing that Apply would change.
func TestNativeTextIsWhatIsApplied(t *testing.T) {
	newPod(t)
	skipBackend(t, Native)
	list := func() string { return nftRuns(t, "list ruleset") }
	for _, g := range golden {
		c := Default()
		g.edit(&c)
		c.ExcludeInterfaces = append(c.ExcludeInterfaces, "tap+", "odd*", "+")
		rules := Rules(c)
		mustBecome(t, rules)
		ours := list()
		mustBecome(t, nil)
		nftRuns(t, string(RenderNative(rules)))
		if d := cmp.Diff(ours, list()); d != "" {
			t.Errorf("%s: by netlink - and by the text +:\n%s", g.name, d)
		}
		if left := nativeNow(t).toDo(rules); left != "" {
			t.Errorf("%s: after nft took the text there is still to do:\n%s", g.name, left)
		}
		mustBecome(t, nil)
	}
}

var equateLists = cmp.Options{cmpopts.EquateComparable(netip.Prefix{}), cmpopts.EquateEmpty()}

// asRead returns rules as actual gives them, by chain: each in its order of evaluation,
// lists in the order of their elements, and of the IP versions that their addresses have.
func asRead(rules []Rule) map[string][]Rule {
	out := map[string][]Rule{}
	for _, r := range rules {
		var versions Family
		m := r.Match
		r.Match.Srcs, r.Match.Dsts = nil, nil
		for _, f := range []Family{IPv4, IPv6} {
			if part, ok := (Rule{Family: r.Family, Match: m}).forFamily(f); ok {
				versions |= f
				r.Match.Srcs = append(r.Match.Srcs, slices.SortedFunc(slices.Values(part.Match.Srcs), netip.Prefix.Compare)...)
				r.Match.Dsts = append(r.Match.Dsts, slices.SortedFunc(slices.Values(part.Match.Dsts), netip.Prefix.Compare)...)
			}
		}
		r.Family = versions
		r.Match.DstPorts = slices.Sorted(slices.Values(m.DstPorts))
		r.Match.Owners = slices.SortedFunc(slices.Values(m.Owners), func(a, b Owner) int { return int(a.ID) - int(b.ID) })
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
	newPod(t)
	skipBackend(t, Native)
	for _, g := range golden {
		if g.name == "overlapping-cidrs" { // 0.0.0.0/0 for IPv4 is any IPv4 there
			continue
		}
		c := Default()
		g.edit(&c)
		mustBecome(t, Rules(c))
		got, err := nativeNow(t).actualRules()
		if err != nil {
			t.Fatal(g.name, err)
		}
		if d := cmp.Diff(asRead(Rules(c)), asRead(got), equateLists); d != "" {
			t.Fatalf("%s: -want +got:\n%s", g.name, d)
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
	{"all of it Istio's", "delete table inet istio-proxy-nat; delete table inet istio-proxy-raw; " + istioNFT},
}

func handConfig() Config {
	c := listedConfig()
	c.InboundPorts.List = []uint16{4000, 4001}
	c.ExcludeCIDRs = prefixes("10.1.0.0/16", "10.3.0.0/16", "10.2.0.0/16", "255.255.255.0/24")
	c.Backend = Native
	return c
}

func TestNativeChangesByHand(t *testing.T) {
	newPod(t)
	skipBackend(t, Native)
	rules := Rules(handConfig())
	mustBecome(t, rules)
	list := func() []string { return slices.Sorted(strings.Lines(nftRuns(t, "list ruleset"))) }
	for _, tt := range handMade { // no subtests: they would run in the test's own namespace
		nftRuns(t, tt.commands)
		odd := nativeNow(t)
		if odd.toDo(rules) == "" {
			t.Errorf("%s: not seen", tt.name)
		}
		before := list()
		mustBecome(t, rules)
		if left := nativeNow(t).toDo(rules); left != "" {
			t.Errorf("%s: still to do:\n%s", tt.name, left)
		}
		// An undo gives back whatever it was, understood or not.
		if err := odd.putBack(t.Context()); err != nil {
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
	newPod(t)
	skipBackend(t, Native)
	c := handConfig()
	apply(t, c)
	whole, err := nativeNow(t).actualRules()
	if err != nil {
		t.Fatal(err)
	}
	nftRuns(t, `insert rule inet istio-proxy-nat output limit rate 1/second drop comment "by hand"`)
	got, err := nativeNow(t).actualRules()
	if err == nil || !strings.Contains(err.Error(), `rule 1 of chain output of table inet istio-proxy-nat "by hand": limit: is none that this agent makes`) {
		t.Errorf("error %v", err)
	}
	at := slices.IndexFunc(got, func(r Rule) bool { return r.Target.Verdict == notUnderstoodVerdict })
	if at < 0 || got[at].Chain != output || got[at].Table != NAT || got[at+1].Why != "outbound" {
		t.Errorf("not in its place: %+v", got)
	}
	if d := cmp.Diff(whole, slices.Delete(got, at, at+1), equateLists); d != "" {
		t.Errorf("the other rules: %s", d)
	}

	// A TPROXY rule of Istio's lets go on what no socket takes.
	nftRuns(t, `delete table inet istio-proxy-nat; delete table inet istio-proxy-raw; table inet istio-proxy-mangle {
		chain prerouting { type filter hook prerouting priority mangle; ip daddr != 127.0.0.0/8 meta l4proto tcp counter tproxy ip to :15006 meta mark set 1337 accept; }; }`)
	got, err = nativeNow(t).actualRules()
	want := []Rule{{Family: IPv4, Table: Mangle, Chain: preRouting, Match: Match{Dsts: prefixes("127.0.0.0/8"), NotDst: true, Proto: TCP},
		Target: Target{Verdict: tproxyTarget, Port: 15006, Mark: 1337, Option: goesOnOption}}}
	if d := cmp.Diff(want, got, equateLists); d != "" || err != nil {
		t.Errorf("%v\n%s", err, d)
	}
}

func manyConfig(cidrs, ports int) Config {
	c := fullConfig()
	c.Backend, c.ExcludeCIDRs, c.ExcludeOutboundPorts = Native, nil, nil
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
	newPod(t)
	skipBackend(t, Native)
	count := func() int { return nativeNow(t).count() }
	mustBecome(t, Rules(manyConfig(4, 2)))
	few := count()
	for _, n := range []int{5_000, 100_000} {
		rules := Rules(manyConfig(n, 200))
		mustBecome(t, rules)
		if left := nativeNow(t).toDo(rules); left != "" {
			t.Errorf("%d CIDRs: still to do:\n%s", n, left)
		}
		if many := count(); many != few {
			t.Errorf("%d rules with %d CIDRs, %d with 4", many, n, few)
		}
	}
	mustBecome(t, nil)
	if n := nativeNow(t); n.holding().Used != Unused {
		t.Errorf("left behind:\n%s", nftRuns(t, "list ruleset"))
	}
}

// Of several at once each wins or is told why not; the state is never a mixture.
func TestNativeAppliesAtOnce(t *testing.T) {
	newPod(t)
	skipBackend(t, Native)
	ns, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	configs := []Config{handConfig(), fullConfig(), manyConfig(300, 3)}
	const each = 10
	var all sync.WaitGroup
	for _, c := range configs {
		rules := Rules(c)
		all.Go(func() {
			runtime.LockOSThread() // and the thread ends with this goroutine
			if err := netns.Set(ns); err != nil {
				t.Error(err)
				return
			}
			for range each {
				n, err := lookNative(quiet())
				if err == nil {
					_, err = n.make(t.Context(), desireRules(rules))
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	now := nativeNow(t)
	if !slices.ContainsFunc(configs, func(c Config) bool { return now.toDo(Rules(c)) == "" }) {
		t.Errorf("the state is none of those that were asked for:\n%s", nftRuns(t, "list ruleset"))
	}
}
