package status

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// copyOf returns another descriptor of the listener's socket, as another
// process has it after a hand-off.
func copyOf(t *testing.T, l net.Listener) net.Listener {
	t.Helper()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	second, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { second.Close() })
	return second
}

// slowConfig has a page that waits: each request to it appears in started, and
// is answered after something comes out of release.
func slowConfig(t *testing.T) (c Config, started chan string, release chan struct{}) {
	c = testConfig(t)
	started, release = make(chan string), make(chan struct{})
	c.Debug = map[string]http.Handler{
		"/debug/slow": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			started <- r.RemoteAddr
			<-release
			io.WriteString(w, "finished")
		}),
	}
	return c, started, release
}

// client is one connection, so that a test sees what becomes of it.
type client struct {
	net.Conn
	in *bufio.Reader
}

func dial(t *testing.T, addr net.Addr) *client {
	t.Helper()
	conn, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(testDeadline))
	return &client{conn, bufio.NewReader(conn)}
}

func (c *client) send(t *testing.T, path string) {
	t.Helper()
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", path); err != nil {
		t.Fatal(err)
	}
}

// answer reads one response; closed says that the server asked for its end.
func (c *client) answer(t *testing.T) (body string, closed bool) {
	t.Helper()
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(data), resp.Close
}

// ended fails the test unless the server has closed the connection.
func (c *client) ended(t *testing.T, what string) {
	t.Helper()
	if _, err := c.in.ReadByte(); err != io.EOF {
		t.Errorf("%s: %v, want the end of the connection", what, err)
	}
}

// What was accepted when the listeners go is answered, whatever state it is in;
// what comes later finds nobody.
func TestReleaseServesWhatWasAccepted(t *testing.T) {
	c, started, release := slowConfig(t)
	ls := listen(t)
	addr := ls[0].Addr()
	v := newServer(t, c).Start(Listeners{Status: ls})

	idle, silent, half, busy := dial(t, addr), dial(t, addr), dial(t, addr), dial(t, addr)
	if _, err := io.WriteString(half, "GET /healthz/ready HT"); err != nil {
		t.Fatal(err)
	}
	// The connections are accepted in their order, and so the last one's
	// request says that all were.
	busy.send(t, "/debug/slow")
	receive(t, started)
	idle.send(t, "/healthz/ready")
	if _, closed := idle.answer(t); closed {
		t.Error("no keep-alive before the release")
	}

	v.Release()
	if conn, err := net.Dial("tcp", addr.String()); err == nil {
		conn.Close()
		t.Error("the port accepts connections after Release")
	}
	idle.ended(t, "idle connection")
	silent.send(t, "/healthz/ready")
	if _, err := io.WriteString(half, "TP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	close(release)
	for name, tt := range map[string]struct {
		client *client
		body   string
	}{
		"accepted and silent": {silent, "ready\n"}, "half a request": {half, "ready\n"}, "under way": {busy, "finished"},
	} {
		if body, closed := tt.client.answer(t); body != tt.body || !closed {
			t.Errorf("%s: %q, asked to close: %v", name, body, closed)
		}
		tt.client.ended(t, name)
	}
	closeServing(t, v)
}

// Close cuts what is not done in time, and returns after the last handler.
func TestCloseCuts(t *testing.T) {
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
	ls := listen(t)
	v := newServer(t, c).Start(Listeners{Status: ls})
	silent, stuck := dial(t, ls[0].Addr()), dial(t, ls[0].Addr())
	stuck.send(t, "/debug/stuck")
	receive(t, started)
	v.Release()
	if cut.Load() {
		t.Error("Release cut a request")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	v.Close(ctx)
	if !cut.Load() {
		t.Error("Close returned while a handler ran")
	}
	silent.ended(t, "silent connection")
	v.Close(ctx) // again: nothing happens
}

func TestFailedReportsBrokenListener(t *testing.T) {
	ls := listen(t)
	good := ls[0].Addr()
	broken := listen(t)[:1]
	broken[0].Close()
	v := newServer(t, testConfig(t)).Start(Listeners{Status: ls, Probe: broken})
	if err := receive(t, v.Failed()); err == nil || !strings.Contains(err.Error(), "serve HTTP on "+broken[0].Addr().String()) {
		t.Errorf("error %v", err)
	}
	if resp, _ := get(t, "http://"+good.String()+"/healthz/ready"); resp.StatusCode != http.StatusOK {
		t.Errorf("the other listener: %d", resp.StatusCode)
	}
	closeServing(t, v)
}

// One server lets go of a socket and takes it again while the requests of the
// time before go on.
func TestStartAgainWhileFinishing(t *testing.T) {
	c, started, release := slowConfig(t)
	ls := listen(t)[:1]
	addr, second := ls[0].Addr(), copyOf(t, ls[0])
	s := newServer(t, c)
	before := s.Start(Listeners{Status: ls})
	old := dial(t, addr)
	old.send(t, "/debug/slow")
	receive(t, started)
	before.Release()
	waiting := dial(t, addr) // in the kernel's queue: nobody accepts now
	waiting.send(t, "/healthz/ready")

	after := s.Start(Listeners{Status: []net.Listener{second}})
	if body, _ := waiting.answer(t); body != "ready\n" {
		t.Errorf("the connection made in between: %q", body)
	}
	close(release)
	if body, _ := old.answer(t); body != "finished" {
		t.Errorf("the old request: %q", body)
	}
	closeServing(t, before)
	if resp, _ := get(t, "http://"+addr.String()+"/healthz/ready"); resp.StatusCode != http.StatusOK {
		t.Errorf("after the first one's Close: %d", resp.StatusCode)
	}
	waiting.Close()
	closeServing(t, after)
}

// Two agents hand one socket to and fro under load: no request is lost.
func TestSwitchLosesNothing(t *testing.T) {
	const switches, clients = 50, 8
	kept := listen(t)[0]
	url := "http://" + kept.Addr().String() + "/healthz/ready"
	servers := []*Server{newServer(t, testConfig(t)), newServer(t, testConfig(t))}
	serving := servers[0].Start(Listeners{Status: []net.Listener{copyOf(t, kept)}})

	var done atomic.Bool
	answered := make(chan struct{})
	var load, closing sync.WaitGroup
	for range clients {
		load.Go(func() {
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: testDeadline}
			for !done.Load() {
				resp, err := client.Get(url)
				if err != nil {
					t.Error(err)
					return
				}
				resp.Body.Close()
				select {
				case answered <- struct{}{}:
				default:
				}
			}
		})
	}
	for i := range switches {
		for range clients { // each switch happens under load
			receive(t, answered)
		}
		old := serving
		if i%2 == 0 { // both accept for a moment, or nobody does
			old.Release()
		}
		serving = servers[(i+1)%2].Start(Listeners{Status: []net.Listener{copyOf(t, kept)}})
		closing.Go(func() { closeServing(t, old) })
	}
	done.Store(true)
	load.Wait()
	closing.Wait()
	closeServing(t, serving)
}
