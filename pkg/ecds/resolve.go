package ecds

import (
	"context"
	"strings"
	"time"

	"understudy.mesh/pkg/wasm"
	"understudy.mesh/pkg/wasm/wasmfilter"
)

// begin has the module of an extension resolved. The caller holds mu.
func (x *Extensions) begin(e *extension) {
	if x.ctx.Err() != nil {
		return
	}
	ctx, cancel := context.WithCancel(x.ctx)
	e.cancel = cancel
	filter, earlier, first := e.filter, e.earlier, e.newest == nil
	x.running.Go(func() {
		if earlier != nil {
			x.keep(ctx, e, earlier)
		}
		x.resolve(ctx, e, filter, first)
	})
}

// keep has what the generation before runs serve on here, until there is what is wanted: that may not be had at all.
func (x *Extensions) keep(ctx context.Context, e *extension, earlier *version) {
	v, err := x.kept(ctx, earlier)
	x.mu.Lock()
	defer x.mu.Unlock()
	if ctx.Err() != nil {
		return // the next one does it
	}
	if e.earlier = nil; err != nil {
		x.c.Log.Warn("the Wasm module that the generation before runs cannot be had here", "name", earlier.Name, "sha256", earlier.module.SHA256, "err", err)
		return
	}
	e.good = v
	x.retain()
	x.changed(e)
}

// kept is an earlier version with its module out of the store.
func (x *Extensions) kept(ctx context.Context, earlier *version) (*version, error) {
	filter, err := wasmfilter.Of(earlier.of)
	if err != nil {
		return nil, err
	}
	m, err := x.modules.Kept(ctx, earlier.module.SHA256, filter.Source.Plugin)
	if err != nil {
		return nil, err
	}
	config, err := filter.With(m.Path)
	if err != nil {
		return nil, err
	}
	v, err := resource(earlier.Name, config)
	if err == nil {
		v.of, v.module = earlier.of, m
		v.module.Digest = earlier.module.Digest
	}
	return v, err
}

// resolve follows the source of a filter until ctx ends.
func (x *Extensions) resolve(ctx context.Context, e *extension, filter *wasmfilter.Filter, first bool) {
	source := filter.Source
	if first && source.Policy != wasm.IfNotPresent && !inFile(source) {
		// What was in force before a restart is in force again, whether there is a registry or not.
		stored := source
		stored.Policy, stored.Once = wasm.Never, true
		began := time.Now()
		if m, err := x.modules.Resolve(ctx, stored); err == nil {
			x.arrive(ctx, e, filter, m, time.Since(began))
		}
	}
	for ctx.Err() == nil {
		seen, began := x.modules.Surroundings(source), time.Now()
		m, err := x.modules.Resolve(ctx, source)
		if err == nil {
			x.arrive(ctx, e, filter, m, time.Since(began))
		} else if ctx.Err() == nil {
			x.fail(e, filter, err)
		}
		x.await(ctx, filter, seen)
	}
}

func inFile(source wasm.Source) bool { return strings.HasPrefix(source.URL, "file://") }

// lookEvery is how often the file of a module is looked at.
const lookEvery = time.Second

// await returns when a source may give another module than before.
func (x *Extensions) await(ctx context.Context, filter *wasmfilter.Filter, seen string) {
	source := filter.Source
	var looks, poll <-chan time.Time
	if filter.Poll > 0 {
		poll = time.After(filter.Poll)
	}
	if inFile(source) {
		look := time.NewTicker(lookEvery)
		defer look.Stop()
		looks = look.C
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-poll:
			return
		case <-looks:
			if x.modules.Surroundings(source) != seen {
				return
			}
		}
	}
}

// arrive takes in the module of what is wanted.
func (x *Extensions) arrive(ctx context.Context, e *extension, filter *wasmfilter.Filter, m wasm.Module, took time.Duration) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if ctx.Err() != nil || e.filter != filter {
		return // a newer one is wanted
	}
	v, err := made(e, m)
	x.loads.count(took, err)
	if err != nil {
		e.bad = err.Error()
		return
	}
	if e.newest.same(v) {
		e.newest.of = e.Config
		return
	}
	if e.good.same(v) { // Envoy has it, and would not answer for it again
		v = e.good
		v.of, v.module = e.Config, m
	}
	e.newest, e.refused, e.bad = v, "", ""
	x.retain()
	x.changed(e)
}

// fail takes in that no waiting helps.
func (x *Extensions) fail(e *extension, filter *wasmfilter.Filter, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.loads.count(0, err)
	if e.filter == filter {
		e.bad = err.Error()
		x.c.Log.Error("a Wasm module cannot be had", "name", e.Name, "err", err)
		x.ready()
	}
}
