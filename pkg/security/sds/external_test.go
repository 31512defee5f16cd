package sds

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
)

// TestCheck tells a server of secrets from a socket that nobody has any more, from one that hangs, and from nothing.
func TestCheck(t *testing.T) {
	serving := startSDS(t)
	if err := Check(serving.path); err != nil {
		t.Errorf("a server that is there: %v", err)
	}
	dir := t.TempDir()
	left := filepath.Join(dir, "left")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: left, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	hung := filepath.Join(dir, "hung")
	silent, err := net.Listen("unix", hung)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for path, want := range map[string]string{left: "nobody serves", hung: "does not answer", filepath.Join(dir, "none"): "nobody serves"} {
		if err := Check(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}
