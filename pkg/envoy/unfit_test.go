package envoy

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// besideAnother is a supervisor that has the sockets of a generation that may still serve; started notes its Envoys.
func besideAnother(t *testing.T, binary, started string) *Supervisor {
	t.Helper()
	s := newSupervisor(newStatsAdmin(t, ""), "/usr/bin/touch", started)
	s.launcher.off = nil
	s.launcher.cfg.Binary = binary
	s.launcher.cfg.Inherits = func() bool { return true }
	return s
}

// TestHopeless: which binaries will never do beside another Envoy, and that none of theirs is started there.
func TestHopeless(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, tc := range map[string]struct {
		binary   string
		hopeless bool
		reason   string
	}{
		"missing":           {filepath.Join(dir, "none"), true, "there is no such file"},
		"below a file":      {filepath.Join(file("file", "", 0o755), "envoy"), true, "not a directory"},
		"a directory":       {dir, true, "it is a directory"},
		"not executable":    {file("mode", "#!/bin/sh\n", 0o644), true, "it may not be executed"},
		"no program":        {file("text", "x\n", 0o755), true, "check its architecture"},
		"without hot start": {script(t, "echo disabled"), true, "is hot restart compiled in?"},
		"another version":   {script(t, "echo 10.104"), true, "only version 11"},
		"that fails":        {script(t, "exit 9"), true, "exit status 9"},
		"that is killed":    {script(t, "kill -9 $$"), false, "signal: killed"},
		"that hangs":        {script(t, "exec sleep 1000"), false, "deadline exceeded"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			if tc.reason == "deadline exceeded" {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, 100*time.Millisecond)
				defer cancel()
			}
			started := filepath.Join(t.TempDir(), "started")
			err := besideAnother(t, tc.binary, started).Run(ctx)
			if err == nil || Hopeless(err) != tc.hopeless || !strings.Contains(err.Error(), tc.reason) {
				t.Errorf("hopeless: %v, want %v, because of %q: %v", Hopeless(err), tc.hopeless, tc.reason, err)
			}
			if _, err := os.Stat(started); err == nil {
				t.Error("an Envoy was started")
			}
		})
	}
}

// TestWhatIsHopeless: errors of a start, and of what the agent prepares for it.
func TestWhatIsHopeless(t *testing.T) {
	for err, want := range map[error]bool{
		startError("/x", syscall.ENOEXEC): true, startError("/x", syscall.EACCES): true, startError("/x", syscall.ENOENT): true,
		startError("/x", syscall.EAGAIN): false, startError("/x", syscall.ENOMEM): false, startError("/x", syscall.EMFILE): false,
		startError("/x", syscall.ETXTBSY): false, startError("/x", syscall.EIO): false,
		&ExitError{Status: 3}: true, ErrNoHotRestart: false, errors.New("x"): false, nil: false,
	} {
		if got := Hopeless(err); got != want {
			t.Errorf("%v: hopeless %v, want %v", err, got, want)
		}
	}
}

// TestVersionIsAskedBesideAnother: a version that is not the usual one is known before the first start, and not only
// after a death.
func TestVersionIsAskedBesideAnother(t *testing.T) {
	s := besideAnother(t, script(t, "echo 11.200"), "")
	if err := s.launcher.fit(t.Context()); err != nil || s.HotRestartVersion() != "11.200" {
		t.Errorf("%v, version %s", err, s.HotRestartVersion())
	}
	s = besideAnother(t, "/nonexistent", "")
	s.launcher.cfg.Inherits = func() bool { return false }
	if err := s.launcher.fit(t.Context()); err != nil {
		t.Errorf("with nobody else there: %v", err)
	}
}
