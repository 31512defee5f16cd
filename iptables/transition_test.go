package iptables

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
)

// foreignRules are a user's own, among ours and some of shapes that look like ours.
const foreignRules = `
	%[1]s-%[2]s -t nat -A OUTPUT -o eth9 -j RETURN
	%[1]s-%[2]s -t nat -N MINE
	%[1]s-%[2]s -t nat -A MINE -p tcp --dport 99 -m comment --comment 'it is "mine"' -j REDIRECT --to-ports 98
	%[1]s-%[2]s -t nat -A PREROUTING -p tcp -j MINE
	%[1]s-%[2]s -t raw -A OUTPUT -p udp --dport 53 -m owner --uid-owner 1337 -j CT --zone 1
	%[1]s-%[2]s -t filter -A INPUT -p tcp --dport 7 -j DROP
	`

// istioRules are what Istio's own istio-iptables leaves, with DNS capture, an
// excluded and a virtual interface. Its second run made one of the jumps twice
// (istio#53161).
const istioRules = `%[1]s-%[2]s-restore --noflush <<-EOF
	*nat
	:ISTIO_INBOUND - [0:0]
	:ISTIO_OUTPUT - [0:0]
	:ISTIO_REDIRECT - [0:0]
	:ISTIO_PRERT - [0:0]
	-A PREROUTING -i eth1 -j RETURN
	-A OUTPUT -o eth1 -j RETURN
	-A PREROUTING -p tcp -j ISTIO_INBOUND
	-A OUTPUT -j ISTIO_OUTPUT
	-A OUTPUT -j ISTIO_OUTPUT
	-A OUTPUT -p udp --dport 53 -m owner --uid-owner 1337 -j RETURN
	-A ISTIO_OUTPUT -p tcp -j ISTIO_REDIRECT
	-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
	-I PREROUTING 1 -i tap0 -j RETURN
	COMMIT
	*raw
	:ISTIO_OUTPUT_DNS - [0:0]
	-A OUTPUT -j ISTIO_OUTPUT_DNS
	-A OUTPUT -p udp --dport 53 -m owner --uid-owner 1337 -j CT --zone 1
	-A OUTPUT -p udp --sport 15053 -m owner --gid-owner 1337 -j CT --zone 2
	-A ISTIO_OUTPUT_DNS -p udp --dport 53 -j CT --zone 2
	COMMIT
	*mangle
	-A PREROUTING -p tcp -m mark --mark 0x539 -j CONNMARK --save-mark
	-A OUTPUT -p tcp -o lo -m mark --mark 0x539 -j RETURN
	COMMIT
	EOF
	`

func script(text string, b Backend) string {
	var out string
	for _, binary := range []string{"iptables", "ip6tables"} {
		out += fmt.Sprintf(text, binary, b)
	}
	return strings.ReplaceAll(out, "\n\t", "\n")
}

func apply(t *testing.T, c Config) {
	t.Helper()
	if err := Apply(t.Context(), c, quiet()); err != nil {
		t.Fatal(err)
	}
}

func clean(t *testing.T) {
	t.Helper()
	if err := Clean(t.Context(), quiet()); err != nil {
		t.Fatal(err)
	}
}

// backends are those that every test of what happens to packets is run with.
var backends = []Backend{NFT, Legacy, Native}

func eachBackend(t *testing.T, test func(t *testing.T, b Backend)) {
	for _, b := range backends {
		t.Run(string(b), func(t *testing.T) {
			newPod(t)
			skipBackend(t, b)
			test(t, b)
		})
	}
}

// inForce checks that the state is what c asks for, and that Apply changes nothing.
func inForce(t *testing.T, c Config, b Backend) {
	t.Helper()
	asWanted(t, c, b)
	before := saved(t)
	apply(t, c)
	if d := cmp.Diff(before, saved(t)); d != "" {
		t.Errorf("applying again changed something:\n%s", d)
	}
}

// asWanted checks that the back end b has the rules of c, and every other one none.
func asWanted(t *testing.T, c Config, b Backend) {
	t.Helper()
	rules := Rules(c)
	found, err := lookNow(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range found {
		want := desireRules(rules)
		if h.holding().Backend != b {
			want = nil
		}
		before := saved(t)
		changes, err := h.make(t.Context(), want)
		if changes > 0 || err != nil {
			t.Errorf("%s: not as wanted, still to do (%v):\n%s", h, err, cmp.Diff(before, saved(t)))
		}
	}
}

func TestTransitions(t *testing.T) {
	everything := fullConfig()
	everything.ExcludeInterfaces = []string{"eth1"}
	everything.VirtInterfaces = []string{"tap0", "tap1"}
	everything.IncludeGroups = []uint32{202, 203}
	everything.DropInvalid = true
	v4only := Default()
	v4only.VirtInterfaces = []string{"tap2"}
	configs := []Config{everything, listedConfig(), v4only, everything, Default(), fullConfig()}

	eachBackend(t, func(t *testing.T, b Backend) {
		foreign(t, b)
		before := saved(t)
		for i, c := range configs {
			apply(t, c)
			inForce(t, c, b)
			if i%2 == 0 { // from nothing, too
				clean(t)
				if d := cmp.Diff(before, saved(t)); d != "" {
					t.Fatalf("config %d: cleaning does not give back what was there:\n%s", i, d)
				}
				apply(t, c)
				inForce(t, c, b)
			}
		}
		clean(t)
		clean(t)
		if d := cmp.Diff(before, saved(t)); d != "" {
			t.Errorf("cleaning does not give back what was there:\n%s", d)
		}
	})
}

func TestIstioIsTakenOver(t *testing.T) {
	eachBackend(t, func(t *testing.T, b Backend) {
		before := saved(t)
		istio(t, b)
		c := fullConfig()
		apply(t, c)
		inForce(t, c, b)
		clean(t)
		if d := cmp.Diff(before, saved(t)); d != "" {
			t.Errorf("after ours were removed:\n%s", d)
		}
		istio(t, b)
		clean(t)
		if d := cmp.Diff(before, saved(t)); d != "" {
			t.Errorf("after Istio's were removed:\n%s", d)
		}
	})
}

// Istio's second run looks into legacy first and adds to it what nft has already.
func TestAllBackendsBecomeOne(t *testing.T) {
	newPod(t)
	skipBackend(t, NFT)
	skipBackend(t, Legacy)
	before := saved(t)
	for _, b := range backends {
		istio(t, b)
	}
	c := fullConfig()
	apply(t, c)
	inForce(t, c, NFT)

	for _, b := range []Backend{Legacy, Native, NFT, Native, Legacy} {
		c.Backend = b
		apply(t, c)
		inForce(t, c, b)
		c.Backend = Auto // stays where the rules are
		inForce(t, c, b)
	}
	clean(t)
	if d := cmp.Diff(before, saved(t)); d != "" {
		t.Errorf("after cleaning:\n%s", d)
	}
}

func TestForeignRulesChooseTheBackend(t *testing.T) {
	eachBackend(t, func(t *testing.T, b Backend) {
		if b == Native {
			nftRuns(t, "add table inet mine")
		} else {
			sh(t, fmt.Sprintf("iptables-%s -t filter -A INPUT -p tcp --dport 7 -j DROP", b))
		}
		c := fullConfig()
		apply(t, c)
		inForce(t, c, b)
	})
}

// A crash leaves some tables of one family changed and the rest not.
func TestHalfAppliedCrashIsRepaired(t *testing.T) {
	eachBackend(t, func(t *testing.T, b Backend) {
		rules := Rules(listedConfig())
		for _, f := range []Family{IPv4, IPv6} {
			for _, name := range []Table{Raw, NAT} {
				some := slices.DeleteFunc(slices.Clone(rules), func(r Rule) bool { return r.Table != name })
				if b == Native { // not by a crash, as it is one transaction, but by hand
					nftRuns(t, string(RenderNative(some)))
				} else {
					restore(t, b, f, string(Render(some, f)), "--noflush")
				}
				apply(t, fullConfig())
				inForce(t, fullConfig(), b)
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
	eachBackend(t, func(t *testing.T, b Backend) {
		foreign(t, b)
		apply(t, listedConfig())
		if b == Native {
			istio(t, NFT) // without these nothing of it can fail
		} else {
			sh(t, script("%[1]s-%[2]s -t nat -A OUTPUT -o eth8 -j RETURN\n", b)) // behind ours, and must stay there
		}
		earlier := saved(t)

		failing(t, "ip6tables-nft-restore", "ip6tables-legacy-restore")
		c := fullConfig()
		c.DropInvalid, c.Backend = true, b
		err := Apply(t.Context(), c, quiet())
		if err == nil || !strings.Contains(err.Error(), "xt_REDIRECT") || !strings.Contains(err.Error(), "IPv6") {
			t.Errorf("error does not name what failed and what helps: %v", err)
		}
		if d := cmp.Diff(earlier, saved(t)); d != "" {
			t.Errorf("the failure changed something:\n%s", d)
		}
	})
}

func TestFailureInAnEmptyPod(t *testing.T) {
	newPod(t)
	before := saved(t)
	failing(t, "ip6tables-nft-restore")
	c := fullConfig()
	c.Backend = NFT
	if err := Apply(t.Context(), c, quiet()); err == nil {
		t.Fatal("no error")
	}
	if d := cmp.Diff(before, saved(t)); d != "" {
		t.Errorf("the failure changed something:\n%s", d)
	}
}

func TestTheOtherBackendIsTried(t *testing.T) {
	newPod(t)
	skipBackend(t, Legacy)
	failing(t, "ip6tables-nft-restore")
	c := fullConfig()
	apply(t, c)
	inForce(t, c, Legacy)
	clean(t)
	failing(t, "ip6tables-legacy-restore")
	apply(t, c)
	inForce(t, c, Native)
}

// A kernel rule that fails in a later table puts the earlier tables back.
func TestFailureInALaterTable(t *testing.T) {
	eachBackend(t, func(t *testing.T, b Backend) {
		apply(t, listedConfig())
		before := saved(t)
		inNAT := Rule{Family: Both, Table: NAT, Chain: outbound, Match: Match{Proto: TCP}, Target: tproxy(1, 1), Why: "impossible"}
		err := applyRules(t.Context(), b, append(Rules(fullConfig()), inNAT))
		if err == nil || b != Legacy && !strings.Contains(err.Error(), "impossible") { // legacy blames the COMMIT
			t.Errorf("error does not name the rule: %v", err)
		}
		if d := cmp.Diff(before, saved(t)); d != "" {
			t.Errorf("the failure changed something:\n%s", d)
		}
	})
}

func TestCancelledApplyChangesNothing(t *testing.T) {
	newPod(t)
	before := saved(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Apply(ctx, fullConfig(), quiet()); err == nil {
		t.Error("no error")
	}
	if d := cmp.Diff(before, saved(t)); d != "" {
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
	v4only := listedConfig()
	v4only.IPv6 = false
	forced := v4only
	forced.Backend = Legacy
	forcedV6 := listedConfig()
	forcedV6.Backend = NFT
	for _, tt := range []struct {
		name   string
		tools  []string
		config Config
		want   string // in the error; none: it works
	}{
		{"nothing", nil, listedConfig(), ""},
		{"no IPv6 binaries, no IPv6", []string{"iptables-nft-save", "iptables-nft-restore"}, v4only, ""},
		{"no IPv6 binaries, IPv6", []string{"iptables-nft-save", "iptables-nft-restore"}, listedConfig(), ""},
		{"no IPv6 binaries, IPv6, forced", []string{"iptables-nft-save", "iptables-nft-restore"}, forcedV6, "no iptables back end for IPv4 and IPv6"},
		{"plain", []string{"iptables-save", "iptables-restore", "ip6tables-save", "ip6tables-restore"}, listedConfig(), ""},
		{"not the forced one", []string{"iptables-nft-save", "iptables-nft-restore"}, forced, "legacy wanted"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			newPod(t)
			before, path := saved(t), os.Getenv("PATH")
			onlyTools(t, tt.tools...)
			err := Apply(t.Context(), tt.config, quiet())
			t.Setenv("PATH", path)
			after := saved(t)
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
