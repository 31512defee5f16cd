package envoyfilter

import (
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
)

// FuzzPatch feeds New what a document may say. It must not panic; what it takes must patch a listener to the same bytes
// every time, or refuse it with a reason, and leave sealed chains alone.
func FuzzPatch(f *testing.F) {
	f.Add(patchOf("HTTP_FILTER", at("envoy.router"), "INSERT_BEFORE", named("n")))
	f.Add(patchOf("NETWORK_FILTER", `{"context": "ANY"}`, "MERGE", `{"typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", "stat_prefix": "a", "http_filters": [{"name": "x"}], "stream_idle_timeout": "1s"}}`))
	f.Add(patchOf("EXTENSION_CONFIG", `{}`, "ADD", named("n")))
	f.Add(patchOf("HTTP_FILTER", `{}`, "INSERT_FIRST", `{"name": "n", "config_discovery": {"config_source": {"ads": {}}, "type_urls": ["a/b"]}}`))
	f.Add(patchOf("HTTP_FILTER", `{}`, "INSERT_FIRST", `{"name": "n", "typedConfig": {"@type": "type.googleapis.com/udpa.type.v1.TypedStruct", "type_url": "a/google.protobuf.Struct", "value": {"@type": "", "a": [{"@type": "a/b.C"}]}}}`))
	f.Fuzz(func(t *testing.T, text string) {
		m := &networking.EnvoyFilter{}
		if protojson.Unmarshal([]byte(text), m) != nil {
			return
		}
		doc, _, wrong := New(Meta{Namespace: "default", Name: "f"}, m)
		if wrong != nil {
			if wrong.Field == "" || wrong.Reason == "" {
				t.Errorf("%+v", wrong)
			}
			return
		}
		var bodies [2]string
		for i := range bodies {
			l := listener(t, "envoy.filters.http.a")
			l.FilterChains = append(l.FilterChains, &listenerv3.FilterChain{Name: "sealed", Filters: []*listenerv3.Filter{{Name: "s"}}})
			sealed := proto.Clone(l.FilterChains[1])
			reports, err := apply(t, setOf(doc), l)
			if refused, is := err.(*RefusedError); err != nil && (!is || refused.Reason == "" || refused.Filter != doc) {
				t.Fatalf("%v", err)
			}
			if !proto.Equal(l.FilterChains[1], sealed) || len(l.FilterChains) != 2 {
				t.Errorf("%v", l)
			}
			for _, p := range reports[0].Patches {
				if err == nil && (p.Result == Applied) != (p.Reason == "") {
					t.Errorf("%+v", p)
				}
			}
			body, err := proto.MarshalOptions{Deterministic: true}.Marshal(l)
			if err != nil {
				t.Fatal(err)
			}
			bodies[i] = string(body)
		}
		if bodies[0] != bodies[1] {
			t.Error("another listener the second time")
		}
	})
}
