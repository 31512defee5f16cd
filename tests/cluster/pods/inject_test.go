package pods

import (
	"context"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"understudy.mesh/tests/lab"
)

// injectedMesh is the settings of a namespace whose pods run on a ConfigMap, that ConfigMap, and an application.
const injectedMesh = `
apiVersion: understudy.mesh/v1alpha1
kind: SidecarProfile
metadata: {name: default}
spec:
  controlPlane: {mode: files, configMap: mesh}
  dns: {capture: true}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: mesh}
data:
  aliyun.yaml: |
    apiVersion: networking.istio.io/v1
    kind: ServiceEntry
    metadata: {name: aliyun}
    spec:
      hosts: [aliyun.com]
      ports: [{number: 443, name: https, protocol: TLS}]
      resolution: DNS
`

const sleeper = `
apiVersion: v1
kind: Pod
metadata: {name: sleep}
spec:
  containers: [{name: sleep, image: curlimages/curl, imagePullPolicy: IfNotPresent, command: [sleep, infinity]}]
`

// TestInjector is docs/inject.md: its commands that install, a namespace with the label, an application that knows nothing of it; other
// settings, and a restart of every kind of workload; and then no injector at all.
func TestInjector(t *testing.T) {
	removeInjector(t)
	ctx := t.Context()
	const namespace = "understudy-system"
	if _, err := shell(lab.RepoRoot(t), blocksOf(t, "docs/inject.md", "Install", "sh")[0]); err != nil {
		state, _ := shared.Kubectl(ctx, nil, "-n", namespace, "describe", "pods")
		logs, _ := shared.Kubectl(ctx, nil, "-n", namespace, "logs", "-l", "app.kubernetes.io/name=sidecar-injector", "--tail=50")
		t.Fatalf("%v\n%s\n%s", err, state, logs)
	}

	ns := shared.Namespace(t, "inject")
	ns.Kubectl(t, "label", "namespace", ns.Name, "istio-injection=enabled")
	ns.Apply(t, injectedMesh)
	ns.Wait(t, podLimit, "condition=InForce", "sidecarprofile/default")
	lab.Eventually(t, podLimit, "the API server reaches the injector's Service", func() error { // kube-proxy follows the endpoints a little later
		_, err := ns.Try("run", "early", "--image=curlimages/curl", "--dry-run=server")
		return err
	})
	ns.Apply(t, sleeper)
	ns.Wait(t, podLimit, "condition=Ready", "pod/sleep")
	out := ns.Exec(t, "sleep", "istio-proxy", "pilot-agent", "dns", "lookup", "aliyun.com")
	if !regexp.MustCompile(`\b240\.240\.\d+\.\d+`).MatchString(out) {
		t.Errorf("aliyun.com is no VIP: %s", out)
	}
	if out := ns.Exec(t, "sleep", "sleep", "curl", "-sS", "https://aliyun.com"); !strings.Contains(out, "server=world") {
		t.Errorf("aliyun.com: %q", out)
	}

	restartWorkloads(t, ns)

	if _, err := shared.Kubectl(ctx, nil, "-n", namespace, "scale", "deployment/sidecar-injector", "--replicas=0"); err != nil {
		t.Fatal(err)
	}
	lab.Eventually(t, podLimit, "no injector answers, and its namespace's pods are refused", func() error {
		_, err := ns.Try("run", "late", "--image=curlimages/curl", "--dry-run=server")
		if err == nil || !strings.Contains(err.Error(), "failed calling webhook") {
			return fmt.Errorf("got %w", err)
		}
		return nil
	})
	began := time.Now()
	if _, err := shared.Kubectl(ctx, nil, "-n", "kube-system", "run", "coredns-late", "--image=curlimages/curl", "--dry-run=server"); err != nil {
		t.Errorf("without an injector, a pod of kube-system: %v", err)
	}
	t.Logf("a pod of kube-system is created in %s", time.Since(began).Round(time.Millisecond))
}

// removeInjector removes the injector of the manifests when the test ends.
func removeInjector(t *testing.T) {
	t.Helper()
	manifest := filepath.Join(lab.RepoRoot(t), "deploy/sidecar-injector.yaml")
	ctx := context.Background() // t's has ended by then
	t.Cleanup(func() {
		// First of all nobody is asked any more.
		_, err := shared.Kubectl(ctx, nil, "delete", "mutatingwebhookconfiguration", "sidecar-injector", "--ignore-not-found")
		if err == nil {
			_, err = shared.Kubectl(ctx, nil, "delete", "--ignore-not-found", "--timeout=2m", "-f", manifest)
		}
		if err != nil {
			t.Errorf("the injector is left behind: %v", err)
		}
	})
}
