// Package policyrouting owns what capture needs of a network namespace besides netfilter
// rules: the policy rules and routes of TPROXY mode, and the address ::6 of lo.
package policyrouting

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"understudy.mesh/iptables/internal/access"
	"understudy.mesh/iptables/rule"
)

// routeProtocol marks the policy rules and routes of this package, so that a later run
// knows them. rtnetlink(7) leaves numbers from 5 to the user; iproute2 has no name for it.
const routeProtocol = 137

// Policy delivers every packet with a mark to this pod: "ip rule fwmark MARK lookup
// TABLE", and in that table "local default dev lo". TPROXY hands over only packets that
// would be delivered: Documentation/networking/tproxy.rst of Linux.
type Policy struct {
	Family rule.Family
	Mark   uint32
	Table  uint32
}

// Change is what is wanted, and remembers what it changed.
type Change struct {
	Passthrough bool // ::6 on lo
	Policies    []Policy
	Marks       []uint32 // policy rules for these are ours, too, whoever made them
	undos       []func() error
}

// Add adds what is wanted and missing. It comes before the rules that need it.
func (p *Change) Add() error {
	if p.Passthrough {
		if err := p.setPassthrough(true); err != nil {
			return err
		}
	}
	for _, w := range p.Policies {
		if err := p.addPolicy(w); err != nil {
			return fmt.Errorf("send %v packets with mark %#x to this pod by route table %d: %w", w.Family, w.Mark, w.Table, err)
		}
	}
	return nil
}

// Remove removes what is ours and not wanted. No rule needs it any more.
func (p *Change) Remove() error {
	if !p.Passthrough {
		if err := p.setPassthrough(false); err != nil {
			return err
		}
	}
	for _, f := range []rule.Family{rule.IPv4, rule.IPv6} {
		rules, err := policyRules(f)
		if err != nil {
			return err
		}
		kept := map[Policy]bool{}
		for _, r := range rules {
			is, whole := asPolicy(r, f)
			ours, err := p.owns(r, is, whole)
			switch {
			case err != nil:
				return err
			case !ours:
				continue
			case slices.Contains(p.Policies, is) && whole && !kept[is]:
				kept[is] = true
				continue
			}
			if err := p.removePolicy(r, is); err != nil {
				return fmt.Errorf("stop sending %v packets with mark %#x to this pod: %w", f, r.Mark, err)
			}
		}
	}
	return nil
}

// Undo takes back every change, last first.
func (p *Change) Undo() error {
	var errs []error
	for _, undo := range slices.Backward(p.undos) {
		errs = append(errs, undo())
	}
	p.undos = nil
	return errors.Join(errs...)
}

// Changed reports whether there is anything to restore.
func (p *Change) Changed() bool { return len(p.undos) > 0 }

// do makes a change, and remembers how to take it back.
func (p *Change) do(change, undo func() error) error {
	err := change()
	if err == nil {
		p.undos = append(p.undos, undo)
	}
	return err
}

// addPolicy adds the rule first: after a crash, the rule leads to all that is left.
func (p *Change) addPolicy(w Policy) error {
	rules, err := policyRules(w.Family)
	if err != nil {
		return err
	}
	there := slices.ContainsFunc(rules, func(r netlink.Rule) bool {
		is, whole := asPolicy(r, w.Family)
		return whole && is == w
	})
	if !there {
		r := w.rule()
		err := p.do(func() error { return netlink.RuleAdd(r) }, func() error { return netlink.RuleDel(r) })
		if err != nil {
			return explainRoute("add the policy rule", err)
		}
	}
	local, err := localRoute(w.Family, w.Table)
	if err != nil || local != nil {
		return err
	}
	if local, err = w.route(); err != nil {
		return err
	}
	err = p.do(func() error { return netlink.RouteAdd(local) }, func() error { return netlink.RouteDel(local) })
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("route table %d has a default route of somebody else: choose another one with --istio-inbound-tproxy-route-table", w.Table)
	}
	return explainRoute("add the local route", err)
}

// removePolicy removes the route first, and leaves it where another rule leads to it.
func (p *Change) removePolicy(r netlink.Rule, is Policy) error {
	local, err := localRoute(is.Family, is.Table)
	if err != nil {
		return err
	}
	inUse := slices.ContainsFunc(p.Policies, func(w Policy) bool { return w.Family == is.Family && w.Table == is.Table })
	if local != nil && !inUse {
		if err := p.do(func() error { return netlink.RouteDel(local) }, func() error { return netlink.RouteAdd(local) }); err != nil {
			return explainRoute("remove the local route", err)
		}
	}
	return explainRoute("remove the policy rule", p.do(func() error { return netlink.RuleDel(&r) }, func() error { return netlink.RuleAdd(&r) }))
}

// owns reports whether a policy rule is ours: by its protocol, or because its mark is one
// of Marks and its table delivers all to this pod.
func (p *Change) owns(r netlink.Rule, is Policy, whole bool) (bool, error) {
	if r.Protocol == routeProtocol {
		return true, nil
	}
	if !whole || !slices.Contains(p.Marks, is.Mark) {
		return false, nil
	}
	local, err := localRoute(is.Family, is.Table)
	return local != nil, err
}

func (w Policy) rule() *netlink.Rule {
	r, mask := netlink.NewRule(), uint32(rule.FullMask)
	r.Family, r.Mark, r.Mask, r.Table, r.Protocol = w.Family.AF(), w.Mark, &mask, int(w.Table), routeProtocol
	return r
}

func (w Policy) route() (*netlink.Route, error) {
	lo, err := loopback()
	if err != nil {
		return nil, err
	}
	all := net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 8*net.IPv4len)}
	if w.Family == rule.IPv6 {
		all = net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 8*net.IPv6len)}
	}
	return &netlink.Route{
		LinkIndex: lo.Attrs().Index, Dst: &all, Table: int(w.Table),
		Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, Protocol: routeProtocol,
	}, nil
}

// asPolicy returns what a rule does, and whether for every packet with the mark.
func asPolicy(r netlink.Rule, f rule.Family) (is Policy, whole bool) {
	whole = r.Mark != 0 && r.Mask != nil && *r.Mask == rule.FullMask && r.Src == nil && r.Dst == nil && !r.Invert &&
		r.IifName == "" && r.OifName == "" && r.Tos == 0 && r.IPProto == 0 && r.Sport == nil && r.Dport == nil && r.UIDRange == nil && r.Goto < 0
	return Policy{f, r.Mark, uint32(r.Table)}, whole
}

// policyRules lists the policy rules of an IP version; none where the kernel lacks it.
func policyRules(f rule.Family) ([]netlink.Rule, error) {
	rules, err := netlink.RuleList(f.AF())
	if lacksFamily(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list %v policy rules: %w", f, err)
	}
	return rules, nil
}

// localRoute returns the route of table that delivers everything to this pod, or nil.
func localRoute(f rule.Family, table uint32) (*netlink.Route, error) {
	if table == unix.RT_TABLE_UNSPEC { // would list all tables
		return nil, nil
	}
	routes, err := netlink.RouteListFiltered(f.AF(), &netlink.Route{Table: int(table), Type: unix.RTN_LOCAL}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
	if err != nil && !lacksFamily(err) {
		return nil, fmt.Errorf("list %v routes of table %d: %w", f, table, err)
	}
	for _, r := range routes {
		if r.Dst == nil {
			return &r, nil
		}
		if ones, _ := r.Dst.Mask.Size(); ones == 0 && r.Dst.IP.IsUnspecified() {
			return &r, nil
		}
	}
	return nil, nil
}

func lacksFamily(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP)
}

// explainRoute adds to an error of the kernel what can be done about it.
func explainRoute(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%s: %s: %w", what, access.Needs, err)
	case errors.Is(err, unix.ENETDOWN):
		return fmt.Errorf("%s: interface %s must be up: %w", what, rule.Loopback, err)
	case lacksFamily(err):
		return fmt.Errorf("%s: the kernel has no policy routing (CONFIG_IP_MULTIPLE_TABLES, CONFIG_IPV6_MULTIPLE_TABLES), which TPROXY needs; use REDIRECT: %w", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// Tables is `ip rule show fwmark MARK`.
func Tables(f rule.Family, mark uint32) (tables []uint32, err error) {
	rules, err := policyRules(f)
	for _, r := range rules {
		if r.Mark == mark && mark != 0 && !r.Invert {
			tables = append(tables, uint32(r.Table))
		}
	}
	return tables, err
}

// AllLocal looks for `local default`.
func AllLocal(f rule.Family, table uint32) (bool, error) {
	route, err := localRoute(f, table)
	return route != nil, err
}

// HasPassthrough reports whether lo has ::6.
func HasPassthrough() (bool, error) {
	lo, err := loopback()
	if err != nil {
		return false, err
	}
	return passthroughOn(lo)
}

func loopback() (netlink.Link, error) {
	lo, err := netlink.LinkByName(rule.Loopback)
	if err != nil {
		return nil, fmt.Errorf("find interface %s: %w", rule.Loopback, err)
	}
	return lo, nil
}

// setPassthrough gives lo the address ::6, from which Envoy reaches the application, or
// takes it away. IPv4 needs nothing: all of 127.0.0.0/8 is local.
func (p *Change) setPassthrough(wanted bool) error {
	lo, err := loopback()
	if err != nil {
		return err
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
		err = fmt.Errorf("IPv6 is off there although the pod has an IPv6 address: set sysctl net.ipv6.conf.lo.disable_ipv6=0: %w", err)
	case errors.Is(err, unix.EPERM):
		err = fmt.Errorf("%s: %w", access.Needs, err)
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
	return slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IPNet.String() == rule.PassthroughV6.String() }), nil
}

// passthroughAddr needs no search for duplicates: until the kernel finds out that there is
// none on loopback, nobody could bind it.
func passthroughAddr() *netlink.Addr {
	return &netlink.Addr{
		IPNet: &net.IPNet{
			IP:   net.IP(rule.PassthroughV6.Addr().AsSlice()),
			Mask: net.CIDRMask(rule.PassthroughV6.Bits(), rule.PassthroughV6.Addr().BitLen()),
		},
		Flags: unix.IFA_F_NODAD,
	}
}
