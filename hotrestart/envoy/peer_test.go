package envoy

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"understudy.mesh/hotrestart"
	"understudy.mesh/tests/descriptors"
)

// peerPatience is a deadline for what ought to happen at once.
const peerPatience = 20 * time.Second

// fakeEnvoy has both of an Envoy's sockets.
type fakeEnvoy struct {
	t             *testing.T
	where         Rendezvous
	child, parent *datagramSocket // in which role it speaks
	buffer        []byte
}

func newFakeEnvoy(t *testing.T) *fakeEnvoy {
	t.Helper()
	where := Rendezvous{Path: filepath.Join(t.TempDir(), "hr"), Base: 7}
	child, err := bindDatagram(where.envoyChildSocket(), where.parentSocket())
	if err != nil {
		t.Fatal(err)
	}
	parent, err := bindDatagram(where.envoyParentSocket(), where.childSocket())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { child.Close(); parent.Close() })
	deadline := time.Now().Add(peerPatience)
	if err := errors.Join(child.conn.SetDeadline(deadline), parent.conn.SetDeadline(deadline)); err != nil {
		t.Fatal(err)
	}
	return &fakeEnvoy{t: t, where: where, child: child, parent: parent, buffer: make([]byte, datagramSize)}
}

// run starts what runs until the test ends.
func run(t *testing.T, what interface {
	Run(context.Context) error
	Close() error
},
) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- what.Run(ctx) }()
	stop = func() {
		cancel()
		if err := errors.Join(<-done, what.Close(), what.Close()); err != nil {
			t.Error(err)
		}
		done <- nil
	}
	t.Cleanup(stop)
	return stop
}

// sends sends a message in that role.
func (e *fakeEnvoy) sends(role *datagramSocket, message []byte, fd int) {
	e.t.Helper()
	if err := role.send(message, fd); err != nil {
		e.t.Fatal(err)
	}
}

// gets receives a message in that role.
func (e *fakeEnvoy) gets(role *datagramSocket) (message []byte, fd int) {
	e.t.Helper()
	var a assembler
	for fd = -1; ; {
		datagram, came, err := role.receive(e.buffer)
		if err != nil {
			e.t.Fatal(err)
		}
		fd = max(fd, came)
		if message, done, err := a.add(datagram); err != nil {
			e.t.Fatal(err)
		} else if done {
			return message, fd
		}
	}
}

func (e *fakeEnvoy) isAsked() request {
	e.t.Helper()
	message, _ := e.gets(e.parent)
	r, err := parseRequest(message)
	if err != nil {
		e.t.Fatal(err)
	}
	return r
}

// asks asks the Parent, and returns its reply and the inode of what came with it.
func (e *fakeEnvoy) asks(message []byte) (r reply, ino uint64) {
	e.t.Helper()
	e.sends(e.child, message, -1)
	answer, fd := e.gets(e.child)
	if fd >= 0 {
		ino = descriptors.Inode(e.t, fd)
		closeDescriptor(fd)
	}
	r, err := parseReply(answer)
	if err != nil {
		e.t.Fatal(err)
	}
	return r, ino
}

func TestParentAnswers(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	e := newFakeEnvoy(t)
	before := descriptors.OpenSockets(t)
	var sockets hotrestart.Sockets
	file := descriptors.Socket(t)
	ino := descriptors.InodeOf(t, file)
	if err := sockets.Add(hotrestart.Socket{Name: hotrestart.EnvoySocketName("tcp://1.2.3.4:5", 1), File: file}); err != nil {
		t.Fatal(err)
	}
	calls := make(chan string, 10)
	large := StatsReply{Rest: appendBytes(nil, 5, make([]byte, 300_000)), CounterDeltas: map[string]uint64{"c": 3}}
	p, err := NewParent(ParentConfig{
		Rendezvous: e.where, StartTime: time.Unix(99, 0), Sockets: sockets.CopyForEnvoy,
		Stats:     func(context.Context) (StatsReply, error) { return large, nil },
		OnServing: func() { calls <- "serving" },
	})
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, p)
	socket := func(worker uint32) []byte {
		return request{kind: kindListenSocket, address: "tcp://1.2.3.4:5", worker: worker}.marshal()
	}
	for _, tc := range []struct {
		name    string
		message []byte
		want    reply
		ino     uint64
	}{
		{"a socket", socket(1), reply{kind: kindListenSocket, hasFD: true}, ino},
		{"the same again", socket(1), reply{kind: kindListenSocket, hasFD: true}, ino},
		{"another worker", socket(0), reply{kind: kindListenSocket}, 0},
		{"another namespace", request{kind: kindListenSocket, address: "tcp://1.2.3.4:5", worker: 1, namespace: "x"}.marshal(), reply{kind: kindListenSocket}, 0},
		{"admin", request{kind: kindShutdownAdmin}.marshal(), reply{kind: kindShutdownAdmin, startTime: 99}, 0},
		{"unknown", request{kind: 42}.marshal(), reply{}, 0},
		{"a reply", marshalSocketReply(-1), reply{}, 0},
		{"garbage", []byte{0xff, 0xff}, reply{}, 0},
		{"statistics", request{kind: kindStats}.marshal(), reply{kind: kindStats, stats: large.Marshal()}, 0},
	} {
		got, ino := e.asks(tc.message)
		if !cmp.Equal(got, tc.want, cmp.AllowUnexported(reply{})) || ino != tc.ino {
			t.Errorf("%s: kind %v, inode %d, want kind %v, inode %d", tc.name, got.kind, ino, tc.want.kind, tc.ino)
		}
	}
	// The next reply is the one to shutdown_admin: none of these is answered.
	for _, k := range []kind{kindTestConnection, kindDrainListeners, kindTerminate} {
		e.sends(e.child, request{kind: k}.marshal(), -1)
	}
	if got, _ := e.asks(request{kind: kindShutdownAdmin}.marshal()); got.kind != kindShutdownAdmin {
		t.Errorf("got %v", got.kind)
	}
	if got := <-calls; got != "serving" || len(calls) > 0 {
		t.Errorf("call %q, and %d more", got, len(calls))
	}
	stop()
	sockets.Close()
	if now := descriptors.OpenSockets(t); now != before {
		t.Errorf("%d sockets are open, %d were", now, before)
	}
}
