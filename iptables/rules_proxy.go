package iptables

import (
	"understudy.mesh/iptables/rule"
)

// sender is one way to know that Envoy or the agent has sent a packet: by its mark or,
// without one, by its owner. One is enough.
type sender struct {
	mark  uint32
	owner rule.Owner
}

// senders returns every way to know the proxy. The mark is first: the rules of an
// owner take what others send on lo for the application's.
func (b *builder) senders() []sender {
	var out []sender
	if b.ProxyMark != 0 {
		out = append(out, sender{mark: b.ProxyMark})
	}
	for _, id := range b.UIDs {
		out = append(out, sender{owner: rule.Owner{ID: id}})
	}
	for _, id := range b.GIDs {
		out = append(out, sender{owner: rule.Owner{ID: id, Group: true}})
	}
	return out
}

// sent returns m for what the proxy has sent.
func (s sender) sent(m rule.Match) rule.Match {
	if s.mark != 0 {
		m.Mark = s.mark
		return m
	}
	m.Owners = []rule.Owner{s.owner}
	return m
}

// others returns m for what s does not know.
func (s sender) others(m rule.Match) rule.Match {
	if s.mark != 0 {
		m.Mark, m.NotMark = s.mark, true
		return m
	}
	other := s.owner
	other.Not = true
	m.Owners = []rule.Owner{other}
	return m
}

// proxy lets Envoy and the agent out, but what Envoy sends to its own pod by a service's
// address comes in as any other client's would, unless it is for the tunnel or a query.
func (b *builder) proxy(s sender) {
	direct := []uint16{b.TunnelPort}
	if b.DNS.Capture && !s.owner.Group { // a group's queries are not excepted with Istio either
		direct = []uint16{DNSPort, b.TunnelPort}
	}
	hairpin := rule.Match{Out: rule.Loopback, Dsts: b.loopback(), NotDst: true, Proto: rule.TCP, DstPorts: direct, NotPorts: true}
	b.nat(rule.Outbound, s.sent(hairpin), rule.Jump(rule.InRedirect), "the pod calls itself by a service")

	if b.localByItself(s) && !b.IncludeCIDRs.includesLoopback() {
		local := rule.Match{Out: rule.Loopback}
		if b.DNS.Capture { // queries to a resolver on loopback go on to the DNS rules
			local.Proto, local.DstPorts, local.NotPorts = rule.TCP, []uint16{DNSPort}, true
		}
		b.nat(rule.Outbound, s.others(local), rule.Leave, "the application calls itself")
	}
	b.nat(rule.Outbound, s.sent(rule.Match{}), rule.Leave, "from the proxy")
}

// localByItself tells whether whatever s does not know is the application's. What has
// no mark may still be the proxy's by its owner.
func (b *builder) localByItself(s sender) bool {
	return s.mark == 0 || len(b.UIDs)+len(b.GIDs) == 0
}
