package rundir

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestGenerationRemovesOnlyTheDead(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	configPath := filepath.Join(t.TempDir(), "made", "on", "demand")
	living, err := New(configPath, "living", log)
	if err != nil {
		t.Fatal(err)
	}
	dead, err := New(configPath, "dead", log)
	if err != nil {
		t.Fatal(err)
	}
	dead.lock.Close() // as the kernel does when a process is killed

	foreign := filepath.Join(configPath, "somebody-elses")
	fresh := filepath.Join(configPath, generationPrefix+"fresh") // made a moment ago, not locked yet
	old := filepath.Join(configPath, generationPrefix+"old")
	for _, dir := range []string{foreign, fresh, old} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	long := time.Now().Add(-2 * lockGrace)
	if err := os.Chtimes(old, long, long); err != nil {
		t.Fatal(err)
	}

	third, err := New(configPath, "third", log)
	if err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]bool{living.dir: true, dead.dir: false, foreign: true, fresh: true, old: false, third.dir: true} {
		_, err := os.Stat(dir)
		if got := err == nil; got != want {
			t.Errorf("%s exists: %v, want %v", filepath.Base(dir), got, want)
		}
	}
	if err := third.Remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(third.dir); err == nil {
		t.Error("remove left the directory")
	}
}

func TestGenerationRefusesLongPath(t *testing.T) {
	configPath := filepath.Join(t.TempDir(), strings.Repeat("x", 100))
	_, err := New(configPath, "long", slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "107") {
		t.Fatalf("error is %v, want one that names the limit of 107 bytes", err)
	}
}

func TestGenerationSocketIsPrivate(t *testing.T) {
	g, err := New(t.TempDir(), "one", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer g.Remove()
	l, err := g.ListenXDS()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for path, want := range map[string]os.FileMode{g.dir: 0o700, g.XDSSocket(): 0o600} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %v, want %v", path, got, want)
		}
	}
}

// TestGenerationPathsAreAbsolute: Istio's default for configPath is relative to the working directory.
func TestGenerationPathsAreAbsolute(t *testing.T) {
	t.Chdir(t.TempDir())
	g, err := New("./etc/istio/proxy", "one", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{g.HotRestartSockets(), g.AdminSocket(), g.XDSSocket(), g.BootstrapFile()} {
		if !filepath.IsAbs(path) {
			t.Errorf("%s is relative", path)
		}
	}
	if err := g.Remove(); err != nil {
		t.Fatal(err)
	}
}

// TestLinks: a link is the last generation's, and goes with it, but not with an earlier one.
func TestLinks(t *testing.T) {
	t.Chdir(t.TempDir())
	log := slog.New(slog.DiscardHandler)
	configPath := t.TempDir()
	links := []string{filepath.Join(configPath, "XDS"), "var/run/secrets/workload-spiffe-uds/socket"}
	if err := os.MkdirAll(filepath.Dir(links[1]), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(links[1], nil, 0o600); err != nil { // what a killed agent has left
		t.Fatal(err)
	}
	var dirs []*Dir
	for _, id := range []string{"first", "second"} {
		d, err := New(configPath, id, log)
		if err != nil {
			t.Fatal(err)
		}
		for _, socket := range []string{d.XDSSocket(), d.clientsSocket(), d.SDSSocket()} {
			if err := os.WriteFile(socket, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		link, socket := d.LinkXDS, d.XDSSocket()
		if id == "second" {
			link, socket = d.LinkClients, d.clientsSocket()
		}
		if err := errors.Join(link(), d.LinkSDS()); err != nil {
			t.Fatal(err)
		}
		for i, want := range []string{socket, d.SDSSocket()} {
			if target, err := filepath.EvalSymlinks(links[i]); err != nil || target != want {
				t.Errorf("%s: the link %s leads to %q, %v", id, links[i], target, err)
			}
		}
		dirs = append(dirs, d)
	}
	for i, want := range []bool{true, false} {
		if err := dirs[i].Remove(); err != nil {
			t.Fatal(err)
		}
		for _, link := range links {
			if _, err := os.Lstat(link); (err == nil) != want {
				t.Errorf("after generation %d has gone: %v", i, err)
			}
		}
	}
}
