package upstream

import (
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Capture must know every socket to an upstream.
func TestUpstreamSocketsAreMarked(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root")
		}
		t.Skip("needs root: CAP_NET_ADMIN")
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	markOf := func(c syscall.Conn) (mark int) {
		raw, err := c.SyscallConn()
		if err == nil {
			var failed error
			err = raw.Control(func(fd uintptr) { mark, failed = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK) })
			if failed != nil {
				t.Fatal(failed)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		return mark
	}
	for _, mark := range []uint32{0, 0x5357, 0xffffffff} {
		server := target{netip.MustParseAddrPort(l.Addr().String()), mark}
		d, err := server.connect(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if got := markOf(d.File); uint32(got) != mark {
			t.Errorf("UDP: mark %#x, want %#x", got, mark)
		}
		c, err := server.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if got := markOf(c.(*net.TCPConn)); uint32(got) != mark {
			t.Errorf("TCP: mark %#x, want %#x", got, mark)
		}
	}
}
