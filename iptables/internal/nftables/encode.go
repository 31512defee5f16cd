package nftables

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"understudy.mesh/iptables/rule"
)

// tables returns the tables of nf_tables for some rules, a rule there for each IP version
// whose addresses it names. Lists are sets: a packet meets no more rules when they grow.
func tables(rules []rule.Rule) (out []*nfTable) {
	for _, name := range rule.Tables {
		t := &nfTable{name: name}
		for _, chain := range []string{rule.PreRouting, rule.Output} {
			t.chain(chain)
		}
		for _, r := range rules {
			if r.Table == name {
				t.add(r)
			}
		}
		t.chains = slices.DeleteFunc(t.chains, func(c *nfChain) bool {
			return c.hook != (nfHook{}) && len(c.rules) == 0 // nothing enters there
		})
		if len(t.chains) > 0 {
			t.decode()
			out = append(out, t)
		}
	}
	return out
}

// chain returns a chain by its name in Rule, made if need be.
func (t *nfTable) chain(name string) *nfChain {
	if c := t.find(nfChainName(name)); c != nil {
		return c
	}
	hook := ourHook(t.name, name)
	c := &nfChain{name: nfChainName(name), hook: hook, attrs: hook.attrs()}
	t.chains = append(t.chains, c)
	return c
}

func (t *nfTable) add(r rule.Rule) {
	parts := []rule.Rule{r}
	if len(r.Match.Srcs)+len(r.Match.Dsts) > 0 {
		parts = nil
		for _, f := range []rule.Family{rule.IPv4, rule.IPv6} {
			if part, ok := r.ForFamily(f); ok {
				parts = append(parts, part)
			}
		}
	}
	var rules []nfRule
	for _, p := range parts {
		rules = append(rules, t.encode(p))
		if p.Target.Verdict == rule.TPROXY {
			rules = append(rules, t.encode(unclaimed(p)))
		}
	}
	c, at := t.chain(r.Chain), 0
	if !r.Top {
		at = len(c.rules)
	}
	c.rules = slices.Insert(c.rules, at, rules...)
	if rule.IsOurChain(r.Target.Verdict) {
		t.chain(r.Target.Verdict)
	}
}

// unclaimed is the rule behind a TPROXY one: iptables drops a packet for which there is no
// socket; in nf_tables it would go on, past Envoy.
func unclaimed(r rule.Rule) rule.Rule {
	r.Target = rule.Drop
	return r
}

// nfWriter writes one rule in two forms: the expressions of the kernel, and nft's words.
type nfWriter struct {
	table *nfTable
	why   string
	exprs []expr.Any
	words []string
}

// register is the one that every rule of ours uses.
const register = 1

func (t *nfTable) encode(r rule.Rule) nfRule {
	w := &nfWriter{table: t, why: r.Why}
	w.match(r.Match, r.Family)
	w.add("counter", &expr.Counter{})
	w.target(r.Target, r.Family)
	var out nfRule
	for _, e := range w.exprs {
		b, err := expr.Marshal(unix.NFPROTO_INET, e)
		if err != nil {
			panic(fmt.Sprintf("iptables: an expression of ours cannot be written: %v", err))
		}
		out.exprs = appendNested(out.exprs, unix.NFTA_LIST_ELEM, b)
	}
	if r.Why != "" {
		comment := rule.CommentMark + r.Why
		out.userdata = userdata.AppendString(nil, userdata.TypeComment, comment)
		w.words = append(w.words, fmt.Sprintf("comment %q", comment))
	}
	out.text = strings.Join(w.words, " ")
	return out
}

func (w *nfWriter) add(words string, exprs ...expr.Any) {
	w.exprs = append(w.exprs, exprs...)
	if words != "" {
		w.words = append(w.words, words)
	}
}

// compare matches what load puts into the register with one value; without words where
// nft leaves out what follows from the next match.
func (w *nfWriter) compare(words, value string, not bool, data []byte, load ...expr.Any) {
	op := expr.CmpOpEq
	if not {
		op, value = expr.CmpOpNeq, "!= "+value
	}
	if words != "" {
		words += " " + value
	}
	w.add(words, append(load, &expr.Cmp{Op: op, Register: register, Data: data})...)
}

// lookup matches what load puts into the register with a set.
func (w *nfWriter) lookup(words string, not bool, s *nfSet, load expr.Any) {
	name := w.table.addSet(w.why, s)
	value := "@" + name
	if not {
		value = "!= " + value
	}
	w.add(words+" "+value, load, &expr.Lookup{SourceRegister: register, SetName: name, Invert: not})
}

// addSet names a set after the purpose of its rule; one that is there already is shared.
func (t *nfTable) addSet(why string, s *nfSet) string {
	base := slug(why)
	switch s.key {
	case keyIPv4:
		base += "-ipv4"
	case keyIPv6:
		base += "-ipv6"
	}
	name := base
	for n := 2; ; n++ {
		there := t.findSet(name)
		switch {
		case there == nil:
			s.name = name
			t.sets = append(t.sets, s)
			return name
		case there.sameContent(s):
			return name
		}
		name = fmt.Sprintf("%s-%d", base, n)
	}
}

// slug makes a name of nf_tables of a sentence: letters, digits and hyphens.
func slug(why string) string {
	words := strings.FieldsFunc(strings.ToLower(why), func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') })
	if len(words) == 0 || words[0][0] < 'a' {
		words = append([]string{"set"}, words...)
	}
	return strings.Join(words, "-")
}

func (w *nfWriter) match(m rule.Match, f rule.Family) {
	w.iface("iifname", m.In, expr.MetaKeyIIFNAME)
	w.iface("oifname", m.Out, expr.MetaKeyOIFNAME)
	if f != rule.Both {
		words := "meta nfproto"
		if selective(m.Srcs) || selective(m.Dsts) {
			words = ""
		}
		w.compare(words, strings.ToLower(f.String()), false, []byte{familyNumbers[f]}, meta(expr.MetaKeyNFPROTO))
	}
	w.addresses("saddr", m.Srcs, false)
	w.addresses("daddr", m.Dsts, m.NotDst)
	w.ports(m)
	if m.Mark != 0 {
		w.compare("meta mark", markText(m.Mark), m.NotMark, native32(m.Mark), meta(expr.MetaKeyMARK))
	}
	if m.ConnMark != 0 {
		w.compare("ct mark", markText(m.ConnMark), false, native32(m.ConnMark), &expr.Ct{Register: register, Key: expr.CtKeyMARK})
	}
	if m.State != "" {
		state := nftStates[m.State]
		w.add("ct state "+state.name, &expr.Ct{Register: register, Key: expr.CtKeySTATE}, mask(native32(state.bits)),
			&expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: native32(0)})
	}
	w.owners(m.Owners)
}

// The kernel's numbers for what rules match.
var (
	familyNumbers = map[rule.Family]byte{rule.IPv4: unix.NFPROTO_IPV4, rule.IPv6: unix.NFPROTO_IPV6}
	protoNumbers  = map[rule.Proto]byte{rule.TCP: unix.IPPROTO_TCP, rule.UDP: unix.IPPROTO_UDP}
)

// nftStates are nft's names for states of conntrack, and the kernel's bits.
var nftStates = map[rule.ConnState]struct {
	name string
	bits uint32
}{
	rule.Invalid:     {"invalid", expr.CtStateBitINVALID},
	rule.Established: {"established,related", expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED},
}

func meta(key expr.MetaKey) expr.Any { return &expr.Meta{Key: key, Register: register} }

// mask keeps some bits of the register.
func mask(m []byte) expr.Any {
	return &expr.Bitwise{SourceRegister: register, DestRegister: register, Len: uint32(len(m)), Mask: m, Xor: make([]byte, len(m))}
}

func native32(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }

func markText(mark uint32) string { return fmt.Sprintf("%#08x", mark) }

// iface matches the name of an interface; a "+" at its end, any that begins with it.
func (w *nfWriter) iface(words, name string, key expr.MetaKey) {
	prefix, open := strings.CutSuffix(name, "+")
	if prefix == "" {
		return // any, or "+", which is any
	}
	data := make([]byte, unix.IFNAMSIZ)
	copy(data, name)
	text := strings.ReplaceAll(name, "*", `\*`)
	if open {
		data, text = []byte(prefix), strings.ReplaceAll(prefix, "*", `\*`)+"*"
	}
	w.compare(words, fmt.Sprintf("%q", text), false, data, meta(key))
}

// selective reports whether some addresses are not in a list.
func selective(list []netip.Prefix) bool {
	return len(list) > 0 && !slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Bits() == 0 })
}

// addresses matches one IP version's addresses, as RFC 791 and RFC 8200 place them.
func (w *nfWriter) addresses(field string, list []netip.Prefix, not bool) {
	if !selective(list) && !not || len(list) == 0 {
		return
	}
	words, at, size := "ip ", uint32(12), uint32(4)
	if list[0].Addr().Is6() {
		words, at, size = "ip6 ", 8, 16
	}
	if field == "daddr" {
		at += size
	}
	load := &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: at, Len: size}
	switch p := list[0]; {
	case len(list) > 1:
		w.lookup(words+field, not, addressSet(list), load)
	case p.IsSingleIP():
		w.compare(words+field, addressText(p), not, p.Addr().AsSlice(), load)
	default:
		w.compare(words+field, addressText(p), not, p.Addr().AsSlice(), load, mask(netMask(p)))
	}
}

func netMask(p netip.Prefix) []byte { return net.CIDRMask(p.Bits(), p.Addr().BitLen()) }

// ports matches the transport protocol and its ports.
func (w *nfWriter) ports(m rule.Match) {
	if m.Proto == "" {
		return
	}
	words := "meta l4proto"
	if m.SrcPort != 0 || len(m.DstPorts) > 0 {
		words = "" // follows from the port
	}
	w.compare(words, string(m.Proto), false, []byte{protoNumbers[m.Proto]}, meta(expr.MetaKeyL4PROTO))
	load := func(offset uint32) expr.Any {
		return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2}
	}
	if m.SrcPort != 0 {
		w.compare(string(m.Proto)+" sport", fmt.Sprint(m.SrcPort), false, port16(m.SrcPort), load(0))
	}
	switch dport := string(m.Proto) + " dport"; len(m.DstPorts) {
	case 0:
	case 1:
		w.compare(dport, fmt.Sprint(m.DstPorts[0]), m.NotPorts, port16(m.DstPorts[0]), load(2))
	default:
		w.lookup(dport, m.NotPorts, numberSet(keyPort, m.DstPorts), load(2))
	}
}

func port16(p uint16) []byte { return binary.BigEndian.AppendUint16(nil, p) }

// owners matches owners. Those that must not be it are one set: a rule has room for 128
// expressions. A packet without a socket, the kernel's own, matches a negation in iptables
// only.
func (w *nfWriter) owners(list []rule.Owner) {
	others := map[bool][]uint32{}
	for _, o := range list {
		if o.Not {
			others[o.Group] = append(others[o.Group], o.ID)
			continue
		}
		field := ownerFields[o.Group]
		w.compare(field.words, fmt.Sprint(o.ID), false, native32(o.ID), meta(field.load))
	}
	for _, group := range []bool{false, true} {
		switch ids, field := others[group], ownerFields[group]; len(ids) {
		case 0:
		case 1:
			w.compare(field.words, fmt.Sprint(ids[0]), true, native32(ids[0]), meta(field.load))
		default:
			w.lookup(field.words, true, numberSet(field.setKey, ids), meta(field.load))
		}
	}
}

// ownerFields are how a socket's user and group (true) are called, the type of a set of
// them, and what loads them.
var ownerFields = map[bool]struct {
	words  string
	setKey uint32
	load   expr.MetaKey
}{
	false: {"meta skuid", keyUser, expr.MetaKeySKUID},
	true:  {"meta skgid", keyGroup, expr.MetaKeySKGID},
}
