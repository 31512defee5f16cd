package atomicfile

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
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
