package files

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"understudy.mesh/pkg/ecds"
	"understudy.mesh/pkg/envoyfilter"
	"understudy.mesh/pkg/mesh"
	"understudy.mesh/pkg/mesh/build"
	"understudy.mesh/pkg/status"
	"understudy.mesh/pkg/wasm"
	"understudy.mesh/pkg/xds"
)

// trialEnvoy takes everything that has none of its words.
type trialEnvoy struct {
	mu            sync.Mutex
	words         []string
	skipped       string
	err           error
	asked         int
	lastBootstrap []byte
}

func (e *trialEnvoy) check(_ context.Context, bootstrap []byte, memory int64) (refused, skipped string, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.asked++
	e.lastBootstrap = bootstrap
	for _, w := range e.words {
		if bytes.Contains(bootstrap, []byte(w)) && e.skipped == "" && e.err == nil {
			return "there is " + w, "", nil
		}
	}
	if memory < trialMemory {
		return "", "", fmt.Errorf("%d bytes are no estimate", memory)
	}
	return "", e.skipped, e.err
}

// filterDoc is an EnvoyFilter whose filter has a name.
func filterDoc(name, filter string) string {
	return `apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: ` + name + `}
spec:
  configPatches:
  - applyTo: HTTP_FILTER
    match: {context: SIDECAR_INBOUND}
    patch: {operation: INSERT_FIRST, value: {name: ` + filter + `, typed_config: {"@type": a/x.Y}}}
`
}

// bench is filters with an Envoy to try them, and a directory of documents.
type bench struct {
	*filters
	t       *testing.T
	envoy   *trialEnvoy
	dir     string
	source  *mesh.Source // one, since the sums of documents are its own
	options mesh.Options
	modules *fakeModules
	builder *build.Builder
}

func newBench(t *testing.T, words ...string) *bench {
	b := &bench{t: t, envoy: &trialEnvoy{words: words}, dir: t.TempDir(), modules: &fakeModules{come: make(chan struct{})}, options: mesh.Options{
		Namespace: "default", IPv4: true, InboundPort: 15006, OutboundPort: 15001, ConnectTimeout: time.Second,
		VIPRanges: []netip.Prefix{netip.MustParsePrefix("240.240.0.0/16")},
	}}
	log := func(string) *slog.Logger { return slog.New(slog.DiscardHandler) }
	wasm := ecds.New(ecds.Config{Open: func() (ecds.Modules, error) { return b.modules, nil }, Changed: func() {}, Ready: &status.Readiness{}, Log: log("")})
	t.Cleanup(wasm.Close)
	b.filters = newFilters(Config{
		Options: b.options, Proxy: envoyfilter.Proxy{Namespace: "default", RootNamespace: "istio-system"}, Check: b.envoy.check,
		Log: log,
	}, wasm)
	b.builder = build.New(b.options)
	var err error
	if b.source, err = mesh.NewSource(b.dir, b.options, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	return b
}

// build makes the resources of documents and says what became of each, by name.
func (b *bench) build(docs ...string) map[string]string {
	b.t.Helper()
	for i, d := range docs {
		if err := os.WriteFile(filepath.Join(b.dir, fmt.Sprint(i, ".yaml")), []byte(d), 0o644); err != nil {
			b.t.Fatal(err)
		}
	}
	r, err := b.source.Load()
	if err != nil {
		b.t.Fatal(err)
	}
	out, err := b.filters.build(b.t.Context(), b.builder, sight{registry: r})
	if err != nil {
		b.t.Fatal(err)
	}
	listeners := ""
	for _, l := range out.Resources[build.ListenerType] {
		listeners += string(bodyOf(l))
	}
	got := map[string]string{"listeners": listeners}
	for _, f := range b.report() {
		for _, p := range f.Patches {
			got[f.Name] += string(p.Result) + " " + p.Reason
		}
	}
	return got
}

// tryQueued does what run does.
func (b *bench) tryQueued() {
	b.t.Helper()
	select {
	case now := <-b.queued:
		b.try(b.t.Context(), now, func() {})
	default:
		b.t.Fatal("nothing is to be tried")
	}
}

func (b *bench) want(what string, got bool) {
	b.t.Helper()
	if !got {
		b.t.Error(what)
	}
}

// TestTrialFirst wants nothing in force before it was tried, each bad document found among many, and the others in force.
func TestTrialFirst(t *testing.T) {
	t.Parallel()
	b := newBench(t, "bad-one", "bad-two")
	var docs []string
	for i := range 9 {
		docs = append(docs, filterDoc(fmt.Sprint("good-", i), fmt.Sprint("fine-", i)))
	}
	docs = slices.Insert(docs, 4, filterDoc("b1", "bad-one"))
	docs = slices.Insert(docs, 7, filterDoc("b2", "bad-two"))
	got := b.build(docs...)
	for i := range 9 {
		b.want(fmt.Sprint("good-", i, " is in force"), strings.HasPrefix(got[fmt.Sprint("good-", i)], "applied") && strings.Contains(got["listeners"], fmt.Sprint("fine-", i)))
	}
	b.want("b1 is refused: "+got["b1"], strings.Contains(got["b1"], "refused Envoy does not take it: there is bad-one"))
	b.want("b2 is refused: "+got["b2"], strings.Contains(got["b2"], "refused Envoy does not take it: there is bad-two"))
	b.want("the bad ones are in no listener", !strings.Contains(got["listeners"], "bad-"))
	asked := b.envoy.asked
	b.build(docs...)
	b.want("what was tried is not tried again", b.envoy.asked == asked && len(b.queued) == 0)
}

// TestTrialLater wants a change in force once it was tried, the version before meanwhile and if it is refused, and what is
// removed gone at once.
func TestTrialLater(t *testing.T) {
	t.Parallel()
	b := newBench(t, "bad")
	got := b.build(filterDoc("f", "f-one"))
	b.want("the first is in force", strings.Contains(got["listeners"], "f-one"))

	got = b.build(filterDoc("f", "f-two"))
	b.want("the one before stays while the next is tried", strings.Contains(got["listeners"], "f-one") && !strings.Contains(got["listeners"], "f-two"))
	b.tryQueued()
	got = b.build(filterDoc("f", "f-two"))
	b.want("the next is in force", strings.Contains(got["listeners"], "f-two") && !strings.Contains(got["listeners"], "f-one"))

	b.build(filterDoc("f", "bad"))
	b.tryQueued()
	got = b.build(filterDoc("f", "bad"))
	b.want("the one before stays: "+got["f"], strings.Contains(got["listeners"], "f-two") && !strings.Contains(got["listeners"], "bad"))
	b.want("it is said: "+got["f"], strings.Contains(got["f"], "there is bad; its version before stays in force") && strings.Contains(got["f"], "applied"))

	got = b.build(filterDoc("g", "f-other"))
	b.want("what is removed is gone", !strings.Contains(got["listeners"], "f-two") && got["f"] == "")
}

// fakeModules have each module once come is closed.
type fakeModules struct{ come chan struct{} }

func (m *fakeModules) Resolve(ctx context.Context, src wasm.Source) (wasm.Module, error) {
	if src.Policy == wasm.Never {
		return wasm.Module{}, errors.New("not in the store")
	}
	select {
	case <-m.come:
		return wasm.Module{Path: "/store/a.wasm", SHA256: "a"}, nil
	case <-ctx.Done():
		return wasm.Module{}, ctx.Err()
	}
}

func (m *fakeModules) Kept(context.Context, string, wasm.Plugin) (wasm.Module, error) {
	return wasm.Module{}, errors.New("not in the store")
}

func (m *fakeModules) Surroundings(wasm.Source) string  { return "" }
func (m *fakeModules) State(wasm.Source) (s wasm.State) { return s }
func (m *fakeModules) Stats() (s wasm.Stats)            { return s }
func (m *fakeModules) Retain(...string) error           { return nil }

// wasmDoc is an EnvoyFilter with a Wasm filter.
func wasmDoc(name string) string {
	return strings.Replace(filterDoc(name, "wasm-filter"), `{"@type": a/x.Y}`,
		`{"@type": type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm, config: {vm_config: {code: {local: {filename: /m.wasm}}}}}`, 1)
}

// TestTrialModule wants the filter of a Wasm module in force at once at a start, whatever becomes of its module, and later once the
// module is there; an Envoy is never asked for it, and no other document waits.
func TestTrialModule(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	got := b.build(wasmDoc("first"))
	b.want("it is in force: "+got["first"], strings.HasPrefix(got["first"], "applied") && strings.Contains(got["listeners"], "envoyfilter/default/first/0"))
	b.want("no Envoy was asked", b.envoy.asked == 0 && len(b.queued) == 0)

	docs := []string{wasmDoc("first"), wasmDoc("second"), filterDoc("other", "f-one")}
	got = b.build(docs...)
	b.want("the second waits", !strings.Contains(got["listeners"], "default/second/0") && strings.Contains(got["listeners"], "default/first/0"))
	now := <-b.queued
	others := make(chan struct{})
	tried := make(chan struct{})
	go func() {
		defer close(tried)
		b.try(t.Context(), now, func() { close(others) })
	}()
	<-others
	got = b.build(docs...)
	b.want("another document does not wait", strings.Contains(got["listeners"], "f-one") && !strings.Contains(got["listeners"], "default/second/0"))
	close(b.modules.come)
	<-tried
	got = b.build(docs...)
	b.want("the second is in force: "+got["second"], strings.HasPrefix(got["second"], "applied") && strings.Contains(got["listeners"], "default/second/0"))
}

// TestTrialSkipped wants what could not be tried in force all the same.
func TestTrialSkipped(t *testing.T) {
	t.Parallel()
	for _, set := range []func(*trialEnvoy){
		func(e *trialEnvoy) { e.skipped = "no memory" },
		func(e *trialEnvoy) { e.err = errors.New("no program") },
	} {
		b := newBench(t, "f-one")
		set(b.envoy)
		got := b.build(filterDoc("f", "f-one"))
		b.want("it is in force", strings.Contains(got["listeners"], "f-one"))
	}
}

// TestTrialUnsound wants filters in force where a trial fails without them too: it says nothing of them then.
func TestTrialUnsound(t *testing.T) {
	t.Parallel()
	b := newBench(t, build.InboundListener)
	got := b.build(filterDoc("f", "f-one"))
	b.want("it is in force: "+got["f"], strings.HasPrefix(got["f"], "applied") && b.envoy.asked == 2)
}

// TestWithdrawn wants a document that Envoy refuses after all taken back, with its reason: the new one, not those which were
// in force before it, and its version before in its place.
func TestWithdrawn(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.build(filterDoc("old", "f-one"))
	b.want("Envoy takes it", !b.answered(nil))
	b.build(filterDoc("old", "f-one"), filterDoc("new", "f-two"))
	b.tryQueued()
	b.build(filterDoc("old", "f-one"), filterDoc("new", "f-two"))
	refused := &xds.RejectedError{Resources: []xds.ID{{Type: build.ListenerType, Name: build.InboundListener}}, Reasons: []string{"listener virtualInbound: no"}}
	b.want("the new one is withdrawn", b.answered(refused))
	got := b.build(filterDoc("old", "f-one"), filterDoc("new", "f-two"))
	b.want("it is said: "+got["new"], strings.Contains(got["new"], "refused Envoy refuses virtualInbound with it: listener virtualInbound: no"))
	b.want("the old one stays", strings.HasPrefix(got["old"], "applied") && !strings.Contains(got["listeners"], "f-two"))
	b.want("what is refused for another reason costs no filter", !b.answered(refused))

	b.answered(nil)
	b.build(filterDoc("old", "f-three"), filterDoc("new", "f-two"))
	b.tryQueued()
	got = b.build(filterDoc("old", "f-three"), filterDoc("new", "f-two"))
	b.want("the change is in force", strings.Contains(got["listeners"], "f-three"))
	b.want("the change is withdrawn", b.answered(refused))
	got = b.build(filterDoc("old", "f-three"), filterDoc("new", "f-two"))
	b.want("the version before is back: "+got["old"], strings.Contains(got["listeners"], "f-one") && !strings.Contains(got["listeners"], "f-three"))
}

// TestInheritFilters wants a newcomer to say which document its predecessor has in force and it has not; what that one lacks
// as well, or has in another version here, is none.
func TestInheritFilters(t *testing.T) {
	t.Parallel()
	old := newBench(t, "bad")
	old.build(filterDoc("kept", "f-one"), filterDoc("lost", "f-two"), filterDoc("never", "bad"))
	old.answered(nil)
	state := old.export()
	if got := string(state); got != "default/kept\ndefault/lost" {
		t.Fatalf("%q", got)
	}
	newcomer := newBench(t, "bad", "f-two")
	newcomer.inherit(state)
	newcomer.build(filterDoc("kept", "f-one"), filterDoc("lost", "f-two"), filterDoc("never", "bad"))
	newcomer.answered(nil)
	if err := newcomer.lost(); err == nil || !strings.Contains(err.Error(), "default/lost: Envoy does not take it: there is f-two") {
		t.Error(err)
	}
	newcomer.build(filterDoc("kept", "f-one"), filterDoc("lost", "f-three"), filterDoc("never", "bad"))
	newcomer.tryQueued()
	newcomer.build(filterDoc("kept", "f-one"), filterDoc("lost", "f-three"), filterDoc("never", "bad"))
	if err := newcomer.lost(); err != nil {
		t.Error(err)
	}
	newcomer.inherit(nil)
	newcomer.inherit([]byte("\xff\n\n/\n"))
	if err := newcomer.lost(); err != nil {
		t.Error(err)
	}
}

// FuzzInheritFilters: the bytes come from another release.
func FuzzInheritFilters(f *testing.F) {
	f.Add([]byte("default/a\nb/c"))
	f.Fuzz(func(t *testing.T, lines []byte) {
		in := newFilters(Config{Log: func(string) *slog.Logger { return slog.New(slog.DiscardHandler) }}, nil)
		in.inherit(lines)
		if err := in.lost(); err != nil {
			t.Error(err)
		}
	})
}
