package build

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"github.com/rogpeppe/go-internal/txtar"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"understudy.mesh/pkg/envoyfilter"
	"understudy.mesh/pkg/mesh"
)

const filteredServices = `apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: web}
spec: {hosts: [web.x], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, endpoints: [{address: 10.0.0.1}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db}
spec: {hosts: [db.x], ports: [{number: 81, name: http, protocol: HTTP}], resolution: STATIC, endpoints: [{address: 10.0.0.1}]}
`

// bufferFilter has a body of at most so many bytes on one outbound port.
func bufferFilter(name, port, bytes string) string {
	return `---
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: ` + name + `}
spec:
  configPatches:
  - applyTo: HTTP_FILTER
    match: {context: SIDECAR_OUTBOUND, listener: {portNumber: ` + port + `}}
    patch:
      operation: INSERT_FIRST
      value: {name: b, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer, a: 1, b: 2, maxRequestBytes: ` + bytes + `}}
`
}

// TestFilterTransitions goes through none, A, A again, B, none: each change changes the listener that it is about and no
// other, and what is gone leaves nothing behind.
func TestFilterTransitions(t *testing.T) {
	b := New(testOptions())
	listeners := func(text string) map[string][]byte {
		r, report := load(t, filteredServices+text, testOptions())
		for _, d := range report.Documents {
			if d.Status != "ok" {
				t.Fatalf("%+v", d)
			}
		}
		out, err := b.Build(r, giveVIPs(r.AutoHosts()), filterSet(r))
		if err != nil {
			t.Fatal(err)
		}
		all := map[string][]byte{}
		for _, m := range out.Resources[ListenerType] {
			all[m.Name] = bodyOf(m)
		}
		return all
	}
	last := listeners("")
	for _, step := range []struct {
		text    string
		changed []string
	}{
		{bufferFilter("a", "80", "1"), []string{"240.240.0.2_80"}},
		{bufferFilter("a", "80", "1"), nil},
		{bufferFilter("renamed", "80", "1"), nil},
		{bufferFilter("a", "80", "2"), []string{"240.240.0.2_80"}},
		{bufferFilter("a", "80", "2") + bufferFilter("other", "81", "1"), []string{"240.240.0.1_81"}},
		{bufferFilter("a", "81", "2"), []string{"240.240.0.1_81", "240.240.0.2_80"}},
		{bufferFilter("a", "82", "2"), []string{"240.240.0.1_81"}},
		{"", nil},
	} {
		now := listeners(step.text)
		var changed []string
		for name, body := range now {
			if !bytes.Equal(body, last[name]) {
				changed = append(changed, name)
			}
		}
		if slices.Sort(changed); !slices.Equal(changed, step.changed) || len(now) != len(last) {
			t.Errorf("%s: changed %v of %d, want %v of %d", step.text, changed, len(now), step.changed, len(last))
		}
		last = now
	}
	for name, body := range listeners("") {
		if !bytes.Equal(body, last[name]) {
			t.Errorf("%s is not as it was before the first filter", name)
		}
	}
}

// TestFilterByName: the HTTP listener of a VIP is meant by its own name, and by Istio's, which is that of the port.
func TestFilterByName(t *testing.T) {
	for name, want := range map[string][]string{"0.0.0.0_80": {"240.240.0.3_80"}, "240.240.0.3_80": {"240.240.0.3_80"}, "0.0.0.0_81": {"240.240.0.1_81"}, "0.0.0.0_3306": nil} {
		const tcp = `---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: tcp}
spec: {hosts: [tcp.x], ports: [{number: 3306, name: tcp, protocol: TCP}], resolution: STATIC, endpoints: [{address: 10.0.0.1}]}
`
		r, _ := load(t, filteredServices+tcp+strings.Replace(bufferFilter("a", "80", "1"), "portNumber: 80", `name: "`+name+`"`, 1), testOptions())
		var got []string
		for _, m := range build(t, r, testOptions()).Resources[ListenerType] {
			if bytes.Contains(bodyOf(m), []byte("buffer.v3.Buffer")) {
				got = append(got, m.Name)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

// TestFilterModule wants a Wasm filter to be named by its listener, whatever its module, and what stands in its place taken by a real
// Envoy: its configuration is for whoever has the module.
func TestFilterModule(t *testing.T) {
	archive, err := txtar.ParseFile("testdata/filter-manual.txtar")
	if err != nil {
		t.Fatal(err)
	}
	r, _ := load(t, string(archive.Files[0].Data), testOptions())
	out, err := New(testOptions()).Build(r, nil, filterSet(r))
	if err != nil {
		t.Fatal(err)
	}
	if p := out.Filters.Report(out.Patched)[0].Patches[0]; p.Result != envoyfilter.Applied {
		t.Errorf("%+v", p)
	}
	const name = "envoyfilter/default/details-v1-examplefilter/0"
	if len(out.Extensions) != 1 || out.Extensions[0].Name != name || out.Extensions[0].Document != "EnvoyFilter default/details-v1-examplefilter" {
		t.Errorf("%+v", out.Extensions)
	}
	all := ""
	for _, l := range out.Resources[ListenerType] {
		all += string(bodyOf(l))
	}
	if !strings.Contains(all, name) || strings.Contains(all, "example-filter.wasm") {
		t.Error("the listener has the module, or does not name it")
	}
	validate(t, out)
}

// checkInvariants wants of patched listeners what no EnvoyFilter may change: which there are, where they listen, how their
// chains are told apart, and the chains that close every connection. Those of one port are the filters' own.
func checkInvariants(t *testing.T, r *mesh.Registry, o mesh.Options, patched *Output) {
	t.Helper()
	plain, err := New(o).Build(r, giveVIPs(r.AutoHosts()), nil)
	if err != nil {
		t.Fatal(err)
	}
	skeleton := func(l *listenerv3.Listener) *listenerv3.Listener {
		l.FilterChains = slices.DeleteFunc(l.FilterChains, func(c *listenerv3.FilterChain) bool {
			return l.Name == InboundListener && c.GetFilterChainMatch().GetDestinationPort() != nil && !strings.HasSuffix(c.Name, refusing)
		})
		for _, c := range append(slices.Clone(l.FilterChains), l.GetDefaultFilterChain()) {
			if c != nil && !strings.HasSuffix(c.GetName(), refusing) {
				if len(c.Filters) == 0 {
					t.Errorf("%s: a chain without a filter", l.Name)
				}
				c.Filters = nil
			}
		}
		return l
	}
	want, got := parseListeners(t, plain.Resources[ListenerType]), parseListeners(t, patched.Resources[ListenerType])
	if len(want) != len(got) {
		t.Fatalf("%d listeners, want %d", len(got), len(want))
	}
	for i := range want {
		w, g := skeleton(want[i]), skeleton(got[i])
		if w.ListenerFiltersTimeout != nil && patched.Filters.Guards(w.Name == InboundListener) {
			w.ListenerFiltersTimeout = &durationpb.Duration{} // see TestGuardsWaitForClients
		}
		if w.Name == InboundListener && slices.ContainsFunc(serverFirst[:], func(p uint16) bool { return slices.Contains(patched.Filters.Ports(), p) }) {
			w.ListenerFilters, g.ListenerFilters = nil, nil // whose last passes fewer ports by
		}
		if !proto.Equal(w, g) {
			t.Errorf("%v, want %v", g, w)
		}
	}
}

// TestFilterInvariants holds them for every golden.
func TestFilterInvariants(t *testing.T) {
	paths, err := filepath.Glob("testdata/filter-*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatal(paths, err)
	}
	for _, path := range paths {
		archive, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		for _, f := range archive.Files {
			if f.Name != "want" {
				if err := os.WriteFile(filepath.Join(dir, f.Name), f.Data, 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		s, _ := newTestSource(t, dir, testOptions())
		r, err := s.Load()
		if err != nil {
			t.Fatal(err)
		}
		checkInvariants(t, r, testOptions(), build(t, r, testOptions()))
	}
}

// TestGuardsWaitForClients: where no request may pass without a Wasm filter, a client that is silent does not count as none of HTTP; without
// such a filter it does. The ports of servers that speak first are nobody's to inspect, but where a document names one.
func TestGuardsWaitForClients(t *testing.T) {
	const shared = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: wild}\nspec: {hosts: ['*.w.x'], ports: [{number: 80, name: http, protocol: HTTP}], resolution: NONE}\n"
	plugin := func(more string) string {
		return "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: a}\nspec: {url: a" + more + "}\n"
	}
	filter := func(context, policy string) string {
		return "apiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {name: a}\nspec: {configPatches: [{applyTo: HTTP_FILTER, match: {context: " + context +
			"}, patch: {operation: INSERT_FIRST, value: {name: w, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm, config: {" + policy +
			"vm_config: {code: {local: {filename: /a.wasm}}}}}}}}]}\n"
	}
	for name, c := range map[string]struct {
		document          string
		inbound, outbound bool // waits for ever
		inspected         string
	}{
		"nothing":               {},
		"all traffic":           {plugin(""), true, true, ""},
		"all, open":             {plugin(", failStrategy: FAIL_OPEN"), false, false, ""},
		"all, reloaded":         {plugin(", failStrategy: FAIL_RELOAD"), true, true, ""},
		"server":                {plugin(", match: [{mode: SERVER}]"), true, false, ""},
		"client":                {plugin(", match: [{mode: CLIENT}]"), false, true, ""},
		"a port":                {plugin(", match: [{mode: SERVER, ports: [{number: 3306}, {number: 9080}]}]"), true, false, "3306"},
		"connections":           {plugin(", type: NETWORK"), false, false, ""},
		"a bad document":        {plugin(", urk: a"), true, true, ""},
		"another pod's":         {plugin(", selector: {matchLabels: {app: other}}"), false, false, ""},
		"EnvoyFilter":           {filter("SIDECAR_INBOUND", ""), true, false, ""},
		"EnvoyFilter, any":      {filter("ANY", ""), true, true, ""},
		"EnvoyFilter, open":     {filter("ANY", "failure_policy: FAIL_OPEN, "), false, false, ""},
		"EnvoyFilter, outbound": {filter("SIDECAR_OUTBOUND", "failure_policy: FAIL_CLOSED, "), false, true, ""},
	} {
		r, _ := load(t, shared+"---\n"+c.document, testOptions())
		out := build(t, r, testOptions())
		checkInvariants(t, r, testOptions(), out)
		looked := map[bool]bool{}
		for _, l := range parseListeners(t, out.Resources[ListenerType]) {
			if l.GetListenerFiltersTimeout() == nil || len(l.GetListenerFilters()) == 0 {
				continue
			}
			looked[l.Name == InboundListener] = true
			waits := c.outbound
			if l.Name == InboundListener {
				waits = c.inbound
				text := l.ListenerFilters[len(l.ListenerFilters)-1].GetFilterDisabled().String()
				for _, port := range []string{"25", "53", "3306", "27017"} {
					if passed := strings.Contains(text, "start:"+port); passed == (port == c.inspected) {
						t.Errorf("%s: port %s is passed by: %t", name, port, passed)
					}
				}
			}
			if got := l.GetListenerFiltersTimeout().AsDuration(); (got == 0) != waits || !l.GetContinueOnListenerFiltersTimeout() {
				t.Errorf("%s: %s waits %v", name, l.Name, got)
			}
		}
		if len(looked) != 2 {
			t.Errorf("%s: listeners of one direction only wait: %v", name, looked)
		}
	}
}
