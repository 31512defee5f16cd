package sidecar

import (
	"maps"
	"net/http"

	"understudy.mesh/pkg/control"
)

// debugNames is a further debug page of the status port, where Istio's agent shows its name table.
const debugNames = "/debug/ndsz"

func (s *Sidecar) debugPages() map[string]http.Handler {
	pages := s.files.DebugPages()
	maps.Copy(pages, map[string]http.Handler{
		control.DNSLookupPath:    s.ofDNS(s.dnsLookup),
		control.DNSTablePath:     s.ofDNS(s.dnsTable),
		control.DNSCachePath:     s.ofDNS(s.dnsCache),
		control.DNSFlushPath:     s.ofDNS(s.dnsFlush),
		control.DNSVIPsPath:      s.ofDNS(s.dnsVIPs),
		control.DNSUpstreamsPath: s.ofDNS(s.dnsUpstreams),
		debugNames:               http.HandlerFunc(s.nameTable),
	})
	return pages
}
