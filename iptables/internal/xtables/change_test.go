package xtables_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"understudy.mesh/iptables"
	"understudy.mesh/iptables/internal/saved"
	"understudy.mesh/iptables/internal/xtables"
	"understudy.mesh/iptables/rule"
	"understudy.mesh/tests/capture"
)

func TestChangesOfALongChainSayWhatDiffers(t *testing.T) {
	long, steps := capture.LongChain()
	have, want := saved.Print(iptables.Rules(long), rule.IPv4), saved.Print(iptables.Rules(steps[1]), rule.IPv4)
	commands := string(xtables.Planned(have, want))
	for _, line := range []string{"*nat\n-D ISTIO_OUTPUT 11", "-I ISTIO_OUTPUT 11", "-d 10.1.0.0/16", "COMMIT\n"} {
		if !strings.Contains(commands, line) {
			t.Errorf("no %q in\n%s", line, commands)
		}
	}
	if strings.Count(commands, "\n") != 4 {
		t.Errorf("says more than what differs:\n%s", commands)
	}
}

func TestPlan(t *testing.T) {
	have := saved.Parse(capture.SavedText).Ours()
	rules := []rule.Rule{
		{Family: rule.IPv4, Table: rule.NAT, Chain: rule.Output, Target: rule.Jump(rule.Outbound), Why: "outbound"},
		{Family: rule.IPv4, Table: rule.NAT, Chain: rule.PreRouting, Top: true, Match: rule.Match{In: "tap0"}, Target: rule.Leave, Why: "first"},
		{Family: rule.IPv4, Table: rule.NAT, Chain: rule.PreRouting, Top: true, Match: rule.Match{In: "tap1"}, Target: rule.Leave, Why: "second"},
	}
	want := saved.Print(rules, rule.IPv4)
	got := string(xtables.Planned(have, want))
	for _, line := range []string{"*nat", ":ISTIO_OUTPUT - [0:0]", "-D OUTPUT -m comment --comment \"understudy: outbound\" -j ISTIO_OUTPUT",
		`-D MINE -m comment --comment "a \"quoted\" word" -g ISTIO_OUTPUT`, `-I PREROUTING -i tap1 -m comment --comment "understudy: second" -j RETURN`, "COMMIT"} {
		if !strings.Contains(got, line+"\n") {
			t.Errorf("no line %q in\n%s", line, got)
		}
	}
	if strings.Contains(got, "-X") || strings.Contains(got, "filter") {
		t.Errorf("takes too much away:\n%s", got)
	}
	if got := string(xtables.Planned(have, nil)); !strings.HasSuffix(got, "-X ISTIO_OUTPUT\nCOMMIT\n") {
		t.Errorf("cleaning leaves the chain:\n%s", got)
	}
	// The kernel has the rule that was put on top last first.
	there := saved.Parse(`*nat
:ISTIO_OUTPUT - [0:0]
-A PREROUTING -i tap1 -m comment --comment "understudy: second" -j RETURN
-A PREROUTING -i tap0 -m comment --comment "understudy: first" -j RETURN
-A OUTPUT -m comment --comment "understudy: outbound" -j ISTIO_OUTPUT
COMMIT
`)
	if left := xtables.Planned(there, want); len(left) > 0 {
		t.Errorf("finds something to do where all is done:\n%s", left)
	}
}

// Whatever another program has left in the tables: reading it does not panic, what
// is ours is part of it, and cleaning it twice takes nothing more away.
func FuzzRuleset(f *testing.F) {
	f.Add(capture.SavedText)
	f.Add(string(iptables.Render(iptables.Rules(capture.Listed()), rule.IPv6)))
	f.Add("*nat\n-A \n-A X\n:\n:ISTIO_ -\n-A ISTIO_ --comment\n-A Y -j\nCOMMIT")
	f.Add("*\n-A OUTPUT \"\\\n-I A -s 1.2.3.4/ -m comment -m comment")
	f.Fuzz(func(t *testing.T, text string) {
		s := saved.Parse(text)
		ours := s.Ours()
		for _, o := range ours {
			if s.Find(o.Name) == nil {
				t.Fatalf("table %q from nowhere", o.Name)
			}
		}
		if input := xtables.Planned(ours, ours); len(input) > 0 {
			t.Errorf("what is there is not what is there:\n%s", input)
		}
		for _, tab := range s {
			var out bytes.Buffer
			tab.Write(&out)
			if back := saved.Parse(out.String()); len(back) > 0 && !back[0].Identical(tab) && !slices.ContainsFunc(tab.Rules, func(r saved.Rule) bool { return r.Top }) {
				t.Errorf("%q is not put back as it was:\n%s", tab.Name, out.String())
			}
		}
	})
}
