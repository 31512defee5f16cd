package inspect

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"understudy.mesh/iptables"
	"understudy.mesh/iptables/internal/saved"
	"understudy.mesh/iptables/rule"
)

// Infer returns the configuration from which the rules in force were made, by us or by
// Istio; what they do not show has its default. ok: there are any.
func (s *Snapshot) Infer() (c iptables.Config, ok bool) {
	var best rule.Backend
	most := 0
	count := map[rule.Backend]int{}
	for _, st := range s.states {
		for _, t := range st.Ours {
			count[st.Backend] += len(t.Rules)
		}
		if count[st.Backend] > most {
			best, most = st.Backend, count[st.Backend]
		}
	}
	i := inference{Config: iptables.Default()}
	i.UIDs, i.GIDs = nil, nil
	for _, st := range s.states {
		if st.Backend != best || len(st.Ours) == 0 {
			continue
		}
		i.families |= st.Family
		i.family = st.Family
		v := viewOf(st.Backend, st.Family, st.Ours)
		for _, t := range rule.Tables {
			for name, chain := range v.tables[t] {
				for _, r := range chain.rules {
					i.read(t, name, r)
				}
			}
		}
	}
	i.finish()
	i.RouteTable = s.routeTable(i.Config)
	i.Backend = best
	if best == rule.Plain {
		i.Backend = rule.Auto // no configuration can ask for it
	}
	return i.Config, most > 0
}

// routeTable is the one that the mark leads to.
func (s *Snapshot) routeTable(c iptables.Config) uint32 {
	if tables, err := s.net.tables(rule.IPv4, c.Mark); c.TPROXY && err == nil && len(tables) > 0 {
		return tables[0]
	}
	return c.RouteTable
}

// inference collects what single rules say. Rules says it the other way round.
type inference struct {
	iptables.Config
	family     rule.Family // of the rules that are read
	families   rule.Family // that have rules
	everywhere rule.Family // in which every destination is captured
	inPorts    []uint16    // left alone by nat; the tunnel's among them
	skipIn     []string    // interfaces of which PREROUTING leaves packets alone
	skipOut    []string
	loopback   netip.Prefix
	groups     []uint32       // that are left alone
	direct     []netip.Prefix // destinations that are left alone
}

func (i *inference) read(t rule.Table, chain string, r *heldRule) {
	switch {
	case chain == rule.Outbound && t == rule.NAT:
		i.readOutbound(r)
	case chain == rule.Inbound && t != rule.Raw:
		i.readInbound(t, r)
	case chain == rule.OutboundDNS && t == rule.NAT:
		i.readDNS(r)
	case r.Jump == "REDIRECT" && chain == rule.OutRedirect:
		i.ProxyPort = portOption(r, "--to-ports", i.ProxyPort)
	case r.Jump == "REDIRECT" && chain == rule.InRedirect:
		i.InboundPort = portOption(r, "--to-ports", i.InboundPort)
	case r.Jump == "TPROXY" && chain == rule.Transparent:
		i.InboundPort = portOption(r, "--on-port", i.InboundPort)
		i.readMark(r.option("--tproxy-mark"))
	case r.Jump == rule.DropChain || chain == rule.DropChain:
		i.DropInvalid = true
	case t == rule.Mangle && r.Jump == "CONNMARK" && chain == rule.PreRouting:
		c, _ := r.find("--mark")
		i.readMark(c.value)
	case r.Jump == "RETURN" || r.Jump == rule.OutRedirect:
		i.readInterface(chain, r)
	case t == rule.Raw && r.Jump == rule.OutboundDNS:
		i.DNS.Capture = true
	}
}

func portOption(r *heldRule, name string, otherwise uint16) uint16 {
	if p, err := iptables.ParsePort(r.option(name)); err == nil {
		return p
	}
	return otherwise
}

func (i *inference) readMark(s string) {
	if value, _, ok := saved.ParseMark(s); ok {
		i.TPROXY, i.Mark = true, value
	}
}

func (i *inference) readInterface(chain string, r *heldRule) {
	if c, ok := r.find("-i"); ok && chain == rule.PreRouting && r.table == rule.NAT {
		if r.Jump == rule.OutRedirect {
			i.VirtInterfaces = with(i.VirtInterfaces, c.value)
		} else {
			i.skipIn = with(i.skipIn, c.value)
		}
	}
	if c, ok := r.find("-o"); ok && chain == rule.Output && r.table == rule.NAT && r.Jump == "RETURN" {
		i.skipOut = with(i.skipOut, c.value)
	}
}

func (i *inference) readInbound(t rule.Table, r *heldRule) {
	ports := r.dstPorts()
	switch {
	case r.Jump == rule.InRedirect || r.Jump == rule.Transparent:
		if len(ports) == 0 {
			i.InboundPorts.All = true
		}
		i.InboundPorts.List = with(i.InboundPorts.List, ports...)
	case r.Jump == "RETURN" && t == rule.NAT:
		i.inPorts = append(i.inPorts, ports...)
	case r.Jump == "RETURN":
		i.ExcludeInboundPorts = with(i.ExcludeInboundPorts, ports...)
	}
}

func (i *inference) readDNS(r *heldRule) {
	if r.Jump != "REDIRECT" {
		return
	}
	i.DNS.Capture = true
	c, ok := r.find("-d")
	p, err := iptables.ParsePrefix(c.value)
	switch {
	case !ok:
		i.DNS.All = true
	case err == nil:
		i.DNS.Servers = with(i.DNS.Servers, p.Addr())
	}
}

func (i *inference) readOutbound(r *heldRule) {
	ports := r.dstPorts()
	dst, hasDst := r.find("-d")
	to, err := iptables.ParsePrefix(dst.value)
	_, onLoopback := r.find("-o")
	switch {
	case r.Jump == rule.InRedirect:
		if hasDst && err == nil && to.Addr().Is4() {
			i.loopback = to
		}
		i.readProxy(r)
	case r.Jump == rule.OutboundDNS:
		i.DNS.Capture = true
	case r.Jump == rule.OutRedirect && hasDst && err == nil:
		i.IncludeCIDRs.List = append(i.IncludeCIDRs.List, to)
	case r.Jump == rule.OutRedirect && len(ports) > 0:
		i.IncludeOutboundPorts = with(i.IncludeOutboundPorts, ports...)
	case r.Jump == rule.OutRedirect:
		i.everywhere |= i.family
	case r.Jump != "RETURN" || onLoopback:
	case hasDst && err == nil && !dst.not:
		i.direct = append(i.direct, to)
	case len(ports) > 0:
		i.ExcludeOutboundPorts = with(i.ExcludeOutboundPorts, ports...)
	default:
		i.readOwners(r)
	}
}

// readProxy takes the ids that only the proxy's rules have.
func (i *inference) readProxy(r *heldRule) {
	if c, ok := r.find("--mark"); ok && !c.not {
		if mark, _, ok := saved.ParseMark(c.value); ok {
			i.ProxyMark = mark
		}
	}
	if id, ok := r.owner("--uid-owner"); ok {
		i.UIDs = with(i.UIDs, id)
	}
	if id, ok := r.owner("--gid-owner"); ok {
		i.GIDs = with(i.GIDs, id)
	}
}

func (i *inference) readOwners(r *heldRule) {
	if _, ok := r.owner("--gid-owner"); !ok {
		i.readProxy(r)
	}
	for _, c := range r.match {
		switch id, err := strconv.ParseUint(c.value, 10, 32); {
		case c.flag != "owner --gid-owner" || err != nil:
		case c.not:
			i.IncludeGroups = with(i.IncludeGroups, uint32(id))
		default:
			i.groups = with(i.groups, uint32(id))
		}
	}
}

// finish decides what takes more than one rule to tell.
func (i *inference) finish() {
	if len(i.inPorts) > 0 {
		i.TunnelPort = i.inPorts[0] // Istio and we have it before all others
	}
	for _, p := range i.inPorts {
		if p != i.TunnelPort {
			i.ExcludeInboundPorts = with(i.ExcludeInboundPorts, p)
		}
	}
	for _, id := range i.groups {
		if !slices.Contains(i.GIDs, id) {
			i.ExcludeGroups = with(i.ExcludeGroups, id)
		}
	}
	i.IPv6 = i.families&rule.IPv6 != 0
	i.finishDestinations()
	for _, name := range i.skipIn {
		if slices.Contains(i.skipOut, name) {
			i.ExcludeInterfaces = append(i.ExcludeInterfaces, name)
		} else {
			i.VirtInterfaces = with(i.VirtInterfaces, name)
		}
	}
	slices.Reverse(i.VirtInterfaces)                      // the rule of each went before that of the one before it
	if len(i.UIDs)+len(i.GIDs) == 0 && i.ProxyMark == 0 { // no rule of the proxy's is left
		i.UIDs, i.GIDs = []uint32{iptables.DefaultProxyID}, []uint32{iptables.DefaultProxyID}
	}
}

func (i *inference) finishDestinations() {
	if i.loopback.IsValid() {
		i.LoopbackV4 = i.loopback
	}
	i.IncludeCIDRs.List = unique(i.IncludeCIDRs.List)
	switch i.everywhere {
	case 0:
	case i.families:
		i.IncludeCIDRs.All = true
	case rule.IPv4:
		i.IncludeCIDRs.List = append(i.IncludeCIDRs.List, netip.PrefixFrom(netip.IPv4Unspecified(), 0))
	case rule.IPv6:
		i.IncludeCIDRs.List = append(i.IncludeCIDRs.List, netip.PrefixFrom(netip.IPv6Unspecified(), 0))
	}
	for _, p := range unique(i.direct) {
		if p != i.LoopbackV4 && p != rule.LoopbackV6 {
			i.ExcludeCIDRs = append(i.ExcludeCIDRs, p)
		}
	}
}

// with appends what is not there yet.
func with[T comparable](list []T, items ...T) []T {
	for _, item := range items {
		if !slices.Contains(list, item) {
			list = append(list, item)
		}
	}
	return list
}

// unique is with for lists that may be long.
func unique[T comparable](list []T) []T {
	seen := make(map[T]bool, len(list))
	return slices.DeleteFunc(list, func(item T) bool {
		again := seen[item]
		seen[item] = true
		return again
	})
}

// dstPorts returns the ports that a rule names, if it names single ones.
func (h *heldRule) dstPorts() []uint16 {
	var out []uint16
	for _, flag := range []string{"--dport", "--dports"} {
		c, ok := h.find(flag)
		if !ok || c.not {
			continue
		}
		for item := range strings.SplitSeq(c.value, ",") {
			if p, err := iptables.ParsePort(item); err == nil {
				out = append(out, p)
			}
		}
	}
	return out
}

// owner returns the id that a rule wants.
func (h *heldRule) owner(flag string) (uint32, bool) {
	c, ok := h.find(flag)
	id, err := strconv.ParseUint(c.value, 10, 32)
	return uint32(id), ok && !c.not && err == nil
}
