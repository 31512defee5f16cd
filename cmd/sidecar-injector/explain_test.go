package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"understudy.mesh/cmd/sidecar-injector/internal/explain"
)

// files writes files to a directory and returns their paths.
func files(t *testing.T, texts ...string) []string {
	t.Helper()
	dir := t.TempDir()
	var paths []string
	for i, text := range texts {
		path := filepath.Join(dir, string(rune('a'+i))+".yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	return paths
}

// execute runs the command.
func execute(stdin string, args ...string) (status int, stdout, stderr string) {
	var out, errs bytes.Buffer
	status = run(args, strings.NewReader(stdin), &out, &errs)
	return status, out.String(), errs.String()
}

const manyKinds = `# comments, and documents that are no workloads
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec: {template: {metadata: {labels: {app: web}}, spec: {containers: [{name: a, image: b}]}}}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly}
spec: {jobTemplate: {spec: {template: {metadata: {annotations: {sidecar.istio.io/inject: "false"}}, spec: {containers: [{name: a, image: b}]}}}}}
---
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Pod
  metadata: {generateName: one-}
  spec: {hostNetwork: true, containers: [{name: a, image: b}]}
- {apiVersion: external-secrets.io/v1, kind: ExternalSecret, metadata: {name: x}, spec: {template: {type: Opaque}, target: {template: 5}}}
`

func TestExplainSaysWhatBecomesOfEachWorkload(t *testing.T) {
	status, stdout, stderr := execute(manyKinds, "explain", "-f", "-", "-n", "jobs", "--namespace-labels", "istio-injection=enabled", "-o", "json")
	if status != 0 {
		t.Fatalf("status %d: %s", status, stderr)
	}
	var got struct{ Workloads []explain.Report }
	if err := json.Unmarshal([]byte(stdout), &got); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, r := range got.Workloads {
		lines = append(lines, r.Kind+" "+r.Namespace+"/"+r.Name+" "+r.Rule)
		if len(r.Settings) < 50 {
			t.Errorf("%s: %d settings", r.Name, len(r.Settings))
		}
	}
	want := []string{"Deployment shop/web policy-on", "CronJob jobs/nightly pod-says-no", "Pod jobs/one- host-network"}
	if strings.Join(lines, "\n") != strings.Join(want, "\n") {
		t.Errorf("%q, want %q", lines, want)
	}
	flips := [][]string{
		{"the pod's label sidecar.istio.io/inject=false", "the namespace's label istio-injection=disabled", "injection.autoInjectByAnnotation: false", "injection.paused: true"},
		{"the pod's label sidecar.istio.io/inject=true"},
		{"the pod without hostNetwork"},
	}
	for i, want := range flips {
		if got := got.Workloads[i].Flips; strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("flips of %s: %q, want %q", lines[i], got, want)
		}
	}
}

func TestExplainShowsSettingsAndSources(t *testing.T) {
	paths := files(t, `
kind: SidecarProfile
apiVersion: understudy.mesh/v1alpha1
metadata: {name: default}
spec: {preset: asm, injection: {neverInjectSelector: [{matchLabels: {a: b}}]}}
---
kind: SidecarProfile
apiVersion: understudy.mesh/v1alpha1
metadata: {name: default, namespace: shop}
spec: {proxy: {concurrency: 3}}
`, `
kind: Pod
metadata:
  name: web
  namespace: shop
  labels: {a: b, sidecar.istio.io/inject: "true"}
  annotations: {sidecar.istio.io/logLevel: debug, sidecar.istio.io/proxyCPU: much}
spec: {containers: [{name: a}]}
`)
	status, stdout, stderr := execute("", "explain", "-f", paths[1], "--settings", paths[0], "--namespace-labels", "istio-injection=enabled")
	if status != 0 {
		t.Fatalf("status %d: %s", status, stderr)
	}
	for _, want := range []string{
		"Pod shop/web is injected: pod-says-yes\n", "  overridden: never-selector[0]\n", `  refused: annotation sidecar.istio.io/proxyCPU: "much": want a quantity`,
		"proxy.concurrency|3|namespace shop", "preset|asm|mesh", "proxy.statusPort|15021|preset asm", "proxy.env.DNS_AGENT|\"\"|preset asm", "proxy.lifecycle|-",
		"proxy.image|understudy/proxy:" + version + "|built-in",
	} {
		if !strings.Contains(squeezed(stdout), want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
	if status, _, stderr := execute("", "explain", "-f", paths[1], "--settings", paths[0], "--expect", "inject"); status != 1 || !strings.Contains(stderr, "--expect inject: not so: Pod shop/web (pod-says-yes)") {
		t.Errorf("a pod that is refused counts as injected: %d, %s", status, stderr)
	}
}

var gap = regexp.MustCompile(`(\S) {2,}`)

// squeezed is a text, and the same with one | for each gap of a table.
func squeezed(text string) string {
	return text + gap.ReplaceAllString(text, "$1|")
}

func TestExplainExpects(t *testing.T) {
	for _, tt := range []struct {
		label, expect string
		status        int
	}{{"true", "inject", 0}, {"true", "skip", 1}, {"false", "skip", 0}, {"false", "inject", 1}} {
		pod := "kind: Pod\nmetadata: {name: p, labels: {sidecar.istio.io/inject: \"" + tt.label + "\"}}\nspec: {containers: [{name: a}]}"
		if status, _, stderr := execute(pod, "explain", "-f", "-", "--expect", tt.expect); status != tt.status {
			t.Errorf("%v: %d: %s", tt, status, stderr)
		}
	}
}

func TestExplainNamesWhatItCannotRead(t *testing.T) {
	// The label that the manual's screen has twice.
	twice := "kind: Service\n---\nkind: Pod\nmetadata:\n  name: details\n  labels:\n    notinjectapp: details\n    version: v1\n    notinjectapp: details\nspec: {containers: [{name: a}]}\n"
	profile := "kind: SidecarProfile\napiVersion: understudy.mesh/v1alpha1\nmetadata: {name: default}\nspec:\n  proxy:\n    statusPort: 15006\n"
	pod := "kind: Pod\nspec: {containers: [{name: a}]}\n"
	paths := files(t, twice, pod, profile, profile+"---\n"+profile, "---\n---\n"+profile+"    statusPort: 1\n", "kind: Pod\nspec: {containers: [{name: 5}]}\n")
	for _, tt := range []struct{ file, settings, want string }{
		{paths[0], "", `, document 2: want YAML: line 9: mapping key "notinjectapp" already defined at line 7`},
		{paths[1], paths[2], `c.yaml, document 1: spec.proxy.statusPort: "15006": the agent or Envoy has this port`},
		{paths[1], paths[3], `statusPort`},
		{paths[1], paths[4], `e.yaml, document 1: want YAML: line 9: key "statusPort" already set`},
		{paths[5], "", `document 1: Pod "": json: cannot unmarshal number`},
		{paths[1], paths[1], `document 1: apiVersion "", kind "Pod": want understudy.mesh/v1alpha1 and SidecarProfile`},
	} {
		args := []string{"explain", "-f", tt.file}
		if tt.settings != "" {
			args = append(args, "--settings", tt.settings)
		}
		status, stdout, stderr := execute("", args...)
		if status != 1 || stdout != "" || !strings.Contains(stderr, tt.want) {
			t.Errorf("%v: %d, %s%s, want %s", args, status, stdout, stderr, tt.want)
		}
	}
	ok := "kind: SidecarProfile\napiVersion: understudy.mesh/v1alpha1\nmetadata: {name: default, namespace: understudy-system}\n"
	if status, _, stderr := execute(pod, "explain", "-f", "-", "--settings", files(t, ok)[0], "--settings", files(t, ok)[0]); status != 1 || !strings.Contains(stderr, "has a SidecarProfile already") {
		t.Errorf("two profiles of the mesh: %d, %s", status, stderr)
	}
}
