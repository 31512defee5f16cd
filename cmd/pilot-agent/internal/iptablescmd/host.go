package iptablescmd

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/user"
	"strings"

	"understudy.mesh/iptables"
)

// Host is what the rules depend on besides flags and environment.
type Host struct {
	Addresses   func() ([]netip.Addr, error) // of all interfaces
	resolvConf  string                       // the file of the pod's nameservers: resolv.conf(5)
	LookupUser  func(name string) (uid string, err error)
	LookupGroup func(name string) (gid string, err error)
}

// ThisHost is the one that this process runs on.
func ThisHost() Host {
	return Host{
		Addresses:  interfaceAddresses,
		resolvConf: "/etc/resolv.conf",
		LookupUser: func(name string) (string, error) {
			u, err := user.Lookup(name)
			if err != nil {
				return "", err
			}
			return u.Uid, nil
		},
		LookupGroup: func(name string) (string, error) {
			g, err := user.LookupGroup(name)
			if err != nil {
				return "", err
			}
			return g.Gid, nil
		},
	}
}

func interfaceAddresses() ([]netip.Addr, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list the pod's addresses: %w", err)
	}
	var out []netip.Addr
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Addr())
		}
	}
	return out, nil
}

// Complete adds what the pod has: its IP versions and its nameservers.
func (o *Options) Complete(log *slog.Logger) error {
	addrs, err := o.host.Addresses()
	if err != nil {
		return err
	}
	if o.Config.IPv6, err = iptables.PodHasIPv6(addrs, o.dualStack); err != nil {
		return err
	}
	dns := &o.Config.DNS
	if !dns.Capture {
		return nil
	}
	if !dns.All {
		text, err := os.ReadFile(o.host.resolvConf)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("find the nameservers: %w", err)
		}
		dns.Servers = nameservers(string(text))
	}
	if !dns.All && len(dns.Servers) == 0 {
		log.Warn("DNS is not captured: there is no nameserver to capture queries to; --capture-all-dns needs none", "file", o.host.resolvConf)
		dns.Capture = false
	}
	if dns.Capture && o.autoAllocate {
		o.Config = o.Config.WithVIPs()
	}
	return nil
}

// nameservers returns the addresses in the text of a resolv.conf(5). Like the resolver of
// glibc it ignores other lines and malformed addresses.
func nameservers(text string) []netip.Addr {
	var out []netip.Addr
	seen := map[netip.Addr]bool{}
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "nameserver" {
			continue
		}
		a, err := netip.ParseAddr(words[1])
		if err != nil {
			continue
		}
		a = a.Unmap().WithZone("")
		if !seen[a] {
			seen[a] = true
			out = append(out, a)
		}
	}
	return out
}
