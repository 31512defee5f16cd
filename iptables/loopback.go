package iptables

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// setPassthrough gives lo the address ::6, from which Envoy reaches the application
// over IPv6, or takes it away. It returns whether that changed anything. IPv4 needs
// nothing: all of 127.0.0.0/8 is local.
func setPassthrough(wanted bool) (changed bool, err error) {
	lo, err := netlink.LinkByName(loopbackIface)
	if err != nil {
		return false, fmt.Errorf("find interface %s: %w", loopbackIface, err)
	}
	present, err := hasPassthrough(lo)
	if err != nil || present == wanted {
		return false, err
	}
	set, verb := netlink.AddrAdd, "add"
	if !wanted {
		set, verb = netlink.AddrDel, "remove"
	}
	err = set(lo, passthroughAddr())
	switch {
	case err == nil:
		return true, nil
	case wanted && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT)):
		return false, fmt.Errorf("%s %v on %s: IPv6 is off there although the pod has an IPv6 address: set sysctl net.ipv6.conf.lo.disable_ipv6=0: %w", verb, passthroughV6, loopbackIface, err)
	case errors.Is(err, unix.EPERM):
		return false, fmt.Errorf("%s %v on %s: %s: %w", verb, passthroughV6, loopbackIface, needs, err)
	}
	return false, fmt.Errorf("%s %v on %s: %w", verb, passthroughV6, loopbackIface, err)
}

func hasPassthrough(lo netlink.Link) (bool, error) {
	addrs, err := netlink.AddrList(lo, netlink.FAMILY_V6)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) {
		return false, nil // a kernel without IPv6
	}
	if err != nil {
		return false, fmt.Errorf("list addresses of %s: %w", loopbackIface, err)
	}
	want := passthroughAddr()
	for _, a := range addrs {
		if a.IPNet.String() == want.IPNet.String() {
			return true, nil
		}
	}
	return false, nil
}

func passthroughAddr() *netlink.Addr {
	return &netlink.Addr{IPNet: &net.IPNet{
		IP:   net.IP(passthroughV6.Addr().AsSlice()),
		Mask: net.CIDRMask(passthroughV6.Bits(), passthroughV6.Addr().BitLen()),
	}}
}
