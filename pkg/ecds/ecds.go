// Package ecds owns the configurations of Wasm filters that Envoy discovers by name (ECDS): which module each of them runs, and what
// stands in its place until the module is had, checked and tried. Nothing waits for a module but its own filter.
package ecds

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/anypb"

	"understudy.mesh/pkg/envoyfilter"
	"understudy.mesh/pkg/status"
	"understudy.mesh/pkg/wasm"
	"understudy.mesh/pkg/wasm/wasmfilter"
	"understudy.mesh/pkg/xds"
)

const (
	// patience is how long a start waits for a module that traffic may pass without.
	patience = 5 * time.Second
	// documentPatience is how long a document that is new leaves the traffic alone that it will guard, while its module is on its way and
	// nothing has failed: as long as a large one takes on a busy node.
	documentPatience = time.Minute
	// failureLook is how often it is looked whether something has.
	failureLook = 100 * time.Millisecond
)

// task is that of readiness.
const task = "wasm"

// Modules is where modules come from: a wasm.Store.
type Modules interface {
	Resolve(ctx context.Context, src wasm.Source) (wasm.Module, error)
	// Kept is a module that is there, by its hash, tried with a configuration.
	Kept(ctx context.Context, sha256 string, plugin wasm.Plugin) (wasm.Module, error)
	// Surroundings changes when a source may give another module than before, of what can be seen in the pod's files.
	Surroundings(src wasm.Source) string
	// State is what became of a source.
	State(src wasm.Source) wasm.State
	// Retain says which modules are in use, by their hashes.
	Retain(hashes ...string) error
	Stats() wasm.Stats
}

// Config says whom Extensions deal with.
type Config struct {
	// Open gives the modules, when the first is wanted.
	Open func() (Modules, error)
	// Changed is called when Resources gives something else than before.
	Changed func()
	Ready   *status.Readiness
	Log     *slog.Logger
}

// Extensions are the configurations that Envoy is to have. It is made by New.
type Extensions struct {
	c       Config
	ctx     context.Context // of all that is under way
	end     context.CancelFunc
	running sync.WaitGroup

	mu      sync.Mutex // guards what follows
	modules Modules    // nil before the first is wanted
	all     map[string]*extension
	before  map[string]bool     // names of those that the generation before has in force
	lacking map[string]bool     // names of those that it has without a module
	theirs  map[string]*version // what that generation's Envoy runs, by name, until it is wanted here
	runs    bool                // this Envoy runs these from the start
	loads   loads
	served  bool      // this generation serves: it is ready whatever becomes of a module
	began   time.Time // when the first was wanted
}

// New starts nothing.
func New(c Config) *Extensions {
	x := &Extensions{c: c, all: map[string]*extension{}}
	x.ctx, x.end = context.WithCancel(context.Background())
	return x
}

// Close ends all that is under way.
func (x *Extensions) Close() {
	x.mu.Lock()
	x.end()
	x.mu.Unlock()
	x.running.Wait()
}

// extension is one configuration.
type extension struct {
	envoyfilter.Extension
	filter *wasmfilter.Filter // nil: bad says why
	cancel context.CancelFunc
	since  time.Time // of what is wanted now
	bad    string    // why what is wanted can never be had

	placeholder *version
	earlier     *version // what the Envoy of the generation before runs, until this one's has tried it
	newest      *version // the last one of which the module is there, of whatever was wanted
	good        *version // the last one that Envoy took
	offered     *version // what Envoy was given last
	refused     string   // why Envoy refuses newest
	reloads     int
	fresh       time.Time // until when it stays though nothing names it; a document is about to
	arrived     chan struct{}
}

// version is a resource, and the module in it.
type version struct {
	xds.Resource
	of     *anypb.Any  // what was wanted
	module wasm.Module // none in a placeholder
	made   time.Time
	inUse  time.Time // when Envoy took it
}

// Resources are those for what is wanted now, which replaces what was wanted before. It waits for nothing.
func (x *Extensions) Resources(wanted []envoyfilter.Extension) []xds.Resource {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(wanted) == 0 && len(x.all) == 0 {
		return nil
	}
	names := make(map[string]bool, len(wanted))
	out := make([]xds.Resource, 0, len(wanted))
	for _, w := range wanted {
		e, err := x.want(w)
		if err != nil {
			x.c.Log.Error("a Wasm filter cannot be", "name", w.Name, "err", err)
			continue
		}
		names[w.Name], e.fresh = true, time.Time{}
		e.offered = e.current()
		out = append(out, e.offered.Resource)
	}
	for name, e := range x.all {
		if !names[name] && time.Now().After(e.fresh) {
			e.cancel()
			delete(x.all, name)
		}
	}
	x.retain()
	x.ready()
	return out
}

// current is what Envoy is to have.
func (e *extension) current() *version {
	switch {
	case e.newest != nil && e.refused == "":
		return e.newest
	case e.good != nil:
		return e.good
	}
	return e.placeholder
}

// inForce says whether Envoy runs the module that is wanted, or did so before it was wanted anew.
func (e *extension) inForce() bool { return e.good != nil && e.good == e.current() }

// want makes an extension what is wanted. The caller holds mu.
func (x *Extensions) want(w envoyfilter.Extension) (*extension, error) {
	e := x.all[w.Name]
	if e != nil && sameConfig(e.Config, w.Config) {
		return e, nil
	}
	if err := x.open(); err != nil {
		return nil, err
	}
	if e == nil {
		e = &extension{cancel: func() {}, arrived: make(chan struct{})}
		if x.runs {
			e.good = x.theirs[w.Name]
		} else if v := x.theirs[w.Name]; v != nil && v.module.SHA256 != "" {
			e.earlier = v
		}
	}
	filter, err := wasmfilter.Of(w.Config)
	if err != nil {
		return nil, err
	}
	if filter == nil {
		return nil, fmt.Errorf("a configuration of type %s, which wants no module", w.Config.GetTypeUrl())
	}
	stand, err := placeholder(w.Name, filter.Source.Plugin.Network, filter.Open)
	if err != nil {
		return nil, err
	}
	e.cancel() // an older one never wins
	e.Extension, e.filter, e.since, e.bad, e.placeholder = w, filter, time.Now(), "", stand
	x.all[w.Name] = e
	delete(x.theirs, w.Name)
	x.begin(e)
	return e, nil
}

// open opens the store when the first module is wanted. The caller holds mu.
func (x *Extensions) open() error {
	if x.modules != nil {
		return nil
	}
	modules, err := x.c.Open()
	if err != nil {
		return fmt.Errorf("open the store of Wasm modules: %w", err)
	}
	x.modules, x.began = modules, time.Now()
	return nil
}

// changed tells whoever waits. The caller holds mu.
func (x *Extensions) changed(e *extension) {
	select {
	case <-e.arrived:
	default:
		close(e.arrived)
	}
	x.c.Changed()
}

// retain keeps what is in use in the store: what Envoy has, and is about to have. The caller holds mu.
func (x *Extensions) retain() {
	if x.modules == nil {
		return
	}
	var hashes []string
	for _, e := range x.all {
		for _, v := range []*version{e.newest, e.good, e.offered} {
			if v != nil && v.module.SHA256 != "" {
				hashes = append(hashes, v.module.SHA256)
			}
		}
	}
	slices.Sort(hashes)
	if err := x.modules.Retain(slices.Compact(hashes)...); err != nil {
		x.c.Log.Warn("a Wasm module in use may go from the store", "err", err)
	}
}

// Prepare has the modules of extensions brought that are about to be wanted. The function that it returns waits, for a minute at most, until
// each is there of which Envoy has nothing, or has failed: what is to guard traffic need not begin with refusing it, as under Istio.
func (x *Extensions) Prepare(soon []envoyfilter.Extension) (wait func(context.Context)) {
	var fresh []*extension
	x.mu.Lock()
	defer x.mu.Unlock()
	until := time.Now().Add(documentPatience)
	for _, w := range soon {
		if x.all[w.Name] != nil {
			continue // what it has serves on meanwhile
		}
		if e, err := x.want(w); err == nil {
			e.fresh = until.Add(patience)
			fresh = append(fresh, e)
		}
	}
	return func(ctx context.Context) {
		ctx, cancel := context.WithDeadline(ctx, until)
		defer cancel()
		look := time.NewTicker(failureLook)
		defer look.Stop()
		for _, e := range fresh {
			for came := false; !came && !x.failed(e); {
				select {
				case <-e.arrived:
					came = true
				case <-look.C:
				case <-ctx.Done():
					return
				}
			}
		}
	}
}

// failed says whether the module of an extension cannot be had, for now.
func (x *Extensions) failed(e *extension) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	st := x.modules.State(e.filter.Source)
	return e.bad != "" || st.Reason != ""
}

// Has brings the modules of extensions, and says whether each is there, or that which the generation before has in force, if it has any: a
// newcomer gets connections as soon as its Envoy has listeners, and must not refuse what its predecessor serves.
func (x *Extensions) Has(all []envoyfilter.Extension) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	has := true
	for _, w := range all {
		e, err := x.want(w)
		has = has && (err != nil || e.newest != nil || e.good != nil || x.lacking[w.Name])
	}
	x.ready()
	return has
}

// Own puts this generation's modules in the place of those that resources of the generation before name.
func (x *Extensions) Own(resources []xds.Resource) []xds.Resource {
	x.mu.Lock()
	defer x.mu.Unlock()
	out := slices.Clone(resources)
	for i, r := range out {
		if e := x.all[r.Name]; e != nil && (e.newest != nil || e.good != nil) {
			out[i] = e.current().Resource
		}
	}
	return out
}

// Answered takes in that Envoy has answered for what Resources gave last: why it refuses some of it, by name. It says whether Envoy is
// to have something else therefore.
func (x *Extensions) Answered(refused map[string]string) (again bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for name, e := range x.all {
		reason, is := refused[name]
		v := e.offered
		switch {
		case v == nil || v.module.SHA256 == "":
		case !is:
			if v.inUse.IsZero() {
				v.inUse = time.Now()
				x.c.Log.Info("a Wasm module is in force", "name", name, "sha256", v.module.SHA256)
			}
			e.good = v
		case v == e.newest && e.refused == "":
			e.refused, again = fmt.Sprintf("Envoy refuses it: %s", reason), true
			if e.good == v { // an Envoy that is new
				e.good = nil
			}
			x.c.Log.Error("Envoy refuses a Wasm module; what served before does again", "name", name, "sha256", v.module.SHA256, "reason", reason)
		}
	}
	x.retain()
	x.ready()
	return again
}

// runsTheirs says that Envoy runs from the start what that of the generation before ran, until the modules are there that are wanted.
func (x *Extensions) runsTheirs() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.runs = true
	for _, v := range x.theirs {
		v.inUse = v.made
	}
}

// forget says that Envoy runs one no more.
func (x *Extensions) forget(name string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.theirs, name)
}

// Served says that this generation serves from now on.
func (x *Extensions) Served() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.served, x.before, x.lacking = true, nil, nil
	x.ready()
}
