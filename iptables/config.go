package iptables

import (
	"errors"
	"fmt"
	"math"
	"net/netip"

	"golang.org/x/sys/unix"

	"understudy.mesh/iptables/rule"
)

// Istio's defaults, on which users' manifests and Envoy's listeners rely.
const (
	defaultProxyPort    = 15001
	defaultInboundPort  = 15006
	defaultTunnelPort   = 15008 // HBONE: encrypted by the mesh itself, never captured
	DefaultProxyID      = 1337
	DefaultMark         = 1337
	defaultRouteTable   = 133
	exampleMark         = 0x5357 // for messages: any number does that nobody else in the pod uses
	DNSPort             = 53
	DNSProxyPort        = 15053 // where the agent answers DNS
	maxIncludedGroups   = 64    // Istio's limit: all of them share one rule
	maxInterfaceNameLen = 15    // IFNAMSIZ - 1
)

// Config is everything that decides which traffic is captured. Start from Default.
type Config struct {
	ProxyPort   uint16 // outbound TCP goes here
	InboundPort uint16 // inbound TCP goes here
	TunnelPort  uint16 // inbound TCP to this port is left alone

	// What Envoy and the agent send is not captured. It is known by user, group or, where
	// the application has the same user, the mark of sockets (SO_MARK; 0 is none).
	UIDs, GIDs []uint32
	ProxyMark  uint32

	// TPROXY hands inbound connections to Envoy with the addresses that their clients
	// gave them. Marks and a route table keep the two sides apart; see transparent.
	TPROXY     bool
	Mark       uint32 // of what Envoy sends to the application
	RouteTable uint32

	InboundPorts        Ports    // of the application; captured on the way in
	ExcludeInboundPorts []uint16 // only with InboundPorts.All

	IncludeCIDRs         Prefixes // outbound destinations that are captured
	ExcludeCIDRs         []netip.Prefix
	IncludeOutboundPorts []uint16 // captured whatever their destination
	ExcludeOutboundPorts []uint16

	ExcludeInterfaces []string // traffic on these is left alone, both ways
	VirtInterfaces    []string // of virtual machines in the pod: what comes from them is outbound

	// Owner groups of the application. ExcludeGroups counts only without IncludeGroups.
	IncludeGroups, ExcludeGroups []uint32

	LoopbackV4  netip.Prefix // IPv4 destinations that count as loopback
	DropInvalid bool         // drop what conntrack calls INVALID (istio#36566)
	DNS         DNS
	IPv6        bool         // the pod has IPv6: its rules are wanted too, and ::6 on lo
	Backend     rule.Backend // Auto, or forced
}

// DNS says which queries go to the agent on port 15053.
type DNS struct {
	Capture bool
	All     bool         // every query to port 53, not just those to Servers
	Servers []netip.Addr // the pod's nameservers
}

// Default returns Istio's defaults: no inbound port and no outbound destination captured.
func Default() Config {
	return Config{
		ProxyPort:   defaultProxyPort,
		InboundPort: defaultInboundPort,
		TunnelPort:  defaultTunnelPort,
		UIDs:        []uint32{DefaultProxyID},
		GIDs:        []uint32{DefaultProxyID},
		Mark:        DefaultMark,
		RouteTable:  defaultRouteTable,
		LoopbackV4:  netip.MustParsePrefix("127.0.0.1/32"),
	}
}

// Validate reports every contradiction in c at once.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for name, port := range map[string]uint16{"proxy": c.ProxyPort, "inbound capture": c.InboundPort, "inbound tunnel": c.TunnelPort} {
		if port == 0 {
			bad("%s port is 0: want 1 to 65535", name)
		}
	}
	if len(c.UIDs)+len(c.GIDs) == 0 && c.ProxyMark == 0 {
		bad("no proxy uid, gid or mark: without one Envoy's own traffic is captured and loops; want for example uid %d", DefaultProxyID)
	}
	if m := c.ProxyMark; m != 0 && (m == c.Mark || m == c.Mark+1) {
		bad("proxy mark %#x (%d): TPROXY mode marks other traffic with %d and %d, which would be taken for the proxy's; want another, for example %#x", m, m, c.Mark, c.Mark+1, exampleMark)
	}
	if len(c.IncludeGroups) > maxIncludedGroups {
		bad("%d owner groups to capture: at most %d", len(c.IncludeGroups), maxIncludedGroups)
	}
	if l := c.LoopbackV4; !l.IsValid() || !l.Addr().Is4() || !l.Addr().IsLoopback() || l.Bits() < 8 {
		bad("IPv4 loopback CIDR %v: want one inside 127.0.0.0/8", l)
	}
	if c.TPROXY {
		errs = append(errs, c.validateTPROXY())
	}
	if b := c.Backend; b != rule.Auto && b != rule.Legacy && b != rule.NFT && b != rule.Native {
		bad("back end %q: want %q, %q or %q", b, rule.Legacy, rule.NFT, rule.Native)
	}
	return errors.Join(errs...)
}

// validateTPROXY checks what only TPROXY mode uses. The mark after Mark is used, too,
// and some route tables are the kernel's own.
func (c Config) validateTPROXY() error {
	var errs []error
	if c.Mark == 0 || c.Mark == math.MaxUint32 {
		errs = append(errs, fmt.Errorf("TPROXY mark %d: want 1 to %d", c.Mark, uint32(math.MaxUint32-1)))
	}
	if t := c.RouteTable; t == unix.RT_TABLE_UNSPEC || t >= unix.RT_TABLE_DEFAULT && t <= unix.RT_TABLE_LOCAL {
		errs = append(errs, fmt.Errorf("TPROXY route table %d: want 1 to %d, but not %d to %d, which are the kernel's default, main and local",
			t, uint32(math.MaxUint32), unix.RT_TABLE_DEFAULT, unix.RT_TABLE_LOCAL))
	}
	return errors.Join(errs...)
}

// PodHasIPv6 tells from the addresses of a pod's interfaces whether it needs IPv6
// rules: when any is IPv6 or, without dualStack, when the first one is, as with Istio.
// Loopback and link-local addresses do not count. A pod without any other address is an
// error: the network is not up yet.
func PodHasIPv6(addrs []netip.Addr, dualStack bool) (bool, error) {
	seen := false
	for _, a := range addrs {
		a = a.Unmap()
		if a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsLinkLocalMulticast() {
			continue
		}
		if a.Is6() && (dualStack || !seen) {
			return true, nil
		}
		seen = true
	}
	if !seen {
		return false, errors.New("no interface has an address other than loopback and link-local: the pod's network must be up before its traffic can be captured")
	}
	return false, nil
}

// Routed returns the IP versions in which TPROXY mode routes packets by their mark.
func (c Config) Routed() rule.Family {
	switch {
	case !c.TPROXY || !c.InboundPorts.All && len(c.InboundPorts.List) == 0:
		return 0
	case c.IPv6:
		return rule.Both
	}
	return rule.IPv4
}
