package iptables

// In TPROXY mode the inbound connection keeps both its addresses: the kernel hands
// it to Envoy's transparent socket as it is, by a mark that a route of its own sends
// to lo. Envoy calls the application from the client's address, and marks what it
// sends so that the application's answers find back to it.

// calledItself marks what Envoy sends to its own pod by a service's address, which is
// captured as any other inbound traffic. Mark plus one, as Istio has it.
func (b *builder) calledItself() uint32 { return b.Mark + 1 }

// notInbound passes over what seems to come from outside and does not. It comes
// before the ports.
func (b *builder) notInbound() {
	b.mangle(inbound, Match{Proto: TCP, Mark: b.Mark}, accept, "Envoy to its own application")
	b.mangle(inbound, Match{Srcs: passthrough, In: loopbackIface, Proto: TCP}, accept, "Envoy to its own application")
	b.mangle(inbound, Match{In: loopbackIface, Proto: TCP, Mark: b.calledItself(), NotMark: true}, accept, "the application calls itself")
}

// inboundTransparent captures the inbound ports.
func (b *builder) inboundTransparent() {
	b.mangle(divert, Match{}, setMark(b.Mark), "packets of connections that Envoy has")
	b.mangle(divert, Match{}, Target{Verdict: "ACCEPT"}, "packets of connections that Envoy has")
	b.mangle(transparent, Match{Dsts: b.loopback(), NotDst: true, Proto: TCP}, tproxy(b.InboundPort, b.Mark), "to Envoy, inbound")
	b.inboundPorts(b.mangle, func(m Match, why string) {
		known := m
		known.State = Established
		b.mangle(inbound, known, jump(divert), why)
		b.mangle(inbound, m, jump(transparent), why)
	})
}

// transparent keeps what Envoy sends and what the application answers apart from
// what comes from outside.
func (b *builder) transparent() {
	fromEnvoy := Match{Proto: TCP, Mark: b.Mark}
	b.mangle(preRouting, fromEnvoy, connMark(saveMark), "the answer has to find Envoy")
	again := fromEnvoy
	again.Out = loopbackIface
	b.mangle(output, again, accept, "Envoy to its own application")
	for _, o := range b.proxyOwners() {
		m := Match{Dsts: b.loopback(), NotDst: true, Out: loopbackIface, Proto: TCP, Owners: []Owner{o}}
		b.mangle(output, m, setMark(b.calledItself()), "the pod calls itself by a service")
	}
	b.mangle(output, Match{Proto: TCP, ConnMark: b.Mark}, connMark(restoreMark), "the application's answer to Envoy")
}
