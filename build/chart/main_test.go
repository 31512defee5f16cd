package main

import (
	"flag"
	"os"
	"strings"
	"testing"
)

const (
	chart    = "../../deploy/chart"
	manifest = "../../deploy/sidecar-injector.yaml"
	filters  = "../../deploy/asm-filters.yaml"
	upgrader = "../../deploy/sidecar-upgrader.yaml"
)

var update = flag.Bool("update", false, "write the manifests anew")

// TestManifestsAreTheCharts: what kubectl applies is what Helm installs.
func TestManifestsAreTheCharts(t *testing.T) {
	whole, err := render(chart, nil)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{manifest: whole}
	for value, file := range map[string]string{"filters": filters, "upgrader": upgrader} {
		r := installation{release, namespace, map[string]any{value: map[string]any{"enabled": true}}}
		optional, err := r.show(chart, []string{value + ".yaml"})
		if err != nil {
			t.Fatal(err)
		}
		files[file] = "# What the value " + value + ".enabled adds to sidecar-injector.yaml. Made of deploy/chart: change it there.\n" + optional
	}
	for file, got := range files {
		if *update {
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s is not what deploy/chart renders to: go -C build/chart test . -update, and read the difference", file)
		}
	}
}

// TestValues: each value reaches its place, and nothing is there that was not asked for.
func TestValues(t *testing.T) {
	plain, err := render(chart, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		values map[string]any
		want   []string
	}{
		"profile":    {map[string]any{"profile": map[string]any{"dns": map[string]any{"capture": true}}}, []string{"  dns:\n    capture: true\n"}},
		"default":    {map[string]any{"defaultRevision": false}, []string{"- --default-revision=false\n"}},
		"tags":       {map[string]any{"revisionTags": []any{"a", "b"}}, []string{"- --revision-tags=a,b\n"}},
		"recreate":   {map[string]any{"recreateConfiguration": true}, []string{"name: sidecar-injector-recreate\nrules:\n", "verbs: [create]"}},
		"tls":        {map[string]any{"tls": map[string]any{"secret": "own"}}, []string{"secretName: own", "--tls-cert-file=", "--tls-key-file=", "--tls-ca-file=", "mountPath: /etc/sidecar-injector/tls"}},
		"arguments":  {map[string]any{"extraArgs": []any{"--log_as_json"}}, []string{"- --log_as_json\n"}},
		"nodes":      {map[string]any{"nodeSelector": map[string]any{"a": "b"}, "tolerations": []any{map[string]any{"operator": "Exists"}}}, []string{"nodeSelector:\n        a: b\n", "tolerations:\n        - operator: Exists\n"}},
		"images":     {map[string]any{"image": "r/i:1", "imagePullSecrets": []any{map[string]any{"name": "s"}}, "replicaCount": 3}, []string{`image: "r/i:1"`, "imagePullSecrets:\n        - name: s\n", "replicas: 3"}},
		"filters":    {map[string]any{"filters": map[string]any{"enabled": true, "replicaCount": 3}}, []string{"- --filters\n", "replicas: 3\n", "resources: [envoyfilters]"}},
		"upgrader":   {map[string]any{"upgrader": map[string]any{"enabled": true, "replicaCount": 3}}, []string{"        - upgrader\n", "replicas: 3\n", "kind: ValidatingAdmissionPolicy\n"}},
		"no profile": {map[string]any{"profile": nil}, nil},
	} {
		got, err := render(chart, tt.values)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, want := range tt.want {
			if !strings.Contains(got, want) || strings.Contains(plain, want) && want != "verbs: [create]" {
				t.Errorf("%s: %q is there: %v, and without the value: %v", name, want, strings.Contains(got, want), strings.Contains(plain, want))
			}
		}
		if name == "no profile" && strings.Contains(got, "\nkind: SidecarProfile\n") {
			t.Error("a profile was made")
		}
	}
}

// TestShowOnly: single templates come in the order in which they are named, with the release's values; one that is not there is an error.
func TestShowOnly(t *testing.T) {
	r := installation{"other", "elsewhere", map[string]any{"image": "r/i:1"}}
	text, err := r.show(chart, []string{"deployment.yaml", "configuration.yaml"})
	if err != nil {
		t.Fatal(err)
	}
	deployment, configuration := strings.Index(text, "\nkind: Deployment\n"), strings.Index(text, "\nkind: MutatingWebhookConfiguration\n")
	if deployment < 0 || configuration < deployment || !strings.Contains(text, "namespace: elsewhere\n") || !strings.Contains(text, `"r/i:1"`) || strings.Contains(text, "kind: ClusterRole") {
		t.Errorf("got\n%s", text)
	}
	if _, err := r.show(chart, []string{"none.yaml"}); err == nil || !strings.Contains(err.Error(), "-show-only none.yaml") {
		t.Errorf("of a template that is not there: %v", err)
	}
	r.values = map[string]any{"profile": nil}
	if _, err := r.show(chart, []string{"profile.yaml"}); err == nil {
		t.Error("a template that renders to nothing passes")
	}
}
