package policyrouting

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"understudy.mesh/iptables/internal/access"
	"understudy.mesh/iptables/rule"
)

// setPassthrough gives lo the address ::6, from which Envoy reaches the application
// over IPv6, or takes it away, when it is not so already. IPv4 needs nothing: all of
// 127.0.0.0/8 is local.
func (p *Change) setPassthrough(wanted bool) error {
	lo, err := netlink.LinkByName(rule.Loopback)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", rule.Loopback, err)
	}
	present, err := passthroughOn(lo)
	if err != nil || present == wanted {
		return err
	}
	add := func() error { return changePassthrough("add", netlink.AddrAdd, lo) }
	remove := func() error { return changePassthrough("remove", netlink.AddrDel, lo) }
	if wanted {
		return p.do(add, remove)
	}
	return p.do(remove, add)
}

func changePassthrough(verb string, change func(netlink.Link, *netlink.Addr) error, lo netlink.Link) error {
	err := change(lo, passthroughAddr())
	switch {
	case err == nil:
		return nil
	case verb == "add" && (errors.Is(err, unix.EACCES) || lacksFamily(err)):
		return fmt.Errorf("%s %v on %s: IPv6 is off there although the pod has an IPv6 address: set sysctl net.ipv6.conf.lo.disable_ipv6=0: %w", verb, rule.PassthroughV6, rule.Loopback, err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%s %v on %s: %s: %w", verb, rule.PassthroughV6, rule.Loopback, access.Needs, err)
	}
	return fmt.Errorf("%s %v on %s: %w", verb, rule.PassthroughV6, rule.Loopback, err)
}

func passthroughOn(lo netlink.Link) (bool, error) {
	addrs, err := netlink.AddrList(lo, netlink.FAMILY_V6)
	if lacksFamily(err) {
		return false, nil // a kernel without IPv6
	}
	if err != nil {
		return false, fmt.Errorf("list addresses of %s: %w", rule.Loopback, err)
	}
	want := passthroughAddr()
	for _, a := range addrs {
		if a.IPNet.String() == want.IPNet.String() {
			return true, nil
		}
	}
	return false, nil
}

// passthroughAddr is the address as it is to be: of use at once. Duplicates are not looked for on
// a loopback interface, but the kernel finds that out later, and until then nobody can bind it.
func passthroughAddr() *netlink.Addr {
	return &netlink.Addr{
		IPNet: &net.IPNet{
			IP:   net.IP(rule.PassthroughV6.Addr().AsSlice()),
			Mask: net.CIDRMask(rule.PassthroughV6.Bits(), rule.PassthroughV6.Addr().BitLen()),
		},
		Flags: unix.IFA_F_NODAD,
	}
}
