package build

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy.mesh/tests/lab"
)

// TestProjects wants of each project a go.mod that names the version.
func TestProjects(t *testing.T) {
	b := Builder{Root: lab.RepoRoot(t)}
	keys := map[string]string{}
	for _, p := range append(Projects(), Istiod(), IstioAgent(), IstioCNI()) {
		version, key, err := b.identify(p)
		if err != nil {
			t.Errorf("%s: %v", p.Name, err)
			continue
		}
		if !strings.HasPrefix(version, "v") || len(key) != 12 || keys[key] != "" {
			t.Errorf("%s: version %q, key %q", p.Name, version, key)
		}
		keys[key] = p.Name
	}
}

// checkout is a repository with one project, whose program is the source.
func checkout(t *testing.T, source string) (Builder, Project, *[]string) {
	t.Helper()
	root := t.TempDir()
	dir := filepath.Join(root, Modules, "p")
	for name, text := range map[string]string{
		"go.mod": "module example.test/p\n\ngo 1.26.0\n\nrequire example.test/v v1.2.3\n\nreplace example.test/v => ./v\n", "go.sum": "",
		"v/go.mod": "module example.test/v\n\ngo 1.26.0\n", "v/v.go": "package v\n",
		"cmd/hello/main.go": source,
	} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	said := new([]string)
	b := Builder{Root: root, Cache: filepath.Join(root, "cache"), Say: func(line string) { *said = append(*said, line) }}
	return b, Project{Name: "p", module: "example.test/v", packages: []string{"example.test/p/cmd/hello"}, Binaries: []string{"hello"}, Long: time.Minute}, said
}

const hello = "package main\n\nimport _ \"example.test/v\"\n\nfunc main() { println(\"hello\") }\n"

// TestBuiltOnce builds, finds it built, and builds anew what is of another make or incomplete.
func TestBuiltOnce(t *testing.T) {
	b, p, said := checkout(t, hello)
	build := func() string {
		t.Helper()
		dir, err := b.Build(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		return dir
	}
	first := build()
	if len(*said) != 1 || !strings.Contains((*said)[0], "p v1.2.3") {
		t.Errorf("said %q", *said)
	}
	if info, err := os.Stat(filepath.Join(first, "hello")); err != nil || info.Mode()&0o111 == 0 {
		t.Errorf("the program: %v, %v", info, err)
	}
	if again := build(); again != first || len(*said) != 1 {
		t.Errorf("again: %s after %s, said %q", again, first, *said)
	}
	p.tags = "other"
	if other := build(); other == first || len(*said) != 2 {
		t.Errorf("other tags: %s after %s", other, first)
	}
	p.tags = ""
	if err := os.Remove(filepath.Join(first, "hello")); err != nil {
		t.Fatal(err)
	}
	if again := build(); again != first || len(*said) != 3 {
		t.Errorf("incomplete: %s, said %q", again, *said)
	}
}

// TestRelativeCache builds into a cache that is named from the working directory, as make names it; go build has another one.
func TestRelativeCache(t *testing.T) {
	b, p, _ := checkout(t, hello)
	t.Chdir(b.Root)
	b.Root, b.Cache = ".", "cache"
	dir, err := b.Build(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	if !isComplete(dir, p) {
		t.Errorf("no program in %s", dir)
	}
}

// TestBuildFails wants the compiler's words, and nothing in the cache.
func TestBuildFails(t *testing.T) {
	b, p, _ := checkout(t, "package main\n\nfunc main() { undefinedName() }\n")
	_, err := b.Build(t.Context(), p)
	if err == nil || !strings.Contains(err.Error(), "undefinedName") || !strings.Contains(err.Error(), "build p v1.2.3") {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Build(ctx, p); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(b.Cache, "*")); len(left) != 1 || !strings.HasSuffix(left[0], ".lock") {
		t.Errorf("left in the cache: %q", left)
	}
	p.module = "example.test/none"
	if _, err := b.Build(t.Context(), p); err == nil || !strings.Contains(err.Error(), "example.test/none") {
		t.Errorf("a project without a version: %v", err)
	}
}

// TestLink puts programs in the place of older ones that may be running.
func TestLink(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(from, "a"), []byte("new"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, put := range map[string]func(string, string, ...string) error{"link": Link, "copy": Copy} {
		if err := os.WriteFile(filepath.Join(to, "a"), []byte("old"), 0o755); err != nil {
			t.Fatal(err)
		}
		running, err := os.Open(filepath.Join(to, "a"))
		if err != nil {
			t.Fatal(err)
		}
		if err := put(from, to, "a"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		old := make([]byte, 3)
		if _, err := running.Read(old); err != nil || string(old) != "old" {
			t.Errorf("%s: the running one became %q, %v", name, old, err)
		}
		_ = running.Close()
		if text, err := os.ReadFile(filepath.Join(to, "a")); err != nil || string(text) != "new" {
			t.Errorf("%s: %q, %v", name, text, err)
		}
		if err := os.Remove(filepath.Join(to, "a")); err != nil {
			t.Fatal(err)
		}
	}
	if err := Link(from, to, "none"); err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("a program that is not there: %v", err)
	}
}
