package load

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	// deadline ends a test that hangs; nothing is asserted about how long something takes.
	deadline = 30 * time.Second
	// short is the timeout of requests that are to time out.
	short = Duration(100 * time.Millisecond)
)

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// serveRaw calls handle for each connection, which it closes then. It returns the address.
func serveRaw(t *testing.T, handle func(*net.TCPConn)) string {
	t.Helper()
	l := listen(t)
	var all sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { _ = l.Close(); cancel(); all.Wait() })
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer context.AfterFunc(ctx, func() { _ = c.Close() })()
				defer c.Close()
				handle(c.(*net.TCPConn))
			})
		}
	})
	return l.Addr().String()
}

// serve runs one of the package's servers until the test ends.
func serve(t *testing.T, run func(context.Context, net.Listener) error) string {
	t.Helper()
	l := listen(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func serveNamed(name string) func(context.Context, net.Listener) error {
	return func(ctx context.Context, l net.Listener) error { return ServeHTTP(ctx, l, name) }
}

// serveHandler serves HTTP/1.1 and HTTP/2.
func serveHandler(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	l := listen(t)
	s := &http.Server{Handler: h, Protocols: new(http.Protocols)}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close(); <-done })
	return l.Addr().String()
}

// readRequest reads the head of an HTTP/1.1 request; false at the end of the connection.
func readRequest(r *bufio.Reader) bool {
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return false
		}
		if line == "\r\n" {
			return true
		}
	}
}

func run(t *testing.T, c Config) Report {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	report, err := Run(ctx, c, func(Report) {})
	if err != nil {
		t.Fatal(err)
	}
	if ctx.Err() != nil {
		t.Fatalf("the run did not end by itself:\n%v", report)
	}
	return report
}

// runOne makes so many requests of one flow with one worker.
func runOne(t *testing.T, requests uint64, f Flow) FlowReport {
	t.Helper()
	if f.Workers == 0 {
		f.Workers, f.Conns = 1, 1
	}
	return run(t, Config{Requests: requests, Flows: []Flow{f}}).Flows[0]
}

// misbehaviour is a server that fails every request in one way.
type misbehaviour struct {
	name  string
	kinds []Kind
	class Class
	start func(t *testing.T) string
}

var (
	httpKinds = []Kind{HTTP1New, HTTP1Keep, Probe, HTTP2, H2Stream}
	http1Only = []Kind{HTTP1New, HTTP1Keep, Probe}
	tcpKinds  = append([]Kind{TCPStream, DNSTCP}, httpKinds...)
)

func raw(handle func(*net.TCPConn)) func(*testing.T) string {
	return func(t *testing.T) string { return serveRaw(t, handle) }
}

func handler(h http.HandlerFunc) func(*testing.T) string {
	return func(t *testing.T) string { return serveHandler(t, h) }
}

var misbehaviours = []misbehaviour{
	{"no listener", tcpKinds, Refused, func(t *testing.T) string {
		l := listen(t)
		_ = l.Close()
		return l.Addr().String()
	}},
	{"reset at the request", tcpKinds, Reset, raw(func(c *net.TCPConn) {
		_, _ = c.Read(make([]byte, 1))
		_ = c.SetLinger(0)
	})},
	// Half-closed first: a close with something unread is a reset.
	{"closed at the request", tcpKinds, EOF, raw(func(c *net.TCPConn) {
		_, _ = c.Read(make([]byte, 1))
		_ = c.CloseWrite()
		_, _ = io.Copy(io.Discard, c)
	})},
	{"silent", tcpKinds, Timeout, raw(func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) })},
	{"cut in the head", http1Only, EOF, raw(answerThenClose("HTTP/1.1 200 OK\r\nContent-Le"))},
	{"no HTTP", http1Only, Wrong, raw(answerThenClose("SSH-2.0-OpenSSH_9.2\r\n\r\n"))},
	{"cut in the body", http1Only, EOF, raw(answerThenClose("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"))},
	{"cut in a chunk", http1Only, EOF, raw(answerThenClose("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"))},
	{"503", httpKinds, Status5xx, handler(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) })},
	{"404", httpKinds, Wrong, handler(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) })},
	{"another body", []Kind{HTTP1New, HTTP1Keep, HTTP2}, Wrong, handler(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("server=b\n")) })},
	{"handler hangs", httpKinds, Timeout, handler(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })},
	{"RST_STREAM before the answer", []Kind{HTTP2, H2Stream}, Reset, handler(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })},
	{"RST_STREAM in the body", []Kind{HTTP2, H2Stream}, Reset, handler(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("se"))
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})},
	{"stream ended early", []Kind{H2Stream}, EOF, handler(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		_, _ = io.CopyN(w, r.Body, 10)
	})},
	{"another echo", []Kind{H2Stream}, Wrong, handler(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		_, _ = io.CopyN(io.Discard, r.Body, defaultSize)
		_, _ = w.Write(make([]byte, defaultSize))
	})},
	{"another echo over TCP", []Kind{TCPStream}, Wrong, raw(func(c *net.TCPConn) {
		_, _ = io.CopyN(io.Discard, c, defaultSize)
		_, _ = c.Write(make([]byte, defaultSize))
	})},
	{"part of the echo over TCP", []Kind{TCPStream}, EOF, raw(func(c *net.TCPConn) {
		_, _ = io.CopyN(io.Discard, c, defaultSize)
		_, _ = c.Write(make([]byte, defaultSize/2))
	})},
}

func answerThenClose(answer string) func(*net.TCPConn) {
	return func(c *net.TCPConn) {
		if readRequest(bufio.NewReader(c)) {
			_, _ = io.WriteString(c, answer)
		}
	}
}

// TestEachFailureIsCountedInItsClass demands that nothing that goes wrong is counted as anything else, or not at all.
func TestEachFailureIsCountedInItsClass(t *testing.T) {
	const requests = 2
	for _, m := range misbehaviours {
		for _, kind := range m.kinds {
			t.Run(m.name+"/"+string(kind), func(t *testing.T) {
				t.Parallel()
				f := Flow{Kind: kind, Target: m.start(t), Workers: 1, Conns: 1, Names: []string{"aliyun.com"}}
				if kind != TCPStream && kind != DNSTCP {
					f.Target = "http://" + f.Target + "/"
				}
				if m.class == Timeout {
					f.Timeout = short
				}
				if m.name == "another body" {
					f.Want = "server=a"
				}
				got := runOne(t, requests, f)
				if got.Total.OK != 0 || got.Total.Failed[m.class] != requests || got.Total.Failures() != requests {
					t.Errorf("ok %d, failed %v, want %d %s: %v", got.Total.OK, got.Total.Failed, requests, m.class, got.Failures)
				}
				if len(got.Failures) != requests || got.Failures[0].Class != m.class || got.Failures[0].Text == "" || got.Failures[0].Flow != string(kind) {
					t.Errorf("failures: %+v", got.Failures)
				}
			})
		}
	}
}

func TestGoodServersFailNothing(t *testing.T) {
	web := "http://" + serve(t, serveNamed("app"))
	echo := serve(t, ServeEcho)
	const requests = 2000
	life := Duration(20 * time.Millisecond)
	report := run(t, Config{Requests: requests, Flows: []Flow{
		{Kind: HTTP1New, Target: web + "/a?b=c", Want: "server=app\n"},
		{Kind: HTTP1Keep, Target: web, Want: "server=app\n", Life: life},
		{Kind: HTTP2, Target: web, Want: "server=app\n"},
		{Kind: Probe, Target: "http://app.example/", Connect: strings.TrimPrefix(web, "http://")},
		{Kind: H2Stream, Target: web + EchoPath, Life: life},
		{Kind: TCPStream, Target: echo, Life: life, Size: 10_000},
	}})
	total := report.Total()
	if total.OK != requests || total.Failures() != 0 || total.Retried != 0 || !report.Final {
		t.Errorf("want %d good requests:\n%v", requests, report)
	}
	if n := total.Latency.Count(); n != requests {
		t.Errorf("%d latencies, want %d", n, requests)
	}
	for _, f := range report.Flows {
		if f.Total.OK == 0 || f.Total.Opened == 0 {
			t.Errorf("%s did nothing: %+v", f.Name, f.Total)
		}
		// Whatever is opened is ended by its own side; h2's connections are net/http's to close.
		if f.Kind != HTTP2 && f.Total.Opened != f.Total.Ended {
			t.Errorf("%s: opened %d, ended %d", f.Name, f.Total.Opened, f.Total.Ended)
		}
	}
	if f := report.Flow("http1-new"); f.Total.Opened != f.Total.OK {
		t.Errorf("http1-new made %d connections for %d requests", f.Total.Opened, f.Total.OK)
	}
	if f := report.Flow("http1-keep"); f.Total.Opened >= f.Total.OK {
		t.Errorf("http1-keep made %d connections for %d requests", f.Total.Opened, f.Total.OK)
	}
}

// TestServerTellsTheClient of its address, which a proxy in between may have made another one.
func TestServerTellsTheClient(t *testing.T) {
	target := "http://" + serve(t, serveNamed("app")) + ClientPath
	if f := runOne(t, 3, Flow{Kind: HTTP1New, Target: target, Want: "client=127.0.0.1\n"}); f.Total.OK != 3 {
		t.Errorf("%+v", f)
	}
}

// TestStreamsLiveAsLongAsTheyShould demands that streams end by themselves, and are opened again.
func TestStreamsLiveAsLongAsTheyShould(t *testing.T) {
	web, echo := serve(t, serveNamed("app")), serve(t, ServeEcho)
	for _, f := range []Flow{{Kind: H2Stream, Target: "http://" + web + EchoPath}, {Kind: TCPStream, Target: echo}} {
		f.Workers, f.Rate = 3, 300
		if got := runOne(t, 60, f).Total; got.Opened != 3 || got.Ended != 3 || got.Failures() != 0 {
			t.Errorf("%s without end: opened %d, ended %d, failed %v, want 3, 3, none", f.Kind, got.Opened, got.Ended, got.Failed)
		}
		f.Life = Duration(time.Millisecond) // less than from message to message
		if got := runOne(t, 60, f).Total; got.Opened < 10 || got.Ended != got.Opened || got.Failures() != 0 {
			t.Errorf("%s for 1 ms: opened %d, ended %d, failed %v, want nearly 60 of each, none", f.Kind, got.Opened, got.Ended, got.Failed)
		}
	}
}

// TestStreamCutAtItsEnd demands that a stream which does not end as agreed is a failure, though every
// message was echoed.
func TestStreamCutAtItsEnd(t *testing.T) {
	echoOne := raw(func(c *net.TCPConn) {
		_, _ = io.CopyN(c, c, defaultSize)
		_, _ = c.Read(make([]byte, 1)) // the FIN
		_ = c.SetLinger(0)
	})(t)
	got := runOne(t, 1, Flow{Kind: TCPStream, Target: echoOne}).Total
	if got.OK != 1 || got.Failed[Reset] != 1 || got.Ended != 0 {
		t.Errorf("TCP: %+v, want one message and one reset", got)
	}
	abort := handler(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		_, _ = io.CopyN(w, r.Body, defaultSize)
		_ = http.NewResponseController(w).Flush()
		_, _ = io.Copy(io.Discard, r.Body)
		panic(http.ErrAbortHandler)
	})(t)
	got = runOne(t, 1, Flow{Kind: H2Stream, Target: "http://" + abort}).Total
	if got.OK != 1 || got.Failed[Reset] != 1 || got.Ended != 0 {
		t.Errorf("HTTP/2: %+v, want one message and one reset", got)
	}
}

const smallAnswer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// TestKeepRepeatsOnlyWhatItMay is RFC 9112, 9.3.1: a request on a connection that had worked is
// made again when the connection ends without a byte of the answer; no other one is.
func TestKeepRepeatsOnlyWhatItMay(t *testing.T) {
	// The first connection answers one request; the second request on it gets what the case says.
	second := func(end func(c *net.TCPConn)) string {
		var connections atomic.Int32
		return serveRaw(t, func(c *net.TCPConn) {
			first := connections.Add(1) == 1
			r := bufio.NewReader(c)
			for n := 1; readRequest(r); n++ {
				if first && n == 2 {
					end(c)
					return
				}
				_, _ = io.WriteString(c, smallAnswer)
			}
		})
	}
	for _, tt := range []struct {
		name           string
		end            func(c *net.TCPConn)
		retried, ended uint64
		class          Class // "": none
	}{
		{"closed without an answer", func(*net.TCPConn) {}, 1, 1, ""},
		{"reset without an answer", func(c *net.TCPConn) { _ = c.SetLinger(0) }, 1, 1, ""},
		{"closed within the answer", func(c *net.TCPConn) { _, _ = io.WriteString(c, "H") }, 0, 1, EOF},
		{"silent", func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) }, 0, 1, Timeout},
		{"Connection: close", func(c *net.TCPConn) {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
		}, 0, 2, ""},
		{"an answer up to the end of the connection", func(c *net.TCPConn) {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\nok")
		}, 0, 2, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := runOne(t, 4, Flow{Kind: HTTP1Keep, Target: "http://" + second(tt.end), Want: "ok", Timeout: Duration(time.Second)}).Total
			want := Counts{OK: 4, Opened: 2, Retried: tt.retried, Ended: tt.ended}
			if tt.class != "" {
				want.OK, want.Failed = 3, map[Class]uint64{tt.class: 1}
			}
			if got.OK != want.OK || got.Failures() != want.Failures() || got.Failed[tt.class] != want.Failed[tt.class] ||
				got.Opened != want.Opened || got.Retried != want.Retried || got.Ended != want.Ended {
				t.Errorf("got %+v\nwant %+v", got, want)
			}
		})
	}
}

// TestKeepSeesAnIdleClose demands that a connection which was closed between two requests is not used.
func TestKeepSeesAnIdleClose(t *testing.T) {
	target := serveRaw(t, answerThenClose(smallAnswer))
	e := endpoint{flow: Flow{Target: "http://" + target, Connect: target, Timeout: Duration(time.Second)}, meter: &meter{}}
	c := newHTTP1(e, true)
	for range 3 {
		if err := c.request(); err != nil {
			t.Fatal(err)
		}
		for limit := time.Now().Add(deadline); !c.link.closedByPeer(); {
			if time.Now().After(limit) {
				t.Fatal("the close never came")
			}
		}
	}
	if err := c.finish(); err != nil {
		t.Fatal(err)
	}
	if got, _, _ := e.meter.snapshot(); got.Opened != 3 || got.Ended != 3 || got.Retried != 0 {
		t.Errorf("got %+v, want 3 opened, 3 ended, none retried", got)
	}
}

// TestFirstFailuresAreKept demands the first 20 failures, and the count of all.
func TestFirstFailuresAreKept(t *testing.T) {
	l := listen(t)
	_ = l.Close()
	got := runOne(t, 100, Flow{Kind: HTTP1New, Target: "http://" + l.Addr().String()})
	if got.Total.Failed[Refused] != 100 || len(got.Failures) != 20 {
		t.Errorf("%d refused, %d kept, want 100, 20", got.Total.Failed[Refused], len(got.Failures))
	}
}

// TestPause: a slow client's request comes in two pieces, and is answered all the same.
func TestPause(t *testing.T) {
	pieces := make(chan string, 2)
	address := serveRaw(t, func(c *net.TCPConn) {
		buffer := make([]byte, 1024)
		for range 2 {
			n, err := c.Read(buffer)
			if err != nil {
				t.Error(err)
			}
			pieces <- string(buffer[:n])
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
	})
	r, err := Run(t.Context(), Config{Requests: 1, Flows: []Flow{{
		Kind: HTTP1New, Target: "http://" + address + "/", Workers: 1, Pause: Duration(20 * time.Millisecond),
	}}}, func(Report) {})
	if err != nil || r.Total().OK != 1 {
		t.Fatalf("%v, %v", r, err)
	}
	first, second := <-pieces, <-pieces
	if !strings.HasPrefix(first, "GET / HTTP/1.1\r\n") || strings.Contains(first, "\r\n\r\n") || !strings.HasSuffix(second, "\r\n\r\n") {
		t.Errorf("got %q and %q", first, second)
	}
}

func TestPauseIsOnlyForHTTP1(t *testing.T) {
	_, err := Flow{Kind: TCPStream, Target: "127.0.0.1:1", Pause: 1}.complete()
	if err == nil || !strings.Contains(err.Error(), "pause: only http1-new and http1-keep have one") {
		t.Errorf("got %v", err)
	}
}
