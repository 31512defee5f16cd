// Package wasm owns the modules of Wasm filters in a pod: how they come from registries, servers and files, what is asked of them
// before an Envoy may have them, and where they are kept. A module that is bad, late or missing is an error here, and nowhere else.
package wasm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"time"

	"understudy.mesh/internal/compliance"
)

const (
	// DefaultDir is where a pod keeps its modules: on the volume that outlives its containers, and that both of a hot upgrade have.
	DefaultDir = "/var/lib/istio/data/understudy/wasm"
	// DefaultMaxModule is the largest module, in bytes, on the way and unpacked: Istio's.
	DefaultMaxModule = 256 << 20
	// pullsAtOnce bounds the memory and the disk that modules on their way take.
	pullsAtOnce = 2
)

// Config says where modules come from and what they have to pass.
type Config struct {
	Dir       string        // of the store; made when there is something to keep
	MaxModule int64         // bytes, on the way and unpacked
	MaxAge    time.Duration // how long a module stays that nobody uses

	SecretsDir   string // has <secret>/.dockerconfigjson
	DockerConfig string // has config.json; "": nobody's
	CAFile       string // certificates in PEM, besides the system's; ""
	Allow        []string
	Insecure     []string // registries without TLS, or whose certificate nobody checks; "*" is each
	Blocked      []netip.Prefix
	Mirrors      []Mirror
	Compliance   compliance.Policy

	Envoy Envoy // tries each module; nil: none does
	Log   *slog.Logger
}

// Module is one in the store, which an Envoy may have.
type Module struct {
	Path   string `json:"path"`
	SHA256 string `json:"sha256"`           // in hexadecimal, of the file
	Size   int64  `json:"size"`             // in bytes
	Digest string `json:"digest,omitempty"` // of the image's manifest, in hexadecimal; "": it is of no image
	ABI    string `json:"abi"`              // the version of proxy-wasm's interface
	Took   Steps  `json:"-"`
}

// Steps are how long the last attempt at a module took, in each of its steps; 0 in one that was not needed.
type Steps struct {
	Resolve   time.Duration // its source was asked for it, and it was fetched
	Verify    time.Duration // its frame was read; of one in the store, its hash
	Preflight time.Duration // an Envoy tried it
}

// Store keeps modules. Two processes may share its directory.
type Store struct {
	cfg      Config
	pulls    chan struct{}
	random   func(time.Duration) time.Duration
	now      func() time.Time
	step     func(string) // is told of each step of a write
	timeouts timeouts

	mu       sync.Mutex
	hashed   map[string]bool     // what this process has seen whole
	held     map[string]*os.File // what is in use, each with a lock
	purged   time.Time
	flights  map[string]*flight
	rejected map[string]error // manifests whose module is bad, so that it is not fetched for that again
	states   map[string]*State
	version  string // Envoy's; "" before it was asked
	counts   Stats
}

// New returns a store. It opens and makes nothing.
func New(cfg Config) *Store {
	return &Store{
		cfg: cfg, pulls: make(chan struct{}, pullsAtOnce), random: randomly, now: time.Now, step: func(string) {}, timeouts: usualTimeouts,
		hashed: map[string]bool{}, held: map[string]*os.File{}, purged: time.Now(), flights: map[string]*flight{},
		rejected: map[string]error{}, states: map[string]*State{},
		counts: Stats{Fetches: map[string]uint64{fetchSuccess: 0, fetchMismatch: 0, fetchRefused: 0, fetchFailure: 0}},
	}
}

// Resolve returns the module that a source names, whole, checked and tried. It is in the store for ten minutes at least, and longer if it
// is said to be in use. What fails is tried again for as long as ctx lasts, at growing intervals, and at once when the pull secret, the
// certificates or the file have changed. The error is the last one, or what ended ctx; it has nothing secret.
func (s *Store) Resolve(ctx context.Context, src Source) (Module, error) {
	p, err := s.place(src)
	if err != nil {
		return Module{}, err
	}
	t := s.track(p, src)
	var last error
	for failures := 0; ; failures++ {
		seen := s.surroundings(p, src)
		m, wait, err := s.attempt(ctx, p, src, t)
		if err == nil {
			t.stored(m)
			s.purgeSometimes()
			return m, nil
		}
		if ctx.Err() != nil {
			return Module{}, t.given(errors.Join(ctx.Err(), last))
		}
		last = err
		if p.policy == Never { // and nobody need hear of it: another will ask elsewhere
			return Module{}, err
		}
		if src.Once || errors.As(err, new(*sourceError)) {
			return Module{}, t.given(err)
		}
		pause := max(backoff(err, failures, s.random), wait)
		t.failed(err, pause)
		s.retried()
		if s.sleep(ctx, pause, func() bool { return s.surroundings(p, src) != seen }) {
			failures = -1 // something has changed: from the beginning
		}
	}
}

// Kept returns a module that the store has, by its hash, once an Envoy has tried it with a configuration.
func (s *Store) Kept(ctx context.Context, sha256 string, plugin Plugin) (Module, error) {
	m, missing := s.stored(entry{SHA256: sha256})
	if missing {
		return m, fmt.Errorf("the store has no module with the hash %q", sha256)
	}
	return m, s.try(ctx, &m, plugin)
}

// attempt resolves once. wait is how long a server wants to be left alone.
func (s *Store) attempt(ctx context.Context, p place, src Source, t tracker) (m Module, wait time.Duration, err error) {
	key, credential, err := s.key(p, src)
	if err != nil {
		return m, 0, err
	}
	land, err := s.fly(ctx, key)
	if err != nil {
		return m, 0, err
	}
	e, known := s.look(key)
	ask := !known || p.policy == Always || p.kind == inFile || !e.is(p.sha256)
	if !ask {
		m, ask = s.stored(e)
	}
	s.looked(!ask)
	switch {
	case !ask:
	case p.policy == Never && p.kind != inFile:
		err = fmt.Errorf("module %q is not in the store, and is to be had from nowhere else", p.name)
	default:
		m, wait, err = s.pull(ctx, p, pullOrder{key: key, credential: credential, known: e, phase: t.phase})
		s.fetched(err)
	}
	land()
	if err == nil {
		t.phase(Verifying)
		err = s.try(ctx, &m, src.Plugin)
	}
	if err != nil {
		err = &scrubbedError{err}
	}
	return m, wait, err
}

// stored is the module of an entry; missing says that the store has it no more.
func (s *Store) stored(e entry) (m Module, missing bool) {
	began := time.Now()
	size, ok := s.whole(e.SHA256)
	if !ok {
		return m, true
	}
	m = Module{Took: Steps{Verify: time.Since(began)}, Path: s.modulePath(e.SHA256), SHA256: e.SHA256, Size: size, ABI: e.ABI}
	if n := len(e.Digests); n > 0 {
		m.Digest = e.Digests[n-1]
	}
	return m, false
}

// try has an Envoy try a module with its configuration, if none of this version has done so.
func (s *Store) try(ctx context.Context, m *Module, plugin Plugin) error {
	if s.cfg.Envoy == nil {
		return nil
	}
	began := time.Now()
	defer func() { m.Took.Preflight = time.Since(began) }()
	version, err := s.envoyVersion(ctx)
	if err != nil {
		return fmt.Errorf("try the module in an Envoy: %w", err)
	}
	key, err := plugin.key(m.SHA256, version)
	if err != nil {
		return err
	}
	if _, tried := s.look(key); tried {
		return nil
	}
	skipped, err := Trial{Path: m.Path, Size: m.Size, Plugin: plugin}.Run(ctx, s.cfg.Envoy)
	if err != nil {
		return err
	}
	if skipped != "" {
		s.cfg.Log.Warn("a Wasm module is used without a try in an Envoy", "sha256", m.SHA256, "why", skipped)
		return nil
	}
	return s.note(key, entry{SHA256: m.SHA256, At: s.now()})
}

func (s *Store) envoyVersion(ctx context.Context) (string, error) {
	s.mu.Lock()
	version := s.version
	s.mu.Unlock()
	if version != "" {
		return version, nil
	}
	version, err := s.cfg.Envoy.Version(ctx)
	if err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version = version
	return version, nil
}
