package unixsock

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestLongestPath holds the limit against the kernel's.
func TestLongestPath(t *testing.T) {
	dir, err := os.MkdirTemp("", "s") // t.TempDir is too long to leave room
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	for _, tt := range []struct {
		length int
		fits   bool
	}{{MaxPath, true}, {MaxPath + 1, false}} {
		path := filepath.Join(dir, strings.Repeat("x", tt.length-len(dir)-1))
		l, listenErr := net.Listen("unix", path)
		if listenErr == nil {
			l.Close()
		}
		checkErr := CheckPath(path)
		if (listenErr == nil) != tt.fits || (checkErr == nil) != tt.fits {
			t.Errorf("a path of %d bytes: the kernel says %v, CheckPath %v", tt.length, listenErr, checkErr)
		}
		if checkErr != nil && (!strings.Contains(checkErr.Error(), path) || !strings.Contains(checkErr.Error(), "at most 107")) {
			t.Errorf("%q does not name the path and the limit", checkErr)
		}
	}
}

func TestPeer(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialed, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer dialed.Close()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	for side, conn := range map[string]net.Conn{"who dialed": dialed, "who accepted": accepted} {
		peer, err := Peer(conn)
		if err != nil {
			t.Fatal(err)
		}
		if int(peer.Uid) != os.Geteuid() || int(peer.Pid) != os.Getpid() || !IsRootOrSelf(peer) {
			t.Errorf("%s sees %+v, want this process", side, *peer)
		}
	}
	plain, other := net.Pipe()
	defer plain.Close()
	defer other.Close()
	if _, err := Peer(plain); err == nil {
		t.Error("a connection that is no Unix socket has a peer")
	}
}

func TestRootAndSelfAreTold(t *testing.T) {
	me := uint32(os.Geteuid())
	for uid, want := range map[uint32]bool{0: true, me: true, me + 1: false} {
		if got := IsRootOrSelf(&unix.Ucred{Uid: uid}); got != want {
			t.Errorf("uid %d: %v, want %v", uid, got, want)
		}
	}
}
