package envoyfilter

import (
	"strings"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	httpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	networkrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
)

const wasmType = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"

// TestDiscovery wants a Wasm filter to be in a listener by a name that does not change with its configuration or its module, once for
// all listeners, merged into as the documents say, with what stands in its place by its policy.
func TestDiscovery(t *testing.T) {
	const merge = `{"name": "", "typedConfig": {"@type": "` + wasmType + `", "config": {"rootId": "merged"}}}`
	insert := func(file, more string) *Filter {
		return filter(t, Meta{Namespace: "default", Name: "a"}, patchOf("HTTP_FILTER", `{}`, "INSERT_FIRST", wasmFilter(file, more)))
	}
	for _, c := range []struct {
		what   string
		docs   []*Filter
		name   string
		root   string
		denies bool
	}{
		{"one", []*Filter{insert("/a", "")}, "envoyfilter/default/a/0", "", true},
		{"with another module and configuration", []*Filter{insert("/b", `, "root_id": "r"`)}, "envoyfilter/default/a/0", "r", true},
		{"that fails open", []*Filter{insert("/a", `, "failure_policy": "FAIL_OPEN"`)}, "envoyfilter/default/a/0", "", false},
		{"that fails open in the older way", []*Filter{insert("/a", `, "fail_open": true`)}, "envoyfilter/default/a/0", "", false},
		{"that reloads", []*Filter{insert("/a", `, "failure_policy": "FAIL_RELOAD", "fail_open": true`)}, "envoyfilter/default/a/0", "", true},
		{"that another document merges into", []*Filter{insert("/a", ""), filter(t, Meta{Namespace: "default", Name: "b"}, patchOf("HTTP_FILTER", at("w"), "MERGE", merge))},
			"envoyfilter/default/a/0+envoyfilter/default/b/0", "merged", true},
	} {
		l := listener(t, "envoy.filters.http.a")
		out, err := setOf(c.docs...).Patch(l, true, func(*listenerv3.FilterChain) bool { return false })
		if err != nil || len(out.Extensions) != 1 {
			t.Fatalf("%s: %v, %v", c.what, out.Extensions, err)
		}
		m := &hcmv3.HttpConnectionManager{}
		if err := l.FilterChains[0].Filters[0].GetTypedConfig().UnmarshalTo(m); err != nil {
			t.Fatal(err)
		}
		f, e, wasm, rbac := m.HttpFilters[0], out.Extensions[0], &httpwasmv3.Wasm{}, &httprbacv3.RBAC{}
		source := f.GetConfigDiscovery()
		if err := source.GetDefaultConfig().UnmarshalTo(rbac); err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		if f.GetName() != c.name || e.Name != c.name || e.Document != "EnvoyFilter default/a" || source.GetConfigSource().GetAds() == nil || (rbac.GetRules() != nil) != c.denies {
			t.Errorf("%s: %v of %+v", c.what, f, e)
		}
		if err := e.Config.UnmarshalTo(wasm); err != nil || wasm.GetConfig().GetRootId() != c.root || wasm.GetConfig().GetVmConfig().GetCode().GetLocal().GetFilename() == "" {
			t.Errorf("%s: %v, %v", c.what, wasm, err)
		}
		if types := source.GetTypeUrls(); len(types) != 2 || types[0] != wasmType || !strings.HasSuffix(types[1], "http.rbac.v3.RBAC") {
			t.Errorf("%s: %v", c.what, types)
		}
	}
}

// TestDiscoveryWithin wants the Wasm filters found that come with a connection manager, or are merged into one, and a network filter
// with a placeholder of its kind; a filter that has its code with it is left alone.
func TestDiscoveryWithin(t *testing.T) {
	manager := func(operation string) *Filter {
		return filter(t, Meta{Namespace: "default", Name: "m"}, patchOf("NETWORK_FILTER", `{"listener": {"filterChain": {"filter": {"name": "`+connectionManager+`"}}}}`, operation,
			`{"name": "`+connectionManager+`", "typedConfig": {"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", "httpFilters": [`+wasmFilter("/a", "")+`]}}`))
	}
	network := filter(t, Meta{Namespace: "default", Name: "n"}, patchOf("NETWORK_FILTER", `{}`, "INSERT_FIRST",
		strings.Replace(wasmFilter("/a", ""), "http.wasm", "network.wasm", 1)))
	inline := filter(t, Meta{Namespace: "default", Name: "i"}, patchOf("HTTP_FILTER", `{}`, "INSERT_FIRST",
		`{"name": "w", "typedConfig": {"@type": "`+wasmType+`", "config": {"vm_config": {"code": {"local": {"inline_string": "a"}}}}}}`))
	for doc, want := range map[*Filter]string{manager("REPLACE"): "envoyfilter/default/m/0/0", manager("MERGE"): "envoyfilter/default/m/0/1", network: "envoyfilter/default/n/0", inline: ""} {
		l := listener(t)
		out, err := setOf(doc).Patch(l, true, func(*listenerv3.FilterChain) bool { return false })
		got := ""
		for _, e := range out.Extensions {
			got += e.Name
		}
		if err != nil || got != want {
			t.Errorf("%s: %q, %v", doc.Name, got, err)
		}
		if doc != network {
			continue
		}
		f := l.FilterChains[0].Filters[0]
		if f.GetName() != want || f.GetConfigDiscovery().GetDefaultConfig().UnmarshalTo(&networkrbacv3.RBAC{}) != nil {
			t.Errorf("%v", f)
		}
	}
	for _, c := range []struct {
		doc        *Filter
		some, only bool
	}{
		{network, true, true},
		{inline, false, false},
		{manager("REPLACE"), false, false},
		{filter(t, Meta{}, `{"configPatches": [{"applyTo": "HTTP_FILTER", "patch": {"operation": "INSERT_FIRST", "value": `+wasmFilter("/a", "")+`}},
			{"applyTo": "HTTP_FILTER", "patch": {"operation": "INSERT_FIRST", "value": `+named("n")+`}}]}`), true, false},
	} {
		if some, only := c.doc.Modules(); some != c.some || only != c.only {
			t.Errorf("%s: %t, %t", c.doc.Name, some, only)
		}
	}
}
