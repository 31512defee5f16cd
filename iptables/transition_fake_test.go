package iptables

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"understudy.mesh/iptables/rule"
)

func dualStack() Config {
	c := Default()
	c.IPv6, c.TPROXY, c.InboundPorts.All, c.IncludeCIDRs.All = true, true, true, true
	return c
}

func v4Only() Config {
	c := Default()
	c.IncludeOutboundPorts = []uint16{80}
	return c
}

func mustApply(t *testing.T, w *world, c Config) {
	t.Helper()
	if err := w.apply(t.Context(), c); err != nil {
		t.Fatal(err)
	}
}

func mustHaveDone(t *testing.T, w *world, want ...string) {
	t.Helper()
	if d := cmp.Diff(want, w.done); d != "" {
		t.Errorf("done: -want +got:\n%s", d)
	}
}

// A, A again, B, back end by back end, none.
func TestSteps(t *testing.T) {
	w := newWorld()
	empty := w.state()
	a, b := dualStack(), v4Only()

	mustApply(t, w, a)
	mustHaveDone(t, w, "add routes", "make nft IPv4", "make nft IPv6")
	mustApply(t, w, a)
	mustHaveDone(t, w)

	mustApply(t, w, b)
	mustHaveDone(t, w, "make nft IPv4", "make nft IPv6", "remove routes")
	if len(w.held["nft IPv6"]) > 0 {
		t.Errorf("left behind: %v", w.held)
	}

	// Where they are wanted first: capture is never missing in between.
	a.Backend = rule.Native
	mustApply(t, w, a)
	mustHaveDone(t, w, "add routes", "make nftables IPv4 and IPv6", "make nft IPv4")
	a.Backend = rule.Legacy
	mustApply(t, w, a)
	mustHaveDone(t, w, "make legacy IPv4", "make legacy IPv6", "make nftables IPv4 and IPv6")
	a.Backend = rule.Auto // stays where the rules are
	mustApply(t, w, a)
	mustHaveDone(t, w)

	for range 2 {
		if err := w.transition().clean(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if d := cmp.Diff(empty, w.state()); d != "" {
		t.Errorf("after cleaning:\n%s", d)
	}
}

// Whatever fails, and however often, all is as it was, and the last change is undone first.
func TestHalfAppliedIsPutBack(t *testing.T) {
	for _, tt := range []struct {
		name, fails string
		done        []string
	}{
		{"first family", "make nft IPv4", []string{"add routes", "make nft IPv4", "put back nft IPv4", "undo routes"}},
		{"second family", "make nft IPv6", []string{"add routes", "make nft IPv4", "make nft IPv6", "put back nft IPv6", "put back nft IPv4", "undo routes"}},
		{"cleaning elsewhere", "make legacy IPv4", []string{"add routes", "make nft IPv4", "make nft IPv6", "make legacy IPv4",
			"put back legacy IPv4", "put back nft IPv6", "put back nft IPv4", "undo routes"}},
		{"routes", "add routes", []string{"add routes"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld()
			elsewhere := v4Only()
			elsewhere.Backend = rule.Legacy
			mustApply(t, w, elsewhere)
			w.held["nft IPv4"] = []string{"of an earlier life"}
			before := w.state()
			w.fails[tt.fails] = true
			c := dualStack()
			c.Backend = rule.NFT
			err := w.apply(t.Context(), c)
			if err == nil || !strings.Contains(err.Error(), tt.fails+" fails") {
				t.Errorf("error %v does not say what failed", err)
			}
			mustHaveDone(t, w, tt.done...)
			if d := cmp.Diff(before, w.state()); d != "" {
				t.Errorf("the failure changed something:\n%s", d)
			}
		})
	}
}

// What cannot be put back is told, and does not keep the rest from it.
func TestFailureOfUndoIsTold(t *testing.T) {
	w := newWorld()
	c := dualStack()
	c.Backend = rule.NFT
	w.fails["make nft IPv6"], w.fails["put back nft IPv6"], w.fails["undo routes"] = true, true, true
	err := w.apply(t.Context(), c)
	for _, want := range []string{"change IPv6 rules: make nft IPv6 fails", "put the earlier IPv6 rules back: ", "put addresses and routes back: "} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not say %q", err, want)
		}
	}
	if len(w.held["nft IPv4"]) > 0 {
		t.Errorf("IPv4 was not put back: %v", w.held)
	}
}

func TestUndoGoesOnWhenCancelled(t *testing.T) {
	w := newWorld()
	before := w.state()
	ctx, cancel := context.WithCancel(t.Context())
	w.fails["make nft IPv6"] = true
	w.onChange = cancel
	if err := w.apply(ctx, dualStack()); err == nil {
		t.Error("no error")
	}
	if slices.ContainsFunc(w.done, func(s string) bool { return strings.HasPrefix(s, "make legacy") }) {
		t.Errorf("another back end was tried after the end: %v", w.done)
	}
	if d := cmp.Diff(before, w.state()); d != "" {
		t.Errorf("changed:\n%s", d)
	}
}

func TestNextBackendIsTried(t *testing.T) {
	for _, tt := range []struct {
		name   string
		fails  []string
		forced rule.Backend
		want   string // who has the rules; none: all is as before
	}{
		{"the next one", []string{"make nft IPv6"}, rule.Auto, "legacy IPv6"},
		{"the last one", []string{"make nft IPv6", "make legacy IPv4"}, rule.Auto, "nftables IPv4 and IPv6"},
		{"none", []string{"make nft IPv6", "make legacy IPv4", "make nftables IPv4 and IPv6"}, rule.Auto, ""},
		{"none but the forced one", []string{"make nft IPv6"}, rule.NFT, ""},
	} {
		w := newWorld()
		before := w.state()
		for _, f := range tt.fails {
			w.fails[f] = true
		}
		c := dualStack()
		c.Backend = tt.forced
		err := w.apply(t.Context(), c)
		if (err == nil) != (tt.want != "") || tt.want != "" && len(w.held[tt.want]) == 0 {
			t.Errorf("%s: %v, %v", tt.name, err, w.state())
		}
		for _, f := range tt.fails {
			if tt.want == "" && !strings.Contains(err.Error(), f+" fails") {
				t.Errorf("%s: error %v does not name %q", tt.name, err, f)
			}
		}
		if d := cmp.Diff(before, w.state()); tt.want == "" && d != "" {
			t.Errorf("%s: changed:\n%s", tt.name, d)
		}
		for at, rules := range w.held {
			if strings.HasPrefix(at, "nft ") && len(rules) > 0 {
				t.Errorf("%s: %s still has %v", tt.name, at, rules)
			}
		}
	}
}

// Routes are ours by the marks that rules of ours set, also where the rules go.
func TestMarksOfRulesThatGo(t *testing.T) {
	w := newWorld()
	w.marks = []uint32{77}
	if got := w.transition().marks(); len(got) > 0 {
		t.Errorf("nothing of ours is there, but %v are ours", got)
	}
	w.held["legacy IPv6"] = []string{"of an earlier life"}
	if got := w.transition().marks(); !slices.Equal(got, []uint32{DefaultMark, 77}) {
		t.Errorf("marks %v, want Istio's and that of the rules", got)
	}
}

func TestChoose(t *testing.T) {
	all := newWorld().look()
	without := func(b rule.Backend, f rule.Family) []rule.Holding {
		return slices.DeleteFunc(holdings(all), func(h rule.Holding) bool { return h.Backend == b && h.Family&f != 0 })
	}
	used := func(b rule.Backend, u rule.Usage) []rule.Holding {
		out := holdings(all)
		for i := range out {
			if out[i].Backend == b {
				out[i].Used = u
				break // one IP version suffices
			}
		}
		return out
	}
	ours := used(rule.Native, rule.UsedByUs)
	ours[2].Used = rule.UsedByOthers // legacy
	forced := func(b rule.Backend) Config { c := dualStack(); c.Backend = b; return c }
	for _, tt := range []struct {
		name   string
		config Config
		held   []rule.Holding
		want   []rule.Backend
		fails  string
	}{
		{"nobody anywhere", dualStack(), holdings(all), []rule.Backend{rule.NFT, rule.Legacy, rule.Native}, ""},
		{"others", dualStack(), used(rule.Legacy, rule.UsedByOthers), []rule.Backend{rule.Legacy, rule.NFT, rule.Native}, ""},
		{"ours before others", dualStack(), ours, []rule.Backend{rule.Native, rule.Legacy, rule.NFT}, ""},
		{"no IPv6 there", dualStack(), without(rule.NFT, rule.IPv6), []rule.Backend{rule.Legacy, rule.Native}, ""},
		{"no IPv6 needed", v4Only(), without(rule.NFT, rule.IPv6), []rule.Backend{rule.NFT, rule.Legacy, rule.Native}, ""},
		{"forced", forced(rule.Legacy), ours, []rule.Backend{rule.Legacy}, ""},
		{"forced and not there", forced(rule.Legacy), without(rule.Legacy, rule.IPv4), nil, "no iptables back end for IPv4 and IPv6, legacy wanted: install"},
		{"nothing", dualStack(), nil, nil, "legacy or nft wanted"},
		{"no nf_tables", forced(rule.Native), without(rule.Native, rule.Both), nil, "Linux 5.2"},
	} {
		got, err := Choose(tt.config, tt.held)
		if !slices.Equal(got, tt.want) || (err != nil) != (tt.fails != "") || err != nil && !strings.Contains(err.Error(), tt.fails) {
			t.Errorf("%s: %v, %v", tt.name, got, err)
		}
	}
}
