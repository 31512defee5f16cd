package status

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testDeadline is how long a test waits for what must happen.
const testDeadline = 20 * time.Second

// testConfig is the least that New takes.
func testConfig(t *testing.T) Config {
	t.Helper()
	ready := &Readiness{}
	ready.Done("everything")
	return Config{Ready: ready, Registry: NewRegistry()}
}

// listen binds loopback on a port of the kernel's choice.
func listen(t *testing.T) []net.Listener {
	t.Helper()
	ls, err := Listen(Socket{Use: "a test", Loopback: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeListeners(ls) })
	return ls
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

// run serves the status port until the end of the test, and returns its URL.
func run(t *testing.T, c Config) string {
	t.Helper()
	ls := listen(t)
	runOn(t, c, Listeners{Status: ls})
	return "http://" + ls[0].Addr().String()
}

func runOn(t *testing.T, c Config, l Listeners) {
	t.Helper()
	v := newServer(t, c).Start(l)
	t.Cleanup(func() { closeServing(t, v) })
}

// closeServing lets what is under way finish.
func closeServing(t *testing.T, v *Serving) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testDeadline)
	defer cancel()
	v.Close(ctx)
	if ctx.Err() != nil {
		t.Error("Close had to cut")
	}
	select {
	case err := <-v.Failed():
		t.Errorf("failed: %v", err)
	default:
	}
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
		for _, word := range []string{strconv.Itoa(port), "the status server", "--statusPort", "outgoing connection", "net.ipv4.ip_local_reserved_ports"} {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("loopback=%v: %q does not name %q", loopback, err, word)
			}
		}
	}
}

// A port may be taken by a connection that only goes out from it. The command that the
// error names has to show it.
func TestListenPortTakenByAConnection(t *testing.T) {
	server, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	c, err := net.Dial("tcp4", server.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	port := c.LocalAddr().(*net.TCPAddr).Port
	ls, err := Listen(Socket{Port: uint16(port), Use: "the status server", Setting: "--statusPort"})
	if !errors.Is(err, syscall.EADDRINUSE) {
		closeListeners(ls)
		t.Fatalf("%v is not EADDRINUSE", err)
	}
	_, rest, _ := strings.Cut(err.Error(), "`")
	command, _, _ := strings.Cut(rest, "`")
	if _, err := exec.LookPath("ss"); err != nil && os.Getenv("CI") != "true" {
		t.Skip(err)
	}
	out, err := exec.Command("sh", "-c", command).CombinedOutput()
	if err != nil || !strings.Contains(string(out), server.Addr().String()) {
		t.Errorf("%s: %v: does not show the connection to %s:\n%s", command, err, server.Addr(), out)
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
		{"no readiness", func(c *Config) { c.Ready = nil }, "Ready"},
		{"no registry", func(c *Config) { c.Registry = nil }, "Registry"},
		{"page elsewhere", func(c *Config) { c.Debug = map[string]http.Handler{"/x": page} }, `"/x"`},
		{"page over pprof", func(c *Config) { c.Debug = map[string]http.Handler{"/debug/pprof/x": page} }, "pprof"},
		{"page with a pattern", func(c *Config) { c.Debug = map[string]http.Handler{"/debug/{x}": page} }, "{x}"},
		{"page without handler", func(c *Config) { c.Debug = map[string]http.Handler{"/debug/x": nil} }, "/debug/x"},
		{"probers", func(c *Config) { c.AppProbers = []byte("[]") }, probersSource},
		{"annotations", func(c *Config) { c.PrometheusAnnotations = []byte("[]") }, annotationsSource},
		{"the status port as the application's", func(c *Config) {
			c.Ports = []uint16{4242}
			c.PrometheusAnnotations = []byte(`{"scrape":"true","port":"4242"}`)
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

func TestProbePort(t *testing.T) {
	c := testConfig(t)
	probe := listen(t)
	runOn(t, c, Listeners{Probe: probe})
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
