package inject

import (
	"fmt"
	"strings"
	"testing"
)

// TestOutdated: after an upgrade in place the image is another than the pod was made with, and than its settings say; nothing else is.
func TestOutdated(t *testing.T) {
	const spec = "{proxy: {image: %q}, hotUpgrade: {emptyImage: empty}%s}"
	raw := []byte(`{"kind": "Pod", "metadata": {"name": "p", "annotations": {"sidecar.istio.io/logLevel": "debug"}}, "spec": {"containers": [{"name": "a", "image": "a", "readinessProbe": {"httpGet": {"port": 80}}}]}}`)
	env := Environment{Native: true, Resize: true}
	ops, _, err := patchOf(raw, settingsOf(t, raw, layerOf(t, "mesh", fmt.Sprintf(spec, "v1", ""))), env)
	if err != nil {
		t.Fatal(err)
	}
	live := apply(t, raw, ops)
	live = []byte(strings.Replace(string(live), `"image":"v1"`, `"image":"v2"`, 1)) // upgraded
	for _, tt := range []struct {
		image, more string
		env         Environment
		want        string
	}{
		{"v1", "", env, ""},
		{"v2", "", env, ""},
		{"v3", "", env, ""},
		{"v2", ", controlPlane: {clusterDomain: other}", env, "container istio-proxy, args"},
		{"v2", ", dns: {capture: true}", env, "container istio-proxy, env ISTIO_META_DNS_AUTO_ALLOCATE"},
		{"v2", ", init: {image: pinned}", env, "settings"},
		{"v2", "", Environment{Native: true}, "settings"},
	} {
		pod, err := Read(live)
		if err != nil {
			t.Fatal(err)
		}
		got, err := pod.Outdated(settingsOf(t, live, layerOf(t, "mesh", fmt.Sprintf(spec, tt.image, tt.more))), tt.env, "v1")
		if err != nil || got != tt.want {
			t.Errorf("%s%s: %q, %v, want %q", tt.image, tt.more, got, err, tt.want)
		}
	}
	byURL := env
	byURL.Variables = map[string]string{clusterVariable: "X", networkVariable: "Y"}
	if ops, _, err = patchOf(raw, settingsOf(t, raw, layerOf(t, "mesh", fmt.Sprintf(spec, "v1", ""))), byURL); err != nil {
		t.Fatal(err)
	}
	pod, err := Read(apply(t, raw, ops))
	if err != nil {
		t.Fatal(err)
	}
	for more, want := range map[string]string{"": "", ", controlPlane: {clusterDomain: other}": "container istio-proxy, args"} {
		if got, err := pod.Outdated(settingsOf(t, raw, layerOf(t, "mesh", fmt.Sprintf(spec, "v2", more))), env, "v1"); got != want || err != nil {
			t.Errorf("by a URL with variables, %s: %q, %v, want %q", more, got, err, want)
		}
	}
	other, err := Read(raw)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := other.Outdated(settingsOf(t, raw), env, "v1"); got != "" || err != nil {
		t.Errorf("a pod that was not injected: %q, %v", got, err)
	}
}
