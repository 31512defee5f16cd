package atomicfile

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"
)

func write(text string, err error) func(io.Writer) error {
	return func(w io.Writer) error {
		_, failed := io.WriteString(w, text)
		return errors.Join(failed, err)
	}
}

// TestReplace: a file is as it was or as it is, and nothing is left beside it.
func TestReplace(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	has := func(want string) {
		t.Helper()
		got, err := os.ReadFile(path)
		entries, _ := os.ReadDir(dir)
		if err != nil || string(got) != want || len(entries) != 1 {
			t.Errorf("%q, %v, among %v; want %q alone", got, err, entries, want)
		}
	}
	for _, text := range []string{"a", "longer", ""} {
		info, err := Replace(path, write(text, nil))
		if err != nil {
			t.Fatal(err)
		}
		has(text)
		if now, err := os.Stat(path); err != nil || !os.SameFile(now, info) || now.Mode() != 0o600 {
			t.Errorf("%v is another file than %v, %v", now, info, err)
		}
	}
	if _, err := Replace(path, write("b", nil)); err != nil {
		t.Fatal(err)
	}
	full := errors.New("no room")
	if _, err := Replace(path, write("half", full)); !errors.Is(err, full) {
		t.Errorf("%v, want %v", err, full)
	}
	has("b")
	if _, err := Replace(filepath.Join(dir, "none", "state"), write("", nil)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v in a directory that is not there", err)
	}
	if err := os.Mkdir(filepath.Join(dir, "dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Replace(filepath.Join(dir, "dir"), write("", nil)); err == nil {
		t.Error("a directory is replaced")
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 2 {
		t.Errorf("%v is left", entries)
	}
}

// TestRest: the more there is to write, the longer nothing is written after it.
func TestRest(t *testing.T) {
	for size, want := range map[int64]time.Duration{0: 0, rate / 2: 500 * time.Millisecond, 10 << 20: 80 * time.Second} {
		if got := Rest(size); got != want {
			t.Errorf("after %d bytes: %v, want %v", size, got, want)
		}
	}
}

// TestReplaceSweeps: what a process left that was killed as it wrote is removed once nobody can be at it any more, and nothing else.
func TestReplaceSweeps(t *testing.T) {
	dir := t.TempDir()
	old := time.Now().Add(-2 * abandoned)
	for name, age := range map[string]time.Time{"state.123": old, "state.456": time.Now(), "state.journal": old, "other.1": old, "state": old} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Chtimes(path, age, age)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Replace(filepath.Join(dir, "state"), write("new", nil)); err != nil {
		t.Fatal(err)
	}
	entries, _ := os.ReadDir(dir)
	var left []string
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if want := []string{"other.1", "state", "state.456", "state.journal"}; !slices.Equal(left, want) {
		t.Errorf("%q is left, want %q", left, want)
	}
}

// TestRead wants a file whole, and neither one that is too large nor one that is none.
func TestRead(t *testing.T) {
	dir := t.TempDir()
	path, fifo := filepath.Join(dir, "state"), filepath.Join(dir, "fifo")
	if err := errors.Join(os.WriteFile(path, []byte("1234"), 0o600), syscall.Mkfifo(fifo, 0o600)); err != nil {
		t.Fatal(err)
	}
	if got, err := Read(path, 4); err != nil || string(got) != "1234" {
		t.Errorf("%q, %v", got, err)
	}
	for _, bad := range []struct {
		path string
		most int64
	}{{path, 3}, {fifo, 4}, {dir, 1 << 20}, {filepath.Join(dir, "none"), 4}} {
		if got, err := Read(bad.path, bad.most); err == nil {
			t.Errorf("%s with at most %d bytes: %q", bad.path, bad.most, got)
		}
	}
}
