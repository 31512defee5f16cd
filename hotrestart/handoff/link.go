package handoff

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"understudy.mesh/internal/unixsock"
)

// ErrLost says that the other side of a hand-off ended, or broke the connection off.
var ErrLost = errors.New("the other generation is gone")

// link is one connection between two agents. A goroutine reads it all the time, so that
// the peer's end, its abort and its pings are noticed while nobody waits for a message.
// It answers pings and unknown messages by itself.
type link struct {
	conn   *net.UnixConn
	timing timing
	// watch is told of every frame that is written or read, for transcripts; may be nil.
	watch func(sent bool, raw []byte, fds int)

	write   sync.Mutex
	version uint8 // of the frames that are written; guarded by write

	frames  chan frame    // closed by the reader when it ends
	ended   chan struct{} // closed before frames, when err is valid
	err     error         // why the reader ended
	closed  chan struct{}
	closing sync.Once
	reader  sync.WaitGroup
}

// newLink takes conn over; close gives it back.
func newLink(conn *net.UnixConn, t timing, version uint8, watch func(bool, []byte, int)) *link {
	l := &link{
		conn: conn, timing: t, version: version, watch: watch,
		frames: make(chan frame), ended: make(chan struct{}), closed: make(chan struct{}),
	}
	l.reader.Go(l.readAll)
	return l
}

// close breaks the connection off, and closes every descriptor that nobody took. Unsent
// bytes of ours still reach the peer.
func (l *link) close() {
	l.closing.Do(func() {
		close(l.closed)
		l.conn.Close()
	})
	for f := range l.frames {
		f.closeDescriptors()
	}
	l.reader.Wait()
}

func (l *link) setVersion(v uint8) {
	l.write.Lock()
	defer l.write.Unlock()
	l.version = v
}

// send writes one message, within the time that a peer has to take it.
func (l *link) send(kind messageKind, head any) error {
	f, err := newFrame(kind, head)
	if err != nil {
		return err
	}
	return l.sendFrame(f)
}

// sendFrame writes f; f.fds stay the caller's.
func (l *link) sendFrame(f frame) error {
	l.write.Lock()
	defer l.write.Unlock()
	f.version = l.version
	raw, err := appendFrame(nil, f)
	if err != nil {
		return err
	}
	l.conn.SetWriteDeadline(time.Now().Add(l.timing.frame)) // fails on a closed connection only, and then so does the write
	var rights []byte
	if len(f.fds) > 0 {
		rights = unix.UnixRights(f.fds...)
	}
	// The descriptors go with the first byte; a stream may take less than all the bytes.
	n, _, err := l.conn.WriteMsgUnix(raw, rights, nil)
	if err == nil && n < len(raw) {
		_, err = l.conn.Write(raw[n:])
	}
	if err != nil {
		return fmt.Errorf("send %s: %w", f.kind, lostOr(err))
	}
	if l.watch != nil {
		l.watch(true, raw, len(f.fds))
	}
	return nil
}

// lostOr turns the errors of a connection whose other end is gone into ErrLost.
func lostOr(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, net.ErrClosed) {
		return ErrLost
	}
	return err
}

// readAll reads until the connection ends.
func (l *link) readAll() {
	defer close(l.frames)
	defer close(l.ended)
	for {
		f, err := l.readFrame()
		if err != nil {
			l.err = err
			return
		}
		if err := l.dispatch(f); err != nil {
			f.closeDescriptors()
			l.err = err
			return
		}
	}
}

// dispatch answers what every link answers, and passes the rest on.
func (l *link) dispatch(f frame) error {
	switch {
	case f.kind == msgPong, f.kind == msgUnknown:
		f.closeDescriptors()
		return nil
	case f.kind == msgPing:
		f.closeDescriptors()
		return l.send(msgPong, emptyHead{})
	case f.kind == msgAbort:
		head, err := decodeHead[abortHead](f)
		if err != nil {
			return err
		}
		return head.aborted()
	case !f.kind.known():
		f.closeDescriptors()
		return l.send(msgUnknown, unknownHead{uint8(f.kind)})
	case f.kind != msgSockets && f.kind != msgState && len(f.fds) > 0:
		return fmt.Errorf("read %s: it carries %d descriptors", f.kind, len(f.fds))
	}
	select {
	case l.frames <- f:
		return nil
	case <-l.closed:
		return ErrLost
	}
}

// readFrame reads one frame. The time between two frames is the state machine's
// business; a frame that has begun must end within timing.frame.
func (l *link) readFrame() (f frame, err error) {
	defer func() {
		if err != nil {
			f.closeDescriptors()
			f = frame{}
		}
	}()
	var raw [frameHeaderSize]byte
	if err := l.conn.SetReadDeadline(time.Time{}); err != nil {
		return f, lostOr(err)
	}
	if err := l.readFull(raw[:1], &f.fds); err != nil {
		return f, err
	}
	if err := l.conn.SetReadDeadline(time.Now().Add(l.timing.frame)); err != nil {
		return f, lostOr(err)
	}
	if err := l.readFull(raw[1:], &f.fds); err != nil {
		return f, truncated(err)
	}
	header, err := parseFrameHeader(raw)
	if err != nil {
		return f, err
	}
	f.version, f.kind = header.version, header.kind
	payload := make([]byte, header.head+header.body)
	if err := l.readFull(payload, &f.fds); err != nil {
		return f, truncated(err)
	}
	f.head, f.body = payload[:header.head], payload[header.head:]
	if len(f.fds) != header.sockets {
		return f, fmt.Errorf("read %s: it announces %d descriptors, and %d came", f.kind, header.sockets, len(f.fds))
	}
	if l.watch != nil {
		l.watch(false, append(raw[:], payload...), len(f.fds))
	}
	return f, nil
}

func truncated(err error) error {
	if errors.Is(err, ErrLost) {
		return fmt.Errorf("the connection ended within a frame: %w", err)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("the rest of a frame did not come: %w", err)
	}
	return err
}

// readFull fills b, and appends the descriptors that come with it to fds. It reads no
// byte more, so that the descriptors of the next frame stay with the next frame.
func (l *link) readFull(b []byte, fds *[]int) error {
	oob := make([]byte, unix.CmsgSpace(4*maxFrameSockets))
	for len(b) > 0 {
		n, oobn, flags, _, err := l.conn.ReadMsgUnix(b, oob) // Go sets MSG_CMSG_CLOEXEC
		received, parseErr := parseRights(oob[:oobn])
		*fds = append(*fds, received...)
		switch {
		case err != nil:
			return lostOr(err)
		case parseErr != nil:
			return fmt.Errorf("read descriptors: %w", parseErr)
		case flags&unix.MSG_CTRUNC != 0:
			return fmt.Errorf("read descriptors: some were lost: more than %d, or this process's limit of open files (RLIMIT_NOFILE) is reached", maxFrameSockets)
		case len(*fds) > maxFrameSockets:
			return fmt.Errorf("read descriptors: more than %d in one frame", maxFrameSockets)
		}
		b = b[n:]
	}
	return nil
}

// parseRights returns the descriptors in a control message, also those that came before
// an error.
func parseRights(oob []byte) (fds []int, err error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	for _, m := range messages {
		if received, err := unix.ParseUnixRights(&m); err == nil { // it fails on other messages only
			fds = append(fds, received...)
		}
	}
	return fds, err
}

// closeDescriptors closes what nobody took.
func (f *frame) closeDescriptors() {
	for _, fd := range f.fds {
		unix.Close(fd) // a socket that nobody used: nothing can be lost
	}
	f.fds = nil
}

// checkPeer refuses every other user, root included: what is handed over is this
// user's, and a descriptor sent to the wrong process cannot be taken back.
func checkPeer(conn *net.UnixConn) error {
	peer, err := unixsock.Peer(conn)
	if err != nil {
		return err
	}
	if me := os.Geteuid(); int(peer.Uid) != me {
		return fmt.Errorf("the peer runs as uid %d, this agent as %d: both generations must run as one user (runAsUser)", peer.Uid, me)
	}
	return nil
}

// errorUnless is why the connection ended, for a receive from frames that got nothing.
func (l *link) errorUnless(ok bool) error {
	if ok {
		return nil
	}
	return l.err
}
