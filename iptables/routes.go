package iptables

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// routeProtocol marks the policy rules and routes that this package made, so that a
// later run knows them whatever became of the rules they belonged to. rtnetlink(7)
// leaves numbers from 5 to the user; none of iproute2's rt_protos is this one.
const routeProtocol = 137

// policy delivers every packet with a mark to this pod itself, whatever its
// destination: "ip rule fwmark MARK lookup TABLE", and in that table nothing but
// "local default dev lo". TPROXY hands over packets only where they would be
// delivered: Documentation/networking/tproxy.rst of Linux.
type policy struct {
	family Family
	mark   uint32
	table  uint32
}

// plumbing is what capture needs of a network namespace besides netfilter rules. It
// remembers what it changed.
type plumbing struct {
	passthrough bool // ::6 on lo
	policies    []policy
	marks       []uint32 // policy rules for these are ours, too, whoever made them
	undos       []func() error
}

// supply adds what is wanted and missing. It comes before the rules that need it.
func (p *plumbing) supply() error {
	if p.passthrough {
		if err := p.setPassthrough(true); err != nil {
			return err
		}
	}
	for _, w := range p.policies {
		if err := p.addPolicy(w); err != nil {
			return fmt.Errorf("send %v packets with mark %#x to this pod by route table %d: %w", w.family, w.mark, w.table, err)
		}
	}
	return nil
}

// withdraw removes what is ours and not wanted. No rule needs it any more.
func (p *plumbing) withdraw() error {
	if !p.passthrough {
		if err := p.setPassthrough(false); err != nil {
			return err
		}
	}
	for _, f := range []Family{IPv4, IPv6} {
		rules, err := policyRules(f)
		if err != nil {
			return err
		}
		kept := map[policy]bool{}
		for _, r := range rules {
			is, whole := asPolicy(r, f)
			if ours, err := p.owns(r, is, whole); err != nil || !ours {
				if err != nil {
					return err
				}
				continue
			}
			if slices.Contains(p.policies, is) && whole && !kept[is] {
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

// restore takes back every change, last first.
func (p *plumbing) restore() error {
	var errs []error
	for _, undo := range slices.Backward(p.undos) {
		errs = append(errs, undo())
	}
	p.undos = nil
	return errors.Join(errs...)
}

// changed reports whether there is anything to restore.
func (p *plumbing) changed() bool { return len(p.undos) > 0 }

// do makes a change, and remembers how to take it back.
func (p *plumbing) do(change, undo func() error) error {
	err := change()
	if err == nil {
		p.undos = append(p.undos, undo)
	}
	return err
}

// addPolicy adds the rule first: a crash then leaves nothing that the rule does not
// lead to.
func (p *plumbing) addPolicy(w policy) error {
	rules, err := policyRules(w.family)
	if err != nil {
		return err
	}
	there := slices.ContainsFunc(rules, func(r netlink.Rule) bool {
		is, whole := asPolicy(r, w.family)
		return whole && is == w
	})
	if !there {
		r := w.rule()
		err := p.do(func() error { return netlink.RuleAdd(r) }, func() error { return netlink.RuleDel(r) })
		if err != nil {
			return explainRoute("add the policy rule", err)
		}
	}
	local, err := localRoute(w.family, w.table)
	if err != nil || local != nil {
		return err
	}
	if local, err = w.route(); err != nil {
		return err
	}
	err = p.do(func() error { return netlink.RouteAdd(local) }, func() error { return netlink.RouteDel(local) })
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("route table %d has a default route of somebody else: choose another one with --istio-inbound-tproxy-route-table", w.table)
	}
	if err != nil {
		return explainRoute("add the local route", err)
	}
	return nil
}

// removePolicy removes the route first, and leaves it where another rule leads to it.
func (p *plumbing) removePolicy(r netlink.Rule, is policy) error {
	local, err := localRoute(is.family, is.table)
	if err != nil {
		return err
	}
	inUse := slices.ContainsFunc(p.policies, func(w policy) bool { return w.family == is.family && w.table == is.table })
	if local != nil && !inUse {
		if err := p.do(func() error { return netlink.RouteDel(local) }, func() error { return netlink.RouteAdd(local) }); err != nil {
			return explainRoute("remove the local route", err)
		}
	}
	if err := p.do(func() error { return netlink.RuleDel(&r) }, func() error { return netlink.RuleAdd(&r) }); err != nil {
		return explainRoute("remove the policy rule", err)
	}
	return nil
}

// owns reports whether a policy rule is ours: by its protocol, or because its mark is
// one that rules of ours or of Istio's set and its table does nothing else.
func (p *plumbing) owns(r netlink.Rule, is policy, whole bool) (bool, error) {
	if r.Protocol == routeProtocol {
		return true, nil
	}
	if !whole || !slices.Contains(p.marks, is.mark) {
		return false, nil
	}
	local, err := localRoute(is.family, is.table)
	return local != nil, err
}

func (w policy) rule() *netlink.Rule {
	r, mask := netlink.NewRule(), uint32(fullMask)
	r.Family, r.Mark, r.Mask, r.Table, r.Protocol = w.family.af(), w.mark, &mask, int(w.table), routeProtocol
	return r
}

func (w policy) route() (*netlink.Route, error) {
	lo, err := netlink.LinkByName(loopbackIface)
	if err != nil {
		return nil, fmt.Errorf("find interface %s: %w", loopbackIface, err)
	}
	all := net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 8*net.IPv4len)}
	if w.family == IPv6 {
		all = net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 8*net.IPv6len)}
	}
	return &netlink.Route{
		LinkIndex: lo.Attrs().Index, Dst: &all, Table: int(w.table),
		Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, Protocol: routeProtocol,
	}, nil
}

// asPolicy returns what a policy rule does, and whether it does that for every packet
// with the mark.
func asPolicy(r netlink.Rule, f Family) (is policy, whole bool) {
	whole = r.Mark != 0 && r.Mask != nil && *r.Mask == fullMask && r.Src == nil && r.Dst == nil && !r.Invert &&
		r.IifName == "" && r.OifName == "" && r.Tos == 0 && r.IPProto == 0 && r.Sport == nil && r.Dport == nil && r.UIDRange == nil && r.Goto < 0
	return policy{f, r.Mark, uint32(r.Table)}, whole
}

// policyRules lists the policy rules of an IP version; none where the kernel lacks it.
func policyRules(f Family) ([]netlink.Rule, error) {
	rules, err := netlink.RuleList(f.af())
	if lacksFamily(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list %v policy rules: %w", f, err)
	}
	return rules, nil
}

// localRoute returns the route of table that delivers everything to this pod, or nil.
func localRoute(f Family, table uint32) (*netlink.Route, error) {
	if table == unix.RT_TABLE_UNSPEC { // would list all tables
		return nil, nil
	}
	routes, err := netlink.RouteListFiltered(f.af(), &netlink.Route{Table: int(table), Type: unix.RTN_LOCAL}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
	if err != nil && !lacksFamily(err) {
		return nil, fmt.Errorf("list %v routes of table %d: %w", f, table, err)
	}
	for _, r := range routes {
		if r.Dst == nil || r.Dst.IP.IsUnspecified() && isWhole(r.Dst.Mask) {
			return &r, nil
		}
	}
	return nil, nil
}

func isWhole(m net.IPMask) bool {
	ones, _ := m.Size()
	return ones == 0
}

func lacksFamily(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP)
}

// explainRoute adds to an error of the kernel what can be done about it.
func explainRoute(what string, err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%s: %s: %w", what, needs, err)
	case errors.Is(err, unix.ENETDOWN):
		return fmt.Errorf("%s: interface %s must be up: %w", what, loopbackIface, err)
	case lacksFamily(err):
		return fmt.Errorf("%s: the kernel has no policy routing (CONFIG_IP_MULTIPLE_TABLES, CONFIG_IPV6_MULTIPLE_TABLES), which TPROXY needs; use REDIRECT: %w", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// tablesOf is `ip rule show fwmark MARK`.
func tablesOf(f Family, mark uint32) (tables []uint32, err error) {
	rules, err := policyRules(f)
	for _, r := range rules {
		if r.Mark == mark && mark != 0 && !r.Invert {
			tables = append(tables, uint32(r.Table))
		}
	}
	return tables, err
}

// allLocal looks for `local default`.
func allLocal(f Family, table uint32) (bool, error) {
	route, err := localRoute(f, table)
	return route != nil, err
}

func loHasPassthrough() (bool, error) {
	lo, err := netlink.LinkByName(loopbackIface)
	if err != nil {
		return false, fmt.Errorf("find interface %s: %w", loopbackIface, err)
	}
	return hasPassthrough(lo)
}
