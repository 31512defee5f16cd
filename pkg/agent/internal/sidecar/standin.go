package sidecar

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httputil"
	"net/netip"

	"understudy.mesh/pkg/envoy"
)

// standIn answers what only an Envoy knows: from this generation's, or, where that has died in the
// probation, from the generation that serves.
type standIn struct {
	admin     *envoy.Admin
	probation *probation
	loopback  netip.Addr
	adminPort uint16
}

// address is one of this pod at which the generation that serves is reached. The socket is the
// one that this generation had: who accepts from it is who serves. Only a loopback address is not captured.
func (s *standIn) address(port uint16) string { return netip.AddrPortFrom(s.loopback, port).String() }

// relay has the generation that serves answer a request, where this one's probation failed.
func (s *standIn) relay(w http.ResponseWriter, r *http.Request, port uint16) (answered bool) {
	// A request with a body cannot be made a second time.
	if r.ContentLength != 0 || !s.probation.servedElsewhere(r.Context()) {
		return false
	}
	relay := httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = "http", s.address(port), cmp.Or(r.In.Host, s.address(port))
		},
		Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true}, FlushInterval: -1, ErrorLog: log.New(io.Discard, "", 0),
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, "this generation's Envoy ended, and the generation that serves does not answer: "+err.Error(), http.StatusServiceUnavailable)
		},
	}
	relay.ServeHTTP(w, r)
	return true
}

// ServeHTTP relays to the admin of the Envoy that serves.
func (s *standIn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.admin.Relay(w, r, func(reason string) {
		if !s.relay(w, r, s.adminPort) {
			http.Error(w, reason, http.StatusServiceUnavailable)
		}
	})
}

// metrics streams those of the Envoy that serves in Prometheus' text format.
func (s *standIn) metrics(ctx context.Context, query string) (io.ReadCloser, string, error) {
	const path = "/stats/prometheus?"
	body, contentType, err := s.admin.Open(ctx, path+query)
	if err == nil || !s.probation.servedElsewhere(ctx) {
		return body, contentType, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.address(s.adminPort)+path+query, nil)
	if err != nil {
		return nil, "", err
	}
	resp, err := (&http.Transport{DisableKeepAlives: true, DisableCompression: true}).RoundTrip(req)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d", resp.StatusCode)
		resp.Body.Close()
	}
	if err != nil {
		return nil, "", fmt.Errorf("ask the Envoy of the generation that serves: %w", err)
	}
	return resp.Body, resp.Header.Get("Content-Type"), nil
}
