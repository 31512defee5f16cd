package ecds

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"understudy.mesh/pkg/envoyfilter"
	"understudy.mesh/pkg/wasm"
)

// Phases of an extension besides those of a module on its way.
const (
	inForce = "InForce"
	stale   = "Stale" // what served before serves, as what is wanted fails
	// Unused is one of a document of which nothing applies in this pod.
	Unused = "Unused"
)

// Report is what became of one extension, for people.
type Report struct {
	Name     string    `json:"name"`
	Document string    `json:"document"` // kind, namespace and name
	Phase    string    `json:"phase"`    // Pending, Pulling, Verifying, InForce, Stale, Failed or Unused
	From     string    `json:"from"`
	SHA256   string    `json:"sha256,omitempty"` // of the module that serves, as are digest and size
	Digest   string    `json:"digest,omitempty"`
	Size     int64     `json:"size,omitempty"`
	Instead  string    `json:"instead,omitempty"` // allow or deny, while no module serves
	Reason   string    `json:"reason,omitempty"`
	Since    time.Time `json:"since"`
	NextTry  time.Time `json:"nextTry,omitzero"`
	// Patches are what became of those of the document; nil where istiod has applied them.
	Patches []envoyfilter.PatchReport `json:"patches,omitempty"`
}

// WithPatches adds to reports what became of the patches of their documents; and a report, which has the document's title for a name, of each
// document that wants a module and applies nowhere.
func WithPatches(all []Report, documents []envoyfilter.FilterReport) []Report {
	for _, d := range documents {
		if !d.Modules {
			continue
		}
		used := false
		for i := range all {
			if all[i].Document == d.Title() {
				all[i].Patches, used = d.Patches, true
			}
		}
		if !used {
			r := Report{Name: d.Title(), Document: d.Title(), Phase: Unused, Patches: d.Patches}
			for _, p := range d.Patches {
				r.Reason = cmp.Or(r.Reason, p.Reason)
			}
			all = append(all, r)
		}
	}
	return all
}

// NotInForce tells add of each extension that does not serve as it is wanted: which, and why.
func NotInForce(all []Report, add func(where, reason string)) {
	for _, r := range all {
		if r.Phase != inForce {
			add(cmp.Or(r.Document, r.Name), fmt.Sprintf("Wasm module %s: %s: %s", r.From, r.Phase, r.Reason))
		}
	}
}

// Report says what became of each extension, by name.
func (x *Extensions) Report() []Report {
	x.mu.Lock()
	defer x.mu.Unlock()
	var all []Report
	for _, name := range slices.Sorted(maps.Keys(x.all)) {
		all = append(all, x.report(x.all[name]))
	}
	return all
}

// report is that of one. The caller holds mu.
func (x *Extensions) report(e *extension) Report {
	st := x.modules.State(e.filter.Source)
	r := Report{Name: e.Name, Document: e.Document, From: st.From, Phase: string(st.Phase), Reason: st.Reason, Since: st.Since, NextTry: st.NextTry}
	failed := st.Phase == wasm.Failed
	if bad := e.trouble(); bad != "" {
		failed, r.Phase, r.Reason = true, string(wasm.Failed), bad
	}
	serving := e.good
	switch {
	case serving == nil && st.Phase == wasm.InStore && !failed:
		r.Phase, r.Reason = string(wasm.Verifying), "Envoy has not answered for it yet"
	case serving == nil:
	case failed:
		r.Phase = stale
	case serving == e.newest && sameConfig(serving.of, e.Config) && st.Phase == wasm.InStore:
		r.Phase, r.Reason, r.Since = inForce, "", serving.inUse
	}
	if serving == nil {
		r.Instead = "deny"
		if e.filter.Open {
			r.Instead = "allow"
		}
		return r
	}
	r.SHA256, r.Digest, r.Size = serving.module.SHA256, serving.module.Digest, serving.module.Size
	return r
}

// trouble is why what is wanted is not in force, whatever the store says of its module.
func (e *extension) trouble() string {
	if e.refused != "" && e.bad == "" && sameConfig(e.newest.of, e.Config) {
		return e.refused
	}
	return e.bad
}

// why is what an extension waits for, in words. The caller holds mu.
func (x *Extensions) why(e *extension) string {
	r := x.report(e)
	if r.Reason == "" {
		return r.Phase
	}
	return r.Phase + ": " + r.Reason
}
