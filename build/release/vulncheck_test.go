package main

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestVulncheck asks databases of our own about a package, in one of which a function that it calls is vulnerable.
func TestVulncheck(t *testing.T) {
	for _, tc := range []struct {
		db, words string
		exit      int
	}{
		{"vulndb", "unixsock.Peer calls unix.GetsockoptUcred", 3},
		{"novulns", "No vulnerabilities found", 0},
		{"none", "give a copy of it, VULNDB=file:///DIR", 75},
	} {
		t.Run(tc.db, func(t *testing.T) {
			dir, err := filepath.Abs(filepath.Join("testdata", tc.db))
			if err != nil {
				t.Fatal(err)
			}
			t.Setenv("VULNDB", "file://"+dir)
			cmd := exec.Command("../vulncheck.sh", "./internal/unixsock")
			out, _ := cmd.CombinedOutput()
			if got := cmd.ProcessState.ExitCode(); got != tc.exit || !strings.Contains(string(out), tc.words) {
				t.Errorf("exit status %d, want %d with %q:\n%s", got, tc.exit, tc.words, out)
			}
		})
	}
}
