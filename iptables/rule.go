package iptables

import (
	"errors"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
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

// Rule is one purpose of capture. A back end may need several rules for it, one for
// each address or for some of the ports: see lines.
type Rule struct {
	Family Family
	Table  Table
	Chain  string
	Top    bool // goes before all rules of the chain, not after them
	Match  Match
	Target Target
	Why    string // the reason, kept with the rule as its comment
}

// Match is what a packet must satisfy; the zero value matches every packet. Of
// several addresses or ports it has to have one. Where there are addresses, but none
// of an IP version, no packet of that version matches.
type Match struct {
	In, Out    string // interface
	Srcs, Dsts []netip.Prefix
	NotDst     bool // any destination but Dsts, of which there is one for each IP version
	Proto      Proto
	SrcPort    uint16
	DstPorts   []uint16
	NotPorts   bool // any destination port but DstPorts, at most maxMultiport of them
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

func (o Owner) negated() Owner {
	o.Not = !o.Not
	return o
}

// Target is what becomes of a packet that matches. Verdict is a built-in target or
// the name of a chain.
type Target struct {
	Verdict string
	Port    uint16 // of REDIRECT and TPROXY
	Zone    uint16 // of CT
	Mark    uint32 // of MARK and TPROXY, all bits of it
	Option  string // of CONNMARK: saveMark or restoreMark
}

const (
	saveMark    = "--save-mark"
	restoreMark = "--restore-mark"
)

func jump(chain string) Target       { return Target{Verdict: chain} }
func redirect(port uint16) Target    { return Target{Verdict: "REDIRECT", Port: port} }
func conntrackZone(id uint16) Target { return Target{Verdict: "CT", Zone: id} }
func setMark(mark uint32) Target     { return Target{Verdict: "MARK", Mark: mark} }
func connMark(option string) Target  { return Target{Verdict: "CONNMARK", Option: option} }

func tproxy(port uint16, mark uint32) Target {
	return Target{Verdict: "TPROXY", Port: port, Mark: mark}
}

// forFamily returns r with the addresses of one IP version only, and whether that
// version has anything of it.
func (r Rule) forFamily(f Family) (Rule, bool) {
	if r.Family&f == 0 {
		return r, false
	}
	of := func(list []netip.Prefix) (out []netip.Prefix, ok bool) {
		for _, p := range list {
			if familyOf(p.Addr()) == f {
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

// commentMark starts the comment of every rule that this package makes.
const commentMark = "understudy: "

func (f Family) af() int {
	if f == IPv6 {
		return netlink.FAMILY_V6
	}
	return netlink.FAMILY_V4
}

// title is the name that people know a back end by.
func (b Backend) title() string {
	switch b {
	case Plain:
		return "iptables"
	case Legacy, NFT:
		return "iptables-" + string(b)
	}
	return string(b)
}

func isOurChain(name string) bool { return strings.HasPrefix(name, chainPrefix) }

// tproxyTarget takes a packet to a socket and marks it.
const tproxyTarget = "TPROXY"

// errAbsent says that the container or the kernel does not have a back end or family.
var errAbsent = errors.New("not there")

// Backend names what writes the rules: a family of iptables binaries, or this agent.
type Backend string

// The back ends. Auto looks at what is already there; see iptables.Choose.
const (
	Auto   Backend = ""
	Legacy Backend = "legacy"   // xtables: iptables-legacy
	NFT    Backend = "nft"      // nf_tables: iptables-nft
	Plain  Backend = "plain"    // whatever "iptables" is, where neither of the above is installed
	Native Backend = "nftables" // nf_tables through netlink, without binaries
)

// The chains. Their names are Istio's: tools and people look for them, and a pod
// that Istio captured before is taken over.
const (
	chainPrefix   = "ISTIO_"
	preRouting    = "PREROUTING"
	output        = "OUTPUT"
	inbound       = chainPrefix + "INBOUND"
	inRedirect    = chainPrefix + "IN_REDIRECT"
	outbound      = chainPrefix + "OUTPUT"
	outRedirect   = chainPrefix + "REDIRECT"
	outboundDNS   = chainPrefix + "OUTPUT_DNS"
	dropChain     = chainPrefix + "DROP"
	divert        = chainPrefix + "DIVERT"
	transparent   = chainPrefix + "TPROXY"
	loopbackIface = "lo"
)

// Envoy sends inbound traffic on to the application from these addresses
// (127.0.0.6 is always there, ::6 must be added to lo).
var (
	passthroughV6 = netip.MustParsePrefix("::6/128")
	passthrough   = []netip.Prefix{netip.MustParsePrefix("127.0.0.6/32"), passthroughV6}
	loopbackV6    = netip.MustParsePrefix("::1/128")
)

var (
	accept = Target{Verdict: "RETURN"} // leave the packet alone: back to the built-in chain
	drop   = Target{Verdict: "DROP"}
)

// Holding says who has rules in a back end, for some IP versions.
type Holding struct {
	Backend Backend
	Family  Family
	Used    Usage
}

// Usage says who has rules somewhere.
type Usage int

// The usages; a higher one is a better reason to put rules there.
const (
	Unused Usage = iota
	UsedByOthers
	UsedByUs // or by Istio before us
)
