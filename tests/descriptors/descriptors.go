// Package descriptors is what tests ask of the descriptors of their own process: which socket one is of, and how many are open.
package descriptors

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Socket is a descriptor that can be told from others by its inode.
func Socket(t *testing.T) *os.File {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), "test")
}

// Inode is that of what a descriptor is of: two of one socket have the same.
func Inode(t *testing.T, fd int) uint64 {
	t.Helper()
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		t.Fatal(err)
	}
	return stat.Ino
}

// InodeOf is the Inode of a file, which keeps its descriptor.
func InodeOf(t *testing.T, file *os.File) (ino uint64) {
	t.Helper()
	raw, err := file.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { ino = Inode(t, int(fd)) }); err != nil {
		t.Fatal(err)
	}
	return ino
}

// OpenSockets counts this process's descriptors of sockets.
func OpenSockets(t *testing.T) (n int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(target, "socket:") {
			n++
		}
	}
	return n
}
