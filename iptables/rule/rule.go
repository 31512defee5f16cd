// Package rule owns the words of capture: what a packet must satisfy, what becomes of it,
// and in which table, chain and back end.
package rule

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

// Family is a set of IP versions.
type Family uint8

// The IP versions. Apply always looks at both.
const (
	IPv4 Family = 1 << iota
	IPv6
	Both = IPv4 | IPv6
)

// String returns "IPv4" or "IPv6".
func (f Family) String() string {
	switch f {
	case IPv4:
		return "IPv4"
	case IPv6:
		return "IPv6"
	}
	return "IPv4 and IPv6"
}

// AF is the kernel's number for one IP version.
func (f Family) AF() int {
	if f == IPv6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// FamilyOf returns the IP version of an address.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// Table is a netfilter table.
type Table string

// The tables that capture uses.
const (
	Raw    Table = "raw"
	Mangle Table = "mangle"
	NAT    Table = "nat"
)

// Tables is the order in which tables are committed: zones are assigned before the first
// packet is redirected, so nat is last.
var Tables = []Table{Raw, Mangle, NAT}

// Proto is a transport protocol as iptables spells it; "" is any.
type Proto string

// The protocols that rules name.
const (
	TCP Proto = "tcp"
	UDP Proto = "udp"
)

// Rule is one purpose of capture. A back end may need several rules for it.
type Rule struct {
	Family Family
	Table  Table
	Chain  string
	Top    bool // goes before all rules of the chain, not after them
	Match  Match
	Target Target
	Why    string // the reason, kept with the rule as its comment
}

// Match is what a packet must satisfy: all fields that are not zero, and one item of
// each list. Where no address is of an IP version, no packet of that version matches.
type Match struct {
	In, Out    string // interface
	Srcs, Dsts []netip.Prefix
	NotDst     bool // any destination but Dsts, of which there is one for each IP version
	Proto      Proto
	SrcPort    uint16
	DstPorts   []uint16
	NotPorts   bool // any destination port but DstPorts, at most 15 of them: iptables-extensions(8)
	Owners     []Owner
	State      ConnState
	Mark       uint32 // of the packet; 0 is any
	NotMark    bool   // any mark but Mark
	ConnMark   uint32 // of the connection; 0 is any
}

// ConnState is what conntrack says of a packet, as iptables spells it; "" is anything.
type ConnState string

// The states that rules name.
const (
	Invalid     ConnState = "INVALID"
	Established ConnState = "RELATED,ESTABLISHED"
)

// Owner matches the process that sent a packet; only in OUTPUT.
type Owner struct {
	ID    uint32
	Group bool
	Not   bool
}

// Target is what becomes of a packet. Verdict is a built-in target or a chain.
type Target struct {
	Verdict string
	Port    uint16 // of REDIRECT and TPROXY
	Zone    uint16 // of CT
	Mark    uint32 // of MARK and TPROXY, all bits of it
	Option  string // of CONNMARK: SaveMark or RestoreMark
}

// Options of CONNMARK.
const (
	SaveMark    = "--save-mark"
	RestoreMark = "--restore-mark"
)

// TPROXY is the target that hands a packet to a socket and marks it.
const TPROXY = "TPROXY"

// FullMask compares all bits of a mark.
const FullMask = 0xffffffff

// Jump goes on in another chain.
func Jump(chain string) Target { return Target{Verdict: chain} }

// Redirect sends a packet to a port of this pod.
func Redirect(port uint16) Target { return Target{Verdict: "REDIRECT", Port: port} }

// Zone puts a packet into a zone of conntrack.
func Zone(id uint16) Target { return Target{Verdict: "CT", Zone: id} }

// SetMark marks a packet.
func SetMark(mark uint32) Target { return Target{Verdict: "MARK", Mark: mark} }

// ConnMark copies the mark from a packet to its connection (SaveMark) or back (RestoreMark).
func ConnMark(option string) Target { return Target{Verdict: "CONNMARK", Option: option} }

// TProxy hands a packet to the socket at a port, and marks it.
func TProxy(port uint16, mark uint32) Target { return Target{Verdict: TPROXY, Port: port, Mark: mark} }

// ForFamily returns r with the addresses of one IP version, and whether it has any of it.
func (r Rule) ForFamily(f Family) (Rule, bool) {
	if r.Family&f == 0 {
		return r, false
	}
	of := func(list []netip.Prefix) (out []netip.Prefix, ok bool) {
		for _, p := range list {
			if FamilyOf(p.Addr()) == f {
				out = append(out, p)
			}
		}
		return out, len(list) == 0 || len(out) > 0
	}
	var srcs, dsts bool
	r.Family = f
	r.Match.Srcs, srcs = of(r.Match.Srcs)
	r.Match.Dsts, dsts = of(r.Match.Dsts)
	return r, srcs && dsts
}

// CommentMark starts the comment of every rule that is made of a Rule.
const CommentMark = "understudy: "
