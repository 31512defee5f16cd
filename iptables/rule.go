package iptables

import (
	"net/netip"
	"strconv"
	"strings"
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

func familyOf(a netip.Addr) Family {
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

// tableOrder is the order in which tables are committed: conntrack zones must be
// assigned before the first packet is redirected, so nat is last.
var tableOrder = []Table{Raw, Mangle, NAT}

// Proto is a transport protocol as iptables spells it; "" is any.
type Proto string

// The protocols that rules name.
const (
	TCP Proto = "tcp"
	UDP Proto = "udp"
)

// Rule is one netfilter rule.
type Rule struct {
	Family Family
	Table  Table
	Chain  string
	Top    bool // goes before all rules of the chain, not after them
	Match  Match
	Target Target
	Why    string // the reason, kept with the rule as its comment
}

// Match is what a packet must satisfy; the zero value matches every packet.
type Match struct {
	In, Out  string // interface
	Src, Dst netip.Prefix
	NotDst   bool // any destination but Dst
	Proto    Proto
	SrcPort  uint16
	DstPorts []uint16
	NotPorts bool // any destination port but DstPorts
	Owners   []Owner
	Invalid  bool // conntrack state INVALID
}

// Owner matches the process that sent a packet; only in OUTPUT.
type Owner struct {
	ID    uint32
	Group bool
	Not   bool
}

func (o Owner) negated() Owner {
	o.Not = !o.Not
	return o
}

// Target is what becomes of a packet that matches. Verdict is a built-in target or
// the name of a chain.
type Target struct {
	Verdict string
	Port    uint16 // of REDIRECT
	Zone    uint16 // of CT
}

func jump(chain string) Target       { return Target{Verdict: chain} }
func redirect(port uint16) Target    { return Target{Verdict: "REDIRECT", Port: port} }
func conntrackZone(id uint16) Target { return Target{Verdict: "CT", Zone: id} }

// commentMark starts the comment of every rule that this package makes.
const commentMark = "understudy: "

// String returns the rule as iptables-save prints it, so that what is wanted can be
// compared with what is there, and what is read by a person looks the same in both.
func (r Rule) String() string {
	command := "-A"
	if r.Top {
		command = "-I"
	}
	args := append([]string{command, r.Chain}, r.Match.args()...)
	if r.Why != "" {
		args = append(args, "-m", "comment", "--comment", strconv.Quote(commentMark+r.Why))
	}
	return strings.Join(append(args, r.Target.args()...), " ")
}

func (m Match) args() []string {
	var a []string
	add := func(not bool, words ...string) {
		if not {
			a = append(a, "!")
		}
		a = append(a, words...)
	}
	if m.Src.IsValid() && m.Src.Bits() > 0 { // iptables-save leaves out /0
		add(false, "-s", m.Src.String())
	}
	if m.Dst.IsValid() && m.Dst.Bits() > 0 {
		add(m.NotDst, "-d", m.Dst.String())
	}
	if m.In != "" {
		add(false, "-i", m.In)
	}
	if m.Out != "" {
		add(false, "-o", m.Out)
	}
	if m.Proto != "" {
		add(false, "-p", string(m.Proto))
	}
	if m.Invalid {
		add(false, "-m", "conntrack", "--ctstate", "INVALID")
	}
	a = append(a, m.portArgs()...)
	for _, o := range m.Owners {
		add(false, "-m", "owner")
		flag := "--uid-owner"
		if o.Group {
			flag = "--gid-owner"
		}
		add(o.Not, flag, strconv.FormatUint(uint64(o.ID), 10))
	}
	return a
}

func (m Match) portArgs() []string {
	var a []string
	if m.SrcPort != 0 {
		a = append(a, "-m", string(m.Proto), "--sport", portText(m.SrcPort))
	}
	if len(m.DstPorts) == 0 {
		return a
	}
	module, flag := string(m.Proto), "--dport"
	texts := make([]string, len(m.DstPorts))
	for i, p := range m.DstPorts {
		texts[i] = portText(p)
	}
	if len(texts) > 1 {
		module, flag = "multiport", "--dports"
	}
	a = append(a, "-m", module)
	if m.NotPorts {
		a = append(a, "!")
	}
	return append(a, flag, strings.Join(texts, ","))
}

func (t Target) args() []string {
	a := []string{"-j", t.Verdict}
	if t.Port != 0 {
		a = append(a, "--to-ports", portText(t.Port))
	}
	if t.Zone != 0 {
		a = append(a, "--zone", strconv.Itoa(int(t.Zone)))
	}
	return a
}

func portText(p uint16) string { return strconv.Itoa(int(p)) }
