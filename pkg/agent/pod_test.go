package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"understudy.mesh/hotrestart"
	"understudy.mesh/pkg/config"
)

// pod is where the generations of one test meet. Their Envoys are not real (fakeEnvoy);
// everything else is.
type pod struct {
	t       *testing.T
	cfg     config.Config
	listen  string // of the Envoys
	handoff string
	data    string
}

func newPod(t *testing.T) *pod {
	t.Helper()
	ports := freePorts(t, 6)
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &pod{t: t, listen: fmt.Sprintf("127.0.0.1:%d", ports[0]), handoff: t.TempDir(), data: t.TempDir()}
	loopback := netip.MustParseAddr("127.0.0.1")
	p.cfg = config.Config{
		Role: config.Sidecar, PodNamespace: "default", IPv4: true, NodeIPs: []netip.Addr{loopback}, InstanceIP: loopback,
		Node:      config.Node{ID: "sidecar~127.0.0.1~a.default~default.svc.cluster.local", Cluster: "a.default"},
		ConfigDir: t.TempDir(), ConfigPath: shortDir(t), BinaryPath: binary, HandoffDir: p.handoff,
		Takeover: config.TakeoverAuto, UpgradeDrainDuration: time.Minute, DrainDuration: time.Second,
		TerminationDrainDuration: time.Millisecond,
		StatusPort:               ports[1], ReadyPort: ports[2], AdminPort: ports[3], StatsPort: ports[4],
		DNSCapture: true, DNSAddrs: []netip.AddrPort{netip.AddrPortFrom(loopback, ports[5])}, DNSForwardTimeout: time.Second,
	}
	return p
}

// shortDir is a directory whose path leaves room for the sockets in it, which t.TempDir's may not.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pod")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// freePorts are ports that nothing listened on a moment ago, all different.
func freePorts(t *testing.T, n int) (ports []uint16) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", ":0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports = append(ports, uint16(l.Addr().(*net.TCPAddr).Port))
	}
	return ports
}

// member is one generation in a pod.
type member struct {
	*Agent
	pod   *pod
	name  string
	ask   context.CancelFunc // for a stop
	ended chan struct{}
	err   error // once ended
}

// setting changes what a generation is started with.
type setting func(*config.Config, *fakeEnvoy)

func envoyThat(change func(*fakeEnvoy)) setting {
	return func(_ *config.Config, f *fakeEnvoy) { change(f) }
}

func withVersion(version, alt string) setting {
	return func(c *config.Config, _ *fakeEnvoy) { c.SidecarSetVersion, c.SidecarSetVersionAlt = version, alt }
}

func withForce(c *config.Config, _ *fakeEnvoy) { c.Takeover = config.TakeoverForce }

// start starts a generation, whose Envoy says name.
func (p *pod) start(name string, settings ...setting) *member {
	p.t.Helper()
	cfg := p.cfg
	f := &fakeEnvoy{Name: name, Listen: p.listen}
	for _, set := range settings {
		set(&cfg, f)
	}
	log := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(p.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("name", name)
	}
	a, err := New(&cfg, World{
		Version: "test", Environ: f.environ(), Stdout: os.Stdout, Stderr: os.Stderr, DataDir: p.data,
		Started: time.Now(), Settled: func() {}, Log: func(string) *slog.Logger { return log },
	})
	if err != nil {
		p.t.Fatal(err)
	}
	m := &member{Agent: a, pod: p, name: name, ended: make(chan struct{})}
	var ctx context.Context
	ctx, m.ask = context.WithCancel(context.Background())
	go func() {
		defer close(m.ended)
		m.err = a.Run(ctx)
	}()
	p.t.Cleanup(func() { m.kill() })
	return m
}

// kill ends the generation without a drain; it does not crash as a process would, but
// whoever follows it sees the same.
func (m *member) kill() {
	m.Quit(context.Background())
	<-m.ended
}

func (m *member) role() hotrestart.Role { return hotrestart.Role(m.roleStatus().Role) }

// becomes waits for the role.
func (m *member) becomes(role hotrestart.Role) {
	m.pod.t.Helper()
	waitFor(m.pod.t, m.name+" to be "+string(role), func() bool { return m.role() == role })
}

// settles waits until `wait` would return.
func (m *member) settles(role hotrestart.Role) {
	m.pod.t.Helper()
	waitFor(m.pod.t, m.name+" to be settled as "+string(role), func() bool {
		s := m.roleStatus()
		return s.Settled && s.Role == string(role)
	})
}

// ends waits for the end of Run, and returns its error.
func (m *member) ends() error {
	m.pod.t.Helper()
	select {
	case <-m.ended:
		return m.err
	case <-time.After(20 * time.Second):
		m.pod.t.Fatalf("%s goes on", m.name)
		return nil
	}
}

// attempt is the last hand-off that m took part in; the zero value when there was none.
func (m *member) lastAttempt() Attempt {
	if t := m.self().LastAttempt; t != nil {
		return *t
	}
	return Attempt{}
}

// answers checks that every port of the pod is served, Envoy's by name.
func (p *pod) answers(name string) {
	p.t.Helper()
	got, c := nameAt(p.listen)
	if c != nil {
		c.Close()
	}
	if got != name {
		p.t.Errorf("Envoy's port is served by %q, want %q", got, name)
	}
	for _, port := range []uint16{p.cfg.StatusPort, p.cfg.ReadyPort} {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/healthz/ready", port))
		if err != nil {
			p.t.Errorf("port %d: %v", port, err)
			continue
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			p.t.Errorf("port %d: %s, want ready", port, resp.Status)
		}
	}
}

// neighbour is a generation that is only what its test makes of it.
type neighbour struct {
	dir     *hotrestart.Dir
	server  *hotrestart.Server
	sockets *hotrestart.Sockets
	events  chan hotrestart.Event
	leave   func()
}

// neighbour takes a place in the pod's hand-off directory, and answers what newcomers
// want with answer, which says whether it did; nil does all that they want.
func (p *pod) neighbour(id string, role hotrestart.Role, change func(*hotrestart.Identity), answer func(hotrestart.Event) bool) *neighbour {
	p.t.Helper()
	me := hotrestart.Identity{ID: id, Started: time.Now()}
	if change != nil {
		change(&me)
	}
	dir, err := hotrestart.OpenDir(p.handoff, me)
	if err != nil {
		p.t.Fatal(err)
	}
	server, err := hotrestart.NewServer(dir, hotrestart.Report{Role: role}, slog.New(slog.DiscardHandler))
	if err != nil {
		p.t.Fatal(err)
	}
	n := &neighbour{dir: dir, server: server, sockets: new(hotrestart.Sockets), events: make(chan hotrestart.Event, 1000)}
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
				if answer == nil || !answer(e) {
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

func (n *neighbour) agree(t *testing.T, e hotrestart.Event) {
	var err error
	switch e.Kind {
	case hotrestart.Arrived:
		err = e.Newcomer.Accept(hotrestart.State{})
	case hotrestart.WantSockets:
		err = e.Newcomer.Give(n.sockets)
	case hotrestart.Ready:
		err = e.Newcomer.Release(n.sockets, hotrestart.State{})
	}
	if err != nil && !errors.Is(err, hotrestart.ErrLost) {
		t.Errorf("%s: %v", e.Kind, err)
	}
}

// becomes tells everybody the role.
func (n *neighbour) becomes(t *testing.T, role hotrestart.Role) {
	t.Helper()
	if err := n.server.SetReport(hotrestart.Report{Role: role}); err != nil {
		t.Fatal(err)
	}
}

// expect takes events until one of that kind.
func (n *neighbour) expect(t *testing.T, kind hotrestart.EventKind) hotrestart.Event {
	t.Helper()
	for {
		select {
		case e := <-n.events:
			if e.Kind == kind {
				return e
			}
		case <-time.After(20 * time.Second):
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
func (p *pod) dir(id string) *hotrestart.Dir {
	p.t.Helper()
	dir, err := hotrestart.OpenDir(p.handoff, hotrestart.Identity{ID: id, Started: time.Now()})
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
	n := p.neighbour(id, hotrestart.RoleStarting, nil, nil)
	c, err := hotrestart.Dial(p.t.Context(), n.dir, m.me.ID)
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
	if _, err := c.Sockets(p.t.Context(), &sockets); err != nil {
		p.t.Fatal(err)
	}
	if _, _, err := c.Ready(p.t.Context(), &sockets); err != nil {
		p.t.Fatal(err)
	}
	n.becomes(p.t, hotrestart.RoleServing)
	if err := errors.Join(c.Commit(p.t.Context()), sockets.Close()); err != nil {
		p.t.Fatal(err)
	}
	return n
}

// becomesServedBy waits until new connections reach that Envoy and no other.
func (p *pod) becomesServedBy(name string) {
	p.t.Helper()
	in := 0
	waitFor(p.t, "Envoy's port to be served by "+name, func() bool {
		got, c := nameAt(p.listen)
		if c != nil {
			c.Close()
		}
		if in++; got != name {
			in = 0
		}
		return in == 10
	})
}

// connect connects to Envoy's port, whoever accepts there, and when.
func (p *pod) connect() net.Conn {
	p.t.Helper()
	c, err := net.Dial("tcp", p.listen)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.Close() })
	return c
}

// readName is what the Envoy says that accepted c.
func readName(c net.Conn) string {
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	b := make([]byte, 64)
	n, _ := c.Read(b)
	return strings.TrimSpace(string(b[:n]))
}

// open tells whether the other side has not closed c.
func open(c net.Conn) bool {
	c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	_, err := c.Read(make([]byte, 1))
	return errors.Is(err, os.ErrDeadlineExceeded)
}

func (m *member) successor() (id string, serves bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.shown.successor, m.shown.successorServes
}
