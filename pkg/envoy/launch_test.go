package envoy

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	hotenvoy "understudy.mesh/hotrestart/envoy"
)

// script writes an executable shell script, and returns its path.
func script(t *testing.T, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "envoy")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestRecheck: what an Envoy that ended early is asked, and whether the next start differs.
func TestRecheck(t *testing.T) {
	for name, tc := range map[string]struct {
		binary     string
		differs    bool
		off        string // part of why hot restart is off; "" while it is on
		versionNow hotenvoy.Version
	}{
		"the usual version":   {"echo " + usualVersion.String(), false, "", usualVersion},
		"another version":     {"echo 11.200", true, "", hotenvoy.Version{Version: 11, Size: 200}},
		"built without":       {"echo disabled", true, "disabled", usualVersion},
		"broken":              {"exit 7", true, "7", usualVersion},
		"of an unusable size": {"echo 11.1", true, "11.1", usualVersion},
	} {
		l := &launcher{version: usualVersion, cfg: Config{Binary: script(t, tc.binary), Log: quiet()}}
		if got := l.recheck(t.Context()); got != tc.differs {
			t.Errorf("%s: the next start differs: %v, want %v", name, got, tc.differs)
		}
		off := ""
		if err := l.disabled(); err != nil {
			off = err.Error()
		}
		if (off == "") != (tc.off == "") || !strings.Contains(off, tc.off) {
			t.Errorf("%s: off because %q, want %q", name, off, tc.off)
		}
		if l.currentVersion() != tc.versionNow {
			t.Errorf("%s: version %s, want %s", name, l.currentVersion(), tc.versionNow)
		}
		if l.disabled() != nil && l.recheck(t.Context()) {
			t.Errorf("%s: it is asked again", name)
		}
	}
}

// TestRecheckAtTheEnd: a stop says nothing about the binary.
func TestRecheckAtTheEnd(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	l := &launcher{version: usualVersion, cfg: Config{Binary: script(t, "exec sleep 100"), Log: quiet()}}
	if l.recheck(ended) || l.disabled() != nil {
		t.Errorf("off because %v, though nobody could be asked", l.disabled())
	}
}

// plain is a launcher whose Envoys only wait, and write down their arguments.
func plain(t *testing.T, path string) (*launcher, string) {
	args := filepath.Join(t.TempDir(), "args")
	binary := script(t, "echo \"$@\" >>"+args+"\nexec sleep 1000")
	return &launcher{
		version: usualVersion, cfg: Config{Binary: binary, Path: path, Log: quiet(), StartTime: time.Now(),
			Sockets: func(string, uint32) (int, bool) { return -1, false }, Accepts: func() {},
			Command: func(hotRestart []string) Command {
				if hotRestart == nil {
					hotRestart = []string{"plain"}
				}
				return Command{Path: binary, Args: hotRestart}
			}},
	}, args
}

// shortDir is a directory whose path leaves room for the sockets in it, which t.TempDir's may not.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "envoy")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestLaunchWithoutHotRestart(t *testing.T) {
	l, args := plain(t, filepath.Join(shortDir(t), strings.Repeat("x", 100))) // no room for the sockets' names
	forsaken := 0
	l.cfg.DropSockets = func() { forsaken++ }
	i, err := l.start()
	if err != nil {
		t.Fatal(err)
	}
	if i.child != nil || l.disabled() == nil || forsaken != 1 {
		t.Errorf("child %v, off because %v, held sockets were forsaken %d times", i.child, l.disabled(), forsaken)
	}
	waitFor(t, "Envoy to run", func() bool { b, _ := os.ReadFile(args); return string(b) == "plain\n" })
	if _, err := i.Fetch(t.Context()); !errors.Is(err, ErrNoHotRestart) {
		t.Errorf("fetch: %v", err)
	}
	i.kill()
	<-i.cleared

	l.cfg.Inherits = func() bool { return true }
	l.off = nil
	if _, err := l.start(); !errors.Is(err, ErrNoHotRestart) || Hopeless(err) || forsaken != 1 { // there may be room another time
		t.Errorf("start beside a generation that serves: %v", err)
	}
}

func TestLaunchLeavesNothingBehind(t *testing.T) {
	dir := shortDir(t)
	l, args := plain(t, filepath.Join(dir, "hr"))
	for range 2 {
		i, err := l.start()
		if err != nil {
			t.Fatal(err)
		}
		if i.child == nil {
			t.Fatalf("it takes no part in hot restarts: %v", l.disabled())
		}
		waitFor(t, "Envoy to run", func() bool { b, _ := os.ReadFile(args); return strings.Contains(string(b), "--base-id") })
		i.kill()
		<-i.cleared
	}
	l.cfg.Command = func([]string) Command { return Command{Path: "/nonexistent/envoy"} }
	if _, err := l.start(); err == nil {
		t.Error("a binary that is not there was started")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v, %v; want nothing to be left", left, err)
	}
}
