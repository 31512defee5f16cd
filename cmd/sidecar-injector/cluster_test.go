package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// apiServer answers with objects by their paths, and with Kubernetes' not found. It returns a kubeconfig for it.
func apiServer(t *testing.T, objects map[string]string) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		object, ok := objects[r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			object = `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}`
		}
		fmt.Fprint(w, object)
	}))
	t.Cleanup(server.Close)
	return files(t, fmt.Sprintf(`{"apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
"clusters": [{"name": "c", "cluster": {"server": %q}}], "users": [{"name": "u", "user": {}}]}`, server.URL))[0]
}

func TestExplainOfAPodInACluster(t *testing.T) {
	profiles := "/apis/understudy.mesh/v1alpha1/namespaces/"
	head := `{"apiVersion": "understudy.mesh/v1alpha1", "kind": "SidecarProfile", "metadata": {"name": "default", "namespace": `
	kubeconfig := apiServer(t, map[string]string{
		"/api/v1/namespaces/shop": `{"metadata": {"name": "shop", "labels": {"istio-injection": "enabled"}}}`,
		"/api/v1/namespaces/shop/pods/web": `{"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "web", "namespace": "shop", "uid": "u", "managedFields": [{}], "annotations": {"sidecar.istio.io/logLevel": "debug"}},
			"spec": {"containers": [{"name": "a"}]}, "status": {"phase": "Running"}}`,
		profiles + "understudy-system/sidecarprofiles/default": head + `"understudy-system", "managedFields": [{"manager": "x"}], "generation": 2}, "spec": {"proxy": {"concurrency": 3}},
			"status": {"observedGeneration": 2, "conditions": []}}`,
		profiles + "shop/sidecarprofiles/default": head + `"shop"}, "spec": {"dns": {"capture": true}}}`,
	})
	status, stdout, stderr := execute("", "explain", "pod/web", "-n", "shop", "--kubeconfig", kubeconfig, "--expect", "inject")
	if status != 0 {
		t.Fatalf("status %d: %s", status, stderr)
	}
	for _, want := range []string{"Pod shop/web is injected: policy-on", "proxy.concurrency|3|mesh", "dns.capture|true|namespace shop", "proxy.logLevel|debug|annotation sidecar.istio.io/logLevel"} {
		if !strings.Contains(squeezed(stdout), want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
	for _, tt := range []struct {
		args, want string
		status     int
	}{
		{"pod/none -n shop --kubeconfig " + kubeconfig, "read pod shop/none: there is none of that name", 1},
		{"pod/web -n shop --kubeconfig /nonexistent", "/nonexistent", 1},
		{"deployment/web", `"deployment/web": give pod/NAME`, 2},
		{"pod/web -f x.yaml", "give a file or pod/NAME, not both", 2},
		{"pod/web --namespace-labels a=b", "the cluster says them", 2},
	} {
		status, stdout, stderr := execute("", append([]string{"explain"}, strings.Fields(tt.args)...)...)
		if status != tt.status || stdout != "" || !strings.Contains(stderr, tt.want) {
			t.Errorf("%s: %d: %s%s, want %s", tt.args, status, stdout, stderr, tt.want)
		}
	}
}

// Without any profile the mesh is as the built-in defaults are; --settings is instead of the cluster's.
func TestExplainOfAPodWithoutProfiles(t *testing.T) {
	kubeconfig := apiServer(t, map[string]string{
		"/api/v1/namespaces/understudy-system":          `{"metadata": {"name": "understudy-system"}}`,
		"/api/v1/namespaces/understudy-system/pods/web": `{"kind": "Pod", "metadata": {"name": "web"}, "spec": {"containers": [{"name": "a"}]}}`,
	})
	status, stdout, stderr := execute("", "explain", "pod/web", "-n", "understudy-system", "--kubeconfig", kubeconfig)
	if status != 0 || !strings.Contains(stdout, "is not injected: own-namespace") {
		t.Errorf("%d: %s%s", status, stdout, stderr)
	}
}

// TestFileWithTheClustersSettings: what is said of a file is by the settings of the cluster that there is, unless others are named.
func TestFileWithTheClustersSettings(t *testing.T) {
	profiles := "/apis/understudy.mesh/v1alpha1/namespaces/"
	head := `{"apiVersion": "understudy.mesh/v1alpha1", "kind": "SidecarProfile", "metadata": {"name": "default", "namespace": `
	kubeconfig := apiServer(t, map[string]string{
		"/api/v1/namespaces/shop":                              `{"metadata": {"name": "shop", "labels": {"istio-injection": "enabled"}}}`,
		profiles + "understudy-system/sidecarprofiles/default": head + `"understudy-system"}, "spec": {"proxy": {"image": "of/the-mesh:1"}}}`,
		profiles + "shop/sidecarprofiles/default":              head + `"shop"}, "spec": {"proxy": {"logLevel": "debug"}}}`,
	})
	pods := `{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: shop}, spec: {containers: [{name: a}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: b, namespace: shop}, spec: {containers: [{name: b}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: c, namespace: other}, spec: {containers: [{name: c}]}}
`
	own := files(t, `{apiVersion: understudy.mesh/v1alpha1, kind: SidecarProfile, metadata: {name: default, namespace: understudy-system}, spec: {proxy: {image: "of/a-file:1"}}}`)[0]
	for _, tt := range []struct {
		command, flags string
		want, not      []string
	}{
		{"inject", "--kubeconfig " + kubeconfig, []string{"of/the-mesh:1", "--proxyLogLevel=debug", "--proxyLogLevel=warning"}, nil},
		{"inject", "--offline", []string{"understudy/proxy:dev"}, []string{"of/the-mesh:1", "debug"}},
		{"inject", "--settings " + own + " --kubeconfig " + kubeconfig, []string{"of/a-file:1"}, []string{"of/the-mesh:1", "debug"}},
		{"explain", "--kubeconfig " + kubeconfig, []string{"Pod shop/a is injected: policy-on", "Pod other/c is not injected: namespace-not-selected", "proxy.logLevel debug namespace shop", "of/the-mesh:1 mesh"}, nil},
		{"explain", "--offline", []string{"Pod shop/a is not injected: namespace-not-selected"}, []string{"of/the-mesh:1"}},
	} {
		status, stdout, stderr := execute(pods, append([]string{tt.command, "-f", "-"}, strings.Fields(tt.flags)...)...)
		text := strings.Join(strings.Fields(stdout), " ")
		if status != 0 {
			t.Errorf("%s %s: %d: %s", tt.command, tt.flags, status, stderr)
		}
		for _, want := range tt.want {
			if !strings.Contains(text, want) {
				t.Errorf("%s %s: no %q in %s", tt.command, tt.flags, want, stdout)
			}
		}
		for _, not := range tt.not {
			if strings.Contains(text, not) {
				t.Errorf("%s %s: %q in %s", tt.command, tt.flags, not, stdout)
			}
		}
	}
}

// TestClusterThatDoesNotAnswer: a cluster that was named has to answer; one that is only found need not, and that is said.
func TestClusterThatDoesNotAnswer(t *testing.T) {
	pod := `{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: a}]}}`
	gone := files(t, `{"apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
"clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}], "users": [{"name": "u", "user": {}}]}`)[0]
	status, stdout, stderr := execute(pod, "inject", "-f", "-", "--kubeconfig", gone)
	if status != 1 || stdout != "" || !strings.Contains(stderr, "--settings FILE, or --offline") {
		t.Errorf("named: %d: %s%s", status, stdout, stderr)
	}
	t.Setenv("KUBECONFIG", gone)
	status, stdout, stderr = execute(pod, "inject", "-f", "-")
	if status != 0 || !strings.Contains(stdout, "name: istio-proxy") || !strings.Contains(stderr, "the cluster does not answer") {
		t.Errorf("found: %d: %s%s", status, stdout, stderr)
	}
	if status, _, stderr := execute(pod, "inject", "-f", "-", "--offline", "--kubeconfig", gone); status != 2 || !strings.Contains(stderr, "give one of them") {
		t.Errorf("both flags: %d: %s", status, stderr)
	}
}

// TestNodesOfAFile: whether the proxy is a native sidecar depends on every node, which the cluster knows, or who asks.
func TestNodesOfAFile(t *testing.T) {
	const pod = `{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: a}]}}`
	node := func(version string) string {
		return fmt.Sprintf(`{"status": {"nodeInfo": {"kubeletVersion": %q}}}`, version)
	}
	with := func(nodes ...string) string {
		return "--kubeconfig " + apiServer(t, map[string]string{"/api/v1/nodes": `{"items": [` + strings.Join(nodes, ",") + `]}`})
	}
	for _, tt := range []struct {
		flags  string
		native bool
	}{
		{"--offline", false}, {"--offline --kubelet-version v1.33.0", true}, {"--offline --kubelet-version 1.32", false},
		{with(node("v1.33.1"), node("v1.40.0-gke.1")), true}, {with(node("v1.33.1"), node("v1.32.9")), false}, {with(), false},
		{with(node("v1.32.9")) + " --kubelet-version v1.35.0", true}, {with(node("unknown")), false},
	} {
		status, stdout, stderr := execute(pod, append([]string{"inject", "-f", "-"}, strings.Fields(tt.flags)...)...)
		if native := strings.Contains(stdout, "restartPolicy: Always"); status != 0 || stderr != "" || native != tt.native {
			t.Errorf("%s: %d, native %v, want %v: %s", tt.flags, status, native, tt.native, stderr)
		}
	}
	if status, _, stderr := execute(pod, "inject", "-f", "-", "--offline", "--kubelet-version", "new"); status != 2 || !strings.Contains(stderr, `flag --kubelet-version: "new": want a version of Kubernetes, such as v1.33.0`) {
		t.Errorf("%d: %s", status, stderr)
	}
	status, _, stderr := execute(pod, "inject", "-f", "-", "--kubeconfig", apiServer(t, map[string]string{"/api/v1/nodes": "{"}))
	if status != 0 || !strings.Contains(stderr, "the nodes count as older than Kubernetes 1.33 (--kubelet-version says otherwise): read the nodes: ") {
		t.Errorf("%d: %s", status, stderr)
	}
}
