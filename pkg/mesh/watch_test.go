package mesh

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// patience is how long a test waits for what should take 2 s at most, on a machine that is busy with other things.
const patience = 20 * time.Second

// running is a Source that runs, and the registries that it hands out.
type running struct {
	*Source
	t    *testing.T
	dir  string
	next chan *Registry
}

func run(t *testing.T, dir string) *running {
	t.Helper()
	s, err := NewSource(dir, testOptions(), slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Source: s, t: t, dir: dir, next: make(chan *Registry, 1000)}
	done := make(chan error)
	go func() { done <- s.Run(ctx, func(reg *Registry) { r.next <- reg }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		goleak.VerifyNone(t)
	})
	return r
}

// await waits for a registry with just these hosts.
func (r *running) await(hosts ...string) {
	r.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case reg := <-r.next:
			if strings.Join(reg.AutoHosts(), " ") == strings.Join(hosts, " ") {
				return
			}
		case <-deadline:
			r.t.Fatalf("no registry with %v after %v; report %+v", hosts, patience, r.Report())
		}
	}
}

func TestRunFiles(t *testing.T) {
	r := run(t, writeFiles(t, map[string]string{"x.yaml": se("a", "a.x", 1)}))
	writeFile(t, filepath.Join(r.dir, "y.yaml"), se("b", "b.x", 1))
	r.await("a.x", "b.x")
	// In place, as echo > does it.
	if err := os.WriteFile(filepath.Join(r.dir, "y.yaml"), []byte(se("b", "c.x", 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	r.await("a.x", "c.x")
	if err := os.Remove(filepath.Join(r.dir, "x.yaml")); err != nil {
		t.Fatal(err)
	}
	r.await("c.x")
}

// TestRunConfigMap replaces a directory's content the way the kubelet does: by renaming the link ..data.
func TestRunConfigMap(t *testing.T) {
	dir := t.TempDir()
	publish := func(version, text string) {
		t.Helper()
		if err := os.Mkdir(filepath.Join(dir, version), 0o755); err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(dir, version, "x.yaml"), text)
		if err := os.Symlink(version, filepath.Join(dir, "..data_tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	publish("..2026_01", se("a", "a.x", 1))
	if err := os.Symlink("..data/x.yaml", filepath.Join(dir, "x.yaml")); err != nil {
		t.Fatal(err)
	}
	r := run(t, dir)
	publish("..2026_02", se("a", "b.x", 1))
	r.await("b.x")
	if r.foreign() {
		t.Error("the links of a ConfigMap count as leading elsewhere")
	}
}

// TestRunForeignLink changes the target of a link, in a directory that nobody watches.
func TestRunForeignLink(t *testing.T) {
	target := filepath.Join(writeFiles(t, map[string]string{"x": se("a", "a.x", 1)}), "x")
	dir := t.TempDir()
	if err := os.Symlink(target, filepath.Join(dir, "x.yaml")); err != nil {
		t.Fatal(err)
	}
	r := run(t, dir)
	writeFile(t, target, se("a", "b.x", 1))
	r.await("b.x")
}

// TestRunDirectoryVanishes takes the directory away, which must change nothing, and brings it back.
func TestRunDirectoryVanishes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "config")
	create := func(text string) {
		t.Helper()
		staged := dir + ".new"
		if err := os.Mkdir(staged, 0o755); err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(staged, "x.yaml"), text)
		if err := os.Rename(staged, dir); err != nil {
			t.Fatal(err)
		}
	}
	create(se("a", "a.x", 1))
	r := run(t, dir)
	for i := range 2 {
		if err := os.Rename(dir, fmt.Sprintf("%s.old%d", dir, i)); err != nil {
			t.Fatal(err)
		}
		r.awaitProblem(true)
		if rep := r.Report(); rep.Services != i+1 || rep.Documents[0].Status != statusOK {
			t.Errorf("without the directory: %+v", rep)
		}
		create(se("a", fmt.Sprintf("b%d.x", i), 1))
		r.await(fmt.Sprintf("b%d.x", i))
		r.awaitProblem(false)
		// The watch is on the new directory.
		writeFile(t, filepath.Join(dir, "y.yaml"), se("z", "z.x", 1))
		r.await(fmt.Sprintf("b%d.x", i), "z.x")
	}
}

func (r *running) awaitProblem(want bool) {
	r.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for (r.Report().Problem != "") != want {
		select {
		case <-tick.C:
		case <-deadline:
			r.t.Fatalf("report of a problem is not %v after %v", want, patience)
		}
	}
}

// TestRunManyChanges makes 100 changes and wants no descriptor more than before.
func TestRunManyChanges(t *testing.T) {
	r := run(t, writeFiles(t, map[string]string{"x.yaml": se("a", "a.x", 1)}))
	writeFile(t, filepath.Join(r.dir, "x.yaml"), se("a", "first.x", 1))
	r.await("first.x")
	before := descriptors(t)
	for i := range 100 {
		writeFile(t, filepath.Join(r.dir, "x.yaml"), se("a", fmt.Sprintf("h%d.x", i), 1))
	}
	r.await("h99.x")
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
