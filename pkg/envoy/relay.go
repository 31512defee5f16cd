package envoy

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httputil"
)

// adminHost is the Host header of every request to the admin: the agent's callers
// write whatever they like, and Envoy should not have to care.
const adminHost = "localhost"

// ServeHTTP relays a request to Envoy's admin and the reply back as it comes, without
// holding more of it than one buffer: /stats of a large mesh has tens of megabytes.
// Where there is no Envoy it answers 503 and the reason.
func (a *Admin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.Relay(w, r, func(reason string) { http.Error(w, reason, http.StatusServiceUnavailable) })
}

// Relay is ServeHTTP with another answer where there is no Envoy: unanswered gives it. It is called with the
// reason, a sentence for people, at most once and before anything was written.
func (a *Admin) Relay(w http.ResponseWriter, r *http.Request, unanswered func(reason string)) {
	relay := httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme = "http"
			r.Out.URL.Host = adminHost
			r.Out.Host = adminHost
		},
		Transport:     a.transport,
		FlushInterval: -1, // at once: some replies never end
		// A client that goes away in the middle is not worth a line.
		ErrorLog: log.New(io.Discard, "", 0),
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			unanswered(fmt.Sprintf("Envoy's admin on %s does not answer: %v", a.path, err))
		},
	}
	// Otherwise the server closes the request's body when the reply begins, and the
	// transport, which may still look for the body's end, gives the connection up. A
	// writer that cannot do it has no such server behind it.
	_ = http.NewResponseController(w).EnableFullDuplex()
	relay.ServeHTTP(w, r)
}
