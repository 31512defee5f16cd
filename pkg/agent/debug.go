package agent

import (
	"encoding/json"
	"net/http"
)

// Further debug pages of the status port, for loopback only.
const (
	// debugNames is where Istio's agent shows its name table.
	debugNames = "/debug/ndsz"
	// debugFiles shows each document of the configuration files and what became of it.
	debugFiles = "/debug/configz"
)

func (s *sidecar) debugPages() map[string]http.Handler {
	return map[string]http.Handler{
		DebugDNSLookup:    s.ofDNS(s.dnsLookup),
		DebugDNSTable:     s.ofDNS(s.dnsTable),
		DebugDNSCache:     s.ofDNS(s.dnsCache),
		DebugDNSFlush:     s.ofDNS(s.dnsFlush),
		DebugDNSVIPs:      s.ofDNS(s.dnsVIPs),
		DebugDNSUpstreams: s.ofDNS(s.dnsUpstreams),
		debugNames:        http.HandlerFunc(s.nameTable),
		debugFiles: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			writeJSON(w, s.source.Report())
		}),
	}
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.Encode(v)
}
