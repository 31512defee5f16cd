package iptables

import (
	"bytes"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// ruleset is one family's state in one back end, as iptables-save prints it.
type ruleset []*table

type table struct {
	name   Table
	heads  []string // the chain lines, verbatim: ":OUTPUT ACCEPT [0:0]"
	chains []string // the chains that are not built in
	rules  []savedRule
}

// savedRule is one rule line. Two rules are the same when their keys are: the
// comment's place among the matches and the spelling of addresses differ between
// versions of iptables.
type savedRule struct {
	chain   string
	top     bool   // -I
	spec    string // what follows the chain, verbatim: what -D must repeat
	key     string
	jump    string // target of -j or -g
	comment string
}

// find returns the table called name, or nil.
func (s ruleset) find(name Table) *table {
	for _, t := range s {
		if t.name == name {
			return t
		}
	}
	return nil
}

// parseRuleset reads the output of iptables-save, or the input of iptables-restore
// as Render writes it. Lines that are neither are skipped: iptables-nft-save has
// warnings among its output.
func parseRuleset(text string) ruleset {
	var s ruleset
	var t *table
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		switch {
		case strings.HasPrefix(line, "*"):
			t = &table{name: Table(strings.TrimSpace(line[1:]))}
			s = append(s, t)
		case t == nil:
		case line == "COMMIT":
			t = nil
		case strings.HasPrefix(line, ":"):
			t.heads = append(t.heads, line)
			if f := strings.Fields(line[1:]); len(f) > 1 && f[1] == "-" {
				t.chains = append(t.chains, f[0])
			}
		default:
			if r, ok := parseRule(line); ok {
				t.rules = append(t.rules, r)
			}
		}
	}
	return s
}

func parseRule(line string) (savedRule, bool) {
	command, rest, _ := strings.Cut(line, " ")
	chain, spec, _ := strings.Cut(rest, " ")
	if chain == "" || command != "-A" && command != "-I" {
		return savedRule{}, false
	}
	r := savedRule{chain: chain, top: command == "-I", spec: spec}
	return r, r.readPlain() || r.readWords()
}

// readWords reads a rule as iptables-restore does.
func (r *savedRule) readWords() bool {
	words, ok := splitWords(r.spec)
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
			r.comment = next
			i++
			continue
		case (word == "-s" || word == "-d") && next != "":
			key = append(key, word, canonicalCIDR(next))
			i++
			continue
		case word == "-j" || word == "-g":
			r.jump = next
		}
		key = append(key, word)
	}
	r.key = strings.Join(key, " ")
	return ok
}

// readPlain reads what almost every rule is, without taking it apart: there are
// thousands of them. It leaves all others to readWords.
func (r *savedRule) readPlain() bool {
	const comment = `-m comment --comment "`
	key, said := r.spec, ""
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
	r.key, r.comment, r.jump = key, said, target
	return true
}

// isPlain reports whether the words of a rule are what is between its blanks, one
// each, and none says what readWords has to look at.
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

// canonicalCIDR spells a CIDR as net/netip does: inet_ntop has "::127.0.0.53" for
// what netip calls "::7f00:35".
func canonicalCIDR(s string) string {
	if !strings.Contains(s, ":") { // IPv4 has one spelling only
		return s
	}
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.String()
	}
	return s
}

// splitWords splits a line as iptables-restore does: at blanks, with double quotes
// around words that have some and backslashes before quotes in them. It fails when
// a quote is left open.
func splitWords(line string) (words []string, ok bool) {
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
	if line[0] == '"' { // by far most: one pair around a word, and nothing to unescape
		end := strings.IndexAny(line[1:], "\"\\") + 1
		if end > 0 && line[end] == '"' && strings.HasPrefix(line[end+1:], " ") {
			return line[1:end], line[end+1:], true
		}
	}
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

// ours returns the part of s that belongs to this package; tables without any are
// left out.
func (s ruleset) ours() ruleset {
	istio := s.hasIstioRules()
	var out ruleset
	for _, t := range s {
		o := &table{name: t.name}
		for _, c := range t.chains {
			if isOurChain(c) {
				o.chains = append(o.chains, c)
			}
		}
		for _, r := range t.rules {
			if r.isOurs() || istio && r.isIstioShape(t.name) {
				o.rules = append(o.rules, r)
			}
		}
		if len(o.chains)+len(o.rules) > 0 {
			out = append(out, o)
		}
	}
	return out
}

// hasRules reports whether anybody has put anything into s.
func (s ruleset) hasRules() bool {
	return slices.ContainsFunc(s, func(t *table) bool { return len(t.rules)+len(t.chains) > 0 })
}

func (r savedRule) isOurs() bool {
	return r.touchesOurChain() || strings.HasPrefix(r.comment, commentMark)
}

func (r savedRule) touchesOurChain() bool { return isOurChain(r.chain) || isOurChain(r.jump) }

// hasIstioRules reports whether Istio's own istio-iptables has been here: its rules
// have no comments.
func (s ruleset) hasIstioRules() bool {
	for _, t := range s {
		for _, r := range t.rules {
			if r.touchesOurChain() && !strings.HasPrefix(r.comment, commentMark) {
				return true
			}
		}
	}
	return false
}

// istioShapes are the rules that Istio's istio-iptables, of this and earlier years,
// puts into built-in chains without a jump to a chain of its own: excluded and
// virtual interfaces, DNS, conntrack zones, TPROXY marks (1337 and 1338).
var istioShapes = map[Table]*regexp.Regexp{
	NAT: regexp.MustCompile(`^(PREROUTING -i \S+ -j RETURN|OUTPUT -o \S+ -j RETURN` +
		`|OUTPUT -p udp -m udp --dport 53 -m owner --[ug]id-owner \d+ -j RETURN` +
		`|OUTPUT (-d \S+ )?-p udp -m udp --dport 53 -j REDIRECT --to-ports 15053)$`),
	Raw: regexp.MustCompile(`^(OUTPUT|PREROUTING) (-[sd] \S+ )?-p udp -m udp --[sd]port (53|15053)` +
		`( -m owner --[ug]id-owner \d+)? -j CT --zone [12]$`),
	Mangle: regexp.MustCompile(`^(OUTPUT|PREROUTING) .*(--mark 0x539|--set-xmark 0x53a)\b`),
}

func (r savedRule) isIstioShape(name Table) bool {
	shape := istioShapes[name]
	return shape != nil && shape.MatchString(r.chain+" "+r.key)
}

// tproxyMark returns the mark that a rule of TPROXY mode gives to packets.
func (r savedRule) tproxyMark() (mark uint32, ok bool) {
	if r.jump != tproxyTarget {
		return 0, false
	}
	_, after, _ := strings.Cut(r.key, "--tproxy-mark ")
	word, _, _ := strings.Cut(after, " ")
	mark, mask, ok := parseMark(word)
	return mark, ok && mask == fullMask
}

// parseMark reads "0x539" or "0x539/0xffff".
func parseMark(s string) (value, mask uint32, ok bool) {
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

// fullMask is the mask of a policy rule that compares all bits of a mark.
const fullMask = 0xffffffff

// emptied returns t with its built-in chains only, without rules.
func (t *table) emptied() *table {
	builtin := slices.DeleteFunc(slices.Clone(t.heads), func(head string) bool {
		return slices.ContainsFunc(t.chains, func(c string) bool { return headChain(head) == c })
	})
	return &table{name: t.name, heads: builtin}
}

// identical compares verbatim, but for the packet counters of chains.
func (t *table) identical(o *table) bool {
	return slices.EqualFunc(t.heads, o.heads, func(a, b string) bool { return headPolicy(a) == headPolicy(b) }) &&
		slices.EqualFunc(t.rules, o.rules, func(a, b savedRule) bool { return a.chain == b.chain && a.spec == b.spec })
}

func (t *table) write(out *bytes.Buffer) {
	fmt.Fprintf(out, "*%s\n", t.name)
	for _, h := range t.heads {
		fmt.Fprintln(out, h)
	}
	for _, r := range t.rules {
		fmt.Fprintf(out, "-A %s %s\n", r.chain, r.spec)
	}
	out.WriteString("COMMIT\n")
}

// headChain returns CHAIN of ":CHAIN POLICY [packets:bytes]".
func headChain(head string) string {
	chain, _, _ := strings.Cut(head[1:], " ")
	return chain
}

// headPolicy returns ":CHAIN POLICY".
func headPolicy(head string) string {
	without, _, _ := strings.Cut(head, " [")
	return without
}

// why is the purpose in the comment of a rule of ours.
func (r savedRule) why() string {
	why, ours := strings.CutPrefix(r.comment, commentMark)
	if !ours {
		return ""
	}
	return why
}
