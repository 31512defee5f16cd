package ecds

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	httpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"understudy.mesh/pkg/envoyfilter"
	"understudy.mesh/pkg/status"
	"understudy.mesh/pkg/wasm"
	"understudy.mesh/pkg/xds"
)

// modules are fake ones, by the URL of their source.
type modules struct {
	mu       sync.Mutex
	there    map[string]string // to hashes; "" fails for good
	stored   map[string]string // what the store has without asking
	kept     []string          // what it has, by hashes
	states   map[string]wasm.State
	changed  chan struct{}
	seen     string
	retained string
}

func newModules() *modules {
	return &modules{there: map[string]string{}, stored: map[string]string{}, states: map[string]wasm.State{}, changed: make(chan struct{})}
}

// set has a source give a module, from now on.
func (m *modules) set(url, hash string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.there[url] = hash
	m.seen = fmt.Sprint(m.seen, "x")
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *modules) Resolve(ctx context.Context, src wasm.Source) (wasm.Module, error) {
	for {
		m.mu.Lock()
		hash, there := m.there[src.URL]
		if src.Policy == wasm.Never {
			hash, there = m.stored[src.URL], true
		}
		changed := m.changed
		m.mu.Unlock()
		switch {
		case there && hash == "":
			return wasm.Module{}, errors.New("it is none")
		case there:
			m.mu.Lock()
			m.states[src.URL] = wasm.State{From: src.URL, Phase: wasm.InStore}
			m.mu.Unlock()
			return wasm.Module{Path: "/store/" + hash, SHA256: hash, Size: 1, Took: wasm.Steps{Resolve: time.Second, Verify: 2 * time.Second, Preflight: 3 * time.Second}}, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return wasm.Module{}, ctx.Err()
		}
	}
}

func (m *modules) Kept(_ context.Context, hash string, plugin wasm.Plugin) (wasm.Module, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !slices.Contains(m.kept, hash) {
		return wasm.Module{}, errors.New("there is none")
	}
	return wasm.Module{Path: "/store/" + hash, SHA256: hash, Size: int64(len(hash))}, nil
}

func (m *modules) Surroundings(wasm.Source) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.seen
}

func (m *modules) State(src wasm.Source) wasm.State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.states[src.URL]
}

func (m *modules) Stats() wasm.Stats { return wasm.Stats{Fetches: map[string]uint64{"success": 1}} }

func (m *modules) Retain(hashes ...string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.retained = strings.Join(hashes, " ")
	return nil
}

// bench is Extensions with fake modules.
type bench struct {
	*Extensions
	t       *testing.T
	modules *modules
	news    chan struct{}
	ready   *status.Readiness
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, modules: newModules(), news: make(chan struct{}, 100), ready: &status.Readiness{}}
	b.ready.Done("other")
	b.Extensions = New(Config{
		Open: func() (Modules, error) { return b.modules, nil }, Changed: func() { b.news <- struct{}{} }, Ready: b.ready, Log: slog.New(slog.DiscardHandler),
	})
	t.Cleanup(b.Close)
	return b
}

func wanted(name, file string, policy wasmv3.FailurePolicy) envoyfilter.Extension {
	config, err := anypb.New(&httpwasmv3.Wasm{Config: &wasmv3.PluginConfig{FailurePolicy: policy, Vm: &wasmv3.PluginConfig_VmConfig{VmConfig: &wasmv3.VmConfig{
		VmId: "vm", Code: &corev3.AsyncDataSource{Specifier: &corev3.AsyncDataSource_Local{Local: &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: file}}}},
	}}}})
	if err != nil {
		panic(err)
	}
	return envoyfilter.Extension{Name: name, Document: "ns/" + name, Config: config}
}

// next waits until Envoy is to have something else.
func (b *bench) next() {
	b.t.Helper()
	select {
	case <-b.news:
	case <-time.After(20 * time.Second):
		b.t.Fatal("nothing has changed")
	}
}

// want demands of each resource the module, or the placeholder that stands for it: "deny" or "allow".
func (b *bench) want(resources []xds.Resource, modules ...string) {
	b.t.Helper()
	if len(resources) != len(modules) {
		b.t.Fatalf("%d resources, want %v", len(resources), modules)
	}
	for i, r := range resources {
		m := &corev3.TypedExtensionConfig{}
		if err := proto.Unmarshal(r.Body, m); err != nil || m.GetName() != r.Name {
			b.t.Fatal(err)
		}
		marker := "/store/" + modules[i]
		if modules[i] == "deny" || modules[i] == "allow" {
			marker = "wasm-default-" + modules[i]
		}
		if !bytes.Contains(r.Body, []byte(marker)) {
			b.t.Errorf("%s is not %s: %q", r.Name, marker, r.Body)
		}
	}
}

// phase demands what is reported of the only extension.
func (b *bench) phase(phase, sha256, instead, reason string) {
	b.t.Helper()
	r := b.Report()[0]
	if r.Phase != phase || r.SHA256 != sha256 || r.Instead != instead || !strings.Contains(r.Reason, reason) {
		b.t.Errorf("%+v; want %s %s %s %s", r, phase, sha256, instead, reason)
	}
	samples := b.Samples()
	if !slices.ContainsFunc(samples, func(s status.Sample) bool { return s.Name == "wasm_module_info" && s.Labels["phase"] == phase }) {
		b.t.Errorf("%+v", samples)
	}
	if err := status.Register(prometheus.NewRegistry(), func() []status.Sample { return samples }); err != nil {
		b.t.Error(err)
	}
}

// readiness demands that the pod is ready, or why not.
func (b *bench) readiness(why string) {
	b.t.Helper()
	ready, pending := b.ready.Check()
	if text := fmt.Sprint(pending); ready != (why == "") || !strings.Contains(text, why) {
		b.t.Errorf("ready %t, %s; want %q", ready, text, why)
	}
}

const closed, open = wasmv3.FailurePolicy_FAIL_CLOSED, wasmv3.FailurePolicy_FAIL_OPEN

// TestFirst wants a start not ready until Envoy has taken a module without which no traffic may pass, which a placeholder refuses until
// then; and nothing opened without a filter.
func TestFirst(t *testing.T) {
	b := newBench(t)
	if b.Resources(nil) != nil || b.Extensions.modules != nil || b.Report() != nil || b.Samples() != nil || b.Export() != nil {
		t.Error("something is there without a filter")
	}
	b.readiness("")
	all := []envoyfilter.Extension{wanted("a", "/a", closed)}
	b.want(b.Resources(all), "deny")
	b.Answered(nil)
	b.readiness("the Wasm module of a is not in force yet")
	b.phase("", "", "deny", "")
	b.modules.set("file:///a", "one")
	b.next()
	b.readiness("not in force yet")
	b.want(b.Resources(all), "one")
	b.phase("Verifying", "", "deny", "has not answered")
	b.Answered(nil)
	b.readiness("")
	b.phase("InForce", "one", "", "")
	steps := map[string]float64{}
	for _, s := range b.Samples() {
		if s.Name == "wasm_load_seconds" {
			steps[s.Labels["step"]] = s.Value
		}
	}
	if _, pushed := steps["push"]; steps["resolve"] != 1 || steps["verify"] != 2 || steps["preflight"] != 3 || !pushed || len(steps) != 4 {
		t.Errorf("it took %v", steps)
	}
	if got := string(b.Export()); got != `[{"name":"a","sha256":"one","size":1}]` {
		t.Error(got)
	}
	if b.modules.retained != "one" {
		t.Error(b.modules.retained)
	}
	b.want(b.Resources(nil))
	if len(b.Report()) != 0 || b.modules.retained != "" {
		t.Error("what nobody wants any more is there")
	}
}

// TestUpdate wants what serves to serve on until the next is there, whatever becomes of that, and a pod that was ready to stay so.
func TestUpdate(t *testing.T) {
	b := newBench(t)
	all := []envoyfilter.Extension{wanted("a", "/a", closed)}
	b.modules.set("file:///a", "one")
	b.Resources(all)
	b.next()
	b.Resources(all)
	b.Answered(nil)
	b.Served()
	b.modules.set("file:///a", "two") // another file in its place
	b.next()
	b.want(b.Resources(all), "two")
	if b.modules.retained != "one two" {
		t.Error(b.modules.retained)
	}
	if !b.Answered(map[string]string{"a": "no"}) {
		t.Error("Envoy is to have another")
	}
	b.phase("Stale", "one", "", "Envoy refuses it: no")
	b.want(b.Resources(all), "one")
	b.Answered(nil)
	b.phase("Stale", "one", "", "Envoy refuses it: no")
	b.readiness("")

	all[0] = wanted("a", "/b", closed)
	b.want(b.Resources(all), "one")
	b.phase("", "one", "", "")
	b.modules.set("file:///b", "")
	for range 20000 {
		if b.Report()[0].Reason != "" {
			break
		}
		time.Sleep(time.Millisecond)
	}
	b.phase("Stale", "one", "", "it is none")
	all[0] = wanted("a", "/c", closed)
	b.modules.set("file:///c", "three")
	b.want(b.Resources(all), "one")
	b.next()
	b.want(b.Resources(all), "three")
	b.Answered(nil)
	b.phase("InForce", "three", "", "")
	b.readiness("")
}

// TestOlderNeverWins wants what was wanted before to have no say any more, however late its module comes.
func TestOlderNeverWins(t *testing.T) {
	b := newBench(t)
	slow := []envoyfilter.Extension{wanted("a", "/slow", open)}
	b.want(b.Resources(slow), "allow")
	all := []envoyfilter.Extension{wanted("a", "/b", closed)}
	b.want(b.Resources(all), "deny")
	b.modules.set("file:///b", "two")
	b.next()
	b.want(b.Resources(all), "two")
	b.modules.set("file:///slow", "old")
	time.Sleep(10 * time.Millisecond)
	b.want(b.Resources(all), "two")
}

// TestOpenWaitsForMoments wants a start to wait for 5 s at most for a module that traffic may pass without.
func TestOpenWaitsForMoments(t *testing.T) {
	b := newBench(t)
	b.want(b.Resources([]envoyfilter.Extension{wanted("a", "/a", open)}), "allow")
	b.readiness("not in force yet")
	b.Extensions.mu.Lock()
	b.Extensions.began = time.Now().Add(-patience)
	b.Extensions.mu.Unlock()
	b.Answered(nil)
	b.readiness("")
}

// TestInherited wants a newcomer not ready without any module that its predecessor has in force, and to say why it never will be.
func TestInherited(t *testing.T) {
	b := newBench(t)
	b.Import([]byte(`[{"name":"a","sha256":"one"},{"name":"gone"}]`), nil)
	b.modules.set("file:///a", "one")
	all := []envoyfilter.Extension{wanted("a", "/a", open), wanted("new", "/new", open)}
	b.Extensions.began = time.Now()
	b.want(b.Resources(all), "allow", "allow")
	b.Extensions.mu.Lock()
	b.Extensions.began = time.Now().Add(-patience)
	b.Extensions.mu.Unlock()
	b.readiness("of a is not in force yet")
	b.next()
	b.want(b.Resources(all), "one", "allow")
	b.Answered(map[string]string{"a": "no"})
	b.readiness("what the generation before serves cannot be had here: the Wasm module of a")
	b.modules.set("file:///a", "two")
	b.next()
	b.Resources(all)
	b.Answered(nil)
	b.readiness("")
	for _, bad := range []string{"", "x", "{}", "[1]", "null"} {
		newBench(t).Import([]byte(bad), nil)
	}
}

// TestSucceeds wants a newcomer to serve what its predecessor's Envoy runs out of its own store, where what is wanted cannot be had, and to have
// that as soon as it can; and to wait where it has that module neither.
func TestSucceeds(t *testing.T) {
	for _, has := range []bool{true, false} {
		older := newBench(t)
		older.modules.set("file:///a", "one")
		older.Resources([]envoyfilter.Extension{wanted("a", "/a", closed)})
		older.next()
		running := older.Resources([]envoyfilter.Extension{wanted("a", "/a", closed)})
		older.Answered(nil)
		all := []envoyfilter.Extension{wanted("a", "/none", closed), wanted("new", "/new", closed)}

		b := newBench(t)
		if has {
			b.modules.kept = []string{"one"}
		}
		b.Import(older.Export(), running)
		if b.Has(all[:1]) {
			t.Error("it has what nobody has tried")
		}
		if !has {
			b.readiness("of a is not in force yet")
			b.modules.set("file:///none", "two")
		}
		b.next()
		if !b.Has(all[:1]) {
			t.Error("it waits for what it has")
		}
		if !has {
			b.want(b.Own(running), "two")
			continue
		}
		b.want(b.Own(running), "one")
		b.want(b.Resources(all), "one", "deny")
		b.Answered(nil)
		b.readiness("of new is not in force yet") // and no longer of a
		if r := b.Report()[0]; r.SHA256 != "one" || r.Phase == inForce || b.modules.retained != "one" {
			t.Errorf("%+v, in use: %s", r, b.modules.retained)
		}
		b.modules.set("file:///none", "two")
		b.next()
		b.want(b.Resources(all), "two", "deny")
		b.Answered(nil)
		b.phase("InForce", "two", "", "")
	}
}

// TestLacking wants a newcomer to wait for no module that its predecessor serves without: whatever guards the traffic there does so here.
func TestLacking(t *testing.T) {
	all := []envoyfilter.Extension{wanted("a", "/none", closed)}
	older := newBench(t)
	older.want(older.Resources(all), "deny")
	older.readiness("not in force yet")
	older.Served()
	older.readiness("")
	b := newBench(t)
	b.Import(older.Export(), older.Resources(all))
	if !b.Has(all) {
		t.Error("it waits for what nobody has")
	}
	b.want(b.Resources(all), "deny")
	b.Answered(nil)
	b.readiness("")
	fresh := append(all, wanted("fresh", "/none", closed))
	b.want(b.Resources(fresh), "deny", "deny")
	b.readiness("of fresh is not in force yet")
}

// TestPrepare wants a document that is new to find its modules there, those that come in time.
func TestPrepare(t *testing.T) {
	b := newBench(t)
	soon := []envoyfilter.Extension{wanted("a", "/a", closed)}
	wait := b.Prepare(soon)
	b.Resources(nil) // what is published meanwhile does not have it
	b.modules.set("file:///a", "one")
	wait(t.Context())
	b.want(b.Resources(soon), "one")
	b.Resources(nil)
	if len(b.Report()) != 0 {
		t.Error("it stays though nothing wants it")
	}
	b.modules.set("file:///c", "")
	b.Prepare([]envoyfilter.Extension{wanted("c", "/c", closed)})(t.Context()) // that never comes
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b.Prepare([]envoyfilter.Extension{wanted("b", "/b", closed)})(ctx)
}

// TestBadFilter wants a filter that wants no module, or with words for the agent that it does not understand, to be none, and the others to be.
func TestBadFilter(t *testing.T) {
	b := newBench(t)
	b.want(b.Resources([]envoyfilter.Extension{{Name: "bad", Config: &anypb.Any{TypeUrl: "a/b.C"}}, wanted("a", "/a", closed)}), "deny")
}

// TestPages wants the page to list filters, and a POST to have a module run in a new virtual machine, by the filter's name or its document's.
func TestPages(t *testing.T) {
	b := newBench(t)
	all := []envoyfilter.Extension{wanted("a", "/a", closed)}
	all[0].Document = "EnvoyFilter ns/doc"
	b.modules.set("file:///a", "one")
	b.Resources(all)
	b.next()
	b.want(b.Resources(all), "one")
	ask := func(method, path string) (int, string) {
		w := httptest.NewRecorder()
		pages := b.Pages()
		pages[strings.Split(path, "?")[0]].ServeHTTP(w, httptest.NewRequest(method, path, nil))
		return w.Code, w.Body.String()
	}
	if code, body := ask("GET", ListPath); code != 200 || !strings.Contains(body, `"name": "a"`) && !strings.Contains(body, `"name":"a"`) {
		t.Errorf("%d, %s", code, body)
	}
	for i, name := range []string{"a", "doc", "ns/doc", "EnvoyFilter+ns/doc"} {
		if code, body := ask("POST", ReloadPath+"?name="+name); code != 200 || !strings.Contains(body, `"a"`) {
			t.Errorf("%s: %d, %s", name, code, body)
		}
		b.next()
		if body := string(b.Resources(all)[0].Body); !strings.Contains(body, fmt.Sprint("vm#", i+1)) {
			t.Errorf("%s: %q", name, body)
		}
	}
	for _, c := range []struct {
		method, name string
		code         int
	}{{"GET", "a", 405}, {"POST", "", 404}, {"POST", "oc", 404}} {
		if code, body := ask(c.method, ReloadPath+"?name="+c.name); code != c.code || body == "" {
			t.Errorf("%+v: %d, %s", c, code, body)
		}
	}
}

// TestWithPatches wants a filter's patches beside it, and a document that wants a module and has no filter named with the reason.
func TestWithPatches(t *testing.T) {
	applied, skipped := envoyfilter.PatchReport{Result: envoyfilter.Applied}, envoyfilter.PatchReport{Result: envoyfilter.Skipped, Reason: "not for this pod"}
	got := WithPatches([]Report{{Name: "a", Document: "WasmPlugin ns/a"}, {Name: "b", Document: "WasmPlugin ns/b"}}, []envoyfilter.FilterReport{
		{Kind: "WasmPlugin", Namespace: "ns", Name: "a", Modules: true, Patches: []envoyfilter.PatchReport{applied}},
		{Namespace: "ns", Name: "lua", Patches: []envoyfilter.PatchReport{applied}},
		{Kind: "ASMFilterDeployment", Namespace: "ns", Name: "c", Modules: true, Patches: []envoyfilter.PatchReport{skipped}},
	})
	if len(got) != 3 || len(got[0].Patches) != 1 || got[1].Patches != nil || got[2].Name != "ASMFilterDeployment ns/c" || got[2].Phase != Unused || got[2].Reason != skipped.Reason {
		t.Errorf("%+v", got)
	}
}
