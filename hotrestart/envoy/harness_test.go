package envoy_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"understudy.mesh/hotrestart"
	hotenvoy "understudy.mesh/hotrestart/envoy"
	"understudy.mesh/tests/freeport"
	"understudy.mesh/tests/realenvoy"
)

const (
	// patience is a deadline for what ought to happen at once.
	patience = 30 * time.Second
	// workers is what each Envoy is started with, unless a test says otherwise.
	workers = 2

	newer, older = "envoy", "envoy-1.39.3"
)

// binary finds an Envoy that `make envoy` has brought.
func binary(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("..", "..", "bin", name))
	if err != nil {
		t.Fatal(err)
	}
	if override := os.Getenv("ENVOY_BINARY"); override != "" && name == newer {
		path = override
	}
	if _, err := os.Stat(path); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("no Envoy: %v (make envoy)", err)
		}
		t.Skipf("no Envoy: %v (make envoy)", err)
	}
	return path
}

// spec is how an Envoy is started. The zero value, but for listen, will do.
type spec struct {
	binary  string // newer or older; "" is newer
	name    string // the body of its answers
	listen  []string
	workers int
	args    []string // more of them
	skip    bool     // statistics
	flush   string   // of the statistics; "" is hardly ever, which leaves them to a child

	sockets func(address string, worker uint32) (int, bool)
	stats   func(context.Context) (hotenvoy.StatsReply, error)
}

// generation is an Envoy under a Parent, with a Child.
type generation struct {
	t       *testing.T
	name    string
	process *realenvoy.Process
	child   *hotenvoy.Child
	asked   atomic.Int64 // how many sockets

	serving chan struct{}
	quiet   func()
	stop    func()
}

// configuration is Envoy's static configuration: an HTTP listener at each address, whose
// answers bear the generation's name. "single:" before an address turns reuse_port off.
func configuration(s spec, adminPath string) string {
	var listeners []string
	for i, address := range s.listen {
		address, single := strings.CutPrefix(address, "single:")
		host, port, _ := net.SplitHostPort(address)
		listeners = append(listeners, fmt.Sprintf(`{"name": "listener-%d", "enable_reuse_port": %v,
		"address": {"socket_address": {"address": %q, "port_value": %s}},
		"filter_chains": [{"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": {
			"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
			"stat_prefix": "ingress",
			"http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
			"route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"],
				"routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": %q}}}]}]}}}]}]}`,
			i, !single, host, port, s.name))
	}
	return fmt.Sprintf(`{"admin": {"address": {"pipe": {"path": %q}}}, "stats_flush_interval": %q,
		"static_resources": {"listeners": [%s]}}`, adminPath, cmp.Or(s.flush, "299s"), strings.Join(listeners, ","))
}

// start starts an Envoy as an agent would, and does not wait for it.
func start(t *testing.T, s spec) *generation {
	t.Helper()
	dir := t.TempDir()
	program := binary(t, cmp.Or(s.binary, newer))
	version, err := hotenvoy.ReadVersion(t.Context(), program)
	if err != nil {
		t.Fatal(err)
	}
	memory, err := hotenvoy.CreateSharedMemory(hotenvoy.SharedMemoryDir, version)
	if err != nil {
		t.Fatal(err)
	}
	where := hotenvoy.Rendezvous{Path: filepath.Join(dir, "hr"), Base: memory.Base()}
	g := &generation{t: t, name: s.name, serving: make(chan struct{}, 1)}
	parent, err := hotenvoy.NewParent(hotenvoy.ParentConfig{
		Rendezvous: where, StartTime: time.Now(), Stats: s.stats,
		Sockets: func(address string, worker uint32) (int, bool) {
			g.asked.Add(1)
			if s.sockets == nil {
				return -1, false
			}
			return s.sockets(address, worker)
		},
		OnServing: func() { g.serving <- struct{}{} },
	})
	if err != nil {
		t.Fatal(err)
	}
	if g.child, err = hotenvoy.NewChild(where); err != nil {
		t.Fatal(err)
	}
	g.speak(parent)
	g.launch(program, dir, where, s)
	g.stop = sync.OnceFunc(func() {
		g.process.Kill()
		g.quiet()
		if err := errors.Join(parent.Close(), g.child.Close(), where.RemoveLeftovers(), memory.Close()); err != nil {
			t.Error(err)
		}
		if left, _ := filepath.Glob(where.Path + "*"); len(left) > 0 {
			t.Errorf("%s: left behind: %v", s.name, left)
		}
		if t.Failed() {
			if text, err := os.ReadFile(filepath.Join(dir, "log")); err == nil {
				t.Logf("%s:\n%s", s.name, text)
			}
		}
	})
	t.Cleanup(g.stop)
	return g
}

// speak runs Parent and Child, until quiet is called.
func (g *generation) speak(parent *hotenvoy.Parent) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, run := range []func(context.Context) error{parent.Run, g.child.Run} {
		running.Go(func() {
			if err := run(ctx); err != nil {
				g.t.Errorf("%s: %v", g.name, err)
			}
		})
	}
	g.quiet = func() { cancel(); running.Wait() }
}

func (g *generation) launch(program, dir string, where hotenvoy.Rendezvous, s spec) {
	g.t.Helper()
	config := filepath.Join(dir, "envoy.json")
	if err := os.WriteFile(config, []byte(configuration(s, filepath.Join(dir, "admin"))), 0o600); err != nil {
		g.t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		g.t.Fatal(err)
	}
	defer log.Close()
	args := append([]string{
		"-c", config, "--concurrency", strconv.Itoa(cmp.Or(s.workers, workers)),
		"--drain-time-s", "1", "--drain-strategy", "immediate", "-l", "warning",
	}, hotenvoy.Args(hotenvoy.ArgsConfig{Rendezvous: where, ParentShutdown: time.Hour, SkipStats: s.skip})...)
	g.process = realenvoy.Start(g.t, filepath.Join(dir, "admin"), log, program, append(args, s.args...)...)
}

// serves waits until Envoy accepts on all its listeners.
func (g *generation) serves() {
	g.t.Helper()
	await(g.t, g.name+" serves", g.serving, g.process)
}

// ends waits until Envoy has ended, and wants it to have done so by itself.
func (g *generation) ends() {
	g.t.Helper()
	await(g.t, g.name+" ends", g.process.Done(), nil)
	if err := g.process.Err(); err != nil {
		g.t.Fatalf("%s: %v, want exit status 0", g.name, err)
	}
}

func await(t *testing.T, what string, happened <-chan struct{}, process *realenvoy.Process) {
	t.Helper()
	var ended <-chan struct{}
	if process != nil {
		ended = process.Done()
	}
	select {
	case <-happened:
	case <-ended:
		t.Fatalf("waiting that %s: Envoy ended: %v", what, process.Err())
	case <-time.After(patience):
		t.Fatalf("waited in vain that %s", what)
	}
}

// fetch takes the sockets of every listener.
func (g *generation) fetch(listen ...string) *hotrestart.Sockets {
	g.t.Helper()
	var addresses []string
	for _, address := range listen {
		addresses = append(addresses, "tcp://"+strings.TrimPrefix(address, "single:"))
	}
	sockets, err := g.child.Fetch(g.t.Context(), addresses...)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { sockets.Close() })
	return sockets
}

// freeAddress is one that nobody listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	return fmt.Sprintf("127.0.0.1:%d", freeport.Get(t))
}

// load makes requests, each on a connection of its own, until it is stopped.
type load struct {
	mu      sync.Mutex
	answers map[string]int // by the name of who answered
	failed  []error

	cancel  context.CancelFunc
	running sync.WaitGroup
	more    chan struct{} // one for every answer, as far as somebody listens
}

func newLoad(t *testing.T, address string) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{answers: map[string]int{}, cancel: cancel, more: make(chan struct{})}
	for range 4 {
		l.running.Go(func() {
			for ctx.Err() == nil {
				who, err := get(address)
				l.note(who, err)
			}
		})
	}
	t.Cleanup(l.stop)
	return l
}

func (l *load) note(who string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.failed = append(l.failed, err)
	} else {
		l.answers[who]++
	}
	select {
	case l.more <- struct{}{}:
	default:
	}
}

func (l *load) count(who string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.answers[who]
}

// await waits until who has answered n more requests.
func (l *load) await(t *testing.T, who string, n int) {
	t.Helper()
	deadline := time.After(patience)
	for enough := l.count(who) + n; l.count(who) < enough; {
		select {
		case <-l.more:
		case <-deadline:
			t.Fatalf("%s does not answer: %v, failed %d", who, l.answers, len(l.failed))
		}
	}
}

func (l *load) stop() {
	l.cancel()
	l.running.Wait()
}

// without stops the load and wants no failure.
func (l *load) without(t *testing.T) {
	t.Helper()
	l.stop()
	if len(l.failed) > 0 {
		t.Errorf("%d requests failed, the first with %v; answers: %v", len(l.failed), l.failed[0], l.answers)
	}
	t.Logf("answers: %v", l.answers)
}

// get makes one request on a new connection.
func get(address string) (string, error) {
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get("http://" + address + "/")
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %s", response.Status)
	}
	return string(body), err
}
