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
