package inspect

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"understudy.mesh/iptables"
	"understudy.mesh/iptables/internal/saved"
	"understudy.mesh/iptables/rule"
)

// Tables and chains that capture does not use and a packet passes all the same.
const (
	filter      rule.Table = "filter"
	security    rule.Table = "security"
	postRouting            = "POSTROUTING"
	input                  = "INPUT"
	forward                = "FORWARD"
)

// verdict is how the evaluation of a chain ends.
type verdict int

const (
	fellOff    verdict = iota // after its last rule, or at RETURN
	accepted                  // the table is done with the packet
	dropped                   // the packet is no more
	translated                // by NAT, which is decided with this
	stuck                     // it depends on something that cannot be evaluated
)

// walk is one packet on its way under certain assumptions.
type walk struct {
	views  []view // those of one back end after those of the other
	net    network
	assume map[string]bool // by question.key
	p      packet

	all    bool // every rule becomes a step, not only those that match
	budget *int // of rules, shared by all walks of a trace

	steps       []Step
	decider     *Step     // of the landing
	need        *question // on which the walk is stuck
	place       place     // that a rule has chosen; "" is none
	transparent uint16    // the port that TPROXY has chosen
	lost        bool      // a target that nobody knows has the packet
}

// question is what cannot be evaluated.
type question struct{ key, text string }

// hook evaluates a built-in chain, and reports whether the packet goes no further.
func (w *walk) hook(name string, tables ...rule.Table) (ended bool) {
	for _, t := range tables {
		if t == rule.NAT && (w.p.natted || w.p.untracked) {
			continue
		}
		for _, v := range w.views {
			switch w.base(v, t, name) {
			case dropped, stuck:
				return true
			}
			if t == rule.NAT && w.p.natted { // the first NAT wins
				break
			}
		}
		if t == rule.NAT {
			w.p.natted = true // or is decided to be none
		}
	}
	return false
}

func (w *walk) base(v view, t rule.Table, name string) verdict {
	c := v.chain(t, name)
	if c == nil {
		return fellOff
	}
	got := w.chain(v, t, chainAt{name, []string{name}})
	if got == fellOff && c.policy == "DROP" {
		w.steps = append(w.steps, Step{Hook: name, Backend: v.backend, Table: t, Chain: name, Rule: "-P " + name + " DROP", Matched: true})
		w.decided()
		return dropped
	}
	return got
}

// chainAt is a chain and how it is reached from a hook.
type chainAt struct {
	hook string
	path []string // the chain is the last
}

// maxRules bounds the rules of one trace: five times what a list of 100,000 destinations
// takes. Few chains can lead to one another in more ways than anybody can follow.
const maxRules = 1_000_000

func (w *walk) chain(v view, t rule.Table, at chainAt) verdict {
	c := v.chain(t, at.path[len(at.path)-1])
	for _, r := range c.rules {
		if *w.budget--; *w.budget < 0 {
			w.need = &question{text: "more rules than can be followed"}
			return stuck
		}
		step := r.step(at.hook)
		step.jumps = v.chain(t, r.Jump) != nil
		m, because := r.matches(&w.p, w.net.isLocal)
		if m != yes {
			step.Because = because.String()
		}
		if m == unknown {
			holds, known := w.ask(r, at.hook, "match", because.String())
			if !known {
				return stuck
			}
			m = truthOf(holds)
		}
		if step.Matched = m == yes; step.Matched || w.all {
			w.steps = append(w.steps, step)
		}
		if m == no {
			continue
		}
		if got, done := w.act(v, r, at); done {
			return got
		}
	}
	return fellOff
}

// ask looks up an assumption about r; where there is none, the walk ends.
func (w *walk) ask(r *heldRule, hook, about, problem string) (holds, known bool) {
	key := fmt.Sprintf("%s %p %s", hook, r, about)
	if holds, known = w.assume[key]; !known {
		w.need = &question{key, fmt.Sprintf("%s %s %s (%s)", r.table, r.Chain, r.plain(), problem)}
	}
	return holds, known
}

// harmless are the targets that do not change where the packet goes.
var harmless = []string{"", "LOG", "NFLOG", "ULOG", "AUDIT", "TRACE", "CHECKSUM", "CLASSIFY", "DSCP", "TOS", "ECN", "TTL", "HL",
	"TCPMSS", "TCPOPTSTRIP", "SECMARK", "CONNSECMARK", "SET", "RATEEST", "HMARK", "IDLETIMER", "LED", "TEE"}

// act does what the target of a rule that matches says. done: the chain ends here.
func (w *walk) act(v view, r *heldRule, at chainAt) (got verdict, done bool) {
	p := &w.p
	switch r.Jump {
	case "RETURN", "ACCEPT":
		// To be left alone decides where capture would have been, which is in nat and,
		// for TPROXY, in mangle. What NAT has decided nothing changes any more.
		if r.table == rule.NAT || r.table == rule.Mangle && at.hook == rule.PreRouting && !p.natted && w.place == "" {
			w.decided()
		}
		if r.Jump == "ACCEPT" {
			return accepted, true
		}
		return fellOff, true
	case "DROP", "REJECT":
		w.decided()
		return dropped, true
	case "REDIRECT", "DNAT":
		return w.translate(r, at.hook)
	case "TPROXY":
		return w.tproxy(r)
	case "CT", "NOTRACK":
		if !p.assigned { // xt_CT.c leaves alone what has been seen to
			p.assigned, p.untracked = true, r.Jump == "NOTRACK" || slices.Contains(r.options, "--notrack")
		}
		return fellOff, false
	case "MARK":
		if value, mask, ok := saved.ParseMark(r.option("--set-xmark")); ok {
			p.mark = p.mark&^mask ^ value
			return fellOff, false
		}
	case "CONNMARK":
		if w.connMark(r) {
			return fellOff, false
		}
	}
	if slices.Contains(harmless, r.Jump) {
		return fellOff, false
	}
	if v.chain(r.table, r.Jump) == nil {
		return w.stranger(r, at.hook)
	}
	if slices.Contains(at.path, r.Jump) { // the kernel takes no rules that lead in a circle
		return fellOff, false
	}
	got = w.chain(v, r.table, chainAt{at.hook, append(slices.Clone(at.path), r.Jump)})
	return got, got != fellOff || r.isGoto
}

// decided notes that the last step is what the landing depends on.
func (w *walk) decided() {
	last := w.steps[len(w.steps)-1]
	w.decider = &last
}

// stranger is a target that we do not know: it may take the packet, or let it pass.
func (w *walk) stranger(r *heldRule, hook string) (got verdict, done bool) {
	takes, known := w.ask(r, hook, "target", "who knows what "+r.Jump+" does")
	if !known {
		return stuck, true
	}
	if takes {
		w.decided()
		w.lost = true
		return dropped, true
	}
	return fellOff, false
}

// translate is NAT of the destination; REDIRECT sends to the pod itself.
func (w *walk) translate(r *heldRule, hook string) (got verdict, done bool) {
	p := &w.p
	addr, port := p.dst.Addr(), p.dst.Port()
	var ports string
	if r.Jump == "REDIRECT" {
		addr = w.net.own(hook, p.in, addr)
		ports = r.option("--to-ports")
	} else {
		to, err := netip.ParseAddrPort(r.option("--to-destination"))
		if err != nil {
			var only netip.Addr
			only, err = netip.ParseAddr(strings.Trim(r.option("--to-destination"), "[]"))
			to = netip.AddrPortFrom(only, port)
		}
		if err != nil {
			return w.stranger(r, hook)
		}
		addr, port = to.Addr(), to.Port()
	}
	if ports != "" {
		n, err := strconv.ParseUint(ports, 10, 16)
		if err != nil { // a range
			return w.stranger(r, hook)
		}
		port = uint16(n)
	}
	p.dst, p.natted, w.place = netip.AddrPortFrom(addr, port), true, r.takes(port)
	w.decided()
	return translated, true
}

func (w *walk) tproxy(r *heldRule) (got verdict, done bool) {
	port, err := strconv.ParseUint(r.option("--on-port"), 10, 16)
	value, mask, ok := saved.ParseMark(r.option("--tproxy-mark"))
	if err != nil || !ok {
		return w.stranger(r, rule.PreRouting)
	}
	w.p.mark = w.p.mark&^mask ^ value
	w.transparent, w.place = uint16(port), r.takes(uint16(port))
	w.decided()
	return accepted, true
}

// takes is the place behind a port, by the chain in which Istio and we send to it.
func (r *heldRule) takes(port uint16) place {
	switch {
	case r.Chain == rule.OutRedirect:
		return placeEnvoyOutbound
	case r.Chain == rule.InRedirect, r.Chain == rule.Transparent:
		return placeEnvoyInbound
	case r.Chain == rule.OutboundDNS, port == iptables.DNSProxyPort: // Istio's of earlier years have no chain for it
		return placeAgentDNS
	}
	return placeRedirected
}

// connMark copies marks between packet and connection, and reports whether it knew how.
func (w *walk) connMark(r *heldRule) bool {
	p := &w.p
	bits := func(flag string) uint32 {
		if value, _, ok := saved.ParseMark(r.option(flag)); ok {
			return value
		}
		return ^uint32(0)
	}
	switch nf, ct := bits("--nfmask"), bits("--ctmask"); {
	case slices.Contains(r.options, rule.SaveMark):
		p.connMark = p.connMark&^ct ^ p.mark&nf
		return true
	case slices.Contains(r.options, rule.RestoreMark):
		p.mark = p.mark&^nf ^ p.connMark&ct
		return true
	}
	value, mask, ok := saved.ParseMark(r.option("--set-xmark"))
	if ok {
		p.connMark = p.connMark&^mask ^ value
	}
	return ok
}

func (r *heldRule) step(hook string) Step {
	return Step{
		Hook: hook, Backend: r.backend, Table: r.table, Chain: r.Chain,
		Rule: r.plain(), Comment: strings.TrimPrefix(r.Comment, rule.CommentMark), rule: r,
	}
}
