package sidecar

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"

	"understudy.mesh/bootstrap"
	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/ecds"
	"understudy.mesh/pkg/envoy"
	"understudy.mesh/pkg/files"
	"understudy.mesh/pkg/mesh"
	"understudy.mesh/pkg/mesh/build"
	"understudy.mesh/pkg/mesh/share"
	"understudy.mesh/pkg/overview"
	"understudy.mesh/pkg/publish"
	"understudy.mesh/pkg/status"
	"understudy.mesh/pkg/wasm"
	"understudy.mesh/pkg/wasm/settings"
	"understudy.mesh/pkg/xds"
)

// controlPlane decides what Envoy is configured with, and what DNS answers besides. The sidecar gives it an Envoy and a
// readiness, for which it registers the tasks, and knows nothing of where it has its configuration from.
type controlPlane interface {
	// Unfit gets why this generation had better not take over from the one before, once; what it serves it serves on. nil: never.
	Unfit() <-chan error
	// Run follows what the configuration is made of until ctx ends, from the start to the moment from which changes are
	// not wanted any more. It fails when there is nothing that can be served.
	Run(ctx context.Context) error
	// Publish brings changes into force until ctx ends; then all stays as it is. It may be called again.
	Publish(ctx context.Context)
	// Suspends says whether nothing may come into force any more from the moment at which a successor has been told all, as it
	// then decides itself; else changes go on until it has settled.
	Suspends() bool
	// Keep writes what outlives the container, as this generation ends.
	Keep()
	// Served says that this generation has begun to serve.
	Served()

	// Export is what a successor is told as it arrives, by component, and ExportLast as this generation lets go.
	Export() map[string][]byte
	ExportLast() map[string][]byte
	// ExportFiles are further components of what it is told as it arrives, which write themselves: they are large, and for a
	// successor that knows them.
	ExportFiles() map[string]func(io.Writer) error
	// Import and ImportLast take that over. Import comes before Publish; open is a component that came as a file, or nil.
	Import(state map[string][]byte, open func(component string) io.Reader)
	ImportLast(state map[string][]byte)
	// Alone says that no Envoy of another generation accepts connections, as one may from Export and Import on.
	Alone()

	// Overview is what people see of it at a glance, and LeadsTo where connections to a host go, "" if it does not know.
	Overview() overview.Config
	LeadsTo(host string) string
	// DebugPages are pages of the status port, for loopback only, and Samples the metrics.
	DebugPages() map[string]http.Handler
	Samples() []status.Sample
}

// publisher has the control plane bring changes into force while it is not suspended.
type publisher struct {
	publish func(context.Context)

	mu  sync.Mutex
	end func() // ends publish and waits for it; nil before the first begin
}

// begin publishes, also what changed while it was suspended, until ctx ends.
func (p *publisher) begin(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.publish(ctx)
	}()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.end = func() { cancel(); <-done }
}

// suspend leaves everything as it is in force now, until the next begin.
func (p *publisher) suspend() {
	p.mu.Lock()
	end := p.end
	p.mu.Unlock()
	if end != nil {
		end()
	}
}

// feed is the server from which Envoy has its configuration.
type feed interface {
	Run(ctx context.Context) error
	End()
	Stats() xds.Stats
}

// newControlPlane makes the one that the settings name, with the server by which it reaches Envoy.
func (s *Sidecar) newControlPlane() error {
	if s.cfg.ConfigDir == "" {
		return s.newIstiod()
	}
	return s.newFiles()
}

// options are those of the files, whose resources have Envoy look up names as its bootstrap does.
func (s *Sidecar) options() mesh.Options {
	o := meshOptions(s.cfg)
	o.DNSResolver = bootstrap.DNSResolver(s.names.resolver.addr)
	return o
}

func (s *Sidecar) newFiles() error {
	listener, err := s.dir.ListenXDS()
	if err != nil {
		return err
	}
	server := xds.New(listener, build.Types(), s.world.Log("xds"))
	server.SendFirst(build.OutboundListener, build.InboundListener)
	options := s.options()
	set, applied := server.Set, server.Applied
	if s.cfg.SharedListeners {
		sharer := share.New(server, options.ReservedPorts, s.world.Log("xds"))
		set, applied = sharer.Set, sharer.Applied
	}
	c := files.Config{
		Dir: s.cfg.ConfigDir, Options: options, VIPs: s.names.vips,
		Proxy: filtered(s.cfg),
		Envoy: publish.Envoy{
			Set: set, Applied: applied, Connected: server.Connected, Renewed: server.Renewed(),
			Warming: s.admin.Warming,
		},
		Check:     s.helper.Validate,
		Bootstrap: s.dir.BootstrapFile(),
		Modules:   func() (ecds.Modules, error) { return s.modules.open() },
		Shared:    server.Given,
		Damaged:   server.Damaged(),
		GiveBack:  s.world.GiveBack,
		TTL:       s.cfg.DNSTTL, Ready: s.Ready, InForce: s.progress, Log: s.world.Log,
	}
	if s.names.captured {
		c.Names = s.names.update
	}
	if s.cfg.LastGood {
		if c.Build, err = s.build(); err != nil {
			return err
		}
		c.Compiled = filepath.Join(cmp.Or(s.world.DataDir, dataDir), compiledFile)
	}
	s.xds = server
	s.plane, err = files.New(c)
	return err
}

// build names this agent and its Envoy. A version alone does not: what developers build has the same for many.
func (s *Sidecar) build() (string, error) {
	name := s.world.Version
	for _, path := range []string{"/proc/self/exe", s.cfg.BinaryPath} {
		info, err := os.Stat(path)
		if err != nil {
			return "", fmt.Errorf("look at a program: %w", err)
		}
		name += fmt.Sprintf(" %d %d", info.Size(), info.ModTime().UnixNano())
	}
	return name, nil
}

// moduleStore is the store of Wasm modules, which there is once somebody has opened it.
type moduleStore struct {
	make func() (wasm.Config, error)

	mu    sync.Mutex
	store *wasm.Store // nil: nobody has
}

// newModuleStore is the one that the settings say, whose modules helper tries.
func newModuleStore(c *config.Config, helper *envoy.Helper, log *slog.Logger) *moduleStore {
	return &moduleStore{make: func() (wasm.Config, error) { return settings.Store(c, wasm.DefaultDir, helper, log) }}
}

// open opens it, the first time.
func (m *moduleStore) open() (*wasm.Store, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.store == nil {
		c, err := m.make()
		if err != nil {
			return nil, err
		}
		m.store = wasm.New(c)
	}
	return m.store, nil
}

// opened is nil before that.
func (m *moduleStore) opened() *wasm.Store {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.store
}
