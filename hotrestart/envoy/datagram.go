package envoy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// socketMode lets nobody but the user of agent and Envoy at the sockets and the shared
// memory.
const socketMode = 0o600

// datagramSocket is one of our two ends of the protocol. It owns its path.
type datagramSocket struct {
	conn *net.UnixConn
	path string
	peer *net.UnixAddr
}

// bindDatagram makes the socket at path, which talks to the one at peer. It fails when
// path exists: that is somebody's, who must not lose it.
func bindDatagram(path, peer string) (*datagramSocket, error) {
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("bind hot-restart socket: %w", err)
	}
	s := &datagramSocket{conn: conn, path: path, peer: &net.UnixAddr{Name: peer, Net: "unixgram"}}
	if err := os.Chmod(path, socketMode); err != nil {
		return nil, errors.Join(fmt.Errorf("bind hot-restart socket: %w", err), s.Close())
	}
	return s, nil
}

// send sends a message to the peer, with one descriptor if fd is not negative. A peer
// that does not read makes it wait, to the deadline that was set.
func (s *datagramSocket) send(message []byte, fd int) error {
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	for frame := appendFrame(message); len(frame) > 0; {
		n := min(len(frame), datagramSize)
		if _, _, err := s.conn.WriteMsgUnix(frame[:n], rights, s.peer); err != nil {
			return fmt.Errorf("send a hot-restart message: %w", err)
		}
		frame = frame[n:]
	}
	return nil
}

// receive reads one datagram of the peer's into buffer. fd is the descriptor that came
// with it, which the caller closes, or -1; of several, all but the first are closed.
// Datagrams of others are thrown away.
func (s *datagramSocket) receive(buffer []byte) (datagram []byte, fd int, err error) {
	oob := make([]byte, unix.CmsgSpace(4))
	for {
		n, oobn, _, from, err := s.conn.ReadMsgUnix(buffer, oob)
		if err != nil {
			return nil, -1, fmt.Errorf("receive a hot-restart message: %w", err)
		}
		fd := firstDescriptor(oob[:oobn])
		if from != nil && from.Name == s.peer.Name {
			return buffer[:n], fd, nil
		}
		closeDescriptor(fd)
	}
}

// cancelled makes every wait for the peer end once ctx has, for good. Call stop when
// there is nothing to wait for any more.
func (s *datagramSocket) cancelled(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, func() {
		_ = s.conn.SetDeadline(time.Unix(1, 0)) // fails on a closed socket only, where nothing waits
	})
}

// Close removes the path and closes the socket. Closing twice does no harm.
func (s *datagramSocket) Close() error {
	if err := s.conn.Close(); err != nil {
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		return err
	}
	return os.Remove(s.path)
}

// firstDescriptor returns the first descriptor of a control message, -1 if there is
// none, and closes the others.
func firstDescriptor(oob []byte) int {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return -1
	}
	first := -1
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			if first < 0 {
				first = fd
			} else {
				closeDescriptor(fd)
			}
		}
	}
	return first
}

func closeDescriptor(fd int) {
	if fd >= 0 {
		_ = unix.Close(fd) // a socket has nothing to lose in a close
	}
}

// isGone reports whether a message could not be sent because nobody has the other end:
// no such path, or one that its process left behind.
func isGone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED)
}
