package envoyfilter

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
)

// spec reads the spec of an EnvoyFilter in JSON.
func spec(t testing.TB, text string) *networking.EnvoyFilter {
	t.Helper()
	m := &networking.EnvoyFilter{}
	if err := protojson.Unmarshal([]byte(text), m); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return m
}

func filter(t testing.TB, m Meta, text string) *Filter {
	t.Helper()
	f, _, err := New(m, spec(t, text))
	if err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return f
}

// patchOf is a document with one patch.
func patchOf(applyTo, match, operation, value string) string {
	if value != "" {
		value = `, "value": ` + value
	}
	return fmt.Sprintf(`{"configPatches": [{"applyTo": %q, "match": %s, "patch": {"operation": %q%s}}]}`, applyTo, match, operation, value)
}

// named is an HTTP filter of that name, of a type that only Envoy knows.
func named(name string) string {
	return fmt.Sprintf(`{"name": %q, "typed_config": {"@type": "type.googleapis.com/x.Y"}}`, name)
}

func at(sub string) string {
	return fmt.Sprintf(`{"listener": {"filterChain": {"filter": {"name": %q, "subFilter": {"name": %q}}}}}`, connectionManager, sub)
}

// listener has one chain with one connection manager, of the given HTTP filters and the router.
func listener(t testing.TB, names ...string) *listenerv3.Listener {
	t.Helper()
	m := &hcmv3.HttpConnectionManager{StatPrefix: "x"}
	for _, n := range names {
		m.HttpFilters = append(m.HttpFilters, &hcmv3.HttpFilter{Name: n})
	}
	router, err := pack(&routerv3.Router{})
	if err != nil {
		t.Fatal(err)
	}
	m.HttpFilters = append(m.HttpFilters, &hcmv3.HttpFilter{Name: "envoy.filters.http.router", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: router}})
	config, err := pack(m)
	if err != nil {
		t.Fatal(err)
	}
	return &listenerv3.Listener{
		Name: "l", TrafficDirection: corev3.TrafficDirection_INBOUND,
		FilterChains: []*listenerv3.FilterChain{{Name: "c", Filters: []*listenerv3.Filter{
			{Name: connectionManager, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: config}},
		}}},
	}
}

// names are those of the HTTP filters of l.
func names(t testing.TB, l *listenerv3.Listener) string {
	t.Helper()
	m := &hcmv3.HttpConnectionManager{}
	chain := l.FilterChains[0].Filters
	if err := chain[len(chain)-1].GetTypedConfig().UnmarshalTo(m); err != nil {
		t.Fatal(err)
	}
	out := ""
	for _, f := range m.HttpFilters {
		out += " " + strings.TrimPrefix(f.GetName(), "envoy.filters.http.")
	}
	return strings.TrimSpace(out)
}

var pod = Proxy{Namespace: "default", RootNamespace: "root", Labels: map[string]string{"app": "a"}, Metadata: map[string]any{"ISTIO_VERSION": "1.28.0"}}

func setOf(filters ...*Filter) *Set {
	return NewSet(filters, pod, func(*Filter) string { return "" })
}

func apply(t testing.TB, s *Set, l *listenerv3.Listener) ([]FilterReport, error) {
	t.Helper()
	patched, err := s.Patch(l, true, func(c *listenerv3.FilterChain) bool { return c.GetName() == "sealed" })
	return s.Report(patched.Notes), err
}

// TestOperations wants each operation to do what istiod does, with an anchor that is there, one that is not, and none.
func TestOperations(t *testing.T) {
	const any = `{"listener": {"filterChain": {"filter": {"name": "envoy.http_connection_manager"}}}}`
	for _, c := range []struct {
		match, operation, want string
		result                 Result
	}{
		{at("envoy.filters.http.b"), "INSERT_BEFORE", "a n b b router", Applied},
		{at("envoy.filters.http.b"), "INSERT_AFTER", "a b n b router", Applied},
		{at("envoy.filters.http.b"), "INSERT_FIRST", "n a b b router", Applied},
		{at("envoy.filters.http.b"), "REPLACE", "a n b router", Applied},
		{at("envoy.filters.http.b"), "REMOVE", "a router", Applied},
		{at("envoy.filters.http.b"), "MERGE_AND_REPLACE_LIST", "a b b router", Unmatched},
		{at("envoy.router"), "INSERT_BEFORE", "a b b n router", Applied},
		{at("none"), "INSERT_BEFORE", "a b b router", Unmatched},
		{at("none"), "INSERT_AFTER", "a b b router", Unmatched},
		{at("none"), "INSERT_FIRST", "n a b b router", Applied},
		{at("none"), "REPLACE", "a b b router", Unmatched},
		{at("none"), "REMOVE", "a b b router", Unmatched},
		{at("none"), "MERGE", "a b b router", Unmatched},
		{any, "INSERT_BEFORE", "n a b b router", Applied},
		{any, "REPLACE", "a b b router", Unmatched},
		{any, "REMOVE", "a b b router", Unmatched},
		{`{}`, "INSERT_FIRST", "n a b b router", Applied},
		{`{"context": "SIDECAR_OUTBOUND"}`, "INSERT_FIRST", "a b b router", Unmatched},
		{`{"listener": {"name": "m"}}`, "INSERT_FIRST", "a b b router", Unmatched},
		{`{"listener": {"portNumber": 80}}`, "INSERT_FIRST", "a b b router", Unmatched},
		{`{"listener": {"filterChain": {"name": "d"}}}`, "INSERT_FIRST", "a b b router", Unmatched},
		{`{"listener": {"filterChain": {"sni": "d"}}}`, "INSERT_FIRST", "a b b router", Unmatched},
		{`{"listener": {"filterChain": {"transportProtocol": "tls"}}}`, "INSERT_FIRST", "a b b router", Unmatched},
		{`{"listener": {"filterChain": {"applicationProtocols": "h2,http/1.1"}}}`, "INSERT_FIRST", "a b b router", Unmatched},
		{`{"listener": {"filterChain": {"destinationPort": 1}}}`, "INSERT_FIRST", "a b b router", Unmatched},
		{`{"listener": {"filterChain": {"filter": {"name": "envoy.tcp_proxy"}}}}`, "INSERT_FIRST", "a b b router", Unmatched},
	} {
		value := named("envoy.filters.http.n")
		if c.operation == "REMOVE" {
			value = ""
		}
		l := listener(t, "envoy.filters.http.a", "envoy.filters.http.b", "envoy.filters.http.b")
		reports, err := apply(t, setOf(filter(t, Meta{Name: "f", Namespace: "default"}, patchOf("HTTP_FILTER", c.match, c.operation, value))), l)
		if err != nil {
			t.Errorf("%s %s: %v", c.operation, c.match, err)
			continue
		}
		p := reports[0].Patches[0]
		if got := names(t, l); got != c.want || p.Result != c.result || (p.Reason == "") != (c.result == Applied) {
			t.Errorf("%s %s: %s, %+v; want %s, %s", c.operation, c.match, got, p, c.want, c.result)
		}
	}
}

// TestRefused wants what Envoy never takes refused, with the document that did it.
func TestRefused(t *testing.T) {
	for _, c := range []struct{ applyTo, match, operation, value, reason string }{
		{"HTTP_FILTER", `{}`, "ADD", named("n"), "use INSERT_BEFORE"},
		{"HTTP_FILTER", at("envoy.filters.http.router"), "INSERT_AFTER", named("n"), "use INSERT_BEFORE"},
		{"HTTP_FILTER", at("envoy.filters.http.router"), "REMOVE", "", "leaves no router in l/c"},
		{"NETWORK_FILTER", `{}`, "ADD", named("n"), "use INSERT_BEFORE"},
		{"NETWORK_FILTER", `{"listener": {"filterChain": {"filter": {"name": "` + connectionManager + `"}}}}`, "REMOVE", "", "leaves no proxy in l/c"},
	} {
		bad := filter(t, Meta{Name: "bad", Namespace: "default"}, patchOf(c.applyTo, c.match, c.operation, c.value))
		good := filter(t, Meta{Name: "good", Namespace: "default"}, patchOf("HTTP_FILTER", `{}`, "INSERT_FIRST", named("g")))
		s := setOf(bad, good)
		_, err := apply(t, s, listener(t))
		refused, is := err.(*RefusedError)
		if !is || refused.Filter != bad || !strings.Contains(refused.Reason, c.reason) {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		l := listener(t)
		reports, err := apply(t, s.Without(bad, refused.Reason), l)
		if err != nil || names(t, l) != "g router" {
			t.Errorf("%+v: without the bad one: %s, %v", c, names(t, l), err)
		}
		if got := []Result{reports[0].Patches[0].Result, reports[1].Patches[0].Result}; !slices.Equal(got, []Result{Refused, Applied}) {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

// TestOrder wants one outcome of documents in whatever order they come: priority, root namespace, age, name.
func TestOrder(t *testing.T) {
	doc := func(ns, name string, created int64, priority int) *Filter {
		text := strings.Replace(patchOf("HTTP_FILTER", `{}`, "INSERT_FIRST", named(name)), "{", fmt.Sprintf(`{"priority": %d, `, priority), 1)
		return filter(t, Meta{Namespace: ns, Name: name, Created: created}, text)
	}
	docs := []*Filter{
		doc("default", "p-5", 9, -5), doc("root", "r2", 2, 0), doc("root", "r3", 3, 0), doc("default", "old", 1, 0),
		doc("default", "b", 2, 0), doc("default", "a", 2, 0), doc("root", "late", 0, 7),
	}
	want := "late b a old r3 r2 p-5 router" // each goes before those that came before it
	seen := 0
	permute(docs, len(docs), func(docs []*Filter) {
		seen++
		l := listener(t)
		if _, err := apply(t, setOf(docs...), l); err != nil || names(t, l) != want {
			t.Fatalf("%s, %v; want %s", names(t, l), err, want)
		}
	})
	if seen != 5040 {
		t.Errorf("%d permutations", seen)
	}
}

// permute calls visit with every permutation of the first n (Heap's algorithm).
func permute(docs []*Filter, n int, visit func([]*Filter)) {
	if n == 1 {
		visit(docs)
		return
	}
	for i := range n {
		permute(docs, n-1, visit)
		if n%2 == 0 {
			docs[i], docs[n-1] = docs[n-1], docs[i]
		} else {
			docs[0], docs[n-1] = docs[n-1], docs[0]
		}
	}
}

// TestMerge wants MERGE to go into a configuration of the same type as istiod's does, and to leave another alone.
func TestMerge(t *testing.T) {
	const anys = `{"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", `
	for _, c := range []struct{ into, more, want string }{
		{anys + `"statPrefix": "a", "streamIdleTimeout": "3s", "httpFilters": [{"name": "a"}]}`, anys + `"stat_prefix": "b", "stream_idle_timeout": "0.5s", "httpFilters": [{"name": "b"}], "commonHttpProtocolOptions": {"idleTimeout": "1s"}}`,
			anys + `"statPrefix": "b", "streamIdleTimeout": "0.500s", "httpFilters": [{"name": "a"}, {"name": "b"}], "commonHttpProtocolOptions": {"idleTimeout": "1s"}}`},
		{`{"@type": "a/x.Y", "aB": 1, "o": {"p": 1, "q": [1]}, "z": 1}`, `{"@type": "a/x.Y", "a_b": 2, "o": {"q": [2], "r": 3}}`, `{"@type": "a/x.Y", "aB": 2, "o": {"p": 1, "q": [1, 2], "r": 3}, "z": 1}`},
		{`{"@type": "a/x.Y"}`, `{"@type": "a/x.Y", "a": 1}`, `{"@type": "a/x.Y", "a": 1}`},
		{`{"@type": "a/x.Y"}`, `{"@type": "a/x.Z", "a": 1}`, ""},
		{`{"@type": "a/x.Y"}`, anys + `"statPrefix": "b"}`, ""},
		{anys + `"statPrefix": "b"}`, `{"@type": "a/x.Y"}`, ""},
	} {
		config := func(text string) *listenerv3.Filter {
			return filter(t, Meta{}, patchOf("NETWORK_FILTER", `{}`, "INSERT_FIRST", `{"name": "n", "typedConfig": `+text+`}`)).patches[0].value.(*listenerv3.Filter)
		}
		got, err := mergeAny(config(c.into).GetTypedConfig(), config(c.more).GetTypedConfig())
		if c.want == "" {
			if err == nil {
				t.Errorf("%s merged into %s", c.more, c.into)
			}
			continue
		}
		if err != nil || !proto.Equal(got, config(c.want).GetTypedConfig()) {
			t.Errorf("%s into %s: %v, %v", c.more, c.into, got, err)
		}
	}
}

// TestSealed wants chains that nothing may patch as they were.
func TestSealed(t *testing.T) {
	l := listener(t)
	l.FilterChains[0].Name = "sealed"
	before := proto.Clone(l)
	f := filter(t, Meta{Namespace: "default"}, `{"configPatches": [
		{"applyTo": "NETWORK_FILTER", "patch": {"operation": "INSERT_FIRST", "value": `+named("n")+`}},
		{"applyTo": "HTTP_FILTER", "patch": {"operation": "INSERT_FIRST", "value": `+named("n")+`}}]}`)
	if _, err := apply(t, setOf(f), l); err != nil || !proto.Equal(l, before) {
		t.Errorf("%v, %v", l, err)
	}
}
