package sidecar

import (
	"net/http"

	"understudy.mesh/pkg/control"
)

// Further debug pages of the status port, for loopback only.
const (
	// debugNames is where Istio's agent shows its name table.
	debugNames = "/debug/ndsz"
	// debugFiles shows each document of the configuration files and what became of it.
	debugFiles = "/debug/configz"
)

func (s *Sidecar) debugPages() map[string]http.Handler {
	return map[string]http.Handler{
		control.DNSLookupPath:    s.ofDNS(s.dnsLookup),
		control.DNSTablePath:     s.ofDNS(s.dnsTable),
		control.DNSCachePath:     s.ofDNS(s.dnsCache),
		control.DNSFlushPath:     s.ofDNS(s.dnsFlush),
		control.DNSVIPsPath:      s.ofDNS(s.dnsVIPs),
		control.DNSUpstreamsPath: s.ofDNS(s.dnsUpstreams),
		debugNames:               http.HandlerFunc(s.nameTable),
		debugFiles: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			writeJSON(w, s.source.Report())
		}),
	}
}
