// Package unixsock owns two facts about Unix sockets: how long the path of one may be, and
// who is at the other end of a connection.
package unixsock

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// MaxPath is the length of the longest path: that of sockaddr_un.sun_path without the
// final NUL (unix(7)). A longer one is reached through /proc/self/fd/<directory>/<name>.
const MaxPath = 107

// CheckPath refuses a path that is longer than MaxPath.
func CheckPath(path string) error {
	if len(path) > MaxPath {
		return fmt.Errorf("the socket path %s has %d bytes, a Unix socket takes at most %d: choose a shorter directory", path, len(path), MaxPath)
	}
	return nil
}

// Peer returns who is at the other end of a connection (SO_PEERCRED, unix(7)): who
// connected, or who listens. The kernel answers for it, whatever the peer does.
func Peer(conn net.Conn) (*unix.Ucred, error) {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("read the peer's credentials: %T is not a Unix socket", conn)
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("read the peer's credentials: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err == nil {
		err = credErr
	}
	if err != nil {
		return nil, fmt.Errorf("read the peer's credentials: %w", err)
	}
	return cred, nil
}

// IsRootOrSelf tells whether a peer is root or runs as this process's user.
func IsRootOrSelf(peer *unix.Ucred) bool {
	return peer.Uid == 0 || peer.Uid == uint32(os.Geteuid())
}
