package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// versionsPod is a running pod of the shop as its API server has it.
func versionsPod(name, annotations, containers string) string {
	return fmt.Sprintf(`{"metadata": {"name": %q, "namespace": "shop", "annotations": {%s}}, "spec": {"containers": [{"name": "app"}, %s]},
		"status": {"phase": "Running", "containerStatuses": [{"name": "istio-proxy", "imageID": "r/proxy@sha256:%s"}, {"name": "istio-proxy-2", "imageID": "r/proxy@sha256:%s"}]}}`,
		name, annotations, containers, strings.Repeat("a", 64), strings.Repeat("b", 64))
}

func versionsServer(t *testing.T) string {
	const one, two = `{"name": "istio-proxy", "image": "proxy:v1"}`, `{"name": "istio-proxy", "image": "empty"}, {"name": "istio-proxy-2", "image": "proxy:v2", "args": ["proxy", "--statusPort", "15021"]}`
	pods := []string{
		versionsPod("classic", "", one),
		versionsPod("hot", `"version.understudy.mesh/istio-proxy": "0", "version.understudy.mesh/istio-proxy-2": "2"`, two),
		versionsPod("istio", "", one),
		versionsPod("hostile", "", one),
		versionsPod("dev", "", one),
		`{"metadata": {"name": "pending", "namespace": "shop"}, "spec": {"containers": [` + one + `]}, "status": {"phase": "Pending"}}`,
		`{"metadata": {"name": "plain", "namespace": "shop"}, "spec": {"containers": [{"name": "app"}]}, "status": {"phase": "Running"}}`,
	}
	proxied := func(pod string) string { return "/api/v1/namespaces/shop/pods/" + pod + "/proxy/upgrade" }
	list := `{"items": [` + strings.Join(pods, ",") + `]}`
	return apiServer(t, map[string]string{
		"/api/v1/pods": list, "/api/v1/namespaces/shop/pods": list,
		proxied("classic:15020"): `{"off": "no directory", "generations": [{"id": "a", "self": true, "role": "serving", "agent": "v1.2.2", "envoy": "1.40.0"}]}`,
		proxied("hot:15021"): `{"generations": [{"id": "a", "self": true, "role": "serving", "agent": "v1.2.3", "envoy": "1.40.1"},
			{"id": "b", "role": "draining", "agent": "v1.2.2", "envoy": "1.40.0"}, {"id": "c", "role": "standby", "agent": "v0.0.1", "envoy": "1.0.0"}]}`,
		proxied("hostile:15020"): `{"generations": [{"role": "serving", "agent": "v9.9.9\u001b[2J", "envoy": "1.40.1"}]}`,
		proxied("dev:15020"):     `{"generations": [{"role": "serving", "agent": "1294a2c", "envoy": "1.40.1"}]}`,
	})
}

func TestVersions(t *testing.T) {
	kubeconfig := versionsServer(t)
	status, stdout, stderr := execute("", "versions", "-A", "--kubeconfig", kubeconfig)
	if status != 0 || stderr != "" {
		t.Fatalf("%d: %s", status, stderr)
	}
	for _, want := range []string{
		"PODS|ROLE|AGENT|ENVOY|IMAGE|DIGEST",
		"1|serving|v1.2.2|1.40.0|proxy:v1|sha256:" + strings.Repeat("a", 64),
		"1|serving|v1.2.3|1.40.1|proxy:v2|sha256:" + strings.Repeat("b", 64),
		"1|draining|v1.2.2|1.40.0|-|-",
		"shop/istio: no answer", "shop/pending: the pod is Pending", "v9.9.9?[2J",
	} {
		if !strings.Contains(squeezed(stdout), want) && !strings.Contains(stdout, want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
	for _, not := range []string{"standby", "v0.0.1", "plain", "\x1b"} {
		if strings.Contains(stdout, not) {
			t.Errorf("%q in\n%s", not, stdout)
		}
	}
}

// TestVersionsBelow: whatever cannot be shown to be high enough is named.
func TestVersionsBelow(t *testing.T) {
	kubeconfig := versionsServer(t)
	status, stdout, stderr := execute("", "versions", "-n", "shop", "--below", "v1.2.3", "--envoy-below", "1.40.0", "--kubeconfig", kubeconfig)
	if status != 1 || !strings.Contains(stderr, "5 of 7 are below, or not known") {
		t.Errorf("%d: %s", status, stderr)
	}
	for _, want := range []string{"shop/classic: agent v1.2.2\n", "shop/hot: agent v1.2.2 (draining)\n", "shop/istio: not known: no answer\n", "shop/pending: not known: the pod is Pending\n", `shop/dev: agent "1294a2c" is no release`} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
	status, stdout, _ = execute("", "versions", "-n", "shop", "--envoy-below", "v1.40.1", "-o", "json", "--kubeconfig", kubeconfig)
	var all struct {
		Generations []struct{ Pod, Role, Agent, Below, Digest string }
	}
	if err := json.Unmarshal([]byte(stdout), &all); err != nil || status != 1 || len(all.Generations) != 7 {
		t.Fatalf("%d, %v: %s", status, err, stdout)
	}
	if g := all.Generations[0]; g.Pod != "classic" || g.Below != "Envoy 1.40.0" || !strings.HasPrefix(g.Digest, "sha256:a") {
		t.Errorf("%+v", g)
	}
	if status, stdout, _ := execute("", "versions", "-n", "none", "--below", "v1.0.0", "--kubeconfig", kubeconfig); status != 0 || stdout != "no pod has a sidecar\n" {
		t.Errorf("%d: %s", status, stdout)
	}
}

// TestVersionsDirectly asks pods at their addresses, follows none elsewhere, and reads no more of an answer than it may be.
func TestVersionsDirectly(t *testing.T) {
	agent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, `{"generations": [{"role": "serving", "agent": "v1.2.3", "envoy": "1.40.1"}]}`)
	}))
	defer agent.Close()
	elsewhere := httptest.NewServer(http.RedirectHandler(agent.URL+"/upgrade", http.StatusFound))
	defer elsewhere.Close()
	endless := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(make([]byte, 2<<20)) }))
	defer endless.Close()
	var pods []string
	for name, server := range map[string]*httptest.Server{"right": agent, "elsewhere": elsewhere, "endless": endless} {
		host, port, _ := net.SplitHostPort(strings.TrimPrefix(server.URL, "http://"))
		pods = append(pods, fmt.Sprintf(`{"metadata": {"name": %q, "namespace": "shop"}, "spec": {"containers": [{"name": "istio-proxy", "args": ["--statusPort=%s"]}]}, "status": {"phase": "Running", "podIP": %q}}`, name, port, host))
	}
	kubeconfig := apiServer(t, map[string]string{"/api/v1/pods": `{"items": [` + strings.Join(pods, ",") + `]}`})
	status, stdout, stderr := execute("", "versions", "-A", "--direct", "--below", "v1.2.3", "--kubeconfig", kubeconfig)
	if status != 1 || !strings.Contains(stderr, "2 of 3 are below, or not known") {
		t.Errorf("%d: %s", status, stderr)
	}
	for _, want := range []string{"shop/elsewhere: not known: it answers 302 Found\n", "shop/endless: not known: its answer has more than 1048576 bytes\n"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
}

func TestVersionsUsage(t *testing.T) {
	for args, want := range map[string]string{
		"": "flag -n or -A", "-A -n shop": "give one of them", "-A --below new": `flag --below: "new": want a version, such as v1.2.3`,
		"-A --envoy-below 1.40": `flag --envoy-below: "1.40"`, "-A -o yaml": `flag -o: "yaml": give json`,
	} {
		if status, _, stderr := execute("", append([]string{"versions"}, strings.Fields(args)...)...); status != 2 || !strings.Contains(stderr, want) {
			t.Errorf("%s: %d: %s", args, status, stderr)
		}
	}
}
