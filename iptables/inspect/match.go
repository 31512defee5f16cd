package inspect

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"understudy.mesh/iptables/internal/saved"
	"understudy.mesh/iptables/rule"
)

// packet is the first packet of a connection, or a query, on its way.
type packet struct {
	in, out  string
	src, dst netip.AddrPort
	srcKnown bool // else src is any address but the pod's own
	proto    rule.Proto
	local    bool // it has a socket that sends it: owner matches can be true
	uid, gid uint32
	mark     uint32
	connMark uint32

	assigned  bool // a rule has told conntrack what to do with it
	untracked bool // conntrack passes it over: there is no NAT for it
	natted    bool // its NAT is decided, if only to be none
}

// truth is what can be said of a match.
type truth int8

const (
	no truth = iota
	yes
	unknown
)

func truthOf(b bool) truth {
	if b {
		return yes
	}
	return no
}

// matches evaluates a rule's conditions. because is the one that is not true.
func (h *heldRule) matches(p *packet, isLocal func(netip.Addr) bool) (result truth, because condition) {
	result = yes
	for _, c := range h.match {
		t := c.holds(p, isLocal)
		if c.not && t != unknown {
			t = truthOf(t == no)
		}
		switch {
		case t == no:
			return no, c
		case t == unknown && result == yes:
			result, because = unknown, c
		}
	}
	return result, because
}

// holds evaluates a condition as if it were not negated.
func (c condition) holds(p *packet, isLocal func(netip.Addr) bool) truth {
	switch c.flag {
	case "-i":
		return interfaceIs(p.in, c.value)
	case "-o":
		return interfaceIs(p.out, c.value)
	case "-p":
		return protocolIs(p.proto, c.value)
	case "-s":
		return p.sourceIn(c.value, isLocal)
	case "-d":
		return addressIn(p.dst.Addr(), c.value)
	case "iprange --src-range":
		if !p.srcKnown {
			return unknown
		}
		return inRange(p.src.Addr(), c.value)
	case "iprange --dst-range":
		return inRange(p.dst.Addr(), c.value)
	case "addrtype --dst-type":
		return typeIs(isLocal(p.dst.Addr()), c.value)
	case "addrtype --src-type":
		return typeIs(isLocal(p.src.Addr()) && p.srcKnown, c.value)
	case "mark --mark":
		return markIs(p.mark, c.value)
	case "connmark --mark":
		return markIs(p.connMark, c.value)
	case "owner --uid-owner":
		return p.ownedBy(p.uid, c.value)
	case "owner --gid-owner":
		return p.ownedBy(p.gid, c.value)
	case "owner --socket-exists":
		return truthOf(p.local)
	case "conntrack --ctstate", "state --state":
		return p.stateIn(c.value)
	case "tcp --tcp-flags":
		return flagsAre(c.value)
	}
	return c.portHolds(p)
}

func (c condition) portHolds(p *packet) truth {
	switch c.flag {
	case "tcp --dport", "udp --dport", "multiport --dports":
		return portIn(p.dst.Port(), c.value)
	case "tcp --sport", "udp --sport", "multiport --sports":
		return portIn(p.src.Port(), c.value)
	case "multiport --ports":
		if s := portIn(p.src.Port(), c.value); s != no {
			return s
		}
		return portIn(p.dst.Port(), c.value)
	}
	return unknown
}

// interfaceIs compares as iptables(8) has it: "+" at the end is any continuation.
func interfaceIs(name, pattern string) truth {
	if prefix, any := strings.CutSuffix(pattern, "+"); any {
		return truthOf(strings.HasPrefix(name, prefix))
	}
	return truthOf(name == pattern)
}

func protocolIs(p rule.Proto, value string) truth {
	numbers := map[rule.Proto]string{rule.TCP: "6", rule.UDP: "17"} // IANA
	return truthOf(value == string(p) || value == numbers[p] || value == "all" || value == "0")
}

// sourceIn knows of an unknown client that it is not the pod itself.
func (p *packet) sourceIn(value string, isLocal func(netip.Addr) bool) truth {
	prefix, err := netip.ParsePrefix(value)
	switch {
	case p.srcKnown:
		return addressIn(p.src.Addr(), value)
	case err != nil:
		return unknown
	case prefix.Bits() == 0:
		return yes
	case prefix.Addr().IsLoopback(), prefix.IsSingleIP() && isLocal(prefix.Addr()):
		return no
	}
	return unknown
}

func addressIn(a netip.Addr, value string) truth {
	if single, err := netip.ParseAddr(value); err == nil {
		return truthOf(a == single)
	}
	prefix, err := netip.ParsePrefix(value)
	if err != nil { // a mask with holes
		return unknown
	}
	return truthOf(prefix.Contains(a))
}

func inRange(a netip.Addr, value string) truth {
	first, last, _ := strings.Cut(value, "-")
	from, err1 := netip.ParseAddr(first)
	to, err2 := netip.ParseAddr(last)
	if err1 != nil || err2 != nil {
		return unknown
	}
	return truthOf(from.Compare(a) <= 0 && a.Compare(to) <= 0)
}

// typeIs knows two types: the others depend on routes that nobody has in a pod.
func typeIs(local bool, value string) truth {
	types := strings.Split(value, ",")
	switch {
	case slices.Contains(types, "LOCAL") && local:
		return yes
	case slices.Equal(types, []string{"LOCAL"}):
		return no
	case slices.Equal(types, []string{"UNICAST"}) && local:
		return no
	}
	return unknown
}

func markIs(mark uint32, value string) truth {
	want, mask, ok := saved.ParseMark(value)
	if !ok {
		return unknown
	}
	return truthOf(mark&mask == want)
}

// ownedBy compares with one id or, as "0-99", several. Without a socket it is nobody's.
func (p *packet) ownedBy(id uint32, value string) truth {
	owned := within(id, value, "-")
	if owned == yes {
		return truthOf(p.local)
	}
	return owned
}

// within compares with one number or, with a separator between them, a first and a last.
func within(n uint32, value, separator string) truth {
	first, last, several := strings.Cut(value, separator)
	if !several {
		last = first
	}
	from, err1 := strconv.ParseUint(first, 10, 32)
	to, err2 := strconv.ParseUint(last, 10, 32)
	if err1 != nil || err2 != nil {
		return unknown
	}
	return truthOf(from <= uint64(n) && uint64(n) <= to)
}

// stateIn knows that a first packet is new to conntrack.
func (p *packet) stateIn(value string) truth {
	for s := range strings.SplitSeq(value, ",") {
		switch s {
		case "SNAT", "DNAT":
			return unknown
		case "NEW":
			if !p.untracked {
				return yes
			}
		case "UNTRACKED":
			if p.untracked {
				return yes
			}
		}
	}
	return no
}

// portIn compares with ports and ranges between commas: "80,443,8000:8100".
func portIn(port uint16, value string) truth {
	for item := range strings.SplitSeq(value, ",") {
		if t := within(uint32(port), item, ":"); t != no {
			return t
		}
	}
	return no
}

// flagsAre compares with the only flag of a connection's first packet, SYN.
func flagsAre(value string) truth {
	mask, set, ok := strings.Cut(value, " ")
	if !ok {
		return unknown
	}
	if mask == "ALL" || slices.Contains(strings.Split(mask, ","), "SYN") {
		return truthOf(set == "SYN")
	}
	return truthOf(set == "NONE")
}
