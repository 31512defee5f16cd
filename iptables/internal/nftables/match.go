package nftables

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"strings"

	"understudy.mesh/iptables/rule"
)

// matched notes that the field in the register has to be, or not to be, one value.
func (d *nfReader) matched(not bool, data []byte) error {
	m := &d.rule.Match
	switch size := len(data); {
	case d.mask != nil && len(d.mask) != size:
		return errNotUnderstood
	case d.field == "saddr" || d.field == "daddr":
		if p, ok := d.prefix(data); ok {
			return d.addresses(not, []netip.Prefix{p})
		}
		return errNotUnderstood
	case d.field == "ct state":
		return d.state(not, data)
	case d.mask != nil:
		return errNotUnderstood
	case (d.field == "skuid" || d.field == "skgid") && size == 4:
		m.Owners = append(m.Owners, rule.Owner{ID: binary.NativeEndian.Uint32(data), Group: d.field == "skgid", Not: not})
	case bytes.Count(data, []byte{0}) == size: // means anything in a Match
		return errNotUnderstood
	case d.field == "iifname" && !not && m.In == "":
		return ifaceName(data, &m.In)
	case d.field == "oifname" && !not && m.Out == "":
		return ifaceName(data, &m.Out)
	case d.field == "nfproto" && !not && size == 1 && d.rule.Family == rule.Both:
		return keyOf(familyNumbers, data[0], &d.rule.Family)
	case d.field == "l4proto" && !not && size == 1 && m.Proto == "":
		return keyOf(protoNumbers, data[0], &m.Proto)
	case d.field == "sport" && !not && size == 2 && m.SrcPort == 0:
		m.SrcPort = binary.BigEndian.Uint16(data)
	case d.field == "dport" && size == 2:
		return d.ports(not, []uint32{uint32(binary.BigEndian.Uint16(data))})
	case d.field == "mark" && size == 4 && m.Mark == 0:
		m.Mark, m.NotMark = binary.NativeEndian.Uint32(data), not
	case d.field == "ct mark" && !not && size == 4 && m.ConnMark == 0:
		m.ConnMark = binary.NativeEndian.Uint32(data)
	default:
		return errNotUnderstood
	}
	return nil
}

// matchedSet notes that the field in the register has to be, or not to be, in a set.
func (d *nfReader) matchedSet(not bool, s *nfSet) error {
	m := &d.rule.Match
	switch {
	case d.mask != nil:
		return errNotUnderstood
	case (d.field == "saddr" || d.field == "daddr") && len(s.prefixes) > 0:
		return d.addresses(not, s.prefixes)
	case d.field == "dport" && s.key == keyPort && len(s.numbers) > 0:
		return d.ports(not, s.numbers)
	case d.field == "skuid" && s.key == keyUser && not, d.field == "skgid" && s.key == keyGroup && not:
		for _, id := range s.numbers {
			m.Owners = append(m.Owners, rule.Owner{ID: id, Group: d.field == "skgid", Not: true})
		}
		return nil
	}
	return errNotUnderstood
}

// prefix returns the prefix of one value under the mask, or of what was loaded of it.
func (d *nfReader) prefix(data []byte) (netip.Prefix, bool) {
	whole := make([]byte, 4)
	if d.rule.Family == rule.IPv6 {
		whole = make([]byte, 16)
	}
	if len(data) > len(whole) || len(data) == 0 {
		return netip.Prefix{}, false
	}
	copy(whole, data)
	length, size := len(data)*8, len(data)*8
	if d.mask != nil {
		length, size = net.IPMask(d.mask).Size()
	}
	a, _ := netip.AddrFromSlice(whole)
	p := netip.PrefixFrom(a, length)
	return p, p.Masked() == p && size > 0 // 0 is of a mask with holes
}

func (d *nfReader) addresses(not bool, list []netip.Prefix) error {
	m := &d.rule.Match
	switch {
	case rule.FamilyOf(list[0].Addr()) != d.rule.Family:
		return errNotUnderstood
	case d.field == "saddr" && !not && m.Srcs == nil:
		m.Srcs = list
	case d.field == "daddr" && m.Dsts == nil:
		m.Dsts, m.NotDst = list, not
	default:
		return errNotUnderstood
	}
	return nil
}

func (d *nfReader) ports(not bool, list []uint32) error {
	m := &d.rule.Match
	if m.DstPorts != nil {
		return errNotUnderstood
	}
	for _, p := range list {
		m.DstPorts = append(m.DstPorts, uint16(p))
	}
	m.NotPorts = not
	return nil
}

func (d *nfReader) state(not bool, data []byte) error {
	if !not || len(data) != 4 || len(d.mask) != 4 || binary.NativeEndian.Uint32(data) != 0 || d.rule.Match.State != "" {
		return errNotUnderstood
	}
	for state, s := range nftStates {
		if binary.NativeEndian.Uint32(d.mask) == s.bits {
			d.rule.Match.State = state
			return nil
		}
	}
	return errNotUnderstood
}

// keyOf stores the key under which a table of nfWriter has a value.
func keyOf[K, V comparable](table map[K]V, value V, to *K) error {
	for k, v := range table {
		if v == value {
			*to = k
			return nil
		}
	}
	return errNotUnderstood
}

// ifaceName reads the name of an interface; one without its NUL is a beginning.
func ifaceName(data []byte, to *string) error {
	name, _, closed := strings.Cut(string(data), "\x00")
	if !closed {
		name += "+"
	} else if name == "" || strings.HasSuffix(name, "+") {
		return errNotUnderstood // a Match would mean more by it
	}
	*to = name
	return nil
}
