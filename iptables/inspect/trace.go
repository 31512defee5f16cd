package inspect

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"understudy.mesh/iptables/rule"
)

// Flow is what is traced: the first packet of a connection, or a query.
type Flow struct {
	Local    bool       // a process of the pod sends it; else it comes from outside
	UID, GID uint32     // of that process
	Mark     uint32     // SO_MARK of its socket
	Proto    rule.Proto // TCP or UDP
	Src      netip.AddrPort
	Dst      netip.AddrPort
	In       string // the interface on which it comes from outside; "" is that of the route back
}

// place is the kind of place where a packet ends.
type place string

// The places.
const (
	placeEnvoyOutbound place = "envoy-outbound"
	placeEnvoyInbound  place = "envoy-inbound"
	placeAgentDNS      place = "dns"
	placeRedirected    place = "redirected"  // by somebody else's rule, to another port or address
	placeToPod         place = "local"       // the port that it asked for, in the pod itself
	placeDirect        place = "direct"      // leaves the pod as it is
	placeForwarded     place = "forwarded"   // came from outside and leaves again
	placeDropped       place = "dropped"     // by a rule
	placeUnreachable   place = "unreachable" // there is no route: no rule ever sees it
	placeUndecided     place = "undecided"   // a rule takes it of which we do not know what it does
)

// Landing is where a packet ends.
type Landing struct {
	Place place          `json:"place"`
	Addr  netip.AddrPort `json:"address"`             // its destination by then
	Iface string         `json:"interface,omitempty"` // by which it leaves the pod
}

// Step is a rule that a packet met.
type Step struct {
	Hook    string       `json:"hook"` // OUTPUT, PREROUTING ...
	Backend rule.Backend `json:"backend"`
	Table   rule.Table   `json:"table"`
	Chain   string       `json:"chain"`
	Rule    string       `json:"rule"` // as iptables-save has it, without the comment
	Comment string       `json:"comment,omitempty"`
	Matched bool         `json:"matched"`
	Because string       `json:"because,omitempty"` // the match that failed or cannot be evaluated

	rule  *heldRule // nil: the policy of a chain
	jumps bool      // its target is a chain
}

// Outcome is one way that a packet can go.
type Outcome struct {
	Landing
	If     []string `json:"if,omitempty"`     // what it depends on, as far as that cannot be evaluated
	Rule   *Step    `json:"rule,omitempty"`   // that decided; nil: none takes the packet
	Reason string   `json:"reason,omitempty"` // in words
	// Purpose is that of the rule that decided or could have, in the words of comments.
	Purpose string `json:"purpose,omitempty"`
	Steps   []Step `json:"steps"`
}

// Traced is what became of a flow: several outcomes where what decides is unknown.
type Traced struct {
	Flow     Flow      `json:"-"`
	Outcomes []Outcome `json:"outcomes"`
	Blind    []string  `json:"cannotBeEvaluated,omitempty"` // matches and targets on the way
	Unseen   []string  `json:"notSeen,omitempty"`           // chains on the way of which we cannot read the rules
}

// Decided reports whether there is one answer, and nothing that could make it wrong.
func (t Traced) Decided() bool {
	return len(t.Outcomes) == 1 && t.Outcomes[0].Place != placeUndecided && len(t.Unseen) == 0
}

// maxCases bounds the ways that are followed: six rules that cannot be evaluated.
const maxCases = 64

// Trace evaluates the rules in force for f. all: those that do not match are steps, too.
func (s *Snapshot) Trace(f Flow, all bool) (Traced, error) {
	if f.Proto != rule.TCP && f.Proto != rule.UDP || !f.Dst.IsValid() {
		return Traced{}, fmt.Errorf("trace %s to %v: want tcp or udp, and an address with a port", f.Proto, f.Dst)
	}
	e := explorer{snapshot: s, flow: f, all: all, budget: maxRules}
	var views []view
	for _, v := range s.views {
		if v.family == rule.FamilyOf(f.Dst.Addr()) && !v.empty() {
			views = append(views, v)
		}
	}
	orders := [][]view{views}
	if len(views) > 1 { // hooks of one priority run in an order that nobody can ask for
		turned := slices.Clone(views)
		slices.Reverse(turned)
		orders = append(orders, turned)
	}
	for _, order := range orders {
		var first []string
		if len(order) > 1 {
			first = []string{"the kernel asks the rules of " + order[0].backend.Title() + " first"}
		}
		e.explore(order, map[string]bool{}, first)
	}
	unseen, err := s.unseenBy(rule.FamilyOf(f.Dst.Addr()))
	if err != nil {
		return Traced{}, err
	}
	t := Traced{Flow: f, Outcomes: e.outcomes, Blind: e.blind, Unseen: unseen}
	if len(t.Outcomes) == 1 {
		t.Outcomes[0].If = nil // it does not depend on anything
	}
	for i := range t.Outcomes {
		s.explain(f, &t.Outcomes[i])
		if !all {
			t.Outcomes[i].Steps = withoutDeadEnds(t.Outcomes[i].Steps)
		}
	}
	return t, nil
}

// explorer follows a packet through every combination of what cannot be evaluated.
type explorer struct {
	snapshot *Snapshot
	flow     Flow
	all      bool
	budget   int
	cases    int
	outcomes []Outcome
	blind    []string
}

func (e *explorer) explore(views []view, assume map[string]bool, ifs []string) {
	w := &walk{views: views, net: e.snapshot.net, assume: assume, all: e.all, budget: &e.budget}
	landing := w.follow(e.flow)
	if w.need == nil {
		e.add(Outcome{Landing: landing, If: ifs, Rule: w.decider, Steps: w.steps})
		return
	}
	if !slices.Contains(e.blind, w.need.text) {
		e.blind = append(e.blind, w.need.text)
	}
	if e.cases++; e.cases > maxCases || e.budget < 0 {
		e.add(Outcome{Landing: Landing{Place: placeUndecided, Addr: e.flow.Dst}, If: []string{"more rules decide than can be followed"}, Steps: w.steps})
		return
	}
	for _, holds := range []bool{false, true} {
		assumed := map[string]bool{w.need.key: holds}
		for k, v := range assume {
			assumed[k] = v
		}
		text := w.need.text + " does not apply"
		if holds {
			text = w.need.text + " applies"
		}
		e.explore(views, assumed, append(slices.Clone(ifs), text))
	}
}

// add leaves out what ends where another outcome does.
func (e *explorer) add(o Outcome) {
	if !slices.ContainsFunc(e.outcomes, func(other Outcome) bool { return other.Landing == o.Landing }) {
		e.outcomes = append(e.outcomes, o)
	}
}

// withoutDeadEnds leaves out jumps to chains in which nothing matched, but for those that capture.
func withoutDeadEnds(steps []Step) []Step {
	var out []Step
	var next Step
	for _, s := range slices.Backward(steps) {
		led := s.jumps && next.Chain == s.rule.Jump && next.Hook == s.Hook && next.Table == s.Table
		decides := s.jumps && s.Table == rule.NAT && (s.rule.Jump == rule.Outbound || s.rule.Jump == rule.Inbound)
		if !s.jumps || led || decides {
			out = append(out, s)
			next = s
		}
	}
	slices.Reverse(out)
	return out
}

// follow takes the packet through netfilter's hooks: OUTPUT and then, over lo, in again;
// or PREROUTING and INPUT.
func (w *walk) follow(f Flow) Landing {
	w.p = packet{src: f.Src, dst: f.Dst, proto: f.Proto, local: f.Local, uid: f.UID, gid: f.GID, mark: f.Mark, srcKnown: f.Src.Addr().IsValid()}
	if w.p.src.Port() == 0 {
		w.p.src = netip.AddrPortFrom(w.p.src.Addr(), someClientPort)
	}
	if f.Local {
		return w.outwards()
	}
	w.p.in = f.In
	if w.p.in == "" {
		w.p.in = w.net.arrives(f.Src.Addr(), f.Dst.Addr())
	}
	return w.inwards()
}

// someClientPort is out of the usual range of net.ipv4.ip_local_port_range.
const someClientPort = 45678

func (w *walk) outwards() Landing {
	p := &w.p
	iface, src, err := w.net.route(p.dst.Addr(), p.mark)
	if err != nil {
		return Landing{Place: placeUnreachable, Addr: p.dst}
	}
	p.out = iface
	if !p.srcKnown {
		p.src, p.srcKnown = netip.AddrPortFrom(src, p.src.Port()), true
	}
	before := *p
	if w.hook(rule.Output, rule.Raw, rule.Mangle, rule.NAT, filter, security) {
		return w.end()
	}
	if p.dst != before.dst || p.mark != before.mark { // the kernel looks for a route again
		if iface, _, err := w.net.route(p.dst.Addr(), p.mark); err == nil {
			p.out = iface
		}
	}
	if w.hook(postRouting, rule.Mangle) {
		return w.end()
	}
	if p.out != rule.Loopback {
		return w.landing(placeDirect)
	}
	p.in, p.out = rule.Loopback, ""
	return w.inwards()
}

func (w *walk) inwards() Landing {
	p := &w.p
	if w.hook(rule.PreRouting, rule.Raw, rule.Mangle, rule.NAT) {
		return w.end()
	}
	if w.transparent == 0 && p.in != rule.Loopback && !w.net.isLocal(p.dst.Addr()) {
		if w.hook(forward, rule.Mangle, filter, security) {
			return w.end()
		}
		return w.landing(placeForwarded)
	}
	if w.hook(input, rule.Mangle, filter, security) {
		return w.end()
	}
	return w.landing(placeToPod)
}

// end is the landing of a packet that a hook has stopped.
func (w *walk) end() Landing {
	place := placeDropped
	if w.lost || w.need != nil {
		place = placeUndecided
	}
	return Landing{Place: place, Addr: w.p.dst}
}

// landing is the place of a packet that has passed every hook.
func (w *walk) landing(otherwise place) Landing {
	l := Landing{Place: otherwise, Addr: w.p.dst}
	if w.place != "" {
		l.Place = w.place
	}
	if w.transparent != 0 {
		l.Addr = netip.AddrPortFrom(w.p.dst.Addr(), w.transparent)
	}
	if otherwise == placeDirect {
		l.Iface = w.p.out
	}
	return l
}

// String is a line for people.
func (l Landing) String() string {
	port := l.Addr.Port()
	switch l.Place {
	case placeEnvoyOutbound:
		return fmt.Sprintf("Envoy, outbound (port %d)", port)
	case placeEnvoyInbound:
		return fmt.Sprintf("Envoy, inbound (port %d)", port)
	case placeAgentDNS:
		return fmt.Sprintf("the agent's DNS (port %d)", port)
	case placeRedirected:
		return fmt.Sprintf("%v, where a rule sends it that is not ours", l.Addr)
	case placeToPod:
		return fmt.Sprintf("%v in the pod itself: not captured", l.Addr)
	case placeDirect:
		return fmt.Sprintf("%v by interface %s: not captured", l.Addr, l.Iface)
	case placeForwarded:
		return fmt.Sprintf("%v, forwarded: not captured", l.Addr)
	case placeDropped:
		return "nowhere: dropped"
	case placeUnreachable:
		return "nowhere: the pod has no route to " + l.Addr.Addr().String()
	}
	return "undecided"
}

// String is the rule with its place.
func (s Step) String() string {
	return strings.Join([]string{string(s.Table), s.Chain, s.Rule}, " ")
}
