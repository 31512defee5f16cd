package handoff

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"understudy.mesh/hotrestart"
)

// patience is a deadline for what ought to happen at once.
const patience = 20 * time.Second

// quick has the deadlines of a test that waits for them.
func quick() timing {
	t := defaultTiming()
	t.probation = 50 * time.Millisecond
	return t
}

func testIdentity(id string) Identity {
	return Identity{ID: id, AgentVersion: "1.0", EnvoyVersion: "1.40.0", HotRestartVersion: "11.104", PodUID: "pod",
		Started: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
}

func openTestDir(t testing.TB, path, id string) *Dir {
	t.Helper()
	d, err := OpenDir(path, testIdentity(id))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// noLeaks fails the test when goroutines or descriptors are left at its very end.
func noLeaks(t *testing.T) {
	t.Helper()
	goroutines, before := goleak.IgnoreCurrent(), openDescriptors(t)
	t.Cleanup(func() {
		goleak.VerifyNone(t, goroutines)
		if after := openDescriptors(t); after > before {
			t.Errorf("%d descriptors are left, %d were open before", after, before)
		}
	})
}

func openDescriptors(t testing.TB) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range entries {
		// Go's own (epoll, eventfd) come with the first use of the poller and stay.
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && !strings.HasPrefix(target, "anon_inode:") {
			n++
		}
	}
	return n
}

// oldGeneration is a parent whose owner says yes to everything, and serves one TCP socket.
type oldGeneration struct {
	t       testing.TB
	server  *Server
	sockets *hotrestart.Sockets
	state   State
	files   Files // given with the state
	late    State // what Release adds
	news    State // what the first word of the drain brings
	seen    chan told
	answer  func(Event) (handled bool)
	stop    func()
}

type parentOption func(*oldGeneration)

// startParent runs a parent of that id below path until the test ends.
func startParent(t testing.TB, path, id string, options ...parentOption) *oldGeneration {
	t.Helper()
	s, err := NewServer(openTestDir(t, path, id), Report{Role: RoleServing}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s.timing = quick()
	o := &oldGeneration{t: t, server: s, sockets: new(hotrestart.Sockets), seen: make(chan told, 100), state: State{"vips": []byte("240.240.0.1 a")}}
	for _, option := range options {
		option(o)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	ownerDone := make(chan struct{})
	go func() { defer close(ownerDone); o.own(ctx) }()
	stopped := false
	o.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		<-ownerDone
		o.sockets.Close()
	}
	t.Cleanup(o.stop)
	return o
}

// outcome is what an end means to the old generation, by what it was told before.
type outcome string

const (
	unchanged  outcome = "serve as before"
	takeBack   outcome = "serve again, from the copies"
	handedOver outcome = "drain"
)

// told is an event as the old generation sees it.
type told struct {
	Event
	outcome outcome
}

func (o *oldGeneration) own(ctx context.Context) {
	outcomes := map[*Newcomer]outcome{}
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-o.server.Events():
			if o.answer == nil || !o.answer(e) {
				o.agree(e)
			}
			switch e.Kind {
			case Arrived:
				outcomes[e.Newcomer] = unchanged
			case Ready:
				outcomes[e.Newcomer] = takeBack
			case Settled:
				outcomes[e.Newcomer] = handedOver
			}
			o.seen <- told{e, outcomes[e.Newcomer]}
		}
	}
}

func (o *oldGeneration) agree(e Event) {
	var err error
	switch e.Kind {
	case Arrived:
		err = e.Newcomer.Accept(o.state, o.files)
	case WantSockets:
		err = e.Newcomer.Give(o.sockets)
	case Ready:
		err = e.Newcomer.Release(o.sockets, o.late)
	case Settled:
		err = errors.Join(e.Newcomer.Drained(Drained{Left: 3}, o.news), e.Newcomer.Drained(Drained{Done: true}, nil))
	}
	if err != nil && !errors.Is(err, ErrLost) {
		o.t.Errorf("%s: %v", e.Kind, err)
	}
}

// expect takes events until one of that kind.
func (o *oldGeneration) expect(kind EventKind) told {
	o.t.Helper()
	for {
		select {
		case e := <-o.seen:
			if e.Kind == kind {
				return e
			}
			if e.Kind == Ended {
				o.t.Fatalf("the hand-off ended (%v) before %q", e.Err, kind)
			}
		case <-time.After(patience):
			o.t.Fatalf("no event %q", kind)
		}
	}
}

// listen adds a TCP listener to the parent's sockets, and returns its address.
func (o *oldGeneration) listen(name string) string {
	o.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		o.t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		o.t.Fatal(err)
	}
	if err := o.sockets.Add(hotrestart.Socket{Name: name, File: f}); err != nil {
		o.t.Fatal(err)
	}
	return l.Addr().String()
}

// serveGreeting answers every connection of the named socket with text, until stop.
func serveGreeting(t testing.TB, sockets *hotrestart.Sockets, name, text string) (stop func()) {
	t.Helper()
	f, err := sockets.Get(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(c, text)
			c.Close()
		}
	}()
	return func() { l.Close(); <-done }
}

// greetingAt connects and returns what the server says.
func greetingAt(t testing.TB, address string) string {
	t.Helper()
	c, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// dialTest is Dial with a test's deadlines.
func dialTest(t testing.TB, d *Dir, id string) (*Client, error) {
	return dial(testContext(t), d, id, dialOptions{timing: quick(), protocols: ownProtocols()})
}

func mustDial(t testing.TB, d *Dir, id string) *Client {
	t.Helper()
	c, err := dialTest(t, d, id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// takeOver goes through everything up to and with Commit.
func takeOver(t testing.TB, c *Client, into *hotrestart.Sockets) {
	t.Helper()
	ctx := testContext(t)
	if err := c.Sockets(ctx, into); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Ready(ctx, into); err != nil {
		t.Fatal(err)
	}
	if err := c.Commit(ctx); err != nil {
		t.Fatal(err)
	}
}
