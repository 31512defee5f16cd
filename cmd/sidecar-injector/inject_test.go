package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const twoPods = `kind: Pod
metadata: {name: a}
spec: {containers: [{name: a, image: i}]}
---
kind: Pod
metadata: {name: b, labels: {sidecar.istio.io/inject: "false"}}
spec: {containers: [{name: b, image: i}]} # kept
`

// TestInject has the command say what it leaves alone, and print nothing if anything is wrong.
func TestInject(t *testing.T) {
	inject := func(stdin string, args ...string) (int, string, string) {
		var stdout, stderr bytes.Buffer
		status := run(append([]string{"inject"}, args...), strings.NewReader(stdin), &stdout, &stderr)
		return status, stdout.String(), stderr.String()
	}
	status, out, notes := inject(twoPods, "-f", "-", "-n", "shop")
	if status != 0 || strings.Count(out, "- name: istio-proxy\n") != 1 || !strings.HasSuffix(out, "# kept\n") || notes != "Pod shop/b: not injected: pod-says-no\n" {
		t.Errorf("%d, %s\n%s", status, notes, out)
	}
	if status, again, _ := inject(out, "-f", "-", "-n", "shop"); status != 0 || again != out {
		t.Errorf("a second time: %d\n%s", status, again)
	}
	if status, out, notes = inject(twoPods, "-f", "-", "--namespace-labels", "istio-injection=disabled"); status != 0 || out != twoPods || strings.Count(notes, "namespace-disabled") != 2 {
		t.Errorf("%d, %s\n%s", status, notes, out)
	}
	const clash = "---\nkind: Pod\nmetadata: {name: c}\nspec: {volumes: [{name: istio-data, hostPath: {path: /}}], containers: [{name: c}]}\n"
	if status, out, notes = inject(twoPods+clash, "-f", "-"); status != exitError || out != "" || !strings.Contains(notes, `-, document 3: Pod "c": volume "istio-data"`) {
		t.Errorf("%d, %s\n%s", status, notes, out)
	}
	var explained bytes.Buffer
	if run([]string{"explain", "-f", "-", "--namespace-labels", "istio-injection=enabled"}, strings.NewReader(clash), &explained, &explained); !strings.Contains(explained.String(), `volume "istio-data"`) {
		t.Errorf("explain says nothing of the clash:\n%s", &explained)
	}
	if status, _, notes = inject("", "-n", "shop"); status != exitUsage || !strings.Contains(notes, "flag -f") {
		t.Errorf("%d, %s", status, notes)
	}
}

// TestInjectReadsPipes is the manual's kubectl apply -f <(sidecar-injector inject -f <(...)), less kubectl.
func TestInjectReadsPipes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "sidecar-injector")
	if out, err := exec.Command("go", "build", "-o", file, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.Command("bash", "-euc", `cat <("$0" inject -f <(cat))`, file)
	cmd.Stdin, cmd.Stderr = strings.NewReader(twoPods), os.Stderr
	out, err := cmd.Output()
	if err != nil || strings.Count(string(out), "- name: istio-proxy\n") != 1 {
		t.Errorf("%v\n%s", err, out)
	}
}
