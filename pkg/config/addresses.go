package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

func parseIP(text string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(text)
	return addr.Unmap(), remedy(err, "want an IP address")
}

func parseHostPort(text string) (string, error) {
	host, port, err := net.SplitHostPort(text)
	if err == nil {
		_, err = parsePort(port)
	}
	if err != nil || host == "" || strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' }) {
		return "", errors.New("want host:port, such as istiod.istio-system.svc:15012")
	}
	return text, nil
}

// parseListenAddrs reads one listening address. localhost and the wildcard give both families
// here; derive drops the one that the pod does not have.
func parseListenAddrs(text string) ([]netip.AddrPort, error) {
	want := errors.New("want address:port, such as localhost:15053 or 10.0.0.1:15053")
	host, portText, err := net.SplitHostPort(text)
	if err != nil {
		return nil, want
	}
	port, err := parsePort(portText)
	if err != nil {
		return nil, want
	}
	switch host {
	case "localhost":
		return []netip.AddrPort{
			netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port),
			netip.AddrPortFrom(netip.IPv6Loopback(), port),
		}, nil
	case "":
		return []netip.AddrPort{
			netip.AddrPortFrom(netip.IPv4Unspecified(), port),
			netip.AddrPortFrom(netip.IPv6Unspecified(), port),
		}, nil
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return nil, want
	}
	return []netip.AddrPort{netip.AddrPortFrom(addr.Unmap(), port)}, nil
}

func parsePrefixes(text string) (prefixes []netip.Prefix, err error) {
	list, err := parseList(text)
	if err != nil {
		return nil, err
	}
	for _, item := range list {
		prefix, err := netip.ParsePrefix(item)
		if err != nil {
			return nil, fmt.Errorf("want ranges of addresses such as 10.0.0.0/8: %q", item)
		}
		prefixes = append(prefixes, prefix.Masked())
	}
	return prefixes, nil
}
