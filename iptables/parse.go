package iptables

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Ports is a list of ports, or all of them.
type Ports struct {
	All  bool
	List []uint16
}

// Prefixes is a list of CIDRs, or every address.
type Prefixes struct {
	All  bool
	List []netip.Prefix
}

// includesLoopback reports whether loopback addresses are listed; "*" does not count.
func (p Prefixes) includesLoopback() bool {
	return slices.ContainsFunc(p.List, func(c netip.Prefix) bool { return c.Addr().IsLoopback() })
}

const wildcard = "*"

// ParsePort parses a port from 1 to 65535.
func ParsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("port %q: want a number from 1 to 65535", s)
	}
	return uint16(n), nil
}

// ParsePortList parses ports between commas. Empty items and repetitions are
// dropped: Istio's users have "6000,7000," in their annotations.
func ParsePortList(s string) ([]uint16, error) { return parseList(s, ParsePort) }

// ParsePorts is ParsePortList, and "*" for all ports.
func ParsePorts(s string) (Ports, error) {
	if strings.TrimSpace(s) == wildcard {
		return Ports{All: true}, nil
	}
	list, err := ParsePortList(s)
	return Ports{List: list}, err
}

// ParsePrefix parses a CIDR or a single address. Host bits are cleared, as the kernel
// does. An IPv4-mapped IPv6 CIDR means IPv4 packets: no IPv6 packet has such an address.
func ParsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		a, addrErr := netip.ParseAddr(s)
		if addrErr != nil || a.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("CIDR %q: want for example 10.0.0.0/8 or 2001:db8::/32", s)
		}
		p = netip.PrefixFrom(a, a.BitLen())
	}
	const mappedBits = 96 // of ::ffff:0:0/96
	if p.Addr().Is4In6() {
		if p.Bits() < mappedBits {
			return netip.Prefix{}, fmt.Errorf("CIDR %q: an IPv4-mapped one needs at least /%d; write the IPv4 CIDR instead", s, mappedBits)
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-mappedBits)
	}
	return p.Masked(), nil
}

// ParsePrefixList parses CIDRs between commas; empty items and repetitions are dropped.
func ParsePrefixList(s string) ([]netip.Prefix, error) { return parseList(s, ParsePrefix) }

// ParsePrefixes is ParsePrefixList, and "*" for every address.
func ParsePrefixes(s string) (Prefixes, error) {
	if strings.TrimSpace(s) == wildcard {
		return Prefixes{All: true}, nil
	}
	list, err := ParsePrefixList(s)
	return Prefixes{List: list}, err
}

// ParseIDList parses ids between commas; lookup returns the id of a name, as os/user does.
func ParseIDList(s string, lookup func(name string) (string, error)) ([]uint32, error) {
	return parseList(s, func(item string) (uint32, error) {
		if n, err := strconv.ParseUint(item, 10, 32); err == nil {
			return uint32(n), nil
		}
		id, err := lookup(item)
		if err != nil {
			return 0, fmt.Errorf("id %q: want a number or a name known in this container: %w", item, err)
		}
		n, err := strconv.ParseUint(id, 10, 32)
		if err != nil {
			return 0, fmt.Errorf("id %q of %q: want a number: %w", id, item, err)
		}
		return uint32(n), nil
	})
}

// ParseMark parses a mark of packets, decimal or after 0x hexadecimal, from 1 to 2^32-1.
func ParseMark(s string) (uint32, error) {
	digits, base := s, 10
	if after, ok := strings.CutPrefix(strings.ToLower(s), "0x"); ok {
		digits, base = after, 16
	}
	n, err := strconv.ParseUint(digits, base, 32)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("mark %q: want a number from 1 to 0xffffffff, decimal or after 0x hexadecimal", s)
	}
	return uint32(n), nil
}

// ParseInterfaceList parses interfaces between commas; "+" at the end matches by prefix.
func ParseInterfaceList(s string) ([]string, error) {
	return parseList(s, func(item string) (string, error) {
		if len(item) > maxInterfaceNameLen || strings.ContainsAny(item, "/!\"'\\ \t\n") || strings.HasPrefix(item, "-") {
			return "", fmt.Errorf("interface %q: want a name of at most %d characters, for example eth1", item, maxInterfaceNameLen)
		}
		return item, nil
	})
}

// parseList drops empty items and repetitions.
func parseList[T comparable](s string, parse func(string) (T, error)) ([]T, error) {
	var out []T
	seen := map[T]bool{}
	for item := range strings.SplitSeq(s, ",") {
		item = strings.TrimSpace(item)
		if item == "" {
			continue
		}
		v, err := parse(item)
		if err != nil {
			return nil, err
		}
		if !seen[v] {
			seen[v] = true
			out = append(out, v)
		}
	}
	return out, nil
}
