package pods

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"understudy.mesh/pkg/contract"
	"understudy.mesh/tests/cluster"
)

// mustShow looks at a pod as people and programs do from elsewhere: `status` by kubectl exec, the page by kubectl port-forward, and
// what everybody is told by way of the API server.
func mustShow(t *testing.T, ns *cluster.Namespace, pod, container string, words ...string) {
	t.Helper()
	out := ns.Exec(t, pod, container, "pilot-agent", "status")
	page := portForwarded(t, ns, pod, "/debug/")
	for _, word := range append(words, ": serving, ready") {
		if !strings.Contains(out, word) {
			t.Errorf("pilot-agent status in %s lacks %q:\n%s", pod, word, out)
		}
		if !strings.Contains(page, word) {
			t.Errorf("/debug/ of %s lacks %q:\n%s", pod, word, page)
		}
	}
	var told contract.UpgradeStatus
	raw := ns.Kubectl(t, "get", "--raw", fmt.Sprintf("/api/v1/namespaces/%s/pods/%s:%d/proxy%s", ns.Name, pod, contract.StatusPort, contract.UpgradePath))
	if err := json.Unmarshal([]byte(raw), &told); err != nil || len(told.Generations) == 0 || told.Generations[0].Role != "serving" || told.Generations[0].EnvoyVersion == "" {
		t.Errorf("what everybody is told of %s: %v: %s", pod, err, raw)
	}
}

// portForwarded is a page of a pod's status port, as a browser gets it through kubectl port-forward.
func portForwarded(t *testing.T, ns *cluster.Namespace, pod, path string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	argv, environ, err := shared.KubectlArguments("port-forward", "-n", ns.Name, "pod/"+pod, fmt.Sprintf(":%d", contract.StatusPort))
	if err != nil {
		t.Fatal(err)
	}
	forward := exec.CommandContext(ctx, argv[0], argv[1:]...)
	forward.Env = environ
	stdout, err := forward.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := forward.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); _ = forward.Wait() }() // it was killed
	said, err := bufio.NewReader(stdout).ReadString('\n')
	port := regexp.MustCompile(`^Forwarding from 127\.0\.0\.1:(\d+) `).FindStringSubmatch(said)
	if err != nil || port == nil {
		t.Fatalf("kubectl port-forward: %q, %v", said, err)
	}
	curl, err := shared.Administer(ctx, "curl", "-sSf", "http://localhost:"+port[1]+path)
	if err != nil {
		t.Fatal(err)
	}
	out, err := curl.CombinedOutput()
	if err != nil {
		t.Fatalf("%s through kubectl port-forward: %v: %s", path, err, out)
	}
	return string(out)
}
