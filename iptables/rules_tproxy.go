package iptables

import (
	"understudy.mesh/iptables/rule"
)

// In TPROXY mode the inbound connection keeps both its addresses: its mark has a route
// to lo, and there the kernel hands it to Envoy's transparent socket. Envoy calls the
// application from the client's address, with a mark by which the answers find back.

// calledItself marks what Envoy sends to its own pod by a service's address, which is
// captured as any other inbound traffic. Mark plus one, as Istio has it.
func (b *builder) calledItself() uint32 { return b.Mark + 1 }

// notInbound passes over what seems to come from outside and does not. It comes
// before the ports.
func (b *builder) notInbound() {
	b.mangle(rule.Inbound, rule.Match{Proto: rule.TCP, Mark: b.Mark}, rule.Leave, "Envoy to its own application")
	b.mangle(rule.Inbound, rule.Match{Srcs: rule.Passthrough, In: rule.Loopback, Proto: rule.TCP}, rule.Leave, "Envoy to its own application")
	b.mangle(rule.Inbound, rule.Match{In: rule.Loopback, Proto: rule.TCP, Mark: b.calledItself(), NotMark: true}, rule.Leave, "the application calls itself")
}

// inboundTransparent captures the inbound ports.
func (b *builder) inboundTransparent() {
	b.mangle(rule.Divert, rule.Match{}, rule.SetMark(b.Mark), "packets of connections that Envoy has")
	b.mangle(rule.Divert, rule.Match{}, rule.Target{Verdict: "ACCEPT"}, "packets of connections that Envoy has")
	b.mangle(rule.Transparent, rule.Match{Dsts: b.loopback(), NotDst: true, Proto: rule.TCP}, rule.TProxy(b.InboundPort, b.Mark), "to Envoy, inbound")
	b.inboundPorts(b.mangle, func(m rule.Match, why string) {
		known := m
		known.State = rule.Established
		b.mangle(rule.Inbound, known, rule.Jump(rule.Divert), why)
		b.mangle(rule.Inbound, m, rule.Jump(rule.Transparent), why)
	})
}

// transparent keeps what Envoy sends and what the application answers apart from
// what comes from outside.
func (b *builder) transparent() {
	fromEnvoy := rule.Match{Proto: rule.TCP, Mark: b.Mark}
	b.mangle(rule.PreRouting, fromEnvoy, rule.ConnMark(rule.SaveMark), "the answer has to find Envoy")
	again := fromEnvoy
	again.Out = rule.Loopback
	b.mangle(rule.Output, again, rule.Leave, "Envoy to its own application")
	for _, s := range b.senders() {
		m := s.sent(rule.Match{Dsts: b.loopback(), NotDst: true, Out: rule.Loopback, Proto: rule.TCP})
		b.mangle(rule.Output, m, rule.SetMark(b.calledItself()), "the pod calls itself by a service")
	}
	b.mangle(rule.Output, rule.Match{Proto: rule.TCP, ConnMark: b.Mark}, rule.ConnMark(rule.RestoreMark), "the application's answer to Envoy")
}

// fromTheClientsAddress lets through what Envoy sends to the application from a client's
// address. It would otherwise count as a call of the pod to itself and come in again,
// without end (istio#23369). Istio has no such rule and must run its proxy as root.
func (b *builder) fromTheClientsAddress() {
	b.nat(rule.Outbound, rule.Match{Out: rule.Loopback, Proto: rule.TCP, Mark: b.Mark}, rule.Leave, "Envoy to its own application")
}
