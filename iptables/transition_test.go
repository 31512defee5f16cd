package iptables_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"understudy.mesh/iptables"
	"understudy.mesh/iptables/internal/saved"
	"understudy.mesh/iptables/rule"
	"understudy.mesh/tests/capture"
)

func apply(t *testing.T, c iptables.Config) {
	t.Helper()
	if err := iptables.Apply(t.Context(), c, capture.Quiet()); err != nil {
		t.Fatal(err)
	}
}

func clean(t *testing.T) {
	t.Helper()
	if err := iptables.Clean(t.Context(), capture.Quiet()); err != nil {
		t.Fatal(err)
	}
}

// backends are those that every test of what happens to packets is run with.
var backends = []rule.Backend{rule.NFT, rule.Legacy, rule.Native}

func eachBackend(t *testing.T, test func(t *testing.T, b rule.Backend)) {
	for _, b := range backends {
		t.Run(string(b), func(t *testing.T) {
			capture.NewPod(t)
			skipBackend(t, b)
			test(t, b)
		})
	}
}

// inForce checks that the state is what c asks for, and that Apply changes nothing.
func inForce(t *testing.T, c iptables.Config, b rule.Backend) {
	t.Helper()
	asWanted(t, c, b)
	before := rulesNow(t)
	apply(t, c)
	if d := cmp.Diff(before, rulesNow(t)); d != "" {
		t.Errorf("applying again changed something:\n%s", d)
	}
}

// asWanted checks that the back end b has the rules of c, and every other one none.
func asWanted(t *testing.T, c iptables.Config, b rule.Backend) {
	t.Helper()
	rules := iptables.Rules(c)
	found, err := iptables.LookNow(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range found {
		want := saved.Want(rules)
		if h.Holding().Backend != b {
			want = nil
		}
		before := rulesNow(t)
		changes, err := h.Make(t.Context(), want)
		if changes > 0 || err != nil {
			t.Errorf("%s: not as wanted, still to do (%v):\n%s", h, err, cmp.Diff(before, rulesNow(t)))
		}
	}
}

func TestTransitions(t *testing.T) {
	everything := capture.Full()
	everything.ExcludeInterfaces = []string{"eth1"}
	everything.VirtInterfaces = []string{"tap0", "tap1"}
	everything.IncludeGroups = []uint32{202, 203}
	everything.DropInvalid = true
	v4only := iptables.Default()
	v4only.VirtInterfaces = []string{"tap2"}
	configs := []iptables.Config{everything, capture.Listed(), v4only, everything, iptables.Default(), capture.Full()}

	eachBackend(t, func(t *testing.T, b rule.Backend) {
		capture.Foreign(t, b)
		before := rulesNow(t)
		for i, c := range configs {
			apply(t, c)
			inForce(t, c, b)
			if i%2 == 0 { // from nothing, too
				clean(t)
				if d := cmp.Diff(before, rulesNow(t)); d != "" {
					t.Fatalf("config %d: cleaning does not give back what was there:\n%s", i, d)
				}
				apply(t, c)
				inForce(t, c, b)
			}
		}
		clean(t)
		clean(t)
		if d := cmp.Diff(before, rulesNow(t)); d != "" {
			t.Errorf("cleaning does not give back what was there:\n%s", d)
		}
	})
}

func TestIstioIsTakenOver(t *testing.T) {
	eachBackend(t, func(t *testing.T, b rule.Backend) {
		before := rulesNow(t)
		capture.Istio(t, b)
		c := capture.Full()
		apply(t, c)
		inForce(t, c, b)
		clean(t)
		if d := cmp.Diff(before, rulesNow(t)); d != "" {
			t.Errorf("after ours were removed:\n%s", d)
		}
		capture.Istio(t, b)
		clean(t)
		if d := cmp.Diff(before, rulesNow(t)); d != "" {
			t.Errorf("after Istio's were removed:\n%s", d)
		}
	})
}

// Istio's second run looks into legacy first and adds to it what nft has already.
func TestAllBackendsBecomeOne(t *testing.T) {
	capture.NewPod(t)
	skipBackend(t, rule.NFT)
	skipBackend(t, rule.Legacy)
	before := rulesNow(t)
	for _, b := range backends {
		capture.Istio(t, b)
	}
	c := capture.Full()
	apply(t, c)
	inForce(t, c, rule.NFT)

	for _, b := range []rule.Backend{rule.Legacy, rule.Native, rule.NFT, rule.Native, rule.Legacy} {
		c.Backend = b
		apply(t, c)
		inForce(t, c, b)
		c.Backend = rule.Auto // stays where the rules are
		inForce(t, c, b)
	}
	clean(t)
	if d := cmp.Diff(before, rulesNow(t)); d != "" {
		t.Errorf("after cleaning:\n%s", d)
	}
}

func TestForeignRulesChooseTheBackend(t *testing.T) {
	eachBackend(t, func(t *testing.T, b rule.Backend) {
		if b == rule.Native {
			capture.NFT(t, "add table inet mine")
		} else {
			capture.Sh(t, fmt.Sprintf("iptables-%s -t filter -A INPUT -p tcp --dport 7 -j DROP", b))
		}
		c := capture.Full()
		apply(t, c)
		inForce(t, c, b)
	})
}

// A crash leaves some tables of one family changed and the rest not.
func TestHalfAppliedCrashIsRepaired(t *testing.T) {
	eachBackend(t, func(t *testing.T, b rule.Backend) {
		rules := iptables.Rules(capture.Listed())
		for _, f := range []rule.Family{rule.IPv4, rule.IPv6} {
			for _, name := range []rule.Table{rule.Raw, rule.NAT} {
				some := slices.DeleteFunc(slices.Clone(rules), func(r rule.Rule) bool { return r.Table != name })
				if b == rule.Native { // not by a crash, as it is one transaction, but by hand
					capture.NFT(t, string(iptables.RenderNative(some)))
				} else {
					restore(t, b, f, string(iptables.Render(some, f)), "--noflush")
				}
				apply(t, capture.Full())
				inForce(t, capture.Full(), b)
				clean(t)
			}
		}
	})
}

// failing puts binaries into PATH that fail, in place of the real ones.
func failing(t *testing.T, names ...string) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range names {
		text := "#!/bin/sh\necho 'iptables: No chain/target/match by that name.' >&2\nexit 1\n"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func TestFailureLeavesTheStateBefore(t *testing.T) {
	eachBackend(t, func(t *testing.T, b rule.Backend) {
		capture.Foreign(t, b)
		apply(t, capture.Listed())
		if b == rule.Native {
			capture.Istio(t, rule.NFT) // without these nothing of it can fail
		} else {
			capture.Sh(t, capture.Script("%[1]s-%[2]s -t nat -A OUTPUT -o eth8 -j RETURN\n", b)) // behind ours, and must stay there
		}
		earlier := rulesNow(t)

		failing(t, "ip6tables-nft-restore", "ip6tables-legacy-restore")
		c := capture.Full()
		c.DropInvalid, c.Backend = true, b
		err := iptables.Apply(t.Context(), c, capture.Quiet())
		if err == nil || !strings.Contains(err.Error(), "xt_REDIRECT") || !strings.Contains(err.Error(), "IPv6") {
			t.Errorf("error does not name what failed and what helps: %v", err)
		}
		if d := cmp.Diff(earlier, rulesNow(t)); d != "" {
			t.Errorf("the failure changed something:\n%s", d)
		}
	})
}

func TestFailureInAnEmptyPod(t *testing.T) {
	capture.NewPod(t)
	before := rulesNow(t)
	failing(t, "ip6tables-nft-restore")
	c := capture.Full()
	c.Backend = rule.NFT
	if err := iptables.Apply(t.Context(), c, capture.Quiet()); err == nil {
		t.Fatal("no error")
	}
	if d := cmp.Diff(before, rulesNow(t)); d != "" {
		t.Errorf("the failure changed something:\n%s", d)
	}
}

func TestTheOtherBackendIsTried(t *testing.T) {
	capture.NewPod(t)
	skipBackend(t, rule.Legacy)
	failing(t, "ip6tables-nft-restore")
	c := capture.Full()
	apply(t, c)
	inForce(t, c, rule.Legacy)
	clean(t)
	failing(t, "ip6tables-legacy-restore")
	apply(t, c)
	inForce(t, c, rule.Native)
}

// A kernel rule that fails in a later table puts the earlier tables back.
func TestFailureInALaterTable(t *testing.T) {
	eachBackend(t, func(t *testing.T, b rule.Backend) {
		apply(t, capture.Listed())
		before := rulesNow(t)
		inNAT := rule.Rule{Family: rule.Both, Table: rule.NAT, Chain: rule.Outbound, Match: rule.Match{Proto: rule.TCP}, Target: rule.TProxy(1, 1), Why: "impossible"}
		err := iptables.ApplyRules(t.Context(), b, append(iptables.Rules(capture.Full()), inNAT))
		if err == nil || b != rule.Legacy && !strings.Contains(err.Error(), "impossible") { // legacy blames the COMMIT
			t.Errorf("error does not name the rule: %v", err)
		}
		if d := cmp.Diff(before, rulesNow(t)); d != "" {
			t.Errorf("the failure changed something:\n%s", d)
		}
	})
}

func TestCancelledApplyChangesNothing(t *testing.T) {
	capture.NewPod(t)
	before := rulesNow(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := iptables.Apply(ctx, capture.Full(), capture.Quiet()); err == nil {
		t.Error("no error")
	}
	if d := cmp.Diff(before, rulesNow(t)); d != "" {
		t.Errorf("changed:\n%s", d)
	}
}

// onlyTools makes a PATH with nothing but these binaries.
func onlyTools(t *testing.T, names ...string) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range names {
		real, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(real, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir)
}

func TestMissingBinaries(t *testing.T) {
	v4only := capture.Listed()
	v4only.IPv6 = false
	forced := v4only
	forced.Backend = rule.Legacy
	forcedV6 := capture.Listed()
	forcedV6.Backend = rule.NFT
	for _, tt := range []struct {
		name   string
		Tools  []string
		config iptables.Config
		want   string // in the error; none: it works
	}{
		{"nothing", nil, capture.Listed(), ""},
		{"no IPv6 binaries, no IPv6", []string{"iptables-nft-save", "iptables-nft-restore"}, v4only, ""},
		{"no IPv6 binaries, IPv6", []string{"iptables-nft-save", "iptables-nft-restore"}, capture.Listed(), ""},
		{"no IPv6 binaries, IPv6, forced", []string{"iptables-nft-save", "iptables-nft-restore"}, forcedV6, "no iptables back end for IPv4 and IPv6"},
		{"plain", []string{"iptables-save", "iptables-restore", "ip6tables-save", "ip6tables-restore"}, capture.Listed(), ""},
		{"not the forced one", []string{"iptables-nft-save", "iptables-nft-restore"}, forced, "legacy wanted"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			capture.NewPod(t)
			before, path := rulesNow(t), os.Getenv("PATH")
			onlyTools(t, tt.Tools...)
			err := iptables.Apply(t.Context(), tt.config, capture.Quiet())
			t.Setenv("PATH", path)
			after := rulesNow(t)
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want == "" && before == after:
				t.Error("nothing was applied")
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("error %v, want one with %q", err, tt.want)
			case tt.want != "" && before != after:
				t.Errorf("changed:\n%s", cmp.Diff(before, after))
			}
		})
	}
}
