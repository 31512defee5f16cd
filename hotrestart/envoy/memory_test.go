package envoy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

var testVersion = Version{Version: 11, Size: 104}

func TestSharedMemory(t *testing.T) {
	dir := t.TempDir()
	m, err := CreateSharedMemory(dir, testVersion)
	if err != nil {
		t.Fatal(err)
	}
	path := memoryPath(dir, m.Base())
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if binary.NativeEndian.Uint64(content) != 104 || binary.NativeEndian.Uint64(content[8:]) != 11 || !bytes.Equal(content[16:104], make([]byte, 88)) {
		t.Errorf("content % x", content)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != socketMode {
		t.Errorf("%v, %v, want mode %o", info, err, socketMode)
	}
	if err := errors.Join(m.Close(), m.Close()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Close: %v", err)
	}
}

func TestSharedMemoryErrors(t *testing.T) {
	if _, err := CreateSharedMemory(filepath.Join(t.TempDir(), "missing"), testVersion); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	if _, err := CreateSharedMemory(t.TempDir(), Version{Version: 12, Size: 104}); err == nil {
		t.Error("an unknown version was accepted")
	}
}

func TestRemoveStaleSharedMemory(t *testing.T) {
	dir := t.TempDir()
	living, err := CreateSharedMemory(dir, testVersion)
	if err != nil {
		t.Fatal(err)
	}
	defer living.Close()
	killed, err := CreateSharedMemory(dir, testVersion)
	if err != nil {
		t.Fatal(err)
	}
	killed.file.Close() // as the kernel does with a process's
	keep := map[string][]byte{
		"envoy_shared_memory_0":  make([]byte, 104), // of an Envoy that is not ours
		"envoy_shared_memory_10": nil,               // or is being made
		"other":                  []byte(memoryMark),
	}
	for name, content := range keep {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(dir, "envoy_shared_memory_20"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(dir, "other"), filepath.Join(dir, "envoy_shared_memory_30")); err != nil {
		t.Fatal(err)
	}
	for round, want := range []int{1, 0} {
		if n, err := RemoveStaleSharedMemory(dir); n != want || err != nil {
			t.Errorf("round %d: removed %d, %v, want %d", round, n, err, want)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != len(keep)+3 {
		t.Errorf("left: %v, %v", entries, err)
	}
	if _, err := os.Stat(memoryPath(dir, killed.base)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the stale one: %v", err)
	}
}

func TestBaseID(t *testing.T) {
	seen := map[uint32]bool{}
	for range 1000 {
		base := newBaseID()
		// Envoy holds ten times the base id, and an epoch, in an int.
		if base == 0 || int64(base)*idsPerBase+childEpoch > math.MaxInt32 {
			t.Fatal(base)
		}
		seen[base] = true
	}
	if len(seen) < 990 {
		t.Errorf("%d different ones of 1000", len(seen))
	}
}
