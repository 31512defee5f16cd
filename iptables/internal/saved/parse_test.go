package saved_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"understudy.mesh/iptables"
	"understudy.mesh/iptables/internal/saved"
	"understudy.mesh/iptables/rule"
	"understudy.mesh/tests/capture"
)

func TestParseRuleset(t *testing.T) {
	s := saved.Parse(capture.SavedText)
	nat := s.Find(rule.NAT)
	if len(s) != 2 || nat == nil {
		t.Fatalf("%d tables", len(s))
	}
	if want := []string{"ISTIO_OUTPUT", "MINE"}; !slices.Equal(nat.Chains, want) {
		t.Errorf("chains %q, want %q", nat.Chains, want)
	}
	quoted := nat.Rules[4]
	if quoted.Comment != `a "quoted" word` || quoted.Jump != "ISTIO_OUTPUT" || quoted.Key != "-g ISTIO_OUTPUT" {
		t.Errorf("quoted comment: %+v", quoted)
	}
	if want := "! -d ::7f00:35/128 -j RETURN"; nat.Rules[5].Key != want {
		t.Errorf("address: %q, want %q", nat.Rules[5].Key, want)
	}
	var ours []string
	for _, r := range s.Ours().Find(rule.NAT).Rules {
		ours = append(ours, r.Chain+" "+r.Key)
	}
	want := []string{"OUTPUT -j ISTIO_OUTPUT", "OUTPUT -o eth1 -j RETURN", "MINE -g ISTIO_OUTPUT",
		"OUTPUT -o eth2 -j RETURN", "ISTIO_OUTPUT ! -d ::7f00:35/128 -j RETURN"}
	slices.Sort(ours)
	slices.Sort(want)
	// MINE's unmarked jump to a chain of ours is a trace of Istio, so the unmarked
	// interface rule is Istio's, too.
	if d := cmp.Diff(want, ours); d != "" {
		t.Errorf("ours: %s", d)
	}
}

// The short way of reading a rule gives what the long one does.
func FuzzReadPlain(f *testing.F) {
	for line := range strings.Lines(capture.SavedText + string(iptables.Render(iptables.Rules(capture.Full()), rule.IPv4)) + string(iptables.Render(iptables.Rules(capture.Listed()), rule.IPv6))) {
		if rule, ok := strings.CutPrefix(strings.TrimSpace(line), "-A OUTPUT "); ok {
			f.Add(rule)
		}
	}
	f.Add(`-s 1.2.3.4/8 -m comment --comment "a" -j X -m comment --comment "b"`)
	f.Add(`-p tcp -m comment --comment "understudy: x" -j ISTIO_REDIRECT`)
	f.Add(`x-m comment --comment "a" -j X -j -j Y -g Z`)
	f.Fuzz(func(t *testing.T, spec string) {
		plain, words, short, long := saved.ReadBothWays(spec)
		if short && (!long || plain != words) {
			t.Errorf("%q:\n%+v\n%+v", spec, plain, words)
		}
	})
}
