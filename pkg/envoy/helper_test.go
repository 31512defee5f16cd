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

	"understudy.mesh/tests/realenvoy"
)

const littleMemory = 1 << 20

// scripted is a helper whose Envoy is a shell script.
func scripted(t *testing.T, script string) *Helper {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "envoy")
	if err := os.WriteFile(binary, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	h := NewHelper(HelperConfig{Binary: binary, Dir: filepath.Join(t.TempDir(), "to", "make")})
	h.free = func() (int64, bool) { return 0, false }
	return h
}

func TestHelperValidates(t *testing.T) {
	h := NewHelper(HelperConfig{Binary: realenvoy.Path(t, root), Dir: t.TempDir()})
	h.timeout = 5 * time.Minute // the machine may be busy
	refused, skipped, err := h.Validate(t.Context(), []byte(`{"node":{"id":"a","cluster":"b"}}`), littleMemory)
	if err != nil || skipped != "" || refused != "" {
		t.Errorf("%q, %q, %v", refused, skipped, err)
	}
	refused, _, err = h.Validate(t.Context(), []byte(`{"nonsense":1}`), littleMemory)
	if err != nil || !strings.Contains(refused, "nonsense") || strings.Contains(refused, h.cfg.Dir) {
		t.Errorf("%q, %v", refused, err)
	}
	if left, err := os.ReadDir(h.cfg.Dir); err != nil || len(left) > 0 {
		t.Errorf("it has left %v (%v)", left, err)
	}
	version, err := h.Version(t.Context())
	if err != nil || len(strings.Split(version, "/")) != 5 {
		t.Errorf("%q, %v", version, err)
	}
}

// TestHelperYields: it gets the lowest priority and is the kernel's first victim, and whoever runs it is not.
func TestHelperYields(t *testing.T) {
	h := scripted(t, `until grep -qx 1000 /proc/$$/oom_score_adj && [ "$(cut -d' ' -f19 /proc/$$/stat)" = 19 ]; do :; done`)
	if refused, _, err := h.Validate(t.Context(), nil, littleMemory); err != nil || refused != "" {
		t.Fatal(refused, err)
	}
	if own, err := syscall.Getpriority(syscall.PRIO_PROCESS, 0); err != nil || own == 1 { // the system call's 20 less the priority
		t.Errorf("the priority of the test itself: %d, %v", own, err)
	}
}

func TestHelperSaysWhatItFound(t *testing.T) {
	for _, tc := range []struct{ script, want string }{
		{`printf 'one\ntwo\n\n3\n4\n5\n6\n7\n8\n9\n' >&2; exit 1`, "two; 3; 4; 5; 6; 7; 8; 9"},
		{`exit 3`, "exit status 3"},
		{`echo working; kill -SEGV $$`, "working; Envoy ended by signal segmentation fault"},
		{`i=0; while [ $i -lt 2000 ]; do echo 0123456789012345; i=$((i+1)); done; echo end; exit 1`, "0123456789012345; end"},
	} {
		refused, _, err := scripted(t, tc.script).Validate(t.Context(), nil, littleMemory)
		if err != nil || !strings.HasSuffix(refused, tc.want) {
			t.Errorf("%s: %q, %v; want %q", tc.script, refused, err, tc.want)
		}
	}
}

func TestHelperEndsWhatDoesNotEnd(t *testing.T) {
	h := scripted(t, `while :; do :; done`)
	h.timeout = 100 * time.Millisecond
	h.work = 0 // whatever the machine has left for it
	refused, _, err := h.Validate(t.Context(), nil, littleMemory)
	if err != nil || !strings.Contains(refused, "an endless loop") {
		t.Errorf("%q, %v", refused, err)
	}
	h.timeout = validateTimeout
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if refused, _, err := h.Validate(ctx, nil, littleMemory); !errors.Is(err, context.DeadlineExceeded) || refused != "" {
		t.Errorf("cancelled: %q, %v", refused, err)
	}
	h.turn <- struct{}{}
	if _, _, err := h.Validate(ctx, nil, littleMemory); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("cancelled while another runs: %v", err)
	}
}

// TestHelperStarved: what had no processor has not been tried.
func TestHelperStarved(t *testing.T) {
	h := scripted(t, `exec sleep 600`)
	h.timeout = 100 * time.Millisecond
	refused, skipped, err := h.Validate(t.Context(), nil, littleMemory)
	if err == nil || refused+skipped != "" || !strings.Contains(err.Error(), "of 100ms: the node is too busy") {
		t.Errorf("%q, %q, %v", refused, skipped, err)
	}
}

func TestHelperNeedsMemoryAndABinary(t *testing.T) {
	h := scripted(t, "exit 1")
	h.free = func() (int64, bool) { return 149 << 20, true }
	_, skipped, err := h.Validate(t.Context(), nil, 100<<20)
	if err != nil || !strings.Contains(skipped, "149 MiB of memory are free, and a try may take 150 MiB") {
		t.Errorf("%q, %v", skipped, err)
	}
	h = NewHelper(HelperConfig{Binary: filepath.Join(t.TempDir(), "none"), Dir: t.TempDir()})
	_, _, err = h.Validate(t.Context(), nil, 0)
	if err == nil || !strings.Contains(err.Error(), "binaryPath") {
		t.Errorf("no binary: %v", err)
	}
	if version, err := h.Version(t.Context()); err == nil {
		t.Errorf("no binary: version %q", version)
	}
	if version, err := scripted(t, "echo nothing").Version(t.Context()); err == nil || !strings.Contains(err.Error(), "does not say which Envoy it is") {
		t.Errorf("no version: %q, %v", version, err)
	}
	h.cfg.Dir = "/proc/none"
	if _, _, err = h.Validate(t.Context(), nil, 0); err == nil || !strings.Contains(err.Error(), "write the configuration") {
		t.Errorf("no directory: %v", err)
	}
}

func TestFreeMemory(t *testing.T) {
	for _, tc := range []struct {
		why   string
		files map[string]string
		want  int64
		ok    bool
	}{
		{"nothing is known", nil, 0, false},
		{"no limit", map[string]string{"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:   2048 kB\n", "sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/memory.current": "5"}, 2 << 20, true},
		{"version 2", map[string]string{"proc/meminfo": "MemAvailable: 9999999 kB\n", "sys/fs/cgroup/memory.max": "1000\n", "sys/fs/cgroup/memory.current": "700\n",
			"sys/fs/cgroup/memory.stat": "anon 1\ninactive_file 100\n"}, 400, true},
		{"version 1", map[string]string{"sys/fs/cgroup/memory/memory.limit_in_bytes": "1000\n", "sys/fs/cgroup/memory/memory.usage_in_bytes": "900\n",
			"sys/fs/cgroup/memory/memory.stat": "total_inactive_file 50\n"}, 150, true},
		{"beyond the limit", map[string]string{"sys/fs/cgroup/memory.max": "1000\n", "sys/fs/cgroup/memory.current": "1200\n"}, 0, true},
	} {
		root := t.TempDir()
		for name, text := range tc.files {
			path := filepath.Join(root, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, ok := freeMemory(root); ok != tc.ok || ok && got != tc.want {
			t.Errorf("%s: %d, %v; want %d, %v", tc.why, got, ok, tc.want, tc.ok)
		}
	}
}
