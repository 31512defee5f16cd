package security

import (
	"net/http"
	"time"

	"understudy.mesh/pkg/overview"
	"understudy.mesh/pkg/status"
)

// debugPage shows the workload's certificate, and nothing that is secret.
const debugPage = "/debug/certificate"

// States of the workload's certificate.
const (
	stateNone    = "none"
	stateValid   = "valid"
	stateExpired = "expired" // Envoy keeps it, and peers refuse it
)

// shown is what the page says.
type shown struct {
	ID        string     `json:"id"`
	State     string     `json:"state"`
	Source    string     `json:"source"` // "files", or the address of the CA
	Issuer    string     `json:"issuer,omitempty"`
	NotAfter  *time.Time `json:"notAfter,omitempty"`
	LastError string     `json:"lastError,omitempty"` // why there is no newer one
	Roots     []string   `json:"roots"`               // SHA-256 of those by which peers are known
}

// DebugPages are pages of the status port, for loopback only.
func (m *Manager) DebugPages() map[string]http.Handler {
	return map[string]http.Handler{debugPage: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { status.WriteJSON(w, m.show(time.Now())) })}
}

// Overview is what of it fits into a line.
func (m *Manager) Overview() *overview.Certificate {
	s := m.show(time.Now())
	o := &overview.Certificate{ID: s.ID, State: s.State, LastError: s.LastError}
	if l := m.leaf(); l != nil {
		o.Since, o.NotAfter = l.since, l.notAfter
	}
	return o
}

func (m *Manager) show(now time.Time) shown {
	s := shown{ID: m.c.id(), State: stateNone, Source: m.c.CA, Roots: []string{}}
	if m.files.has(Workload) {
		s.Source = "files"
	}
	if _, err := m.workload(); err != nil {
		s.LastError = err.Error()
	} else if err := m.lastError(); err != nil {
		s.LastError = err.Error()
	}
	if l := m.leaf(); l != nil {
		s.State, s.Issuer, s.NotAfter = stateValid, l.issuer, &l.notAfter
		if !now.Before(l.notAfter) {
			s.State = stateExpired
		}
	}
	roots, _ := m.roots() // none yet: none are shown
	for _, root := range roots {
		s.Roots = append(s.Roots, fingerprint(root))
	}
	return s
}

// lastError is why the CA gave nothing when it was asked last; nil: it gave something, or was not asked.
func (m *Manager) lastError() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.refusal
}

// refused notes how the last request to the CA has ended.
func (m *Manager) refused(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refusal = err
}
