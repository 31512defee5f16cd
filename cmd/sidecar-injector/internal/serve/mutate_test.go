package serve

import (
	"log/slog"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	"understudy.mesh/pkg/inject/webhook"
)

// awayCaches are caches of an API server that is not there, filled by hand, and synced or not.
func awayCaches(t *testing.T, synced bool) *caches {
	t.Helper()
	config := &rest.Config{Host: "https://127.0.0.1:1"}
	whole, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	meta, err := metadata.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	c := newCaches(whole, meta, Options{Namespace: "own", CertFile: "tls.crt"}, slog.New(slog.DiscardHandler), func() {}, func() {})
	for _, w := range []*watched{&c.namespaces, &c.sidecarProfiles, &c.configurations, &c.nodeVersions} {
		w.ready = func() bool { return synced }
	}
	add := func(w watched, object any) {
		t.Helper()
		if err := w.store.Add(object); err != nil {
			t.Fatal(err)
		}
	}
	add(c.namespaces, &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{"istio-injection": "enabled"}}})
	add(c.namespaces, &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: "plain"}})
	add(c.sidecarProfiles, profileOf(t, "own", 1, `{"proxy": {"image": "proxy:v1"}}`))
	return c
}

const aPod = `{"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a"}, "spec": {"containers": [{"name": "app", "image": "app"}]}}`

// TestJudgedByWhatIsKnown: without an API server pods are judged by the copies; what is not known is an error, not a no.
func TestJudgedByWhatIsKnown(t *testing.T) {
	tests := []struct {
		what      string
		synced    bool
		namespace string
		pod       string
		injected  bool
		rule, err string
	}{
		{"a namespace with the label", true, "shop", aPod, true, "", ""},
		{"the pod says no", true, "shop", strings.Replace(aPod, `"name": "a"`, `"labels": {"sidecar.istio.io/inject": "false"}`, 1), false, "pod-says-no", ""},
		{"a namespace without it", true, "plain", aPod, false, "namespace-not-selected", ""},
		{"a namespace that is not known", true, "new", aPod, false, "", "read namespace new"},
		{"no copies yet", false, "shop", aPod, false, "", "not read from the API server yet: namespaces, sidecarprofiles"},
		{"another kind", true, "shop", strings.Replace(aPod, `"Pod"`, `"Job"`, 1), false, "", "want a Pod"},
		{"a wrong type", true, "shop", strings.Replace(aPod, `"name": "a"`, `"labels": 1`, 1), false, "", "read the pod"},
		{"a bad annotation", true, "shop", strings.Replace(aPod, `"name": "a"`, `"annotations": {"status.sidecar.istio.io/port": "x"}`, 1), false, "", "status.sidecar.istio.io/port"},
	}
	for _, tt := range tests {
		result, err := awayCaches(t, tt.synced).mutate(t.Context(), webhook.Request{Namespace: tt.namespace, Pod: []byte(tt.pod)})
		if (err != nil) != (tt.err != "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: error %v, want %q", tt.what, err, tt.err)
			continue
		}
		if err == nil && ((result.Patch != nil) != tt.injected || !tt.injected && result.Rule != tt.rule) {
			t.Errorf("%s: %+v, want injected %v, rule %q", tt.what, result, tt.injected, tt.rule)
		}
	}
}

// TestLeaderWaitsForTheCopies: a replica that begins to keep before it knows the policy would write the default one's entries.
func TestLeaderWaitsForTheCopies(t *testing.T) {
	k := &keeper{options: Options{Namespace: "own", CertFile: "tls.crt"}, caches: awayCaches(t, false), authority: &authority{}, log: slog.New(slog.DiscardHandler)}
	if options, err := k.webhookOptions(); err == nil {
		t.Errorf("entries by %+v", options)
	}
	k.caches = awayCaches(t, true)
	paused := profileOf(t, "own", 2, `{"injection": {"paused": true}}`)
	if err := k.caches.sidecarProfiles.store.Add(paused); err != nil {
		t.Fatal(err)
	}
	if options, err := k.webhookOptions(); err != nil || !options.Paused {
		t.Errorf("%+v, %v: the copy says paused", options, err)
	}
}
