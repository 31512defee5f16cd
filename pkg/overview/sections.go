package overview

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"understudy.mesh/pkg/contract"
	"understudy.mesh/pkg/control"
)

// section is one part of the overview, as text that is not escaped for any medium yet.
type section struct {
	title string
	lines []line
	head  []string // of the columns; nil: there is no table
	rows  []row
}

// line is a sentence; a bad one wants attention.
type line struct {
	text string
	bad  bool
}

// row is one of a table; "" is for what does not apply or is unknown.
type row struct {
	cells []string
	bad   bool
}

func (s *section) say(bad bool, format string, args ...any) {
	s.lines = append(s.lines, line{fmt.Sprintf(format, args...), bad})
}

func (s *section) add(bad bool, cells ...string) { s.rows = append(s.rows, row{cells, bad}) }

// headline is the whole in a line.
func (o Overview) headline() line {
	role := "unknown"
	for _, g := range o.Upgrade.Generations {
		if g.Self {
			role = g.Role
		}
	}
	l := line{text: o.Pod + ": " + role}
	if o.Sidecar == nil {
		return l
	}
	ready := ", ready"
	if !o.Sidecar.Ready {
		ready, l.bad = ", not ready", true
	}
	l.text += ready
	if n := o.Sidecar.Config.ErrorsCount; n > 0 {
		l.text, l.bad = fmt.Sprintf("%s; configuration errors: %d", l.text, n), true
	}
	return l
}

// sections is what people read, seen at a moment.
func (o Overview) sections(now time.Time) []section {
	all := []section{o.generations(now)}
	if s := o.lastUpgrade(); s != nil {
		all = append(all, *s)
	}
	if o.Sidecar == nil {
		return all
	}
	all = append(all, o.Sidecar.readiness(), o.Sidecar.configuration(now))
	if o.Sidecar.DNS != nil {
		all = append(all, o.Sidecar.DNS.names(), o.Sidecar.DNS.servers(now))
	}
	return all
}

func (o Overview) generations(now time.Time) section {
	s := section{title: "Generations", head: []string{"GENERATION", "ROLE", "SINCE", "AGENT", "ENVOY", "CONNECTIONS", "LAST ATTEMPT"}}
	for _, g := range o.Upgrade.Generations {
		id := g.ID
		if g.Self {
			id += " *"
		}
		failed := g.Error != "" || g.LastAttempt != nil && g.LastAttempt.Reason != ""
		s.add(failed, id, g.Role, ago(now, g.Since), g.AgentVersion, g.EnvoyVersion, Connections(g), LastAttempt(now, g))
	}
	if o.Upgrade.HandoffDir == "" {
		s.say(false, "Hot upgrade is off: %s", o.Upgrade.Off)
	}
	return s
}

// lastUpgrade is the timeline of the last hand-off, as the agent that was asked saw it, or if it saw none, another one; nil: there
// was none.
func (o Overview) lastUpgrade() *section {
	var side *contract.GenerationStatus
	for i, g := range o.Upgrade.Generations { // the one that was asked is the first
		if side == nil && g.LastAttempt != nil && len(g.LastAttempt.Steps) > 0 {
			side = &o.Upgrade.Generations[i]
		}
	}
	if side == nil {
		return nil
	}
	a := side.LastAttempt
	s := &section{title: "Last upgrade", head: []string{"TIME", "AFTER", "WHAT"}}
	from, to := side.ID, a.With
	if a.TakingOver {
		from, to = a.With, side.ID
	}
	s.say(a.Reason != "", "From generation %s to %s, as %s saw it: %s", from, to, side.ID, joined(": ", a.Result, a.Reason))
	for _, step := range a.Steps {
		s.add(false, step.At.UTC().Format("15:04:05.000"), fmt.Sprintf("%.3fs", step.At.Sub(a.At).Seconds()), step.What)
	}
	return s
}

func (c *Sidecar) readiness() section {
	s := section{title: "Readiness and capture", head: []string{"TASK", "STATE", "REASON"}}
	s.say(false, "%s", c.Capture)
	for _, t := range c.Tasks {
		s.add(t.State != "done", t.Name, t.State, t.Reason)
	}
	return s
}

func (c *Sidecar) configuration(now time.Time) section {
	s := section{title: "Configuration"}
	if i := c.Config.Istiod; i == nil {
		s.say(false, "Of the files in %s: %d hosts are in force.", c.Config.Directory, c.Config.Hosts)
	} else {
		state := "open"
		if !i.Connected {
			state = "closed"
		}
		s.say(!i.Connected, "Of istiod at %s: the stream has been %s for %s%s", i.Address, state, control.Briefly(now.Sub(i.Since)), after("; the last error was: ", i.LastError))
	}
	if w := c.Certificate; w != nil {
		s.say(w.State != "valid", "Certificate of %s: %s%s", w.ID, w.lifetime(now), after("; there is no newer one: ", w.LastError))
	}
	if n := c.Config.ErrorsCount; n > 0 {
		s.head = []string{"NOT IN FORCE", "WHY"}
		for _, e := range c.Config.Errors {
			s.add(true, e.Where, e.Reason)
		}
		if n > len(c.Config.Errors) {
			s.say(true, "Not in force: %d, of which %d are listed.", n, len(c.Config.Errors))
		}
	}
	return s
}

// lifetime is how old a certificate is, and how long it lasts.
func (w *Certificate) lifetime(now time.Time) string {
	text := w.State
	if !w.Since.IsZero() {
		text += ", " + control.Briefly(now.Sub(w.Since)) + " old"
	}
	if left := w.NotAfter.Sub(now); left > 0 {
		text += ", ends in " + control.Briefly(left)
	} else if !w.NotAfter.IsZero() {
		text += ", ended " + control.Briefly(-left) + " ago"
	}
	return text
}

func (d *DNS) names() section {
	s := section{title: "Names", head: []string{"NAME", "ADDRESSES", "LEADS TO"}}
	s.say(false, "Names answered here: %d; VIPs in use: %d.", d.NamesCount, d.VIPsUsed)
	if d.VIPsLacking > 0 {
		s.say(true, "Hosts without a VIP, as none is left: %d.", d.VIPsLacking)
	}
	if d.NamesCount > len(d.Names) {
		s.say(false, "Listed: %d. All of them: pilot-agent dns table", len(d.Names))
	}
	for _, n := range d.Names {
		addrs := addresses(n.Addresses)
		if n.VIP {
			addrs = "VIP " + addrs
		}
		s.add(false, n.Host, addrs, n.LeadsTo)
	}
	return s
}

func (d *DNS) servers(now time.Time) section {
	s := section{title: "DNS servers", head: []string{"SERVER", "STATE", "REQUESTS", "FAILURES", "LATENCY", "LAST ERROR"}}
	s.say(false, "Queries answered: %d.", d.Queries)
	for _, u := range d.Servers {
		if !u.InUse {
			continue // resolv.conf had it once
		}
		latency, last := "", u.Error
		if u.RTT > 0 {
			latency = u.RTT.Round(time.Microsecond).String()
		}
		if last != "" && !u.ErrorAt.IsZero() {
			last = control.Briefly(now.Sub(u.ErrorAt)) + " ago: " + last
		}
		s.add(u.State != "healthy", u.Server.String(), u.State, strconv.FormatUint(u.Requests, 10), strconv.FormatUint(u.Failures, 10), latency, last)
	}
	return s
}

// addresses are the first few of a name.
func addresses(all []netip.Addr) string {
	const shown = 3
	var out []string
	for i, a := range all {
		if i == shown {
			out = append(out, fmt.Sprintf("and %d more", len(all)-i))
			break
		}
		out = append(out, a.String())
	}
	return strings.Join(out, " ")
}

// after puts words before a text that is there.
func after(words, text string) string {
	if text == "" {
		return ""
	}
	return words + text
}

// joined is the texts that are there.
func joined(separator string, texts ...string) string {
	var there []string
	for _, t := range texts {
		if t != "" {
			there = append(there, t)
		}
	}
	return strings.Join(there, separator)
}
