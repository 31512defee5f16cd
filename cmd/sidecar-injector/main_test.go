package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	tests := []struct {
		args   string
		status int
		stdout string
		stderr string
	}{
		{"version", 0, "client version: " + version + "\n", ""},
		{"--help", 0, "sidecar-injector [command]", ""},
		{"serve", 1, "", "serve: not in this release"},
		{"inject -f pod.yaml", 1, "", "inject: not in this release"},
		{"explain -f -", 1, "", "explain: not in this release"},
		{"sidecarset -n ns", 1, "", "sidecarset: not in this release"},
		{"restart -n ns --dry-run", 1, "", "restart: not in this release"},
		{"", 2, "", "a command is required"},
		{"bogus", 2, "", `unknown command "bogus"`},
		{"version extra", 2, "", "extra"},
		{"version --bogus", 2, "", "--bogus"},
	}
	for _, tt := range tests {
		var stdout, stderr bytes.Buffer
		status := run(strings.Fields(tt.args), &stdout, &stderr)
		if status != tt.status || !strings.Contains(stdout.String(), tt.stdout) || !strings.Contains(stderr.String(), tt.stderr) {
			t.Errorf("%q: %d, %q, %q", tt.args, status, stdout.String(), stderr.String())
		}
		if status != 0 && (stdout.Len() > 0 || strings.Count(stderr.String(), "\n") != 1) {
			t.Errorf("%q: want one line on stderr and nothing on stdout: %q, %q", tt.args, stderr.String(), stdout.String())
		}
	}
}
