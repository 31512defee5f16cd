package envoyfilter

import (
	"strings"
	"testing"
)

// TestNewRefuses wants each wrong field named by its path, with what would be right.
func TestNewRefuses(t *testing.T) {
	const router = `{"name": "r", "typedConfig": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}`
	for _, c := range []struct{ text, field, reason string }{
		{`{"configPatches": [{}]}`, ".configPatches[0].applyTo", "is missing"},
		{`{"configPatches": [{"applyTo": "HTTP_FILTER"}]}`, ".configPatches[0].patch", "is missing"},
		{`{"configPatches": [{"applyTo": "HTTP_FILTER", "patch": {}}]}`, ".configPatches[0].patch.operation", "is missing"},
		{patchOf("HTTP_FILTER", `{}`, "ADD", ""), ".configPatches[0].patch.value", "only REMOVE needs none"},
		{patchOf("HTTP_FILTER", `{"proxy": {"proxyVersion": "("}}`, "REMOVE", ""), ".configPatches[0].match.proxy.proxyVersion", "is no regular expression"},
		{patchOf("HTTP_FILTER", `{"proxy": {"proxyVersion": "`+strings.Repeat("a", 1025)+`"}}`, "REMOVE", ""), ".configPatches[0].match.proxy.proxyVersion", "1025"},
		{patchOf("HTTP_FILTER", `{"cluster": {}}`, "REMOVE", ""), ".configPatches[0].match", "by listener alone"},
		{patchOf("HTTP_FILTER", `{"listener": {"filterChain": {"filter": {}}}}`, "REMOVE", ""), ".configPatches[0].match.listener.filterChain.filter.name", "is missing"},
		{patchOf("NETWORK_FILTER", at("x"), "REMOVE", ""), ".configPatches[0].match.listener.filterChain.filter.subFilter", "for HTTP_FILTER alone"},
		{patchOf("HTTP_FILTER", at(""), "REMOVE", ""), ".configPatches[0].match.listener.filterChain.filter.subFilter.name", "is missing"},
		{patchOf("HTTP_FILTER", `{"listener": {"filterChain": {"filter": {"name": "x", "subFilter": {"name": "y"}}}}}`, "REMOVE", ""), ".configPatches[0].match.listener.filterChain.filter.name", connectionManager},
		{patchOf("HTTP_FILTER", `{}`, "ADD", `{"name": "x"}`), ".configPatches[0].patch.value.typedConfig", "is missing"},
		{patchOf("HTTP_FILTER", `{}`, "ADD", `{"typedConfig": {"@type": "a/b"}}`), ".configPatches[0].patch.value.name", "is missing"},
		{patchOf("HTTP_FILTER", `{}`, "ADD", `{"name": "x", "config": {}}`), ".configPatches[0].patch.value", `unknown field "config"`},
		{patchOf("HTTP_FILTER", `{}`, "ADD", strings.Replace(router, "}}", `, "nope": 1}}`, 1)), ".configPatches[0].patch.value", `unknown field "nope"`},
		{`{"targetRefs": [{}], "workloadSelector": {}}`, ".targetRefs", "only one of"},
	} {
		_, _, err := New(Meta{}, spec(t, c.text))
		if err == nil || err.Field != c.field || !strings.Contains(err.Reason, c.reason) || strings.Contains(err.Reason, "proto:") {
			t.Errorf("%s: %v, want %s: ...%s...", c.text, err, c.field, c.reason)
		}
	}
}

// TestNewRemarks wants what istiod ignores said.
func TestNewRemarks(t *testing.T) {
	for _, c := range []struct{ text, field string }{
		{patchOf("CLUSTER", `{"cluster": {}}`, "REMOVE", ""), ".configPatches[0].applyTo"},
		{patchOf("BOOTSTRAP", `{}`, "MERGE", `{"x": 1}`), ".configPatches[0].applyTo"},
		{patchOf("HTTP_FILTER", `{"listener": {"portName": "http"}}`, "ADD", named("n")), ".configPatches[0].match.listener.portName"},
		{patchOf("HTTP_FILTER", `{"listener": {"listenerFilter": "x"}}`, "ADD", named("n")), ".configPatches[0].match.listener.listenerFilter"},
		{patchOf("HTTP_FILTER", `{"listener": {"filterChain": {"transportSocket": "x"}}}`, "ADD", named("n")), ".configPatches[0].match.listener.filterChain.transportSocket"},
		{patchOf("HTTP_FILTER", `{}`, "REMOVE", ""), ".configPatches[0].match"},
		{patchOf("EXTENSION_CONFIG", `{}`, "REMOVE", ""), ".configPatches[0].patch.operation"},
		{patchOf("HTTP_FILTER", `{}`, "MERGE_AND_REPLACE_LIST", named("n")), ".configPatches[0].patch.operation"},
		{`{"workloadSelector": {}}`, ".workloadSelector"},
		{`{"targetRefs": [{}]}`, ".targetRefs"},
	} {
		_, remarks, err := New(Meta{}, spec(t, c.text))
		if err != nil || len(remarks) != 1 || remarks[0].Field != c.field {
			t.Errorf("%s: %v, %v, want a remark on %s", c.text, remarks, err, c.field)
		}
	}
}

// wasmFilter is an HTTP filter whose module is a file; more are fields of its plugin.
func wasmFilter(file, more string) string {
	return `{"name": "w", "typedConfig": {"@type": "type.googleapis.com/udpa.type.v1.TypedStruct",
		"type_url": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm", "value": {"config": {"vm_config": {"code": {"local": {"filename": "` + file + `"}}}` + more + `}}}}`
}

// TestSum wants two sets of the same documents to have one sum, and any difference that patches another.
func TestSum(t *testing.T) {
	doc := func(name string, sum uint64) *Filter {
		return filter(t, Meta{Namespace: "default", Name: name, Sum: sum}, patchOf("HTTP_FILTER", `{}`, "INSERT_FIRST", wasmFilter("/"+name, "")))
	}
	a, b := doc("a", 1), doc("b", 2)
	set := func(p Proxy, refused *Filter, filters ...*Filter) *Set {
		return NewSet(filters, p, func(f *Filter) string {
			if f == refused {
				return "no"
			}
			return ""
		})
	}
	off := pod
	off.NoWasm = "switched off"
	sums := map[uint64]string{}
	for name, s := range map[string]*Set{
		"none": nil, "a": set(pod, nil, a), "b": set(pod, nil, b), "both": set(pod, nil, a, b), "off": set(off, nil, a, b), "a refused": set(pod, a, a, b),
	} {
		if other, twice := sums[s.Sum()]; twice {
			t.Errorf("%s and %s have one sum", other, name)
		}
		sums[s.Sum()] = name
	}
	if set(pod, nil, a, b).Sum() != set(pod, nil, b, a).Sum() {
		t.Error("the order of the files makes another set")
	}
	if r := set(off, nil, a).Report(nil)[0].Patches[0]; r.Result != Skipped || r.Reason != "switched off" {
		t.Errorf("%+v", r)
	}
}
