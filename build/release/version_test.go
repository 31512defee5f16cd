package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestVersion(t *testing.T) {
	for _, good := range []string{"v1.2.3", "v0.1.0", "v1.3.0-rc.1", "v10.20.30"} {
		if err := checkVersion(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "1.2.3", "v1.2", "v1", "v01.2.3", "v1.2.3+build", "v1.2.3-", "latest", "v1.2.3/../../etc", "v1.2.3 ", "V1.2.3"} {
		if err := checkVersion(bad); err == nil || !strings.Contains(err.Error(), "such as v1.2.3") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// repository makes a repository with one commit that has the files.
func newRepository(t *testing.T, files map[string]string) (root string, git func(...string)) {
	t.Helper()
	root = t.TempDir()
	git = func(arguments ...string) {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-C", root, "-c", "user.name=test", "-c", "user.email=test@example.com"}, arguments...)...)
		cmd.Env = append(os.Environ(), "GIT_COMMITTER_DATE=2026-11-28T12:00:00+01:00", "GIT_AUTHOR_DATE=2026-11-28T12:00:00+01:00")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", cmd, err, out)
		}
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	git("init", "-q")
	git("add", ".")
	git("commit", "-q", "-m", "first")
	return root, git
}

func TestTree(t *testing.T) {
	root, git := newRepository(t, map[string]string{"a": "1", ".gitignore": "/bin/\n"})
	made, err := checkTree(t.Context(), root, "v1.2.3")
	if err != nil || len(made.hash) != 40 || !made.time.Equal(time.Date(2026, 11, 28, 11, 0, 0, 0, time.UTC)) {
		t.Fatalf("%+v, %v", made, err)
	}
	git("tag", "-a", "-m", "release", "v1.2.3")
	git("tag", "v1.2.4")
	for _, version := range []string{"v1.2.3", "v1.2.4"} {
		if again, err := checkTree(t.Context(), root, version); err != nil || again != made {
			t.Errorf("the commit has the tag %s: %+v, %v", version, again, err)
		}
	}
	git("commit", "-q", "--allow-empty", "-m", "second")
	for _, version := range []string{"v1.2.3", "v1.2.4"} {
		if _, err := checkTree(t.Context(), root, version); err == nil || !strings.Contains(err.Error(), made.hash[:12]) {
			t.Errorf("another commit has the tag %s: %v", version, err)
		}
	}
	for _, name := range []string{"a", "new"} {
		if err := os.WriteFile(filepath.Join(root, name), []byte("2"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := checkTree(t.Context(), root, "v1.2.5"); err == nil || !strings.Contains(err.Error(), "changes that are in no commit") || !strings.Contains(err.Error(), " "+name) {
			t.Errorf("%s is changed: %v", name, err)
		}
		git("add", ".")
		git("commit", "-q", "-m", "third")
	}
	if _, err := checkTree(t.Context(), t.TempDir(), "v1.2.3"); err == nil || !strings.Contains(err.Error(), "not a git repository") {
		t.Errorf("no repository: %v", err)
	}
}
