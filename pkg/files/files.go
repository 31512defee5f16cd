// Package files owns the control plane that is made of files: it brings what a directory of Istio YAML says
// into force, in Envoy and in DNS, and tells the next generation what is.
package files

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/dnsproxy/vip"
	"understudy.mesh/pkg/ecds"
	"understudy.mesh/pkg/envoyfilter"
	"understudy.mesh/pkg/mesh"
	"understudy.mesh/pkg/mesh/build"
	"understudy.mesh/pkg/publish"
	"understudy.mesh/pkg/status"
	"understudy.mesh/pkg/xds"
)

const (
	// Readiness tasks.
	taskConfig = "config"
	taskDNS    = "dns"
)

// Config says what the files are and where what they say goes.
type Config struct {
	Dir     string
	Options mesh.Options
	// Proxy is whom EnvoyFilters are for.
	Proxy envoyfilter.Proxy
	VIPs  *vip.Pool
	Envoy publish.Envoy
	// Names publishes what becomes different in what DNS answers; nil without DNS capture.
	Names func(set []table.Host, gone []string)
	// TTL is how long a client may keep an answer.
	TTL time.Duration
	// Check has an Envoy that serves nobody try a bootstrap in JSON, which takes about so many bytes of memory; refused is why
	// it does not take it, skipped why it was not asked. nil: what EnvoyFilters make is not tried before it is in force.
	Check func(ctx context.Context, bootstrap []byte, memory int64) (refused, skipped string, err error)
	// Modules opens the store of Wasm modules, when a filter wants the first.
	Modules func() (ecds.Modules, error)
	// Compiled is a file in which what the files make is there instead of in memory, and kept over a restart of the container; "": nowhere.
	Compiled string
	// Damaged holds a token when what is in Compiled instead of in memory cannot be read again; nil: nobody says so.
	Damaged <-chan struct{}
	// Shared is what Envoy has in the place of the resources that it was Set last; nil: these.
	Shared func() xds.Snapshot
	// Build names this build of the agent and that of its Envoy: what others made is not used.
	Build string
	// GiveBack is called when there is memory to give back to the system; nil: nobody can.
	GiveBack func()
	// Bootstrap is the file of the one of the Envoy that serves, serialized.
	Bootstrap string
	Ready     *status.Readiness
	// InForce is called each time a configuration of the files is in force.
	InForce func()
	// Log makes the logger of a part of the agent.
	Log func(part string) *slog.Logger
}

// Files is the control plane of one generation. It is made by New.
type Files struct {
	c         Config
	log       *slog.Logger
	source    *mesh.Source
	builder   *build.Builder
	anew      atomic.Bool // everything is to be made anew
	filters   *filters
	wasm      *ecds.Extensions
	latest    latest
	compiled  *compiled
	publisher *publish.Publisher
	// publishing is the context of Publish, which calls next.
	publishing context.Context
	// before is what the Envoy of the generation before uses, until this one serves; nil for a
	// cold start, and if that generation does not say precisely.
	before atomic.Pointer[publish.Snapshot]
	// inherited is what Publish is to begin with, nil of nothing; begun says that it has.
	inherited *publish.Snapshot
	begun     bool
	inline    int // maxInline
	restart
	// refused is what Envoy refuses of the configuration that it answered for last; nil: nothing.
	refused atomic.Pointer[xds.RejectedError]
	// ended is closed when Run has: what is in force then stays.
	ended   context.Context
	endedBy context.CancelFunc
}

// New checks c, and reads and starts nothing.
func New(c Config) (*Files, error) {
	source, err := mesh.NewSource(c.Dir, c.Options, c.Log("mesh"))
	if err != nil {
		return nil, err
	}
	f := &Files{c: c, log: c.Log("agent"), inline: maxInline, source: source, builder: build.New(c.Options), latest: latest{changed: make(chan struct{}, 1)}, compiled: newCompiled(c)}
	f.wasm = ecds.New(ecds.Config{Open: c.Modules, Changed: f.latest.again, Ready: c.Ready, Log: c.Log("wasm")})
	f.filters, f.compiled.damaged = newFilters(c, f.wasm), f.makeAnew
	f.ended, f.endedBy = context.WithCancel(context.Background())
	f.publisher = publish.New(publish.Config{
		Changed: f.latest.changed, Next: f.next, Envoy: c.Envoy, Names: c.Names,
		TTL: c.TTL, Log: f.log, Answered: f.answered,
	})
	c.Ready.Pending(taskConfig, "the configuration files are not in force yet")
	if c.Names != nil {
		c.Ready.Pending(taskDNS, "the DNS table is not ready yet")
	}
	return f, nil
}

// Run reads and watches the files until ctx ends. It fails when their first state cannot be served.
func (f *Files) Run(ctx context.Context) error {
	defer context.AfterFunc(ctx, f.endedBy)()
	f.begin(ctx)
	registry, err := f.source.Load()
	if err != nil {
		return err
	}
	f.latest.put(registry)
	kept := make(chan struct{})
	go func() {
		defer close(kept)
		f.compiled.run(ctx)
	}()
	tried := make(chan struct{})
	go func() {
		defer close(tried)
		f.filters.run(ctx, f.latest.again)
	}()
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		f.repair(ctx)
	}()
	defer func() {
		<-kept
		<-tried
		<-watched
		f.wasm.Close()
	}()
	return f.source.Run(ctx, f.latest.put)
}

// repair makes everything anew each time that Envoy cannot be given what is in a file, until ctx ends.
func (f *Files) repair(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.c.Damaged:
			f.makeAnew()
		}
	}
}

// makeAnew has everything made of the files again, and in memory.
func (f *Files) makeAnew() {
	f.log.Error("Envoy's configuration is made anew, as what was kept of it cannot be read: is the volume in order?", "file", f.c.Compiled)
	f.anew.Store(true)
	f.latest.again()
}

// Publish brings what the files say into force until ctx, or that of Run, ends; then all stays as it is.
func (f *Files) Publish(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(f.ended, cancel)()
	f.publishing = ctx
	if !f.awaitModules(ctx) {
		return
	}
	if snap := f.inherited; snap != nil {
		setExtensions(snap.Resources, f.wasm.Own(extensionsOf(snap)))
		f.publisher.Inherit(snap)
		f.builder.Reuse(snap.Resources)
	}
	f.inherited, f.begun = nil, true
	f.publisher.Run(ctx)
}

// awaitModules waits until the Wasm modules are there of the documents that the generation before has in force: until then Envoy gets
// nothing, as it gets connections as soon as it has listeners. It says whether that is so before ctx ends.
func (f *Files) awaitModules(ctx context.Context) bool {
	if f.begun || !f.filters.inherited() {
		return true
	}
	defer f.latest.again() // what it takes is not taken
	for {
		select {
		case <-ctx.Done():
			return false
		case <-f.latest.changed: // also when a module has come
		}
		registry := f.latest.registry.Load()
		vips, _ := f.c.VIPs.Assign(registry.AutoHosts(), registry.Declared()...) // what is wrong is reported by next
		if f.wasm.Has(f.filters.expected(sight{registry, vips})) {
			return true
		}
	}
}

// next is what the files say now.
func (f *Files) next() (*publish.Snapshot, error) {
	f.making = nil
	if r := f.recalled.Swap(nil); r != nil {
		f.unchecked = r
		return r.snapshot, nil
	}
	registry := f.latest.registry.Load()
	vips, err := f.c.VIPs.Assign(registry.AutoHosts(), registry.Declared()...)
	if err != nil {
		f.log.Error("some hosts get no VIP and stay unknown to DNS", "err", err)
	}
	if f.anew.Swap(false) {
		f.builder = build.New(f.c.Options)
	} else if f.unchecked != nil {
		f.builder.Reuse(f.unchecked.snapshot.Resources)
	}
	out, err := f.filters.build(f.publishing, f.builder, sight{registry, vips})
	if err != nil {
		return nil, err
	}
	if f.before.Load() != nil { // whose connections this Envoy gets before it is ready
		if err := f.filters.lost(); err != nil {
			f.c.Ready.Fail(taskConfig, err)
			return nil, err
		}
	}
	setExtensions(out.Resources, f.wasm.Resources(out.Extensions))
	f.making = &made{registry: registry, snapshot: &publish.Snapshot{Resources: out.Resources, Hosts: out.Hosts}}
	if r := f.unchecked; r != nil {
		f.unchecked, f.checked = nil, true
		f.check(r, f.making)
	}
	return f.making.snapshot, nil
}

// answered is called after each configuration that Envoy has answered for. Without
// the capture listeners the pod has no traffic at all; anything else that Envoy
// lacks concerns only whoever needs it. But a successor never serves without what the
// generation before has: that one had better go on.
func (f *Files) answered(refused *xds.RejectedError) {
	f.refused.Store(refused)
	f.noteAnswer(refused == nil)
	if f.filters.answered(refused) {
		f.latest.again() // and Envoy answers again
		return
	}
	if f.wasm.Answered(extensions(refused)) {
		f.latest.again()
	}
	if refused != nil {
		missing := refused.Missing()
		fault := f.lost(missing)
		capture := func(id xds.ID) bool {
			return id.Type == build.ListenerType && (id.Name == build.OutboundListener || id.Name == build.InboundListener)
		}
		if slices.ContainsFunc(missing, capture) {
			fault = refused
		}
		if fault != nil {
			f.c.Ready.Fail(taskConfig, fault)
			return
		}
	}
	f.c.Ready.Done(taskConfig)
	if f.c.Names != nil {
		f.c.Ready.Done(taskDNS)
	}
	f.c.InForce()
}

// extensions are those that Envoy refuses, and why.
func extensions(refused *xds.RejectedError) map[string]string {
	if refused == nil {
		return nil
	}
	out := map[string]string{}
	for _, id := range refused.Resources {
		if id.Type == build.ExtensionType {
			out[id.Name] = reasonFor(refused, id.Name)
		}
	}
	return out
}

// lost says which of the missing resources the generation before has, nil when it has none, or
// when this one serves already. A newcomer may lack what its predecessor lacks as well.
func (f *Files) lost(missing []xds.ID) error {
	before := f.before.Load()
	if before == nil {
		return nil
	}
	for _, url := range build.Types() {
		for _, r := range before.Resources[url] {
			if slices.Contains(missing, xds.ID{Type: url, Name: r.Name}) {
				return fmt.Errorf("what the generation before serves is refused by Envoy: %q", r.Name)
			}
		}
	}
	return nil
}

// Unfit is nil: a newcomer that lacks something is not ready.
func (f *Files) Unfit() <-chan error { return nil }

// Suspends is true: of two that give VIPs, each might give another.
func (f *Files) Suspends() bool { return true }

// Served says that this generation has begun to serve: what it lacks then is not for the one before to serve.
func (f *Files) Served() {
	f.before.Store(nil)
	f.wasm.Served()
}

// Keep writes what the files make for the agent that starts next.
func (f *Files) Keep() { _, _ = f.compiled.save() }

// latest holds the newest registry; what was not taken yet is replaced.
type latest struct {
	registry atomic.Pointer[mesh.Registry]
	changed  chan struct{} // holds a token when the registry is to be taken
}

func (l *latest) put(r *mesh.Registry) {
	l.registry.Store(r)
	l.again()
}

// again has the registry taken once more, if there is one.
func (l *latest) again() {
	if l.registry.Load() == nil {
		return
	}
	select {
	case l.changed <- struct{}{}:
	default:
	}
}
