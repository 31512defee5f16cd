// Package saved owns rules as iptables-save prints them, in which form every back end can
// be looked at.
package saved

import (
	"bytes"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"understudy.mesh/iptables/rule"
)

// Ruleset is one family's state in one back end, as iptables-save prints it.
type Ruleset []*Table

// Table is one table of a Ruleset.
type Table struct {
	Name   rule.Table
	Heads  []string // the chain lines, verbatim: ":OUTPUT ACCEPT [0:0]"
	Chains []string // the chains that are not built in
	Rules  []Rule
}

// Rule is one rule line. Two are the same when their keys are: the comment's place and
// the spelling of addresses differ between versions of iptables.
type Rule struct {
	Chain   string
	Top     bool   // -I
	Spec    string // what follows the chain, verbatim: what -D must repeat
	Key     string
	Jump    string // target of -j or -g
	Comment string
}

// Find returns the table called name, or nil.
func (s Ruleset) Find(name rule.Table) *Table {
	for _, t := range s {
		if t.Name == name {
			return t
		}
	}
	return nil
}

// Parse reads the output of iptables-save, or the input of iptables-restore. Other lines
// are skipped: iptables-nft-save has warnings among its output.
func Parse(text string) Ruleset {
	var s Ruleset
	var t *Table
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		switch {
		case strings.HasPrefix(line, "*"):
			t = &Table{Name: rule.Table(strings.TrimSpace(line[1:]))}
			s = append(s, t)
		case t == nil:
		case line == "COMMIT":
			t = nil
		case strings.HasPrefix(line, ":"):
			t.Heads = append(t.Heads, line)
			if f := strings.Fields(line[1:]); len(f) > 1 && f[1] == "-" {
				t.Chains = append(t.Chains, f[0])
			}
		default:
			if r, ok := parseRule(line); ok {
				t.Rules = append(t.Rules, r)
			}
		}
	}
	return s
}

func parseRule(line string) (Rule, bool) {
	command, rest, _ := strings.Cut(line, " ")
	chain, spec, _ := strings.Cut(rest, " ")
	if chain == "" || command != "-A" && command != "-I" {
		return Rule{}, false
	}
	r := Rule{Chain: chain, Top: command == "-I", Spec: spec}
	return r, r.readPlain() || r.readWords()
}

// readWords reads a rule as iptables-restore does.
func (r *Rule) readWords() bool {
	words, ok := SplitWords(r.Spec)
	key := words[:0] // of which never more is written than was read
	for i := 0; i < len(words); i++ {
		word, next := words[i], ""
		if i+1 < len(words) {
			next = words[i+1]
		}
		switch {
		case word == "-m" && next == "comment":
			i++
			continue
		case word == "--comment":
			r.Comment = next
			i++
			continue
		case (word == "-s" || word == "-d") && next != "":
			key = append(key, word, canonicalCIDR(next))
			i++
			continue
		case word == "-j" || word == "-g":
			r.Jump = next
		}
		key = append(key, word)
	}
	r.Key = strings.Join(key, " ")
	return ok
}

// readPlain reads most rules, of which there are thousands, without taking them apart.
// It leaves the others to readWords.
func (r *Rule) readPlain() bool {
	const comment = `-m comment --comment "`
	key, said := r.Spec, ""
	if i := strings.Index(key, comment); i == 0 || i > 0 && key[i-1] == ' ' {
		text, rest, ok := strings.Cut(key[i+len(comment):], `" `)
		if !ok || strings.ContainsAny(text, `"\`) {
			return false
		}
		key, said = key[:i]+rest, text
	}
	jump := strings.LastIndex(key, " -j ")
	if jump < 0 || !isPlain(key) {
		return false
	}
	target, _, _ := strings.Cut(key[jump+len(" -j "):], " ")
	if target == "" || target[0] == '-' {
		return false
	}
	r.Key, r.Comment, r.Jump = key, said, target
	return true
}

// isPlain reports whether single blanks divide the words, and none is readWords' to see.
func isPlain(spec string) bool {
	last := byte(' ')
	for i := range len(spec) {
		switch c := spec[i]; {
		case c == '"', c == '\\', c == '\t', c == ':', c == ' ' && last == ' ':
			return false
		default:
			last = c
		}
	}
	return last != ' ' && !strings.Contains(spec, "comment") && !strings.Contains(spec, "-g") &&
		!strings.Contains(spec, "-s -") && !strings.Contains(spec, "-d -") && !strings.HasSuffix(spec, "-j")
}

// canonicalCIDR spells "::127.0.0.53" of inet_ntop as net/netip does, "::7f00:35".
func canonicalCIDR(s string) string {
	if !strings.Contains(s, ":") { // IPv4 has one spelling only
		return s
	}
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.String()
	}
	return s
}

// SplitWords splits a line as iptables-restore does: at blanks, with double quotes and
// backslashes in them. It fails when a quote is left open.
func SplitWords(line string) (words []string, ok bool) {
	words = make([]string, 0, strings.Count(line, " ")+1)
	for line != "" {
		if line[0] == ' ' || line[0] == '\t' {
			line = line[1:]
			continue
		}
		var word string
		if end := strings.IndexByte(line, ' '); end >= 0 && !strings.ContainsAny(line[:end], "\"\t") {
			words, line = append(words, line[:end]), line[end:]
			continue
		}
		if word, line, ok = quotedWord(line); !ok {
			return nil, false
		}
		words = append(words, word)
	}
	return words, true
}

// quotedWord returns the first word of line, which may have quotes, and what follows it.
func quotedWord(line string) (word, rest string, ok bool) {
	var b strings.Builder
	inQuotes, escaped := false, false
	for i := 0; i < len(line); i++ {
		c := line[i]
		switch {
		case escaped:
			b.WriteByte(c)
			escaped = false
		case inQuotes && c == '\\':
			escaped = true
		case c == '"':
			inQuotes = !inQuotes
		case !inQuotes && (c == ' ' || c == '\t'):
			return b.String(), line[i:], true
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), "", !inQuotes && !escaped
}

// Ours returns the part of s that is ours, without empty tables.
func (s Ruleset) Ours() Ruleset {
	istio := s.hasIstioRules()
	var out Ruleset
	for _, t := range s {
		o := &Table{Name: t.Name}
		for _, c := range t.Chains {
			if rule.IsOurChain(c) {
				o.Chains = append(o.Chains, c)
			}
		}
		for _, r := range t.Rules {
			if r.IsOurs() || istio && r.isIstioShape(t.Name) {
				o.Rules = append(o.Rules, r)
			}
		}
		if len(o.Chains)+len(o.Rules) > 0 {
			out = append(out, o)
		}
	}
	return out
}

// HasRules reports whether anybody has put anything into s.
func (s Ruleset) HasRules() bool {
	return slices.ContainsFunc(s, func(t *Table) bool { return len(t.Rules)+len(t.Chains) > 0 })
}

// IsOurs reports whether a rule is in a chain of ours, leads to one or has our comment.
func (r Rule) IsOurs() bool {
	return r.touchesOurChain() || strings.HasPrefix(r.Comment, rule.CommentMark)
}

func (r Rule) touchesOurChain() bool { return rule.IsOurChain(r.Chain) || rule.IsOurChain(r.Jump) }

// hasIstioRules reports whether istio-iptables has been here: its rules have no comments.
func (s Ruleset) hasIstioRules() bool {
	istios := func(r Rule) bool { return r.touchesOurChain() && !strings.HasPrefix(r.Comment, rule.CommentMark) }
	return slices.ContainsFunc(s, func(t *Table) bool { return slices.ContainsFunc(t.Rules, istios) })
}

// istioShapes are the rules of istio-iptables in built-in chains without a jump to its
// own: interfaces, DNS, conntrack zones, TPROXY marks (1337 and 1338).
var istioShapes = map[rule.Table]*regexp.Regexp{
	rule.NAT: regexp.MustCompile(`^(PREROUTING -i \S+ -j RETURN|OUTPUT -o \S+ -j RETURN` +
		`|OUTPUT -p udp -m udp --dport 53 -m owner --[ug]id-owner \d+ -j RETURN` +
		`|OUTPUT (-d \S+ )?-p udp -m udp --dport 53 -j REDIRECT --to-ports 15053)$`),
	rule.Raw: regexp.MustCompile(`^(OUTPUT|PREROUTING) (-[sd] \S+ )?-p udp -m udp --[sd]port (53|15053)` +
		`( -m owner --[ug]id-owner \d+)? -j CT --zone [12]$`),
	rule.Mangle: regexp.MustCompile(`^(OUTPUT|PREROUTING) .*(--mark 0x539|--set-xmark 0x53a)\b`),
}

func (r Rule) isIstioShape(name rule.Table) bool {
	shape := istioShapes[name]
	return shape != nil && shape.MatchString(r.Chain+" "+r.Key)
}

// TproxyMark returns the mark that a rule of TPROXY mode gives to packets.
func (r Rule) TproxyMark() (mark uint32, ok bool) {
	if r.Jump != rule.TPROXY {
		return 0, false
	}
	_, after, _ := strings.Cut(r.Key, "--tproxy-mark ")
	word, _, _ := strings.Cut(after, " ")
	mark, mask, ok := ParseMark(word)
	return mark, ok && mask == rule.FullMask
}

// ParseMark reads "0x539" or "0x539/0xffff".
func ParseMark(s string) (value, mask uint32, ok bool) {
	v, m, masked := strings.Cut(s, "/")
	n, err := strconv.ParseUint(v, 0, 32)
	if err != nil {
		return 0, 0, false
	}
	if !masked {
		return uint32(n), ^uint32(0), true
	}
	bits, err := strconv.ParseUint(m, 0, 32)
	return uint32(n), uint32(bits), err == nil
}

// Emptied returns t with its built-in chains only, without rules.
func (t *Table) Emptied() *Table {
	builtin := slices.DeleteFunc(slices.Clone(t.Heads), func(head string) bool {
		return slices.ContainsFunc(t.Chains, func(c string) bool { return HeadChain(head) == c })
	})
	return &Table{Name: t.Name, Heads: builtin}
}

// Identical compares verbatim, but for the packet counters of chains.
func (t *Table) Identical(o *Table) bool {
	return slices.EqualFunc(t.Heads, o.Heads, func(a, b string) bool { return headPolicy(a) == headPolicy(b) }) &&
		slices.EqualFunc(t.Rules, o.Rules, func(a, b Rule) bool { return a.Chain == b.Chain && a.Spec == b.Spec })
}

// Write writes the table as input of iptables-restore.
func (t *Table) Write(out *bytes.Buffer) {
	fmt.Fprintf(out, "*%s\n", t.Name)
	for _, h := range t.Heads {
		fmt.Fprintln(out, h)
	}
	for _, r := range t.Rules {
		fmt.Fprintf(out, "-A %s %s\n", r.Chain, r.Spec)
	}
	out.WriteString("COMMIT\n")
}

// HeadChain returns CHAIN of ":CHAIN POLICY [packets:bytes]".
func HeadChain(head string) string {
	chain, _, _ := strings.Cut(head[1:], " ")
	return chain
}

// headPolicy returns ":CHAIN POLICY".
func headPolicy(head string) string {
	without, _, _ := strings.Cut(head, " [")
	return without
}

// Why is the purpose in the comment of a rule of ours.
func (r Rule) Why() string {
	why, ours := strings.CutPrefix(r.Comment, rule.CommentMark)
	if !ours {
		return ""
	}
	return why
}
