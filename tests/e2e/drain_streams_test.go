package e2e_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"understudy.mesh/tests/lab"
)

const (
	// streamWindow is how long the drains of these tests last. Envoy begins to end streams in its last
	// third, and takes 5 s to end one.
	streamWindow = 30 * time.Second
	// envoysOwnDrain is a --drainDuration after which all would have ended: the last third has just
	// the 5 s.
	envoysOwnDrain = "16s"
	// soonest is when Envoy may begin to end streams.
	soonest = streamWindow * 2 / 3
	// beat is how often a stream shows that it lives.
	beat = 200 * time.Millisecond
	// webSockets is how many there are: enough that their ends are spread by chance never seen to fail.
	webSockets = 16
)

// stream is one long-lived exchange. open returns once the application has taken part in it, with
// a function that lasts as long as the exchange does, and returns nil if its end was in order.
type stream struct {
	kind string
	open func() (last func() error, err error)
}

// streamEnd is how and when a stream ended, after the drain began.
type streamEnd struct {
	kind  string
	after time.Duration
	err   error
}

// serveStreams is the application: HTTP/1 on 7000, a gRPC-like echo over HTTP/2 on 7001.
func serveStreams(t *testing.T, l *lab.Lab) {
	t.Helper()
	lab.ServeTCP(l.Pod.Listen(t, "[::]:7000"), serveStreams1)
	server := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		w.Header().Set("Content-Type", "application/grpc")
		_ = control.Flush()
		b := make([]byte, 1)
		for {
			if _, err := io.ReadFull(r.Body, b); err != nil {
				return
			}
			_, _ = w.Write(b)
			_ = control.Flush()
		}
	})}
	server.Protocols.SetUnencryptedHTTP2(true)
	ln := l.Pod.Listen(t, "[::]:7001")
	go func() { _ = server.Serve(ln) }()
	t.Cleanup(func() { _ = server.Close() })
}

func serveStreams1(c net.Conn) {
	_ = c.SetDeadline(time.Now().Add(4 * streamWindow))
	r := bufio.NewReader(c)
	req, err := http.ReadRequest(r)
	if err != nil {
		return
	}
	switch {
	case req.Header.Get("Upgrade") != "":
		fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", req.Header.Get("Upgrade"))
		_, _ = io.Copy(c, r)
	case req.Method == http.MethodConnect:
		fmt.Fprint(c, "HTTP/1.1 200 OK\r\n\r\n")
		_, _ = io.Copy(c, r)
	case req.URL.Path == "/poll":
		<-time.After(streamWindow / 2)
		fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	case req.Method == http.MethodPut: // answered once the client has sent all of it
		if _, err := io.Copy(io.Discard, req.Body); err == nil {
			fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	default: // server-sent events, until the client goes
		fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
		for {
			if _, err := fmt.Fprint(c, "9\r\ndata: x\n\n\r\n"); err != nil {
				return
			}
			<-time.After(beat)
		}
	}
}

// request1 sends one HTTP/1 request and reads the head of the answer.
func request1(n *lab.Namespace, head string, want int) (net.Conn, *bufio.Reader, *http.Response, error) {
	ctx, cancel := context.WithTimeout(context.Background(), lab.Deadline)
	defer cancel()
	c, err := n.Dial(ctx, "tcp", lab.PodIP+":7000")
	if err != nil {
		return nil, nil, nil, err
	}
	_ = c.SetDeadline(time.Now().Add(3 * streamWindow))
	if _, err := io.WriteString(c, strings.ReplaceAll(head, "\n", "\r\n")); err != nil {
		return nil, nil, nil, err
	}
	r := bufio.NewReader(c)
	method, _, _ := strings.Cut(head, " ")
	resp, err := http.ReadResponse(r, &http.Request{Method: method})
	if err == nil && resp.StatusCode != want {
		err = fmt.Errorf("status %s", resp.Status)
	}
	return c, r, resp, err
}

// echoes sends a byte every now and then, and expects it back.
func echoes(w io.Writer, r io.Reader) error {
	b := []byte{'x'}
	for {
		if _, err := w.Write(b); err != nil {
			return err
		}
		if _, err := io.ReadFull(r, b); err != nil {
			return err
		}
		<-time.After(beat)
	}
}

func tunnel(n *lab.Namespace, kind, head string, want int) stream {
	return stream{kind, func() (func() error, error) {
		c, r, _, err := request1(n, head, want)
		return func() error { defer c.Close(); return echoes(c, r) }, err
	}}
}

// openGRPC begins a gRPC stream: what is written to in comes back from out.
func openGRPC(n *lab.Namespace) (in io.WriteCloser, out io.ReadCloser, err error) {
	body, in := io.Pipe()
	req, err := http.NewRequest(http.MethodPost, "http://"+lab.PodIP+":7001/echo.Echo/Stream", body)
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Content-Type", "application/grpc")
	resp, err := n.HTTP2().RoundTrip(req)
	if err != nil {
		return nil, nil, err
	}
	return in, resp.Body, nil
}

func grpcStream(n *lab.Namespace) stream {
	return stream{"gRPC", func() (func() error, error) {
		in, out, err := openGRPC(n)
		return func() error { defer out.Close(); defer in.Close(); return echoes(in, out) }, err
	}}
}

// allStreams are of every kind that lives longer than a drain.
func allStreams(n *lab.Namespace) []stream {
	streams := []stream{
		tunnel(n, "CONNECT", "CONNECT app.example:80 HTTP/1.1\nHost: app.example:80\n\n", http.StatusOK),
		tunnel(n, "tcp upgrade", "POST /attach HTTP/1.1\nHost: app\nConnection: Upgrade\nUpgrade: tcp\n\n", http.StatusSwitchingProtocols),
		grpcStream(n),
		{"SSE", func() (func() error, error) {
			c, _, resp, err := request1(n, "GET /events HTTP/1.1\nHost: app\n\n", http.StatusOK)
			return func() error { defer c.Close(); _, err := io.Copy(io.Discard, resp.Body); return err }, err
		}},
		{"long poll", func() (func() error, error) {
			return func() error {
				c, _, resp, err := request1(n, "GET /poll HTTP/1.1\nHost: app\n\n", http.StatusOK)
				if err == nil {
					defer c.Close()
					_, err = io.ReadAll(resp.Body)
				}
				return err
			}, nil
		}},
	}
	for range webSockets {
		streams = append(streams, tunnel(n, "WebSocket", "GET /ws HTTP/1.1\nHost: app\nConnection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Key: x\nSec-WebSocket-Version: 13\n\n", http.StatusSwitchingProtocols))
	}
	return streams
}

// drainStreams opens all streams, has begin start the drain, and returns how they ended.
func drainStreams(t *testing.T, l *lab.Lab, begin func()) (ends []streamEnd) {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	type raw struct {
		kind string
		at   time.Time
		err  error
	}
	var raws []raw
	for _, s := range allStreams(l.Out) {
		last, err := s.open()
		if err != nil {
			t.Fatalf("open a %s: %v", s.kind, err)
		}
		wg.Go(func() {
			err := last()
			mu.Lock()
			defer mu.Unlock()
			raws = append(raws, raw{s.kind, time.Now(), err})
		})
	}
	begin()
	began := time.Now()
	wg.Wait()
	for _, r := range raws {
		ends = append(ends, streamEnd{r.kind, r.at.Sub(began).Round(time.Millisecond), r.err})
	}
	return ends
}

// judgeStreams demands that no stream ends before Envoy may begin to end them, that each does by the end
// of the window, and that WebSockets do not all end at one time.
func judgeStreams(t *testing.T, ends []streamEnd) {
	t.Helper()
	first, last := time.Duration(1<<62), time.Duration(0)
	for _, e := range ends {
		t.Logf("%-12s %8v %v", e.kind, e.after, e.err)
		switch e.kind {
		case "long poll":
			if e.err != nil {
				t.Errorf("a long poll that was answered within the window: %v after %v", e.err, e.after)
			}
			continue
		case "WebSocket":
			first, last = min(first, e.after), max(last, e.after)
		}
		if e.after < soonest-time.Second || e.after > streamWindow+lab.Deadline {
			t.Errorf("a %s ended after %v, want between %v and %v: %v", e.kind, e.after, soonest, streamWindow, e.err)
		}
	}
	if spread := last - first; spread < time.Second {
		t.Errorf("%d WebSockets ended within %v of each other", webSockets, spread)
	}
}

func TestStreamsThroughAnUpgrade(t *testing.T) {
	t.Parallel()
	p := newSlotPod(t, lab.SlotsOptions{Args: []string{"--drainDuration", envoysOwnDrain, "--upgradeDrainDuration", streamWindow.String()}})
	serveStreams(t, p.Lab)
	p.start(t, 0, p.newer, 1, 0)
	p.mustServe(t, 0, p.newer)
	judgeStreams(t, drainStreams(t, p.Lab, func() {
		p.start(t, 1, p.newer, 2, 1)
		p.waitRole(t, 0, roleDraining)
	}))
}

func TestStreamsThroughAStop(t *testing.T) {
	t.Parallel()
	p := newPod(t, podOptions{
		files: map[string]string{"mesh.yaml": aliyun},
		agent: lab.AgentOptions{
			Args: []string{"--drainDuration", envoysOwnDrain},
			Env:  []string{fmt.Sprintf("TERMINATION_DRAIN_DURATION_SECONDS=%d", streamWindow/time.Second)},
		},
	})
	serveStreams(t, p.Lab)
	judgeStreams(t, drainStreams(t, p.Lab, func() { p.agent.Signal(syscall.SIGTERM) }))
	if code := p.agent.Wait(t, stopMargin); code != 0 {
		t.Errorf("exit status %d", code)
	}
}
