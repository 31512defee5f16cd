// Package security owns the workload's certificate, and what else Envoy asks for as a secret.
package security

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"understudy.mesh/pkg/security/credential"
)

const (
	// defaultLifetime is the lifetime of a certificate that is asked for (Istio's).
	defaultLifetime = 24 * time.Hour
	// defaultGrace is the part of its lifetime before a certificate's end at which another one is asked for (Istio's).
	defaultGrace = 0.5
	// OldRootsLeaf keeps an old root for as long as a peer may have a certificate of it.
	OldRootsLeaf time.Duration = -1
)

// Config says who the workload is, and where its certificate comes from. The zero value has no CA and no files.
type Config struct {
	// TrustDomain, Namespace and ServiceAccount are the workload's identity.
	TrustDomain, Namespace, ServiceAccount string

	// Connect returns a connection to the CA that is yet to be made, once for each request; nil: there is no CA.
	Connect func() (*grpc.ClientConn, error)
	// CA is the CA's address, for messages.
	CA string
	// Headers are the metadata of each request.
	Headers map[string]string
	// Signer says with which of its signers the CA is to sign; "": it chooses.
	Signer string
	// Lifetime is asked for; 0: 24 hours. The CA may give less.
	Lifetime time.Duration
	// Grace is the part of its lifetime before a certificate's end at which another one is asked for, up to 1; 0: a half.
	// GraceJitter is added or taken away at most, so that the pods of a deployment do not ask at one moment.
	Grace, GraceJitter float64
	// Key is the kind of the certificate's key.
	Key credential.Kind
	// OldRoots is how long a root stays trusted that new certificates no longer have: 0 is not at all.
	OldRoots time.Duration

	// Mounted are directories with cert-chain.pem and key.pem, or root-cert.pem. What one of them has when the manager is made goes
	// before what the CA signs, the first before the others.
	Mounted []string
	// CRL is a file with what the roots' owners have revoked; "": there is none. It may come and go.
	CRL string
	// Debounce is how long after a first change files are read; 0: 100 ms.
	Debounce time.Duration

	// Output is a directory in which the workload's certificate, its key and the roots lie for others than Envoy; "": none. Their files
	// are of OutputMode; 0: 0600. What is in it is never taken for mounted.
	Output     string
	OutputMode fs.FileMode
	// Keep is a file for what outlives the container; "": nothing does. It is written where its file system is in memory alone.
	Keep string

	Log *slog.Logger
}

// id is the workload's SPIFFE id.
func (c *Config) id() string {
	return "spiffe://" + c.TrustDomain + "/ns/" + c.Namespace + "/sa/" + c.ServiceAccount
}

// Manager owns the workload's certificate and all other secrets that Envoy asks for. It is made by NewManager.
type Manager struct {
	c   Config
	log *slog.Logger

	files *files

	retired  chan struct{} // closed by Retire
	retiring sync.Once

	requests, retries, failures atomic.Uint64 // at the CA
	waited                      atomic.Int64  // for it, in nanoseconds

	mu      sync.Mutex
	changed chan struct{}          // closed when Get may say otherwise
	mine    *credential.Credential // in force
	next    *credential.Credential // to be in force when Envoy has its roots; nil: there is none
	trust   trust
	reason  error // why there is no certificate
	refusal error // what the last request to the CA came to
}

// NewManager checks c, and starts nothing.
func NewManager(c Config) (*Manager, error) {
	if err := c.Key.Check(); err != nil {
		return nil, err
	}
	if c.Grace < 0 || c.Grace > 1 || c.GraceJitter < 0 || c.GraceJitter > 1 {
		return nil, fmt.Errorf("SECRET_GRACE_PERIOD_RATIO %v, SECRET_GRACE_PERIOD_RATIO_JITTER %v: from 0 to 1", c.Grace, c.GraceJitter)
	}
	if c.Grace == 0 {
		c.Grace = defaultGrace
	}
	if c.Lifetime == 0 {
		c.Lifetime = defaultLifetime
	}
	if c.OutputMode == 0 {
		c.OutputMode = 0o600
	}
	m := &Manager{c: c, log: c.Log, changed: make(chan struct{}), retired: make(chan struct{})}
	m.files = newFiles(c.Log, c.Debounce, func() { m.change(func() {}) })
	m.files.mount(slices.DeleteFunc(slices.Clone(c.Mounted), func(d string) bool { return same(d, c.Output) }), time.Now())
	m.files.revoked(c.CRL, time.Now())
	m.reason = fmt.Errorf("the CA at %s has not answered yet", c.CA)
	if c.Connect == nil {
		m.reason = errors.New("there is no CA to ask for a certificate, and no files have one: set CA_ADDR or discoveryAddress")
	}
	return m, nil
}

// Run obtains the certificate and renews it until ctx ends, and returns nil once all that it started is gone.
func (m *Manager) Run(ctx context.Context) error {
	m.recall()
	var running sync.WaitGroup
	running.Go(func() { m.files.run(ctx) })
	if m.c.Output != "" {
		running.Go(func() { m.follow(ctx, m.output) })
	}
	if m.c.Keep != "" {
		running.Go(func() { m.follow(ctx, m.keep) })
	}
	if m.c.Connect != nil && !(m.files.has(Workload) && m.files.has(Roots)) {
		ca := &authority{
			address: m.c.CA, connect: m.c.Connect, headers: m.c.Headers, signer: m.c.Signer, lifetime: m.c.Lifetime, timeout: attemptTimeout,
		}
		running.Go(func() { newRenewal(m, ca.sign).run(ctx) })
	}
	running.Wait()
	<-ctx.Done()
	return nil
}

// Retire says that a successor serves, to which it is left to ask the CA, and to write files for others and for the next container.
// The certificate serves on, for as long as connections are left: only where it would end before them another one is asked for.
func (m *Manager) Retire() {
	m.retiring.Do(func() {
		m.log.Info("the successor renews the certificate from here on")
		close(m.retired)
	})
}

// Get returns a secret by its name, or why there is none yet.
func (m *Manager) Get(name string) (Secret, error) {
	switch name {
	case Workload:
		return m.workload()
	case Roots:
		roots, err := m.roots()
		if err != nil {
			return Secret{}, err
		}
		revoked, _ := m.files.get(crlName) // there may be none
		return Secret{Roots: []byte(strings.Join(roots, "")), CRL: revoked.CRL}, nil
	}
	return m.files.find(name)
}

// workload is the workload's certificate.
func (m *Manager) workload() (Secret, error) {
	if m.files.has(Workload) {
		return m.files.get(Workload)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mine == nil {
		return Secret{}, m.reason
	}
	return Secret{Chain: m.mine.Chain, Key: m.mine.Key}, nil
}

// roots are those by which peers are known, each in PEM.
func (m *Manager) roots() ([]string, error) {
	if m.files.has(Roots) {
		mounted, err := m.files.get(Roots)
		if err != nil {
			return nil, err
		}
		roots, err := credential.Roots(mounted.Roots)
		m.mu.Lock()
		defer m.mu.Unlock()
		return union(roots, m.trust.bundle), err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.trust.current) == 0 {
		return nil, m.reason
	}
	return m.trust.roots(), nil
}

// SetBundle replaces the roots that the mesh's configuration adds to those of the CA or of files, each in PEM: a mesh may have workloads
// with certificates of other CAs. What is no certificate is left out, and err says so.
func (m *Manager) SetBundle(bundle []string) error {
	var roots []string
	var err error
	if len(bundle) > 0 {
		roots, err = credential.Roots(credential.Join(bundle))
	}
	m.mu.Lock()
	same := slices.Equal(union(roots), union(m.trust.bundle))
	m.mu.Unlock()
	if !same {
		m.change(func() { m.trust.bundle = roots })
	}
	return err
}

// Changed is closed when Get may say otherwise than before the call. So ask for it first.
func (m *Manager) Changed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

// change does something to what Get says, and tells of it.
func (m *Manager) change(do func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	do()
	close(m.changed)
	m.changed = make(chan struct{})
}

// newest is the last credential that was obtained, nil if none was.
func (m *Manager) newest() *credential.Credential {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.next != nil {
		return m.next
	}
	return m.mine
}

// admit takes in a new credential. Its roots are in force at once. It says whether the credential itself has to wait until Envoy
// has them, which is so where one is in force that it replaces and a root is new.
func (m *Manager) admit(c *credential.Credential, now time.Time) (wait bool) {
	m.change(func() {
		last := m.next
		if last == nil {
			last = m.mine
		}
		until := now
		if last != nil {
			until = now.Add(m.oldRoots(last))
		}
		added := m.trust.replace(c.Roots, until)
		m.trust.expire(now)
		wait = m.mine != nil && added
		if wait {
			m.next = c
		} else {
			m.mine, m.next, m.reason = c, nil, nil
		}
	})
	return wait
}

// oldRoots is how long the roots of a credential stay trusted that is being replaced. A peer may have got a certificate of theirs
// until now, and may have it for as long as this one lived.
func (m *Manager) oldRoots(last *credential.Credential) time.Duration {
	if m.c.OldRoots == OldRootsLeaf {
		return last.Lifetime()
	}
	return m.c.OldRoots
}

// enforce brings the credential into force that waited.
func (m *Manager) enforce() {
	m.change(func() { m.mine, m.next = m.next, nil })
}

// dropOldRoots drops those whose time has come, and returns when the next one goes; zero: none is left.
func (m *Manager) dropOldRoots(now time.Time) (next time.Time) {
	m.mu.Lock()
	gone := m.trust.expire(now)
	next = m.trust.next()
	m.mu.Unlock()
	if gone {
		m.change(func() {})
	}
	return next
}

// fail notes why there is no certificate.
func (m *Manager) fail(err error) {
	m.change(func() { m.reason = err })
}
