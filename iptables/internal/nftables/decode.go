package nftables

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"understudy.mesh/iptables/rule"
)

// decode finds out what the rules of a table mean.
func (t *nfTable) decode() {
	for _, c := range t.chains {
		for i := range c.rules {
			r := &c.rules[i]
			d := nfReader{table: t, rule: rule.Rule{Family: rule.Both, Table: t.name, Chain: chainOf(c.name)}}
			r.err = d.read(r.exprs)
			d.rule.Why = comment(r.userdata)
			r.rule = d.rule
		}
	}
}

// comment returns the comment among a rule's userdata, without our mark: libnftnl's TLVs
// (udata.h), the comment of type 0 and with a NUL at its end.
func comment(userdata []byte) string {
	for len(userdata) >= 2 {
		kind, n := userdata[0], int(userdata[1])
		if len(userdata) < 2+n {
			break
		}
		if kind == 0 {
			text := string(bytes.TrimRight(userdata[2:2+n], "\x00"))
			return strings.TrimPrefix(text, rule.CommentMark)
		}
		userdata = userdata[2+n:]
	}
	return ""
}

// nfReader turns the expressions of one rule into a Rule. It understands what nfWriter or
// nft writes for ours, and nothing besides: half understood is wrong.
type nfReader struct {
	table *nfTable
	rule  rule.Rule

	field   string        // what is in the register: a name of fields, "constant"
	data    []byte        // the constant
	mask    []byte        // of the field
	actions []rule.Target // of the rule, as one or more expressions each
}

// expression is one expression of the kernel: its attributes by type.
type expression struct {
	name string
	data []byte
}

func (e expression) number(kind uint16) uint32 { return attrUint32(e.data, kind) }

// value returns the constant in an attribute.
func (e expression) value(kind uint16) []byte {
	return attribute(attribute(e.data, kind), unix.NFTA_DATA_VALUE)
}

var errNotUnderstood = errors.New("is none that this agent makes")

func (d *nfReader) read(exprs []byte) error {
	for _, b := range attributes(exprs) {
		e := expression{attrName(b, unix.NFTA_EXPR_NAME), attribute(b, unix.NFTA_EXPR_DATA)}
		if err := d.step(e); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
	}
	return d.finish()
}

func (d *nfReader) step(e expression) error {
	switch e.name {
	case "counter":
		return nil
	case "immediate":
		return d.immediate(e)
	}
	if len(d.actions) > 0 && d.actions[len(d.actions)-1].Verdict != rule.TPROXY && e.name != "meta" {
		return errNotUnderstood // a match after the action
	}
	switch e.name {
	case "meta":
		return d.meta(e)
	case "ct":
		return d.ct(e)
	case "payload":
		return d.payload(e)
	case "bitwise":
		return d.bitwise(e)
	case "cmp":
		return d.compare(e)
	case "lookup":
		return d.lookup(e)
	case "redir":
		return d.redirect(e)
	case "tproxy":
		return d.tproxy(e)
	}
	return errNotUnderstood
}

func (d *nfReader) load(field string, at uint32) error {
	if field == "" || at != register {
		return errNotUnderstood
	}
	d.field, d.data, d.mask = field, nil, nil
	return nil
}

var metaFields = map[uint32]string{
	unix.NFT_META_NFPROTO: "nfproto", unix.NFT_META_L4PROTO: "l4proto", unix.NFT_META_IIFNAME: "iifname", unix.NFT_META_OIFNAME: "oifname",
	unix.NFT_META_MARK: "mark", unix.NFT_META_SKUID: "skuid", unix.NFT_META_SKGID: "skgid",
}

func (d *nfReader) meta(e expression) error {
	key := e.number(unix.NFTA_META_KEY)
	if attribute(e.data, unix.NFTA_META_SREG) == nil {
		return d.load(metaFields[key], e.number(unix.NFTA_META_DREG))
	}
	switch {
	case key != unix.NFT_META_MARK || e.number(unix.NFTA_META_SREG) != register:
		return errNotUnderstood
	case d.field == "constant" && len(d.data) == 4:
		return d.act(rule.SetMark(binary.NativeEndian.Uint32(d.data)))
	case d.field == "ct mark" && d.mask == nil:
		return d.act(rule.ConnMark(rule.RestoreMark))
	}
	return errNotUnderstood
}

func (d *nfReader) ct(e expression) error {
	key := e.number(unix.NFTA_CT_KEY)
	if attribute(e.data, unix.NFTA_CT_SREG) == nil {
		fields := map[uint32]string{unix.NFT_CT_STATE: "ct state", unix.NFT_CT_MARK: "ct mark"}
		return d.load(fields[key], e.number(unix.NFTA_CT_DREG))
	}
	switch {
	case e.number(unix.NFTA_CT_SREG) != register || attribute(e.data, unix.NFTA_CT_DIRECTION) != nil:
		return errNotUnderstood
	case key == unix.NFT_CT_ZONE && d.field == "constant" && len(d.data) == 2:
		return d.act(rule.Zone(binary.NativeEndian.Uint16(d.data)))
	case key == unix.NFT_CT_MARK && d.field == "mark" && d.mask == nil:
		return d.act(rule.ConnMark(rule.SaveMark))
	}
	return errNotUnderstood
}

// payload takes addresses in whole or, for a prefix of whole bytes, their beginning.
func (d *nfReader) payload(e expression) error {
	base, offset, size := e.number(unix.NFTA_PAYLOAD_BASE), e.number(unix.NFTA_PAYLOAD_OFFSET), e.number(unix.NFTA_PAYLOAD_LEN)
	field := ""
	switch {
	case base == unix.NFT_PAYLOAD_TRANSPORT_HEADER && size == 2 && d.rule.Match.Proto != "":
		field = map[uint32]string{0: "sport", 2: "dport"}[offset]
	case base == unix.NFT_PAYLOAD_NETWORK_HEADER && d.rule.Family == rule.IPv4 && size <= 4:
		field = map[uint32]string{12: "saddr", 16: "daddr"}[offset]
	case base == unix.NFT_PAYLOAD_NETWORK_HEADER && d.rule.Family == rule.IPv6 && size <= 16:
		field = map[uint32]string{8: "saddr", 24: "daddr"}[offset]
	}
	return d.load(field, e.number(unix.NFTA_PAYLOAD_DREG))
}

func (d *nfReader) bitwise(e expression) error {
	xor := e.value(unix.NFTA_BITWISE_XOR)
	d.mask = e.value(unix.NFTA_BITWISE_MASK)
	if d.field == "" || d.mask == nil || bytes.Count(xor, []byte{0}) != len(xor) ||
		e.number(unix.NFTA_BITWISE_SREG) != register || e.number(unix.NFTA_BITWISE_DREG) != register {
		return errNotUnderstood
	}
	return nil
}

func (d *nfReader) compare(e expression) error {
	op, data := expr.CmpOp(e.number(unix.NFTA_CMP_OP)), e.value(unix.NFTA_CMP_DATA)
	if op != expr.CmpOpEq && op != expr.CmpOpNeq || data == nil || e.number(unix.NFTA_CMP_SREG) != register {
		return errNotUnderstood
	}
	return d.matched(op == expr.CmpOpNeq, data)
}

func (d *nfReader) lookup(e expression) error {
	s := d.table.findSet(attrName(e.data, unix.NFTA_LOOKUP_SET))
	if s == nil || e.number(unix.NFTA_LOOKUP_SREG) != register || attribute(e.data, unix.NFTA_LOOKUP_DREG) != nil {
		return errNotUnderstood
	}
	if s.err != nil {
		return fmt.Errorf("set %s %w", s.name, s.err)
	}
	return d.matchedSet(e.number(unix.NFTA_LOOKUP_FLAGS)&unix.NFT_LOOKUP_F_INV != 0, s)
}

func (d *nfReader) immediate(e expression) error {
	if data := e.value(unix.NFTA_IMMEDIATE_DATA); data != nil && e.number(unix.NFTA_IMMEDIATE_DREG) == register {
		d.field, d.data, d.mask = "constant", data, nil
		return nil
	}
	verdict := attribute(attribute(e.data, unix.NFTA_IMMEDIATE_DATA), unix.NFTA_DATA_VERDICT)
	switch kind := expr.VerdictKind(int32(attrUint32(verdict, unix.NFTA_VERDICT_CODE))); {
	case verdict == nil || e.number(unix.NFTA_IMMEDIATE_DREG) != unix.NFT_REG_VERDICT:
	case kind == expr.VerdictReturn:
		return d.act(rule.Leave)
	case kind == expr.VerdictAccept:
		return d.act(rule.Target{Verdict: "ACCEPT"})
	case kind == expr.VerdictDrop:
		return d.act(rule.Drop)
	case kind == expr.VerdictJump: // only to a chain whose name is no target's
		if chain := chainOf(attrName(verdict, unix.NFTA_VERDICT_CHAIN)); rule.IsOurChain(chain) {
			return d.act(rule.Jump(chain))
		}
	}
	return errNotUnderstood
}

func (d *nfReader) redirect(e expression) error {
	const plain = unix.NF_NAT_RANGE_PROTO_SPECIFIED
	last := attribute(e.data, unix.NFTA_REDIR_REG_PROTO_MAX)
	if d.field != "constant" || len(d.data) != 2 || e.number(unix.NFTA_REDIR_REG_PROTO_MIN) != register ||
		e.number(unix.NFTA_REDIR_FLAGS)&^uint32(plain) != 0 || last != nil && e.number(unix.NFTA_REDIR_REG_PROTO_MAX) != register {
		return errNotUnderstood
	}
	return d.act(rule.Redirect(binary.BigEndian.Uint16(d.data)))
}

func (d *nfReader) tproxy(e expression) error {
	const family, regAddr, regPort = 1, 2, 3 // NFTA_TPROXY_FAMILY, NFTA_TPROXY_REG_ADDR, NFTA_TPROXY_REG_PORT
	if byte(e.number(family)) != tproxyFamilies[d.rule.Family].number || d.field != "constant" || len(d.data) != 2 || e.number(regPort) != register || attribute(e.data, regAddr) != nil {
		return errNotUnderstood
	}
	return d.act(rule.TProxy(binary.BigEndian.Uint16(d.data), 0))
}

func (d *nfReader) act(t rule.Target) error {
	d.actions = append(d.actions, t)
	return nil
}

// finish makes one target of the rule's actions.
func (d *nfReader) finish() error {
	a := d.actions
	switch {
	case len(a) == 1 && a[0].Verdict != rule.TPROXY:
		d.rule.Target = a[0]
	case len(a) == 3 && a[0].Verdict == rule.TPROXY && a[1].Verdict == "MARK" && a[2].Verdict == "ACCEPT":
		d.rule.Target = rule.TProxy(a[0].Port, a[1].Mark)
	default:
		return fmt.Errorf("its %d actions: %w", len(a), errNotUnderstood)
	}
	return nil
}

// equal reports whether two rules say the same, with lists in the same order.
func equal(r, o rule.Rule) bool {
	a, b := &r.Match, &o.Match
	same := slices.Equal(a.Srcs, b.Srcs) && slices.Equal(a.Dsts, b.Dsts) && slices.Equal(a.DstPorts, b.DstPorts) && slices.Equal(a.Owners, b.Owners)
	for _, m := range []*rule.Match{a, b} {
		m.Srcs, m.Dsts, m.DstPorts, m.Owners = nil, nil, nil, nil
	}
	return same && reflect.DeepEqual(r, o)
}

// fold undoes what encoding adds: the drop behind a TPROXY, and a rule for each IP version.
func fold(rules []rule.Rule) (out []rule.Rule) {
	for _, r := range rules {
		var last rule.Rule
		if len(out) > 0 {
			last = out[len(out)-1]
		}
		if last.Target.Verdict == rule.TPROXY && equal(r, unclaimed(last)) {
			out[len(out)-1].Target.Option = ""
			continue
		}
		if r.Target.Verdict == rule.TPROXY {
			r.Target.Option = goesOn
		}
		out = append(out, r)
	}
	return joinFamilies(out)
}

// goesOn is the option of a TPROXY rule with no drop behind it: see unclaimed.
const goesOn = "goes on without a socket"

// joinFamilies joins two rules in a row that differ only in the IP version and addresses.
func joinFamilies(rules []rule.Rule) (out []rule.Rule) {
	for _, r := range rules {
		if n := len(out) - 1; n >= 0 && out[n].Family == rule.IPv4 && r.Family == rule.IPv6 && len(r.Match.Srcs)+len(r.Match.Dsts) > 0 {
			srcs, dsts := slices.Concat(out[n].Match.Srcs, r.Match.Srcs), slices.Concat(out[n].Match.Dsts, r.Match.Dsts)
			bare := func(r rule.Rule) rule.Rule {
				r.Family, r.Match.Srcs, r.Match.Dsts = rule.Both, one(r.Match.Srcs), one(r.Match.Dsts)
				return r
			}
			if equal(bare(out[n]), bare(r)) {
				out[n].Family, out[n].Match.Srcs, out[n].Match.Dsts = rule.Both, srcs, dsts
				continue
			}
		}
		out = append(out, r)
	}
	return out
}

// one stands for a list that is not empty.
func one(list []netip.Prefix) []netip.Prefix {
	if len(list) == 0 {
		return nil
	}
	return []netip.Prefix{{}}
}
