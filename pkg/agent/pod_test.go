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
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"understudy.mesh/hotrestart/handoff"
	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/contract"
	"understudy.mesh/tests/freeport"
)

// pod is where the generations of one test meet. Their Envoys are not real (fakeEnvoy);
// everything else is, so a test with a pod takes real time: in a bubble of testing/synctest no time passes while
// somebody waits for a process or a socket. What needs neither is tested in bubbles (times_test.go).
type pod struct {
	t       *testing.T
	cfg     config.Config
	listen  string // of the Envoys
	handoff string
	data    string
	settled func() // World.Settled
}

func newPod(t *testing.T) *pod {
	t.Helper()
	ports := freeport.GetN(t, 6)
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &pod{t: t, listen: fmt.Sprintf("127.0.0.1:%d", ports[0]), handoff: t.TempDir(), data: t.TempDir(), settled: func() {}}
	loopback := netip.MustParseAddr("127.0.0.1")
	p.cfg = config.Config{
		Role: config.Sidecar, PodNamespace: "default", IPv4: true, NodeIPs: []netip.Addr{loopback}, InstanceIP: loopback,
		Node:      config.Node{ID: "sidecar~127.0.0.1~a.default~default.svc.cluster.local", Cluster: "a.default"},
		ConfigDir: t.TempDir(), ConfigPath: shortDir(t), BinaryPath: binary, HandoffDir: p.handoff,
		Takeover: config.TakeoverAuto, UpgradeDrainDuration: time.Minute, DrainDuration: time.Second,
		TerminationDrainDuration: time.Millisecond, ConnectTimeout: 10 * time.Second,
		StatusPort: ports[1], ReadyPort: ports[2], AdminPort: ports[3], StatsPort: ports[4],
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

// member is one generation in a pod.
type member struct {
	*Agent
	pod   *pod
	name  string
	ask   context.CancelFunc // for a stop
	ended chan struct{}
	err   error // once ended
	log   *roleLog
	// explained is what the agent left last for its container's status.
	explained atomic.Value
}

// roleLog is the handler below it, and notes the roles and the Envoys that an agent logs.
type roleLog struct {
	slog.Handler
	mu    sync.Mutex
	roles []handoff.Role
	envoy int // the process ID of the last Envoy
}

// Enabled implements slog.Handler.
func (l *roleLog) Enabled(context.Context, slog.Level) bool { return true }

// Handle implements slog.Handler.
func (l *roleLog) Handle(ctx context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		switch {
		case r.Message == "role" && a.Key == "role":
			l.roles = append(l.roles, a.Value.Any().(handoff.Role))
		case r.Message == "Envoy started" && a.Key == "pid":
			l.envoy = int(a.Value.Int64())
		}
		return true
	})
	if !l.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return l.Handler.Handle(ctx, r)
}

// entered checks which roles m has logged, in turn; the last one is shown before it is logged.
func (m *member) entered(want ...handoff.Role) {
	m.pod.t.Helper()
	logged := func() []handoff.Role {
		m.log.mu.Lock()
		defer m.log.mu.Unlock()
		return slices.Clone(m.log.roles)
	}
	waitFor(m.pod.t, m.name+" to log its roles", func() bool { return len(logged()) >= len(want) })
	if got := logged(); !slices.Equal(got, want) {
		m.pod.t.Errorf("%s has logged the roles %q, want %q", m.name, got, want)
	}
}

// signalEnvoy sends a signal to the Envoy that m started last.
func (m *member) signalEnvoy(s syscall.Signal) {
	m.pod.t.Helper()
	m.log.mu.Lock()
	defer m.log.mu.Unlock()
	if err := syscall.Kill(m.log.envoy, s); err != nil {
		m.pod.t.Fatalf("signal %s's Envoy, process %d: %v", m.name, m.log.envoy, err)
	}
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
	roles := &roleLog{Handler: slog.DiscardHandler}
	if testing.Verbose() {
		text := slog.NewTextHandler(p.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})
		roles.Handler = text.WithAttrs([]slog.Attr{slog.String("name", name)})
	}
	log := slog.New(roles)
	m := &member{pod: p, name: name, ended: make(chan struct{}), log: roles}
	a, err := New(&cfg, World{
		Version: "test", Environ: f.environ(), Stdout: os.Stdout, Stderr: os.Stderr, dataDir: p.data,
		Started: time.Now(), Settled: p.settled, Log: func(string) *slog.Logger { return log },
		Explain: func(reason string) { m.explained.Store(reason) },
	})
	if err != nil {
		p.t.Fatal(err)
	}
	m.Agent = a
	var ctx context.Context
	ctx, m.ask = context.WithCancel(context.Background())
	go func() {
		defer close(m.ended)
		m.err = a.Run(ctx)
	}()
	p.t.Cleanup(func() {
		if m.kill(); m.err != nil {
			p.t.Logf("%s ended: %v", name, m.err)
		}
	})
	return m
}

// kill ends the generation without a drain; it does not crash as a process would, but
// whoever follows it sees the same.
func (m *member) kill() {
	m.quitAtOnce(context.Background())
	<-m.ended
}

func (m *member) role() handoff.Role { return handoff.Role(m.roleStatus().Role) }

// becomes waits for the role.
func (m *member) becomes(role handoff.Role) {
	m.pod.t.Helper()
	waitFor(m.pod.t, m.name+" to be "+string(role), func() bool { return m.role() == role })
}

// settles waits until `wait` would return.
func (m *member) settles(role handoff.Role) {
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
	case <-time.After(deadline):
		m.pod.t.Fatalf("%s goes on", m.name)
		return nil
	}
}

// attempt is the last hand-off that m took part in; the zero value when there was none.
func (m *member) lastAttempt() contract.Attempt {
	if t := m.self().LastAttempt; t != nil {
		return *t
	}
	return contract.Attempt{}
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
	c.SetReadDeadline(time.Now().Add(deadline))
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

// deadline bounds what ought to happen soon. Machines of tests stand still for many seconds, and the race detector makes them slower.
const deadline = 2 * time.Minute

// waitFor polls cond until it holds.
func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for late := time.Now().Add(deadline); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(late) {
			t.Fatalf("gave up waiting for %s", what)
		}
	}
}

// script writes an executable shell script, and returns its path.
func script(t *testing.T, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "envoy")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }
