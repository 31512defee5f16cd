package serve

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"understudy.mesh/cmd/sidecar-injector/internal/certs"
)

func TestOptions(t *testing.T) {
	good := Options{Lives: certs.Lives{CA: time.Hour, Leaf: time.Minute}}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Options){
		"a certificate without key": func(o *Options) { o.CertFile = "tls.crt" },
		"a key without certificate": func(o *Options) { o.KeyFile = "tls.key" },
		"a CA for nothing":          func(o *Options) { o.CAFile = "ca.crt" },
		"http":                      func(o *Options) { o.URL = "http://host/inject" },
		"no host":                   func(o *Options) { o.URL = "https:///inject" },
		"an authority that is over": func(o *Options) { o.Lives.CA = time.Minute },
	} {
		o := good
		change(&o)
		if o.Check() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestOldestKubeletCounts(t *testing.T) {
	n := newNodes()
	steps := []struct {
		name, version string
		modern        bool
	}{
		{"a", "v1.37.2", true}, {"b", "v1.33.0-gke.1", true}, {"c", "v1.32.9", false}, {"c", "v1.33.1+k3s1", true},
		{"d", "unknown", false}, {"d", "", true}, {"e", "v2.1.0", false}, {"e", "v1.100.0", true}, {"a", "", true}, {"b", "", true}, {"c", "", true}, {"e", "", false},
	}
	if n.all() {
		t.Error("without a node nothing is known")
	}
	for _, s := range steps {
		n.set(s.name, s.version)
		if n.all() != s.modern {
			t.Errorf("after %s %q: %v", s.name, s.version, n.all())
		}
	}
}

func TestVariables(t *testing.T) {
	for path, want := range map[string]map[string]string{
		"":                                   {},
		"cluster/one/net/two":                {"ISTIO_META_CLUSTER_ID": "one", "ISTIO_META_NETWORK": "two"},
		"cluster/a--slash--b/trust_domain/x": {"ISTIO_META_CLUSTER_ID": "a/b", "TRUST_DOMAIN": "x"},
		"cluster":                            {},
	} {
		if diff := cmp.Diff(want, variables(path)); diff != "" {
			t.Errorf("%q: %s", path, diff)
		}
	}
}

// profileOf is an object as a watch brings it.
func profileOf(t testing.TB, namespace string, generation int64, spec string) *unstructured.Unstructured {
	t.Helper()
	object := map[string]any{}
	text := fmt.Sprintf(`{"apiVersion": "understudy.mesh/v1alpha1", "kind": "SidecarProfile", "metadata": {"name": "default", "namespace": %q, "generation": %d}, "spec": %s}`,
		namespace, generation, spec)
	if err := json.Unmarshal([]byte(text), &object); err != nil {
		t.Fatal(err)
	}
	o := &unstructured.Unstructured{Object: object}
	o.SetGeneration(generation)
	return o
}

// TestBadSettingsChangeNothing: the last good ones stay in force; where there are none, nothing else takes their place.
func TestBadSettingsChangeNothing(t *testing.T) {
	const good, better, bad = `{"proxy": {"logLevel": "debug"}}`, `{"proxy": {"logLevel": "info"}}`, `{"proxy": {"logLevel": "loud"}}`
	p := newProfiles("own")
	level := func() string {
		base, err := p.base("shop")
		if err != nil {
			return "error"
		}
		return *base.Resolve().Proxy.LogLevel
	}
	steps := []struct {
		what, namespace, spec string
		want                  string
	}{
		{"the mesh's", "own", good, "debug"}, {"a bad one", "own", bad, "debug"}, {"another", "own", better, "info"},
		{"the namespace's", "shop", bad, "error"}, {"a good one", "shop", good, "debug"}, {"a bad one", "shop", bad, "debug"},
		{"none", "shop", "", "info"}, {"the mesh's again", "own", "", "warning"}, {"a bad first one", "own", bad, "error"},
		{"a wrong type", "own", `{"proxy": 1}`, "error"},
	}
	for n, s := range steps {
		var object *unstructured.Unstructured
		if s.spec != "" {
			object = profileOf(t, s.namespace, int64(n), s.spec)
		}
		p.set(s.namespace, object)
		if got := level(); got != s.want {
			t.Errorf("%d, %s: %s, want %s", n, s.what, got, s.want)
		}
	}
}

// TestConditions: what a profile says of itself, and that it is written once.
func TestConditions(t *testing.T) {
	k := &keeper{options: Options{Namespace: "own"}, caches: &caches{profiles: newProfiles("own")}, log: slog.New(slog.DiscardHandler), now: time.Now}
	tests := []struct {
		spec string
		want map[string]string
	}{
		{`{"proxy": {"logLevel": "debug"}}`, map[string]string{accepted: "True Valid", inForce: "True InForce", conflicted: "False NoOther"}},
		{`{"proxy": {"logLevel": "loud"}}`, map[string]string{accepted: "False Invalid", inForce: "False Invalid", conflicted: "False NoOther"}},
		{`{"injector": {"replicaCount": 3}}`, map[string]string{accepted: "True Valid", inForce: "True InForce", conflicted: "False NoOther", notApplied: "True NotManaged"}},
		{`{"injector": {"replicaCount": 3, "manage": true}}`, map[string]string{accepted: "True Valid", inForce: "True InForce", conflicted: "False NoOther"}},
	}
	for n, tt := range tests {
		o := profileOf(t, "own", int64(n+1), tt.spec)
		k.caches.profiles.set("own", o)
		status, err := k.status(o)
		if err != nil || status == nil {
			t.Fatalf("%s: %v, %v", tt.spec, status, err)
		}
		got := make(map[string]string)
		for _, c := range status.Conditions {
			got[c.Type] = string(c.Status) + " " + c.Reason
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: %s", tt.spec, diff)
		}
		text, err := json.Marshal(status)
		if err != nil {
			t.Fatal(err)
		}
		var written map[string]any
		if err := json.Unmarshal(text, &written); err != nil {
			t.Fatal(err)
		}
		o = o.DeepCopy()
		maps.Copy(o.Object, map[string]any{"status": written})
		if again, err := k.status(o); err != nil || again != nil {
			t.Errorf("%s: it would be written again and again: %+v, %v", tt.spec, again, err)
		}
	}
}
