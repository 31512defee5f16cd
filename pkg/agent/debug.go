package agent

import (
	"cmp"
	"encoding/json"
	"net/http"

	"understudy.mesh/dnsproxy"
)

// Debug pages of the status port, for loopback only.
const (
	// DebugDNSLookup answers ?name=N&type=T with a [dnsproxy.Explanation] as JSON.
	DebugDNSLookup = "/debug/dns/lookup"
	// DebugDNSTable answers the names that the agent answers itself: a JSON list of [dnsproxy.Host].
	DebugDNSTable = "/debug/dns/table"
	// debugNames is where Istio's agent shows its name table.
	debugNames = "/debug/ndsz"
	// debugFiles shows each document of the configuration files and what became of it.
	debugFiles = "/debug/configz"
)

func (s *sidecar) debugPages() map[string]http.Handler {
	return map[string]http.Handler{
		DebugDNSLookup: http.HandlerFunc(s.dnsLookup),
		DebugDNSTable:  http.HandlerFunc(s.dnsTable),
		debugNames:     http.HandlerFunc(s.nameTable),
		debugFiles: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			writeJSON(w, s.source.Report())
		}),
	}
}

func (s *sidecar) dnsLookup(w http.ResponseWriter, r *http.Request) {
	if s.dns == nil {
		http.Error(w, noDNS, http.StatusNotFound)
		return
	}
	name, qtype := r.FormValue("name"), r.FormValue("type")
	t, err := dnsproxy.ParseType(cmp.Or(qtype, "A"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	explanation, err := s.dns.Explain(r.Context(), name, t)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	writeJSON(w, explanation)
}

func (s *sidecar) dnsTable(w http.ResponseWriter, _ *http.Request) {
	if s.dns == nil {
		http.Error(w, noDNS, http.StatusNotFound)
		return
	}
	writeJSON(w, s.dns.Table().Hosts())
}

// noDNS says why a DNS page has nothing to show.
const noDNS = "DNS capture is off: set ISTIO_META_DNS_CAPTURE=true"

// nameTable answers as Istio's agent does: each name with its addresses.
func (s *sidecar) nameTable(w http.ResponseWriter, _ *http.Request) {
	type info struct {
		IPs      []string `json:"ips"`
		Registry string   `json:"registry"`
	}
	if s.dns == nil {
		w.WriteHeader(http.StatusNotFound)
		writeJSON(w, struct{}{})
		return
	}
	table := map[string]info{}
	for _, h := range s.dns.Table().Hosts() {
		i := info{Registry: "External"}
		for _, addr := range h.Addrs {
			i.IPs = append(i.IPs, addr.String())
		}
		table[h.Name] = i
	}
	writeJSON(w, map[string]any{"table": table})
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.Encode(v)
}
