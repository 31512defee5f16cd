package status

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// newTestHealth asks as probe says, of an agent that is ready.
func newTestHealth(t *testing.T, probe string) *Health {
	t.Helper()
	begin := make(chan struct{})
	close(begin)
	ready := new(Readiness)
	ready.Done("all")
	h, err := NewHealth(HealthConfig{
		Probe: []byte(probe), PodIPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, Environ: []string{"SECRET=x"},
		Begin: begin, Ready: ready, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// TestHealthHTTP: what the application is asked, and which of its answers are good ones.
func TestHealthHTTP(t *testing.T) {
	var seen *http.Request
	code := http.StatusOK
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = r
		w.WriteHeader(code)
	}))
	defer srv.Close()
	port := portOf(t, srv.Listener.Addr())
	for _, host := range []string{"", `"host":"localhost",`} {
		h := newTestHealth(t, `{"httpGet":{`+host+`"path":"/well","port":`+port+`,"httpHeaders":[{"name":"X-A","value":"1"},{"name":"Host","value":"app"}]}}`)
		for _, code = range []int{200, 204, 304, 399, 400, 404, 500} {
			err := h.check(t.Context())
			if good := code < 400; (err == nil) != good || !good && !strings.Contains(err.Error(), fmt.Sprint(code)) {
				t.Errorf("%d: %v", code, err)
			}
		}
		if from, _, _ := net.SplitHostPort(seen.RemoteAddr); from != "127.0.0.6" || seen.URL.Path != "/well" || seen.Host != "app" ||
			seen.Header.Get("X-A") != "1" || seen.UserAgent() != healthAgent {
			t.Errorf("the application was asked %s %s of %s by %s from %s", seen.Method, seen.URL, seen.Host, seen.UserAgent(), from)
		}
	}
	srv.Close()
	if err := newTestHealth(t, `{"httpGet":{"port":`+port+`}}`).check(t.Context()); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("nobody there: %v", err)
	}
}

func TestHealthTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := newTestHealth(t, `{"tcpSocket":{"host":"localhost","port":`+portOf(t, l.Addr())+`}}`)
	if err := h.check(t.Context()); err != nil {
		t.Error(err)
	}
	l.Close()
	if err := h.check(t.Context()); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("nobody there: %v", err)
	}
}

// TestHealthExec: a command's status counts, it has the agent's environment, and one that does not end is ended.
func TestHealthExec(t *testing.T) {
	if err := newTestHealth(t, `{"exec":{"command":["/bin/sh","-c","test $SECRET = x"]}}`).check(t.Context()); err != nil {
		t.Error(err)
	}
	for want, command := range map[string]string{"status 3": `"/bin/sh","-c","exit 3"`, "deadline exceeded": `"/bin/sleep","600"`, "no such file": `"/no/such"`} {
		err := newTestHealth(t, `{"exec":{"command":[`+command+`]}}`).check(t.Context())
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", command, err, want)
		}
	}
}

// TestHealthNeedsTheProxy: an application is not well that nobody can reach.
func TestHealthNeedsTheProxy(t *testing.T) {
	h := newTestHealth(t, `{"exec":{"command":["/bin/true"]}}`)
	h.c.Ready.Pending("config", "none yet")
	if err := h.check(t.Context()); err == nil || !strings.Contains(err.Error(), "config") {
		t.Errorf("%v, want the agent's task", err)
	}
}

// TestVerdict: it takes as many in a row as the thresholds say, and what was said is not said again.
func TestVerdict(t *testing.T) {
	for _, tt := range []struct {
		succeed, fail int32
		probes, want  string // + and -: a good one, a bad one; said: the same, else a dot
	}{
		{1, 1, "+++--+", "+..-.+"},
		{1, 1, "--+", "-.+"},
		{2, 3, "+-++----+++", "...+..-..+."},
		{3, 1, "++-+++-", "..-..+-"},
		{1, 2, "-+-+--", ".+...-"},
	} {
		v, got := verdict{succeed: tt.succeed, fail: tt.fail}, ""
		for _, probe := range tt.probes {
			var err error
			if probe == '-' {
				err = errors.New("bad")
			}
			if v.take(err) {
				got += string(probe)
			} else {
				got += "."
			}
		}
		if got != tt.want {
			t.Errorf("%d and %d: after %s it says %s, want %s", tt.succeed, tt.fail, tt.probes, got, tt.want)
		}
	}
}

// TestHealthRun: nothing is asked before the proxy has come into force; then the first result is told, and each change.
func TestHealthRun(t *testing.T) {
	var asked atomic.Int32
	well := filepath.Join(t.TempDir(), "well")
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		if _, err := os.Stat(well); err != nil {
			http.Error(w, "not well", http.StatusServiceUnavailable)
		}
	}))
	defer srv.Close()
	h := newTestHealth(t, `{"periodSeconds":1,"timeoutSeconds":30,"httpGet":{"port":`+portOf(t, srv.Listener.Addr())+`}}`)
	begin := make(chan struct{})
	h.c.Begin = begin
	said := make(chan error, 16)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.Run(ctx, func(err error) { said <- err })
	}()
	time.Sleep(20 * time.Millisecond)
	if asked.Load() != 0 {
		t.Error("the application was asked before the proxy was there")
	}
	close(begin)
	if err := receive(t, said); err == nil {
		t.Error("an application that is not well was called well")
	}
	f, err := os.Create(well)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Close(), receive(t, said)); err != nil {
		t.Error(err)
	}
	cancel()
	receive(t, done)
	if len(said) != 0 {
		t.Error("the end was taken for a failure of the application")
	}
}

func TestParseHealthProbe(t *testing.T) {
	for text, want := range map[string]string{
		`{}`: "there are 0",
		`{"httpGet":{"port":1},"tcpSocket":{"port":1}}`:   "there are 2",
		`{"httpGet":{"port":1},"exec":{"command":["a"]}}`: "exactly one",
		`{"exec":{}}`:      "exec.command is missing",
		`{"tcpSocket":{}}`: "port is missing",
		`{"tcpSocket":{"port":1},"periodSeconds":-1}`:               "periodSeconds -1",
		`{"httpGet":{"port":1,"scheme":"ftp"}}`:                     `scheme "ftp"`,
		`{"grpc":{"port":1,"service":"s"},"initialDelaySeconds":3}`: "",
		`{"httpGet":{"port":1,"host":"::1","scheme":"HTTPS"}}`:      "",
		`[]`: "want a probe",
	} {
		_, err := NewHealth(HealthConfig{Probe: []byte(text), Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}
