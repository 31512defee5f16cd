package agent

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"understudy.mesh/hotrestart"
	"understudy.mesh/hotrestart/handoff"
)

// neighbour is a generation that is only what its test makes of it.
type neighbour struct {
	dir     *handoff.Dir
	server  *handoff.Server
	sockets *hotrestart.Sockets
	events  chan handoff.Event
	told    []handoff.EventKind // those that expect has seen
	leave   func()
}

// neighbour takes a place in the pod's hand-off directory, and answers what newcomers
// want with answer, which says whether it did; nil does all that they want.
func (p *pod) neighbour(id string, role handoff.Role, change func(*handoff.Identity), answer func(*neighbour, handoff.Event) bool) *neighbour {
	p.t.Helper()
	me := handoff.Identity{ID: id, Started: time.Now()}
	if change != nil {
		change(&me)
	}
	dir, err := handoff.OpenDir(p.handoff, me)
	if err != nil {
		p.t.Fatal(err)
	}
	server, err := handoff.NewServer(dir, handoff.Report{Role: role}, quiet())
	if err != nil {
		p.t.Fatal(err)
	}
	n := &neighbour{dir: dir, server: server, sockets: new(hotrestart.Sockets), events: make(chan handoff.Event, 1000)}
	ctx, cancel := context.WithCancel(context.Background())
	served, owned := make(chan error, 1), make(chan struct{})
	go func() { served <- server.Run(ctx) }()
	go func() {
		defer close(owned)
		for {
			select {
			case <-ctx.Done():
				return
			case e := <-server.Events():
				if answer == nil || !answer(n, e) {
					n.agree(p.t, e)
				}
				n.events <- e
			}
		}
	}()
	left := false
	n.leave = func() {
		if left {
			return
		}
		left = true
		cancel()
		<-owned
		if err := errors.Join(<-served, dir.Close(), n.sockets.Close()); err != nil {
			p.t.Error(err)
		}
	}
	p.t.Cleanup(n.leave)
	return n
}

func (n *neighbour) agree(t *testing.T, e handoff.Event) {
	var err error
	switch e.Kind {
	case handoff.Arrived:
		err = e.Newcomer.Accept(handoff.State{}, nil)
	case handoff.WantSockets:
		err = e.Newcomer.Give(n.sockets)
	case handoff.Ready:
		err = e.Newcomer.Release(n.sockets, handoff.State{})
	}
	if err != nil && !errors.Is(err, handoff.ErrLost) {
		t.Errorf("%s: %v", e.Kind, err)
	}
}

// becomes tells everybody the role.
func (n *neighbour) becomes(t *testing.T, role handoff.Role) {
	t.Helper()
	if err := n.server.SetReport(handoff.Report{Role: role}); err != nil {
		t.Fatal(err)
	}
}

// expect takes events until one of that kind.
func (n *neighbour) expect(t *testing.T, kind handoff.EventKind) handoff.Event {
	t.Helper()
	for {
		select {
		case e := <-n.events:
			n.told = append(n.told, e.Kind)
			if e.Kind == kind {
				return e
			}
		case <-time.After(deadline):
			t.Fatalf("no event %q", kind)
		}
	}
}

// listen gives the generation an Envoy's listening socket at address, on which nobody accepts.
func (n *neighbour) listen(t *testing.T, address string) {
	t.Helper()
	l, err := (&fakeEnvoy{Listen: address}).listen(-1)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.sockets.Add(hotrestart.Socket{Name: hotrestart.EnvoySocketName("tcp://"+address, 0), File: f}); err != nil {
		t.Fatal(err)
	}
}

// dir is the hand-off directory for a generation that the test plays, the latest to start.
func (p *pod) dir(id string) *handoff.Dir {
	p.t.Helper()
	dir, err := handoff.OpenDir(p.handoff, handoff.Identity{ID: id, Started: time.Now()})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { dir.Close() })
	return dir
}

// replace takes over from m with everything that belongs to it, and serves on, as the
// generation id, nothing but its role.
func (p *pod) replace(m *member, id string) *neighbour {
	p.t.Helper()
	n := p.neighbour(id, handoff.RoleStarting, nil, nil)
	c, err := handoff.Dial(p.t.Context(), n.dir, m.me.ID)
	if err != nil {
		p.t.Fatal(err)
	}
	leave := n.leave
	n.leave = func() {
		c.Close()
		leave()
	}
	p.t.Cleanup(c.Close)
	var sockets hotrestart.Sockets
	if err := c.Sockets(p.t.Context(), &sockets); err != nil {
		p.t.Fatal(err)
	}
	if _, err := c.Ready(p.t.Context(), &sockets); err != nil {
		p.t.Fatal(err)
	}
	n.becomes(p.t, handoff.RoleServing)
	if err := errors.Join(c.Commit(p.t.Context()), sockets.Close()); err != nil {
		p.t.Fatal(err)
	}
	return n
}
