package envoy

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy.mesh/hotrestart"
	"understudy.mesh/tests/descriptors"
)

func runningChild(t *testing.T, e *fakeEnvoy) *Child {
	t.Helper()
	c, err := NewChild(e.where)
	if err != nil {
		t.Fatal(err)
	}
	run(t, c)
	return c
}

type fetched struct {
	sockets *hotrestart.Sockets
	err     error
}

// fetching asks for the sockets of an address, while the test plays Envoy.
func fetching(ctx context.Context, c *Child, address string) <-chan fetched {
	result := make(chan fetched, 1)
	go func() {
		sockets, err := c.Fetch(ctx, address)
		result <- fetched{sockets, err}
	}()
	return result
}

// givesSocket answers pass_listen_socket with a socket of its own, and returns its inode.
func (e *fakeEnvoy) givesSocket() uint64 {
	e.t.Helper()
	file := descriptors.Socket(e.t)
	defer file.Close()
	e.gives(file)
	return descriptors.InodeOf(e.t, file)
}

func (e *fakeEnvoy) gives(file *os.File) {
	e.t.Helper()
	raw, err := file.SyscallConn()
	if err != nil {
		e.t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { e.sends(e.parent, marshalSocketReply(int(fd)), int(fd)) }); err != nil {
		e.t.Fatal(err)
	}
}

func inodes(t *testing.T, s *hotrestart.Sockets) (all []uint64) {
	t.Helper()
	_ = s.Each(func(_ string, fd int) error { all = append(all, descriptors.Inode(t, fd)); return nil })
	return all
}

func TestChildFetch(t *testing.T) {
	e := newFakeEnvoy(t)
	c := runningChild(t, e)
	before := descriptors.OpenSockets(t)
	result := fetching(t.Context(), c, "tcp://1.2.3.4:5")
	var want []uint64
	for worker := range uint32(3) {
		if got := e.isAsked(); got != (request{kind: kindListenSocket, address: "tcp://1.2.3.4:5", worker: worker}) {
			t.Errorf("asked %+v", got)
		}
		want = append(want, e.givesSocket())
	}
	e.isAsked()
	e.sends(e.parent, marshalSocketReply(-1), -1)
	got := <-result
	if got.err != nil {
		t.Fatal(got.err)
	}
	if have := inodes(t, got.sockets); !slices.Equal(have, want) {
		t.Errorf("inodes %v, want %v", have, want)
	}
	got.sockets.Close()
	if now := descriptors.OpenSockets(t); now != before {
		t.Errorf("%d sockets are open, %d were", now, before)
	}
}

// TestChildFetchShared: workers that share a socket have one.
func TestChildFetchShared(t *testing.T) {
	e := newFakeEnvoy(t)
	c := runningChild(t, e)
	result := fetching(t.Context(), c, "unix:///run/x")
	file := descriptors.Socket(t)
	defer file.Close()
	for range 2 {
		e.isAsked()
		e.gives(file)
	}
	got := <-result
	if got.err != nil || got.sockets.Len() != 1 {
		t.Fatalf("%v, %v, want one socket", got.sockets.Names(), got.err)
	}
	got.sockets.Close()
}

func TestChildFetchFails(t *testing.T) {
	for name, tc := range map[string]struct {
		answer  func(e *fakeEnvoy)
		problem string
	}{
		"no descriptor":    {func(e *fakeEnvoy) { e.sends(e.parent, marshalSocketReply(5), -1) }, "lacks the descriptor"},
		"of another kind":  {func(e *fakeEnvoy) { e.sends(e.parent, marshalAdminReply(time.Unix(1, 0)), 0) }, "shutdown_admin"},
		"not recognized":   {func(e *fakeEnvoy) { e.sends(e.parent, marshalUnrecognized(), -1) }, "does not know"},
		"garbage":          {func(e *fakeEnvoy) { e.sends(e.parent, []byte{0xff}, -1) }, "decode"},
		"a bare datagram":  {func(e *fakeEnvoy) { e.parent.conn.WriteTo([]byte{1}, e.parent.peer) }, "not aligned"},
		"an endless frame": {func(e *fakeEnvoy) { e.parent.conn.WriteTo(header(1<<40), e.parent.peer) }, "longer than"},
	} {
		t.Run(name, func(t *testing.T) {
			e := newFakeEnvoy(t)
			c := runningChild(t, e)
			before := descriptors.OpenSockets(t)
			result := fetching(t.Context(), c, "tcp://1.2.3.4:5")
			e.isAsked()
			e.givesSocket() // worker 0's, which must not leak
			e.isAsked()
			tc.answer(e)
			if got := <-result; got.err == nil || !strings.Contains(got.err.Error(), tc.problem) {
				t.Errorf("%v, want an error with %q", got.err, tc.problem)
			}
			if now := descriptors.OpenSockets(t); now != before {
				t.Errorf("%d sockets are open, %d were", now, before)
			}
		})
	}
}

// TestChildAddresses: Envoy is not asked for what it cannot parse.
func TestChildAddresses(t *testing.T) {
	e := newFakeEnvoy(t)
	c := runningChild(t, e)
	for _, address := range []string{"", "1.2.3.4:5", "tcp://", "tcp://host:5", "tcp://1.2.3.4", "tcp://1.2.3.4:70000", "udp://1.2.3.4:5", "unix://"} {
		if _, err := c.Fetch(t.Context(), address); err == nil || errors.Is(err, errUnanswered) {
			t.Errorf("%q: %v", address, err)
		}
	}
}

// TestChildLateAnswers: an answer belongs to its own question, however late it is.
func TestChildLateAnswers(t *testing.T) {
	e := newFakeEnvoy(t)
	c := runningChild(t, e)
	before := descriptors.OpenSockets(t)
	ctx, cancel := context.WithCancel(t.Context())
	first := fetching(ctx, c, "tcp://1.2.3.4:1")
	e.isAsked()
	cancel()
	if got := <-first; !errors.Is(got.err, errUnanswered) || !errors.Is(got.err, context.Canceled) {
		t.Errorf("an unanswered question: %v", got.err)
	}
	second := fetching(t.Context(), c, "tcp://1.2.3.4:2")
	if got := e.isAsked(); got.address != "tcp://1.2.3.4:2" {
		t.Errorf("asked %+v", got)
	}
	e.givesSocket() // the first one's
	want := e.givesSocket()
	e.isAsked()
	e.sends(e.parent, marshalSocketReply(-1), -1)
	got := <-second
	if got.err != nil {
		t.Fatal(got.err)
	}
	if have := inodes(t, got.sockets); !slices.Equal(have, []uint64{want}) {
		t.Errorf("inodes %v, want %d", have, want)
	}
	got.sockets.Close()
	if now := descriptors.OpenSockets(t); now != before {
		t.Errorf("%d sockets are open, %d were", now, before)
	}
}

// TestChildOfHangingEnvoy: no more than a few questions wait for an Envoy that does not
// answer, and the next one is answered once it does.
func TestChildOfHangingEnvoy(t *testing.T) {
	e := newFakeEnvoy(t)
	c := runningChild(t, e)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 3 * maxUnanswered {
		if _, err := c.Stats(ctx); !errors.Is(err, errUnanswered) {
			t.Fatal(err)
		}
	}
	for range maxUnanswered {
		e.isAsked()
		e.sends(e.parent, marshalReply(kindStats, nil), -1)
	}
	result := make(chan error, 1)
	go func() {
		for {
			s, err := c.Stats(t.Context())
			if errors.Is(err, errUnanswered) && t.Context().Err() == nil {
				continue // the answers are being read
			}
			if err == nil && s.Connections != 5 {
				err = errors.New("another answer")
			}
			result <- err
			return
		}
	}()
	e.isAsked()
	e.sends(e.parent, marshalReply(kindStats, StatsReply{Connections: 5}.Marshal()), -1)
	if err := <-result; err != nil {
		t.Error(err)
	}
}

func TestChildOfDeadEnvoy(t *testing.T) {
	e := newFakeEnvoy(t)
	c := runningChild(t, e)
	if err := e.parent.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := c.Fetch(t.Context(), "tcp://1.2.3.4:5")
	if err := errors.Join(err, c.Drain(t.Context())); !errors.Is(err, unix.ENOENT) || errors.Is(err, errUnanswered) {
		t.Errorf("%v, want that nobody is there", err)
	}
}

// TestChildEnds: whoever waits for an answer learns at once that there will be none.
func TestChildEnds(t *testing.T) {
	e := newFakeEnvoy(t)
	c, err := NewChild(e.where)
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, c)
	waiting := fetching(t.Context(), c, "tcp://1.2.3.4:5")
	e.isAsked()
	stop()
	if got := <-waiting; !errors.Is(got.err, errChildEnded) {
		t.Errorf("who waited got %v", got.err)
	}
	if _, err := c.Stats(t.Context()); !errors.Is(err, errChildEnded) {
		t.Errorf("who came later got %v", err)
	}
}

func TestChildTells(t *testing.T) {
	e := newFakeEnvoy(t)
	c := runningChild(t, e)
	if err := c.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := e.isAsked().kind; got != kindDrainListeners {
		t.Errorf("told %v", got)
	}
}

// TestChildLongStats: an answer that is too long is read to its end, and is an error.
func TestChildLongStats(t *testing.T) {
	e := newFakeEnvoy(t)
	c := runningChild(t, e)
	for _, tc := range []struct {
		size int
		fits bool
	}{{maxMessage + 1, false}, {1 << 20, true}} {
		result := make(chan error, 1)
		go func() { _, err := c.Stats(t.Context()); result <- err }()
		e.isAsked()
		e.sends(e.parent, marshalReply(kindStats, appendBytes(nil, 5, make([]byte, tc.size))), -1)
		if err := <-result; (err == nil) != tc.fits {
			t.Errorf("%d bytes: %v", tc.size, err)
		}
	}
}
