package envoy

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"understudy.mesh/internal/unixsock"
	"understudy.mesh/tests/descriptors"
)

// TestParentIgnoresStrangers: only the Envoy of the rendezvous is listened to, and a
// descriptor that a stranger sends is closed.
func TestParentIgnoresStrangers(t *testing.T) {
	e := newFakeEnvoy(t)
	served := make(chan struct{}, 1)
	p, err := NewParent(ParentConfig{Rendezvous: e.where, StartTime: time.Unix(1, 0), OnServing: func() { served <- struct{}{} }})
	if err != nil {
		t.Fatal(err)
	}
	run(t, p)
	before := descriptors.OpenSockets(t)
	file := descriptors.Socket(t)
	stranger, err := bindDatagram(e.where.Path+"_stranger", e.where.parentSocket())
	if err != nil {
		t.Fatal(err)
	}
	raw, err := file.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) { e.sends(stranger, request{kind: kindDrainListeners}.marshal(), int(fd)) })
	if err := errors.Join(err, file.Close(), stranger.Close()); err != nil {
		t.Fatal(err)
	}
	if unnamed, err := net.DialUnix("unixgram", nil, e.child.peer); err != nil {
		t.Fatal(err)
	} else if _, err := unnamed.Write(appendFrame(request{kind: kindDrainListeners}.marshal())); err != nil {
		t.Fatal(err)
	} else {
		unnamed.Close()
	}
	e.asks(request{kind: kindShutdownAdmin}.marshal()) // so that what came before was read
	select {
	case <-served:
		t.Error("a stranger's drain_listeners was taken for Envoy's")
	default:
	}
	if now := descriptors.OpenSockets(t); now != before {
		t.Errorf("%d sockets are open, %d were", now, before)
	}
}

// TestParentOfStoppedEnvoy: an Envoy that does not read cannot keep the Parent from ending.
func TestParentOfStoppedEnvoy(t *testing.T) {
	e := newFakeEnvoy(t)
	p, err := NewParent(ParentConfig{Rendezvous: e.where, StartTime: time.Unix(1, 0), Stats: func(context.Context) (StatsReply, error) {
		return StatsReply{Rest: make([]byte, 4<<20)}, nil // far more than a socket holds
	}})
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, p)
	e.sends(e.child, request{kind: kindStats}.marshal(), -1)
	if _, fd, err := e.child.receive(e.buffer); err != nil || fd >= 0 { // the Parent is in the middle of its answer
		t.Fatal(fd, err)
	}
	stop()
}

// TestParentOfDeadEnvoy: it goes on when the one that asked is gone.
func TestParentOfDeadEnvoy(t *testing.T) {
	e := newFakeEnvoy(t)
	asked, release, served := make(chan struct{}), make(chan struct{}), make(chan struct{})
	p, err := NewParent(ParentConfig{
		Rendezvous: e.where, StartTime: time.Unix(1, 0),
		Sockets: func(string, uint32) (int, bool) {
			asked <- struct{}{}
			<-release
			return -1, false
		},
		OnServing: func() { served <- struct{}{} },
	})
	if err != nil {
		t.Fatal(err)
	}
	run(t, p)
	e.sends(e.child, request{kind: kindListenSocket, address: "tcp://1.2.3.4:5"}.marshal(), -1)
	e.sends(e.child, request{kind: kindDrainListeners}.marshal(), -1)
	<-asked
	if err := e.child.Close(); err != nil {
		t.Fatal(err)
	}
	release <- struct{}{}
	<-served // the answer to nobody is done with
	// It starts again at the same place.
	if e.child, err = bindDatagram(e.where.envoyChildSocket(), e.where.parentSocket()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.child.Close() })
	if got, _ := e.asks(request{kind: kindShutdownAdmin}.marshal()); got.kind != kindShutdownAdmin {
		t.Errorf("got %v", got.kind)
	}
}

func TestRendezvous(t *testing.T) {
	for name, tc := range map[string]struct {
		r    Rendezvous
		want string
	}{
		"relative":      {Rendezvous{Path: "hr", Base: 1}, "absolute"},
		"too long":      {Rendezvous{Path: "/" + strings.Repeat("x", 85), Base: 1}, "at most 85"},
		"base too high": {Rendezvous{Path: "/hr", Base: maxBase + 1}, "base id"},
		"no directory":  {Rendezvous{Path: t.TempDir() + "/missing/hr", Base: 1}, "bind"},
	} {
		if _, err := NewParent(ParentConfig{Rendezvous: tc.r}); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: NewParent: %v, want an error with %q", name, err, tc.want)
		}
		if _, err := NewChild(tc.r); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: NewChild: %v, want an error with %q", name, err, tc.want)
		}
	}
	longest := Rendezvous{Path: "/" + strings.Repeat("x", 84), Base: maxBase}
	if err := longest.check(); err != nil {
		t.Error(err)
	}
	if n := len(longest.socket("udp_parent", childEpoch)); n != unixsock.MaxPath {
		t.Errorf("the longest path has %d bytes, want %d", n, unixsock.MaxPath)
	}
}

func TestParentPath(t *testing.T) {
	e := newFakeEnvoy(t)
	p, err := NewParent(ParentConfig{Rendezvous: e.where})
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(e.where.parentSocket()); err != nil || info.Mode().Perm() != socketMode {
		t.Errorf("%v, %v, want mode %o", info, err, socketMode)
	}
	if _, err := NewParent(ParentConfig{Rendezvous: e.where}); err == nil {
		t.Error("a second Parent took the place of the first")
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(e.where.parentSocket()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Close: %v", err)
	}
}

func TestEnvoyArgs(t *testing.T) {
	got := Args(ArgsConfig{Rendezvous: Rendezvous{Path: "/run/hr", Base: 12}, ParentShutdown: 90 * time.Second, SkipStats: true})
	want := "--base-id 12 --restart-epoch 1 --socket-path /run/hr --socket-mode 0600 --parent-shutdown-time-s 90 --skip-hot-restart-parent-stats"
	if strings.Join(got, " ") != want {
		t.Errorf("%q", got)
	}
	if got := Args(ArgsConfig{}); got[len(got)-1] != "1" {
		t.Errorf("%q: 0 s would be a terminate at once", got)
	}
}
