package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

// TestMain keeps the commands from asking the cluster of whoever runs the tests.
func TestMain(m *testing.M) {
	_ = os.Setenv("KUBECONFIG", "/nonexistent")
	_ = os.Unsetenv("KUBERNETES_SERVICE_HOST")
	os.Exit(m.Run())
}

func TestRun(t *testing.T) {
	tests := []struct {
		args   string
		status int
		stdout string
		stderr string
	}{
		{"version", 0, "client version: " + version + "\n", ""},
		{"--help", 0, "sidecar-injector [command]", ""},
		{"serve --tls-key-file key", 2, "", "--tls-cert-file"},
		{"serve --kubeconfig /nonexistent", 1, "", "/nonexistent"},
		{"serve --log_output_level loud", 2, "", "loud"},
		{"inject -f /nowhere.yaml", 1, "", "/nowhere.yaml"},
		{"explain", 2, "", "flag -f: give a file"},
		{"explain -f -", 1, "", "there is no workload in it"},
		{"explain -f missing.yaml", 1, "", "missing.yaml"},
		{"explain -f - -o yaml", 2, "", `flag -o: "yaml": give json`},
		{"explain -f - --expect yes", 2, "", `flag --expect: "yes": give inject or skip`},
		{"sidecarset -n ns --offline", 1, "", "hotUpgrade.emptyImage is empty"},
		{"restart -n ns --dry-run --kubeconfig /nonexistent", 1, "", "/nonexistent"},
		{"restart", 2, "", "flag -n: give the namespace"},
		{"restart -n ns --workloads 0", 2, "", "flag --workloads: 0: give 1 or more"},
		{"restart -n ns --timeout 0s", 2, "", "flag --timeout: 0s: give a duration"},
		{"restart -n ns --kubelet-version new", 2, "", `flag --kubelet-version: "new": want a version of Kubernetes`},
		{"upgrader --log_output_level loud", 2, "", "loud"},
		{"upgrader --kubeconfig /nonexistent", 1, "", "/nonexistent"},
		{"upgrade", 2, "", "flag -n: give the namespace"},
		{"upgrade -n understudy-system", 2, "", "the injector's own namespace"},
		{"upgrade -n shop --undo --pause", 2, "", "give one of them"},
		{"upgrade -n shop --undo --image x", 2, "", "are not for --pause"},
		{"upgrade -n shop --max-unavailable 2.5%", 2, "", `flag --max-unavailable: "2.5%": want`},
		{"upgrade -n shop --max-failures 0", 2, "", "flag --max-failures: 0: want"},
		{"upgrade -n shop --canary 1,x", 2, "", `flag --canary: "x": want`},
		{"upgrade -n shop --bake -1s", 2, "", "flag --bake: -1s: want"},
		{"upgrade -n shop -l a==b==c", 2, "", `flag -l: "a==b==c": `},
		{"upgrade -n shop -o yaml", 2, "", `flag -o: "yaml": give json`},
		{"upgrade -n shop", 1, "", "reach the API server"},
		{"upgrade -n shop --kubeconfig /nonexistent", 1, "", "/nonexistent"},
		{"", 2, "", "a command is required"},
		{"bogus", 2, "", `unknown command "bogus"`},
		{"version extra", 2, "", "extra"},
		{"version --bogus", 2, "", "--bogus"},
	}
	for _, tt := range tests {
		var stdout, stderr bytes.Buffer
		status := run(strings.Fields(tt.args), strings.NewReader(""), &stdout, &stderr)
		if status != tt.status || !strings.Contains(stdout.String(), tt.stdout) || !strings.Contains(stderr.String(), tt.stderr) {
			t.Errorf("%q: %d, %q, %q", tt.args, status, stdout.String(), stderr.String())
		}
		if status != 0 && (stdout.Len() > 0 || strings.Count(stderr.String(), "\n") != 1) {
			t.Errorf("%q: want one line on stderr and nothing on stdout: %q, %q", tt.args, stderr.String(), stdout.String())
		}
	}
}
