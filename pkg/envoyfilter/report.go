package envoyfilter

import (
	"fmt"
	"slices"
	"strings"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	networking "istio.io/api/networking/v1alpha3"
)

// level is how far a patch came in an object; the nearest miss is the one that tells most.
type level int

const (
	levelChain level = iota + 1
	levelNetwork
	levelHTTP
	levelMerge
)

// mostNamed is how many of the objects that a patch applies to are named: there may be one for each of 10,000 services.
const mostNamed = 10

// Note is what one patch did to one listener.
type Note struct {
	id     int
	object string // the listener, if it applied there
	level  level
	miss   string // where it came nearest, if it did not
}

// tell notes that a patch applied to the chain at hand, or how near it came.
func (r *run) tell(e *entry, done bool, l level, miss func() string) {
	n := r.notes[e]
	if n == nil {
		n = &Note{id: e.id}
		r.notes[e] = n
	}
	if done {
		n.object = r.listener.GetName()
	} else if n.object == "" && l > n.level {
		n.level, n.miss = l, miss()
	}
}

// place is a filter chain as people look for it.
func place(l *listenerv3.Listener, c *listenerv3.FilterChain) string {
	name := c.GetName()
	if name == "" {
		return l.GetName()
	}
	return l.GetName() + "/" + name
}

// wanted is the filter that a patch names.
func wanted(e *entry) string {
	f := e.match.GetFilterChain().GetFilter()
	if sub := f.GetSubFilter().GetName(); sub != "" {
		return sub
	}
	if f.GetName() != "" {
		return f.GetName()
	}
	return "filter that " + e.operation.String() + " needs"
}

// nearby lists the filters that are there instead.
func nearby[F interface{ GetName() string }](filters []F) string {
	names := make([]string, len(filters))
	for i, f := range filters {
		names[i] = f.GetName()
	}
	return "; it has " + strings.Join(names, ", ")
}

// Result is what became of a patch.
type Result string

// What may become of a patch.
const (
	Applied   Result = "applied"
	Unmatched Result = "unmatched" // there is no such object
	Skipped   Result = "skipped"   // it is for other proxies, or has no effect here
	Refused   Result = "refused"   // its document is withheld
)

// PatchReport is what became of one patch, for people.
type PatchReport struct {
	ApplyTo   string   `json:"applyTo"`
	Operation string   `json:"operation"`
	Result    Result   `json:"result"`           // Applied, Unmatched, Skipped or Refused
	Listeners int      `json:"listeners"`        // that it applies to
	Names     []string `json:"names,omitempty"`  // of the first of them
	Reason    string   `json:"reason,omitempty"` // why it does not apply, and what is there instead
}

// FilterReport is what became of one document.
type FilterReport struct {
	Kind      string        `json:"kind,omitempty"` // of a document that is no EnvoyFilter
	Namespace string        `json:"namespace"`
	Name      string        `json:"name"`
	Patches   []PatchReport `json:"patches"`
	// Modules says whether the document adds Wasm filters whose modules are to be had.
	Modules bool `json:"-"`
}

// Title is that of the document.
func (r FilterReport) Title() string {
	return Meta{Kind: r.Kind, Namespace: r.Namespace, Name: r.Name}.Title()
}

// Report says what became of each document, in the order in which they apply. notes are those of all listeners.
func (s *Set) Report(notes []Note) []FilterReport {
	if s == nil {
		return nil
	}
	reports := make([]PatchReport, len(s.entries))
	nearest := make([]level, len(s.entries))
	for _, n := range notes {
		r := &reports[n.id]
		if n.object != "" {
			if r.Listeners++; r.Listeners <= mostNamed {
				r.Names = append(r.Names, n.object)
			}
			continue
		}
		if n.level > nearest[n.id] {
			nearest[n.id], r.Reason = n.level, n.miss
		}
	}
	out := make([]FilterReport, len(s.members))
	for i, m := range s.members {
		out[i] = FilterReport{Kind: m.Kind, Namespace: m.Namespace, Name: m.Name, Patches: []PatchReport{}}
		out[i].Modules, _ = m.Modules()
		for _, e := range m.entries {
			out[i].Patches = append(out[i].Patches, e.report(reports[e.id]))
		}
	}
	return out
}

func (e *entry) report(r PatchReport) PatchReport {
	r.ApplyTo, r.Operation = e.applyTo.String(), e.operation.String()
	switch {
	case e.owner.refused != "":
		r.Result, r.Reason = Refused, e.owner.refused
	case e.state == skipped:
		r.Result, r.Reason = Skipped, e.reason
	case r.Listeners > 0:
		r.Result, r.Reason = Applied, ""
	case e.applyTo == networking.EnvoyFilter_EXTENSION_CONFIG:
		r.Result = Applied // to whatever filter names it
	default:
		r.Result = Unmatched
		if r.Reason == "" {
			r.Reason = e.unmatched()
		}
	}
	return r
}

// unmatched is why no listener is the one that a patch is for.
func (e *entry) unmatched() string {
	if e.plugin != nil {
		return e.plugin.unguarded()
	}
	text := "no listener of context " + e.context.String()
	if e.match.GetName() != "" {
		text += fmt.Sprintf(" has the name %q", e.match.GetName())
	}
	if e.match.GetPortNumber() != 0 {
		text += fmt.Sprintf(" is on port %d", e.match.GetPortNumber())
	}
	return text
}

// Examples are listeners, by name, of which each patch that applies at all applies to one.
func (s *Set) Examples(notes []Note) map[string]bool {
	seen, out := map[int]bool{}, map[string]bool{}
	for _, n := range notes {
		if n.object != "" && !seen[n.id] {
			seen[n.id], out[n.object] = true, true
		}
	}
	return out
}

// Documents are those in force whose patches apply to a listener; of "", all that are.
func (s *Set) Documents(notes []Note, listener string) []*Filter {
	if s == nil {
		return nil
	}
	var out []*Filter
	for _, m := range s.members {
		touches := func(n Note) bool { return s.entries[n.id].owner == m && n.object == listener }
		if m.refused == "" && (listener == "" || slices.ContainsFunc(notes, touches)) {
			out = append(out, m.Filter)
		}
	}
	return out
}

// Modules says whether a document adds Wasm filters whose modules are to be had, and whether it adds nothing else: of these
// nothing is in a listener but their names and what stands in their place, and a module is tried by itself.
func (f *Filter) Modules() (some, only bool) {
	only = true
	for _, p := range f.patches {
		_, config, discovery := parts(p.value)
		switch {
		case p.ignored != "" || p.value == nil:
		case discovery == nil && wasmPlugin(config) != nil:
			some = true
		default:
			only = false
		}
	}
	return some, some && only
}
