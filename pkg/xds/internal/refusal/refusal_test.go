package refusal

import (
	"maps"
	"testing"
)

// TestBlamedBy has messages of Envoy 1.40, and such as it might have.
func TestBlamedBy(t *testing.T) {
	type reasons = map[string]string
	names := []string{"svc-1", "svc-10", "outbound|80||a", "outbound|80||a.b", "ok", "with: colon"}
	for message, want := range map[string]reasons{
		"Error adding/updating cluster(s) outbound|80||a: Didn't find a registered implementation for 'nope' with type URL: '', outbound|80||a.b: no": {
			"outbound|80||a": "Didn't find a registered implementation for 'nope' with type URL: ''", "outbound|80||a.b": "no"},
		"Error adding/updating listener(s) svc-10: malformed IP address: not an ip\n": {"svc-10": "malformed IP address: not an ip"},
		"Error adding/updating listener(s) svc-10: a\nsvc-1: error adding listener '127.0.0.1:0': no filter chains specified\n": {
			"svc-10": "a", "svc-1": "error adding listener '127.0.0.1:0': no filter chains specified"},
		"Error adding/updating listener(s) svc-10: a\n\nsvc-1: b":                                   {"svc-10": "a", "svc-1": "b"},
		"Error adding/updating listener(s) with: colon: no":                                         {"with: colon": "no"},
		"Error adding/updating listener(s) svc-1: a,svc-10: b":                                      {"svc-1": "a", "svc-10": "b"},
		"Error adding/updating listener(s) ok: a, b, svc-1: c":                                      {"ok": "a, b", "svc-1": "c"},
		"Error adding/updating listener(s) ok: ends in a comma,":                                    {"ok": "ends in a comma"},
		"Cannot take cluster(s) ok: no":                                                             {},
		"Unable to unpack as envoy.config.cluster.v3.Cluster: goo.gle/debugstr  \ntype_url: \"ok\"": {},
	} {
		if got := BlamedBy(message, names); !maps.Equal(got, want) {
			t.Errorf("%q blames %q, want %q", message, got, want)
		}
	}
}
