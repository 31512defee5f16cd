package ecds

import (
	"net/http"
	"slices"
	"strings"

	"understudy.mesh/pkg/status"
)

// Pages of the status port, for loopback only.
const (
	// ListPath has the Report of each filter.
	ListPath = "/debug/wasm"
	// ReloadPath has a POST start the modules of the filters anew that its name is of, or of whose document.
	ReloadPath = "/debug/wasm/reload"
)

// Reloaded is what a POST to ReloadPath answers.
type Reloaded struct {
	Names []string `json:"names"` // of the filters
}

// Pages are the handlers, by path.
func (x *Extensions) Pages() map[string]http.Handler {
	return map[string]http.Handler{
		ListPath: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			status.WriteList(w, "", x.Report(), func(Report) bool { return true })
		}),
		ReloadPath: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodPost {
				w.Header().Set("Allow", http.MethodPost)
				http.Error(w, "reload a Wasm module: method "+r.Method+"; use POST", http.StatusMethodNotAllowed)
				return
			}
			name := r.FormValue("name")
			names := x.reload(name)
			if len(names) == 0 {
				http.Error(w, "no Wasm filter whose module is there has the name "+name+", nor is one of a document of that name: see "+ListPath, http.StatusNotFound)
				return
			}
			status.WriteJSON(w, Reloaded{names})
		}),
	}
}

// reload has the filters that a name is of run their modules in new virtual machines: one that has crashed stays so. It returns their names.
func (x *Extensions) reload(name string) []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	var names []string
	for _, e := range x.all {
		_, document, _ := strings.Cut(e.Document, " ")
		if e.newest == nil || name == "" || name != e.Name && name != e.Document && name != document && !strings.HasSuffix(document, "/"+name) {
			continue
		}
		e.reloads++
		v, err := made(e, e.newest.module)
		if err != nil {
			x.c.Log.Error("a Wasm module is not reloaded", "name", e.Name, "err", err)
			continue
		}
		e.newest, e.refused = v, ""
		names = append(names, e.Name)
		x.changed(e)
	}
	slices.Sort(names)
	return names
}
