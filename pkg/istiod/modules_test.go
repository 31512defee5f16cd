package istiod

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	httpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"understudy.mesh/pkg/ecds"
	"understudy.mesh/pkg/wasm"
)

// lateModules are modules that come when the test says so, by URL.
type lateModules struct {
	mu    sync.Mutex
	there map[string]string // hashes
	news  chan struct{}     // closed when another one is there
}

func newLateModules() *lateModules {
	return &lateModules{there: map[string]string{}, news: make(chan struct{})}
}

func (m *lateModules) put(url, hash string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.there[url] = hash
	close(m.news)
	m.news = make(chan struct{})
}

func (m *lateModules) Resolve(ctx context.Context, src wasm.Source) (wasm.Module, error) {
	if src.Policy == wasm.Never {
		return wasm.Module{}, errors.New("not in the store")
	}
	for {
		m.mu.Lock()
		hash, news := m.there[src.URL], m.news
		m.mu.Unlock()
		if hash != "" {
			return wasm.Module{Path: "/store/" + hash, SHA256: hash}, nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return wasm.Module{}, ctx.Err()
		}
	}
}

func (m *lateModules) Kept(context.Context, string, wasm.Plugin) (wasm.Module, error) {
	return wasm.Module{}, errors.New("not in the store")
}

func (m *lateModules) Surroundings(wasm.Source) string { return "" }
func (m *lateModules) State(wasm.Source) wasm.State    { return wasm.State{} }
func (m *lateModules) Stats() (s wasm.Stats)           { return s }
func (m *lateModules) Retain(...string) error          { return nil }

// wanting is "name=body" of a Wasm filter, of a module at a URL.
func wanting(t *testing.T, name, url string) string {
	t.Helper()
	config, err := anypb.New(&httpwasmv3.Wasm{Config: &wasmv3.PluginConfig{Vm: &wasmv3.PluginConfig_VmConfig{VmConfig: &wasmv3.VmConfig{
		Code: &corev3.AsyncDataSource{Specifier: &corev3.AsyncDataSource_Remote{Remote: &corev3.RemoteDataSource{HttpUri: &corev3.HttpUri{Uri: url}}}},
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	body, err := proto.Marshal(&corev3.TypedExtensionConfig{Name: name, TypedConfig: config})
	if err != nil {
		t.Fatal(err)
	}
	return name + "=" + string(body)
}

// TestModules: Envoy has an answer at once, which istiod hears of, and the module when that is there, of which it hears nothing, as it hears
// nothing of what Envoy says of that; with istiod or without.
func TestModules(t *testing.T) {
	m := newLateModules()
	f, a, e, s := coldWith(t, func(i *Istiod) {
		i.c.Modules = ecds.NewRelayed(ecds.Config{Open: func() (ecds.Modules, error) { return m, nil }, Ready: i.c.Ready, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}, false)
		t.Cleanup(i.c.Modules.Close)
	})
	e.asks(extensionsType, "a", "b")
	s.asked("TypedExtensionConfig +a +b")
	s.give(extensionsType, wanting(t, "a", "oci://r/a:1"), "b=not a message")
	e.gets("TypedExtensionConfig +a", "")
	e.gets("TypedExtensionConfig +b", "")
	s.asked("TypedExtensionConfig ack n4")
	if o := a.Overview(); o.ErrorsCount != 1 || o.Errors[0].Where != "EnvoyFilter a" {
		t.Errorf("people see %+v of a filter without its module", o)
	}
	for len(a.inForce) > 0 {
		<-a.inForce
	}
	waits := func() bool {
		_, pending := a.ready.Check()
		return strings.Contains(fmt.Sprint(pending), "the Wasm module of a is not in force yet")
	}
	if !waits() {
		t.Error("the pod waits for no module")
	}
	m.put("oci://r/a:1", "one")
	e.gets("TypedExtensionConfig +a", "")
	s.quiet()
	for waiting := true; waiting; waiting = waits() {
		select {
		case <-a.inForce:
		case <-time.After(deadline):
			t.Fatal("nobody is told that the pod waits for its module no more")
		}
	}
	page := httptest.NewRecorder()
	a.DebugPages()[ecds.ListPath].ServeHTTP(page, httptest.NewRequest(http.MethodGet, ecds.ListPath, nil))
	if text := page.Body.String(); !strings.Contains(text, `"name":"a"`) || strings.Contains(text, `"name":"b"`) {
		t.Error(text)
	}

	// A newer one that Envoy refuses: what served before comes back, of which istiod hears nothing either.
	s.give(extensionsType, wanting(t, "a", "oci://r/a:2"))
	e.gets("TypedExtensionConfig +a", "") // what it has, in answer
	s.asked("TypedExtensionConfig ack n5")
	m.put("oci://r/a:2", "two")
	e.gets("TypedExtensionConfig +a", "Unable to create Wasm plugin a")
	e.gets("TypedExtensionConfig +a", "")
	s.quiet()

	// Without istiod a module comes as well, and the next istiod hears of everything.
	s.give(extensionsType, wanting(t, "a", "oci://r/a:3"))
	e.gets("TypedExtensionConfig +a", "")
	s.asked("TypedExtensionConfig ack n6")
	f.stop()
	<-s.gone
	m.put("oci://r/a:3", "three")
	e.gets("TypedExtensionConfig +a", "")
	f.start()
	again := f.stream()
	again.asked("Cluster node held:a", "ClusterLoadAssignment +a held:a", "Listener held:virtualOutbound", "TypedExtensionConfig +a +b held:a held:b", "NameTable")
	again.give(extensionsType, wanting(t, "a", "oci://r/a:3"), "b=not a message")
	again.asked("TypedExtensionConfig ack n1")
	again.quiet()
}

// TestSuccessorModules: the Envoy of a newcomer runs the module that it inherits, and goes on while the newcomer looks for it itself; whether
// istiod is there to say what is wanted, or not.
func TestSuccessorModules(t *testing.T) {
	relayed := func(m *lateModules) func(*Istiod) {
		return func(i *Istiod) {
			i.c.Modules = ecds.NewRelayed(ecds.Config{Open: func() (ecds.Modules, error) { return m, nil }, Ready: i.c.Ready, Log: slog.New(slog.DiscardHandler)}, false)
			t.Cleanup(i.c.Modules.Close)
		}
	}
	m := newLateModules()
	f, a, e, s := coldWith(t, relayed(m))
	e.asks(extensionsType, "a")
	s.asked("TypedExtensionConfig +a")
	s.give(extensionsType, wanting(t, "a", "oci://r/a:1"))
	e.gets("TypedExtensionConfig +a", "")
	m.put("oci://r/a:1", "one")
	e.gets("TypedExtensionConfig +a", "")
	reports := func(a *agent) string {
		page := httptest.NewRecorder()
		a.DebugPages()[ecds.ListPath].ServeHTTP(page, httptest.NewRequest(http.MethodGet, ecds.ListPath, nil))
		return page.Body.String()
	}
	for late := time.Now().Add(deadline); !strings.Contains(reports(a), `"sha256":"one"`); time.Sleep(time.Millisecond) {
		if time.Now().After(late) {
			t.Fatalf("the module is not in force: %s", reports(a))
		}
	}

	m = newLateModules()
	from := a.tells()
	a.stop()
	f.stop()
	b := newAgent(t, f, func(i *Istiod) {
		relayed(m)(i)
		i.loop.patience = time.Second
		i.Import(from.state, func(component string) io.Reader {
			if b, ok := from.files[component]; ok {
				return bytes.NewReader(b)
			}
			return nil
		})
	})
	e = b.inherits()
	e.asks(extensionsType, "a")
	e.gets("TypedExtensionConfig +a", "")
	if text := reports(b); !strings.Contains(text, `"sha256":"one"`) || strings.Contains(text, `"instead"`) {
		t.Errorf("without istiod: %s", text)
	}
	f.start()
	s = f.stream()
	s.asked("Cluster node held:a", "ClusterLoadAssignment +a held:a", "Listener held:virtualOutbound", "TypedExtensionConfig +a held:a", "NameTable")
	s.give(extensionsType, wanting(t, "a", "oci://r/a:1"))
	s.asked("TypedExtensionConfig ack n1") // and Envoy is not told
	m.put("oci://r/a:1", "one")
	m.put("oci://r/a:2", "two")
	s.give(extensionsType, wanting(t, "a", "oci://r/a:2"))
	e.gets("TypedExtensionConfig +a", "")
}
