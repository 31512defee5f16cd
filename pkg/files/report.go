package files

import (
	"fmt"
	"net/http"

	"understudy.mesh/pkg/ecds"
	"understudy.mesh/pkg/envoyfilter"
	"understudy.mesh/pkg/mesh"
	"understudy.mesh/pkg/overview"
	"understudy.mesh/pkg/status"
)

// debugFiles shows each document of the configuration files and what became of it.
const debugFiles = "/debug/configz"

// DebugPages are pages of the status port, for loopback only.
func (f *Files) DebugPages() map[string]http.Handler {
	pages := f.wasm.Pages()
	pages[ecds.ListPath] = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		status.WriteList(w, "", ecds.WithPatches(f.wasm.Report(), f.filters.report()), func(ecds.Report) bool { return true })
	})
	pages[debugFiles] = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		status.WriteJSON(w, report{f.source.Report(), f.filters.report(), f.wasm.Report()})
	})
	return pages
}

// Overview is what of it fits on a screen.
func (f *Files) Overview() overview.Config {
	r := f.source.Report()
	o := overview.Config{Directory: r.Directory, Hosts: r.Services}
	if r.Problem != "" {
		o.Add(r.Directory, r.Problem)
	}
	for _, d := range r.Documents {
		if d.Bad() {
			o.Add(d.Where(), d.Wrong())
		}
	}
	for _, filter := range f.filters.report() {
		for i, p := range filter.Patches {
			if p.Result == envoyfilter.Refused {
				o.Add(fmt.Sprintf("%s, patch %d", filter.Title(), i+1), p.Reason)
			}
		}
	}
	ecds.NotInForce(f.wasm.Report(), o.Add)
	if refused := f.refused.Load(); refused != nil {
		for _, reason := range refused.Reasons {
			o.Add("refused by Envoy", reason)
		}
		o.ErrorsCount += len(refused.Resources) - len(refused.Reasons)
	}
	return o
}

// LeadsTo is where connections to a host of the files go.
func (f *Files) LeadsTo(host string) string {
	if r := f.latest.registry.Load(); r != nil {
		return r.LeadsTo(host)
	}
	return ""
}

// report is what debugFiles shows.
type report struct {
	mesh.Report
	EnvoyFilters []envoyfilter.FilterReport `json:"envoyFilters,omitempty"` // in the order in which they apply
	Wasm         []ecds.Report              `json:"wasm,omitempty"`         // by name
}

// Samples are the metrics.
func (f *Files) Samples() []status.Sample {
	samples := append(f.filters.samples(), f.wasm.Samples()...)
	for state, n := range f.source.Counts() {
		samples = append(samples, status.Sample{
			Name: "config_documents", Help: "Documents of the configuration files by what became of them: ok, warning, error, stale or ignored.",
			Labels: map[string]string{"status": string(state)}, Value: float64(n), Gauge: true,
		})
	}
	hosts := 0
	if published := f.publisher.Published(); published != nil {
		hosts = len(published.Hosts)
	}
	return append(samples, status.Sample{
		Name: "config_hosts", Help: "Hosts of the configuration in force.", Value: float64(hosts), Gauge: true,
	}, status.Sample{
		Name: "config_seconds", Help: "How long the configuration in force took from when it was made until Envoy used it.",
		Value: f.publisher.Took().Seconds(), Gauge: true,
	}, status.Sample{
		Name: "config_hosts_refused", Help: "Hosts that DNS does not answer because Envoy refused their configuration.",
		Value: float64(f.publisher.Unknown()), Gauge: true,
	})
}
