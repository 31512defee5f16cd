package saved

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"

	"understudy.mesh/iptables/rule"
)

// Print returns the rules of one family as iptables-save would give them back.
func Print(rules []rule.Rule, family rule.Family) Ruleset {
	var s Ruleset
	for _, name := range rule.Tables {
		t := &Table{Name: name}
		for _, r := range rules {
			if r.Table != name {
				continue
			}
			for _, line := range lines(r, family) {
				saved, ok := parseRule(line)
				if !ok {
					panic("iptables: a rule of ours cannot be read back: " + line)
				}
				t.Rules = append(t.Rules, saved)
				t.addChain(r.Chain)
				t.addChain(r.Target.Verdict)
			}
		}
		if len(t.Rules) > 0 {
			s = append(s, t)
		}
	}
	return s
}

func (t *Table) addChain(name string) {
	if rule.IsOurChain(name) && !slices.Contains(t.Chains, name) {
		t.Chains = append(t.Chains, name)
	}
}

// Wanted are the rules that are wanted in one back end; nil is none.
type Wanted struct {
	Rules  []rule.Rule
	v4, v6 func() Ruleset
}

// Want returns rules to be wanted.
func Want(rules []rule.Rule) *Wanted {
	return &Wanted{
		Rules: rules,
		v4:    sync.OnceValue(func() Ruleset { return Print(rules, rule.IPv4) }),
		v6:    sync.OnceValue(func() Ruleset { return Print(rules, rule.IPv6) }),
	}
}

// Ruleset returns the rules of one IP version as iptables-save would print them.
func (d *Wanted) Ruleset(f rule.Family) Ruleset {
	switch {
	case d == nil:
		return nil
	case f == rule.IPv4:
		return d.v4()
	}
	return d.v6()
}

// State is what a back end holds for one IP version, in the form of iptables.
type State struct {
	rule.Holding
	All  Ruleset
	Ours Ruleset
}

// maxMultiport is how many ports one rule of the multiport match takes:
// iptables-extensions(8).
const maxMultiport = 15

// lines returns r as iptables-save prints it for one IP version, to be compared with what
// is there: a line for each address and for each maxMultiport ports.
func lines(r rule.Rule, f rule.Family) []string {
	r, ok := r.ForFamily(f)
	if !ok {
		return nil
	}
	command := "-A "
	if r.Top {
		command = "-I "
	}
	rest := interfaceArgs(r.Match)
	ports, after := portArgs(r.Match), stateArgs(r.Match)
	if r.Why != "" {
		after = append(after, "-m", "comment", "--comment", strconv.Quote(rule.CommentMark+r.Why))
	}
	after = append(after, targetArgs(r.Target, f)...)
	var out []string
	for _, p := range ports {
		end := strings.Join(slices.Concat(rest, p, after), " ")
		for _, src := range addressArgs("-s", r.Match.Srcs, false) {
			for _, dst := range addressArgs("-d", r.Match.Dsts, r.Match.NotDst) {
				out = append(out, command+r.Chain+" "+src+dst+end)
			}
		}
	}
	return out
}

// addressArgs returns one match for each address, or one that matches all.
func addressArgs(flag string, list []netip.Prefix, not bool) []string {
	if len(list) == 0 {
		return []string{""}
	}
	if not {
		flag = "! " + flag
	}
	out := make([]string, len(list))
	for i, p := range list {
		if p.Bits() > 0 { // iptables-save leaves out /0
			out[i] = flag + " " + p.String() + " "
		}
	}
	return out
}

func interfaceArgs(m rule.Match) (a []string) {
	if m.In != "" {
		a = append(a, "-i", m.In)
	}
	if m.Out != "" {
		a = append(a, "-o", m.Out)
	}
	if m.Proto != "" {
		a = append(a, "-p", string(m.Proto))
	}
	return a
}

// portArgs returns the match of each rule that the ports take.
func portArgs(m rule.Match) [][]string {
	var src []string
	if m.SrcPort != 0 {
		src = []string{"-m", string(m.Proto), "--sport", portText(m.SrcPort)}
	}
	if len(m.DstPorts) == 0 {
		return [][]string{src}
	}
	var out [][]string
	for chunk := range slices.Chunk(m.DstPorts, maxMultiport) {
		module, flag := string(m.Proto), "--dport"
		texts := make([]string, len(chunk))
		for i, p := range chunk {
			texts[i] = portText(p)
		}
		if len(texts) > 1 {
			module, flag = "multiport", "--dports"
		}
		a := slices.Concat(src, []string{"-m", module})
		if m.NotPorts {
			a = append(a, "!")
		}
		out = append(out, append(a, flag, strings.Join(texts, ",")))
	}
	return out
}

// stateArgs returns what concerns marks, conntrack and owners.
func stateArgs(m rule.Match) (a []string) {
	add := func(not bool, words ...string) {
		if not {
			words = slices.Insert(words, len(words)-2, "!")
		}
		a = append(a, words...)
	}
	if m.Mark != 0 {
		add(m.NotMark, "-m", "mark", "--mark", hex(m.Mark))
	}
	if m.ConnMark != 0 {
		add(false, "-m", "connmark", "--mark", hex(m.ConnMark))
	}
	if m.State != "" {
		add(false, "-m", "conntrack", "--ctstate", string(m.State))
	}
	for _, o := range m.Owners {
		flag := "--uid-owner"
		if o.Group {
			flag = "--gid-owner"
		}
		add(o.Not, "-m", "owner", flag, strconv.FormatUint(uint64(o.ID), 10))
	}
	return a
}

func targetArgs(t rule.Target, f rule.Family) []string {
	a := []string{"-j", t.Verdict}
	switch t.Verdict {
	case "REDIRECT":
		return append(a, "--to-ports", portText(t.Port))
	case "CT":
		return append(a, "--zone", strconv.Itoa(int(t.Zone)))
	case "MARK":
		return append(a, "--set-xmark", hex(t.Mark)+"/0xffffffff")
	case "CONNMARK":
		return append(a, t.Option, "--nfmask", "0xffffffff", "--ctmask", "0xffffffff")
	case "TPROXY":
		any := netip.IPv4Unspecified()
		if f == rule.IPv6 {
			any = netip.IPv6Unspecified()
		}
		return append(a, "--on-port", portText(t.Port), "--on-ip", any.String(), "--tproxy-mark", hex(t.Mark)+"/0xffffffff")
	}
	return a
}

func portText(p uint16) string { return strconv.Itoa(int(p)) }

func hex(mark uint32) string { return fmt.Sprintf("%#x", mark) }
