package status

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testDeadline is how long a test waits for what must happen.
const testDeadline = 20 * time.Second

// testConfig is the least that New takes, on a port of the kernel's choice.
func testConfig(t *testing.T) Config {
	t.Helper()
	ls, err := Listen(Socket{Use: "a test", Loopback: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeListeners(ls) })
	ready := &Readiness{}
	ready.Done("everything")
	return Config{Status: ls, Ready: ready, Registry: NewRegistry()}
}

func closeListeners(ls []net.Listener) {
	for _, l := range ls {
		l.Close() // those that were served are closed already
	}
}

func newServer(t *testing.T, c Config) *Server {
	t.Helper()
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// run starts the server, and stops it at the end of the test. It returns the
// URL of the status port.
func run(t *testing.T, c Config) string {
	t.Helper()
	s := newServer(t, c)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := receive(t, done); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return "http://" + c.Status[0].Addr().String()
}

// receive fails the test when nothing comes.
func receive[T any](t *testing.T, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(testDeadline):
		t.Fatal("nothing happened before the deadline")
	}
	return v
}

// get makes one request on a connection of its own.
func get(t *testing.T, url string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true}, Timeout: testDeadline}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

func TestListenPortTaken(t *testing.T) {
	for _, loopback := range []bool{true, false} {
		first, err := Listen(Socket{Use: "a test", Loopback: loopback})
		if err != nil {
			t.Fatal(err)
		}
		defer closeListeners(first)
		port := first[0].Addr().(*net.TCPAddr).Port
		second, err := Listen(Socket{Port: uint16(port), Use: "the status server", Setting: "--statusPort", Loopback: loopback})
		if err == nil {
			closeListeners(second)
			t.Fatalf("loopback=%v: the port was bound twice", loopback)
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("loopback=%v: %v is not EADDRINUSE", loopback, err)
		}
		for _, word := range []string{strconv.Itoa(port), "the status server", "--statusPort"} {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("loopback=%v: %q does not name %q", loopback, err, word)
			}
		}
	}
}

// The second of the two loopback sockets being taken must not leave the first
// one bound.
func TestListenLeavesNothingOpen(t *testing.T) {
	v6, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Skipf("no IPv6 here: %v", err)
	}
	defer v6.Close()
	port := v6.Addr().(*net.TCPAddr).Port
	if ls, err := Listen(Socket{Port: uint16(port), Use: "a test", Loopback: true}); err == nil {
		closeListeners(ls)
		t.Fatal("the IPv6 port was bound twice")
	}
	v4, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		t.Fatalf("the IPv4 socket was left open: %v", err)
	}
	v4.Close()
}

func TestListenEveryAddress(t *testing.T) {
	ls, err := Listen(Socket{Use: "a test"})
	if err != nil {
		t.Fatal(err)
	}
	defer closeListeners(ls)
	port := strconv.Itoa(ls[0].Addr().(*net.TCPAddr).Port)
	for _, host := range []string{"127.0.0.1", "127.0.0.9", "::1"} {
		conn, err := net.Dial("tcp", net.JoinHostPort(host, port))
		if err != nil {
			t.Errorf("dial %s: %v", host, err)
			continue
		}
		conn.Close()
	}
}

func TestNewRejects(t *testing.T) {
	page := http.NotFoundHandler()
	tests := []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"no listener", func(c *Config) { c.Status = nil }, "Status"},
		{"no readiness", func(c *Config) { c.Ready = nil }, "Ready"},
		{"no registry", func(c *Config) { c.Registry = nil }, "Registry"},
		{"page elsewhere", func(c *Config) { c.Debug = map[string]http.Handler{"/x": page} }, `"/x"`},
		{"page over pprof", func(c *Config) { c.Debug = map[string]http.Handler{"/debug/pprof/x": page} }, "pprof"},
		{"page with a pattern", func(c *Config) { c.Debug = map[string]http.Handler{"/debug/{x}": page} }, "{x}"},
		{"page without handler", func(c *Config) { c.Debug = map[string]http.Handler{"/debug/x": nil} }, "/debug/x"},
		{"probers", func(c *Config) { c.AppProbers = []byte("[]") }, probersSource},
		{"annotations", func(c *Config) { c.PrometheusAnnotations = []byte("[]") }, annotationsSource},
		{"the status port as the application's", func(c *Config) {
			port := strconv.Itoa(c.Status[0].Addr().(*net.TCPAddr).Port)
			c.PrometheusAnnotations = []byte(`{"scrape":"true","port":"` + port + `"}`)
		}, "belongs to the agent"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := testConfig(t)
			tt.change(&c)
			if _, err := New(c); err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v, want one line that names %q", err, tt.want)
			}
		})
	}
}

// A request in flight finishes after the stop, while no new one is accepted.
func TestRunFinishesRequests(t *testing.T) {
	c := testConfig(t)
	started, release := make(chan struct{}), make(chan struct{})
	c.Debug = map[string]http.Handler{
		"/debug/slow": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			started <- struct{}{}
			<-release
			io.WriteString(w, "finished")
		}),
	}
	s := newServer(t, c)
	s.grace = testDeadline
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	addr := c.Status[0].Addr().String()
	answer := make(chan string, 1)
	go func() {
		_, body := get(t, "http://"+addr+"/debug/slow")
		answer <- body
	}()
	receive(t, started)
	cancel()
	waitRefused(t, addr)
	close(release)
	if got := receive(t, answer); got != "finished" {
		t.Errorf("the request in flight got %q", got)
	}
	if err := receive(t, done); err != nil {
		t.Errorf("Run: %v", err)
	}
}

// One that would never finish is cut, and a connection that says nothing too.
func TestRunCutsRequests(t *testing.T) {
	c := testConfig(t)
	started := make(chan struct{})
	var cut atomic.Bool
	c.Debug = map[string]http.Handler{
		"/debug/stuck": http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			close(started)
			<-r.Context().Done()
			cut.Store(true)
		}),
	}
	s := newServer(t, c)
	s.grace = time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	addr := c.Status[0].Addr().String()
	for _, request := range []string{"", "GET /debug/stuck HTTP/1.1\r\nHost: localhost\r\n\r\n"} {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, request); err != nil {
			t.Fatal(err)
		}
	}
	receive(t, started)
	cancel()
	if err := receive(t, done); err != nil {
		t.Errorf("Run: %v", err)
	}
	if !cut.Load() {
		t.Error("Run returned while a handler ran")
	}
}

// waitRefused returns once the address accepts no more connections.
func waitRefused(t *testing.T, addr string) {
	t.Helper()
	deadline := time.Now().Add(testDeadline)
	for time.Now().Before(deadline) {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			return
		}
		conn.Close()
	}
	t.Fatal("the port still accepts connections")
}

func TestRunReportsFailure(t *testing.T) {
	c := testConfig(t)
	c.Status[0].Close()
	s := newServer(t, c)
	if err := s.Run(context.Background()); err == nil || !strings.Contains(err.Error(), "serve HTTP on") {
		t.Errorf("Run on a closed listener: %v", err)
	}
}

func TestProbePort(t *testing.T) {
	c := testConfig(t)
	probe, err := Listen(Socket{Use: "a test", Loopback: true})
	if err != nil {
		t.Fatal(err)
	}
	c.Probe = probe
	run(t, c)
	for path, want := range map[string]int{"/healthz/ready": 200, "/metrics": 404, "/debug/": 404, "/": 404} {
		if resp, _ := get(t, "http://"+probe[0].Addr().String()+path); resp.StatusCode != want {
			t.Errorf("GET %s: %d, want %d", path, resp.StatusCode, want)
		}
	}
}

func TestMetricsNames(t *testing.T) {
	c := testConfig(t)
	s := newServer(t, c)
	s.Started(1500 * time.Millisecond)
	err := Register(c.Registry, func() []Sample {
		return []Sample{
			{Name: "dns_requests_total", Help: "h", Value: 3},
			{Name: "dns_upstream_failures_total", Help: "h", Labels: map[string]string{"rcode": "SERVFAIL"}, Value: 1},
			{Name: "dns_upstream_failures_total", Help: "h", Labels: map[string]string{"rcode": "REFUSED"}, Value: 2},
			{Name: "dns_cache_entries", Help: "h", Gauge: true, Value: 7},
			{Name: "dns_seconds", Help: "h", Histogram: &Histogram{Count: 2, Sum: 0.5, Buckets: map[float64]uint64{0.1: 1}}},
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	s.Local().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, line := range []string{
		"istio_agent_startup_duration_seconds 1.5",
		"istio_agent_scrapes_total 1",
		`istio_agent_scrape_failures_total{type="agent"} 0`,
		`istio_agent_scrape_failures_total{type="application"} 0`,
		`istio_agent_scrape_failures_total{type="envoy"} 0`,
		"istio_agent_dns_requests_total 3",
		`istio_agent_dns_upstream_failures_total{rcode="REFUSED"} 2`,
		`istio_agent_dns_upstream_failures_total{rcode="SERVFAIL"} 1`,
		"# TYPE istio_agent_dns_cache_entries gauge",
		`istio_agent_dns_seconds_bucket{le="0.1"} 1`,
		"istio_agent_dns_seconds_count 2",
	} {
		if !strings.Contains(w.Body.String(), "\n"+line+"\n") {
			t.Errorf("missing: %s", line)
		}
	}
	for _, name := range []string{"istio_agent_process_resident_memory_bytes ", "istio_agent_process_open_fds ", "istio_agent_go_goroutines "} {
		if !strings.Contains(w.Body.String(), "\n"+name) {
			t.Errorf("missing: %s", name)
		}
	}
	bad := func() []Sample { return []Sample{{Name: "x", Labels: map[string]string{"a\xff": "b"}}} }
	if err := Register(c.Registry, bad); err == nil {
		t.Error("an invalid label was registered")
	}
}
