package hotrestart

import (
	"errors"
	"net"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"understudy.mesh/tests/descriptors"
)

func TestSockets(t *testing.T) {
	before := descriptors.OpenSockets(t)
	set := new(Sockets)
	inodes := map[string]uint64{}
	for _, name := range []string{"b", "a", "c"} {
		file := descriptors.Socket(t)
		inodes[name] = descriptors.InodeOf(t, file)
		if err := set.Add(Socket{Name: name, File: file}); err != nil {
			t.Fatal(err)
		}
	}
	if err := set.Add(Socket{Name: "a", File: descriptors.Socket(t)}); err == nil {
		t.Error("a name was added twice")
	}
	if err := set.Add(Socket{Name: "none"}); err == nil {
		t.Error("no file was added")
	}
	other, err := set.Dup()
	if err != nil {
		t.Fatal(err)
	}
	if err := set.Retain(func(name string) bool { return name != "a" }); err != nil {
		t.Error(err)
	}
	if got := set.Names(); !slices.Equal(got, []string{"b", "c"}) || set.Len() != 2 {
		t.Errorf("names %q, want b and c", got)
	}
	if _, err := set.Get("a"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a is gone, and Get says %v", err)
	}
	if err := set.Close(); err != nil {
		t.Error(err)
	}
	if err := set.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
	if err := set.Add(Socket{Name: "late", File: descriptors.Socket(t)}); err == nil {
		t.Error("a closed set took a socket")
	}
	if got := other.Names(); !slices.Equal(got, []string{"b", "a", "c"}) {
		t.Errorf("the copy has %q", got)
	}
	for name, want := range inodes {
		file, err := other.Get(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := descriptors.InodeOf(t, file); got != want {
			t.Errorf("%s: inode %d, want %d", name, got, want)
		}
		file.Close()
	}
	other.Close()
	if now := descriptors.OpenSockets(t); now != before {
		t.Errorf("%d sockets are open, %d were", now, before)
	}
}

func TestSocketsAreCloseOnExec(t *testing.T) {
	var set Sockets
	defer set.Close()
	if err := set.Add(Socket{Name: "x", File: descriptors.Socket(t)}); err != nil {
		t.Fatal(err)
	}
	err := set.Each(func(name string, fd int) error {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("%s: flags %#x, %v", name, flags, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestSocketsStayNonBlocking: the mode belongs to the socket, which Envoy uses too.
func TestSocketsStayNonBlocking(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	var set Sockets
	defer set.Close()
	if err := set.Add(Socket{Name: "x", File: file}); err != nil {
		t.Fatal(err)
	}
	fd, err := set.Copy("x")
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("flags %#x, %v: the socket became a blocking one", flags, err)
	}
}

func TestEnvoySocketName(t *testing.T) {
	if got := EnvoySocketName("tcp://0.0.0.0:15001", 3); got != "envoy tcp://0.0.0.0:15001 3" { // other releases have it by that name
		t.Errorf("it is named %q", got)
	}
	for _, address := range []string{"tcp://0.0.0.0:15001", "tcp://[::]:15006", "unix:///a path/with spaces"} {
		for _, worker := range []uint32{0, 7, 1<<32 - 1} {
			name := EnvoySocketName(address, worker)
			if a, w, ok := ParseEnvoySocketName(name); a != address || w != worker || !ok {
				t.Errorf("%q became %q, %d, %v", name, a, w, ok)
			}
		}
	}
	for _, name := range []string{"", "envoy ", "envoy  0", "envoy tcp://x", "envoy tcp://x -1", "envoy tcp://x 01", "envoy tcp://x 4294967296", "agent status tcp 0"} {
		if a, w, ok := ParseEnvoySocketName(name); ok {
			t.Errorf("%q was taken for worker %d of %q", name, w, a)
		}
	}
}
