package iptables_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	reader "github.com/coreos/go-iptables/iptables"
	"github.com/google/go-cmp/cmp"

	"understudy.mesh/iptables"
	"understudy.mesh/iptables/internal/saved"
	"understudy.mesh/iptables/rule"
	"understudy.mesh/tests/capture"
)

// Somebody else's reader of iptables finds the rules that we say are in force, chain by chain,
// and no others of ours. It runs `iptables --list-rules` and `--list`, which print
// rules in other ways than iptables-save does.
func TestAnotherReaderFindsTheRules(t *testing.T) {
	transparent := capture.Full()
	transparent.TPROXY, transparent.DropInvalid = true, true
	transparent.VirtInterfaces, transparent.ExcludeInterfaces = []string{"tap0", "tap1"}, []string{"eth1"}
	eachBackend(t, func(t *testing.T, b rule.Backend) {
		for _, c := range []iptables.Config{capture.Full(), transparent, capture.Listed()} {
			c.Backend = b
			apply(t, c)
			for _, program := range []rule.Backend{rule.NFT, rule.Legacy} {
				rules := iptables.Rules(c)
				if program != b {
					rules = nil
				}
				readBy(t, program, rule.IPv4, reader.ProtocolIPv4, rules)
				readBy(t, program, rule.IPv6, reader.ProtocolIPv6, rules)
			}
		}
	})
}

func readBy(t *testing.T, b rule.Backend, f rule.Family, protocol reader.Protocol, rules []rule.Rule) {
	t.Helper()
	name := strings.TrimSuffix(program(b, f, ""), "-")
	other, err := reader.New(reader.IPFamily(protocol), reader.Path(name), reader.Timeout(5))
	if err != nil {
		t.Fatal(err)
	}
	if major, minor, _ := other.GetIptablesVersion(); major != 1 || minor < 8 {
		t.Errorf("%s: version %d.%d, want 1.8 or later: 1.8 is the first with two kinds", name, major, minor)
	}
	for _, table := range rule.Tables {
		want := map[string][]saved.Rule{rule.PreRouting: nil, rule.Output: nil}
		for _, tab := range saved.Print(rules, f) {
			if tab.Name != table {
				continue
			}
			for _, chain := range tab.Chains {
				want[chain] = nil
			}
			for _, r := range tab.Rules {
				at := len(want[r.Chain])
				if r.Top {
					at = 0
				}
				want[r.Chain] = slices.Insert(want[r.Chain], at, r)
			}
		}
		chains, err := other.ListChains(string(table))
		if err != nil {
			t.Fatal(err)
		}
		for _, chain := range chains {
			if _, ok := want[chain]; !ok && rule.IsOurChain(chain) {
				t.Errorf("%s: chain %s of %s is not wanted", name, chain, table)
			}
		}
		for chain, rules := range want {
			readChain(t, other, fmt.Sprintf("%s -t %s", name, table), table, chain, f, rules)
		}
	}
}

func readChain(t *testing.T, other *reader.IPTables, name string, table rule.Table, chain string, f rule.Family, want []saved.Rule) {
	t.Helper()
	listed, err := other.List(string(table), chain)
	if err != nil {
		t.Fatalf("%s: %s: %v", name, chain, err)
	}
	var lines, rows []string
	for _, r := range want {
		lines = append(lines, "-A "+chain+" "+r.Spec)
		rows = append(rows, rowOf(r, f))
	}
	listed = slices.DeleteFunc(listed, func(line string) bool { return !strings.HasPrefix(line, "-A ") }) // the chain itself
	text := strings.ReplaceAll(strings.Join(listed, "\n"), `\'`, "'")                                     // --list-rules quotes for a shell
	if d := cmp.Diff(strings.Join(lines, "\n"), text); d != "" {
		t.Errorf("%s: %s: -want +listed:\n%s", name, chain, d)
	}
	stats, err := other.Stats(string(table), chain)
	if err != nil {
		t.Fatalf("%s: %s: %v", name, chain, err)
	}
	var read []string
	for _, s := range stats {
		read = append(read, strings.Join([]string{s[2], protocols.Replace(s[3]), s[5], s[6], s[7], s[8]}, " "))
	}
	if d := cmp.Diff(strings.Join(rows, "\n"), strings.Join(read, "\n")); d != "" {
		t.Errorf("%s: %s: -want +counted:\n%s", name, chain, d)
	}
}

// protocols are those of --list, which has names or, from 1.8.9 on, numbers.
var protocols = strings.NewReplacer("6", "tcp", "17", "udp", "all", "0")

// rowOf is what --list prints of a rule: target, protocol, interfaces and addresses.
func rowOf(r saved.Rule, f rule.Family) string {
	words := strings.Fields(r.Key)
	any := "0.0.0.0/0"
	if f == rule.IPv6 {
		any = "::/0"
	}
	value := func(flag, otherwise string) string {
		i := slices.Index(words, flag)
		switch {
		case i < 0:
			return otherwise
		case i > 0 && words[i-1] == "!":
			return "!" + words[i+1]
		}
		return words[i+1]
	}
	return fmt.Sprintf("%s %s %s %s %s %s", r.Jump, value("-p", "0"), value("-i", "*"), value("-o", "*"), value("-s", any), value("-d", any))
}
