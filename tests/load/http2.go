package load

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// transport is one HTTP/2 connection at a time of a flow, and the next when that one is drained. It
// honours GOAWAY: new requests take a new connection, those that the peer says it has not looked at
// are repeated. (A transport opens a second connection by itself only when the first is full.)
type transport struct {
	endpoint
	http.Transport

	mu     sync.Mutex
	broken error // that the last connection which ended met
}

func newTransports(e endpoint) []*transport {
	transports := make([]*transport, e.flow.Conns)
	for i := range transports {
		t := &transport{endpoint: e}
		t.Protocols = new(http.Protocols)
		t.Protocols.SetUnencryptedHTTP2(true)
		t.DisableCompression = true
		t.DialContext = t.dialRecorded
		transports[i] = t
	}
	return transports
}

func (t *transport) dialRecorded(context.Context, string, string) (net.Conn, error) {
	c, err := dialTCP(t.address(), t.timeout())
	if err != nil {
		return nil, err
	}
	if t.flow.Kind == HTTP2 { // h2-stream counts its streams
		t.meter.opened()
	}
	return &recordedConn{TCPConn: c, transport: t}, nil
}

// recordedConn tells its transport how it ended.
type recordedConn struct {
	*net.TCPConn
	transport *transport
}

func (c *recordedConn) Read(p []byte) (n int, err error) {
	n, err = c.TCPConn.Read(p)
	if err != nil {
		c.transport.mu.Lock()
		defer c.transport.mu.Unlock()
		c.transport.broken = err
	}
	return n, err
}

// cause is an error of RoundTrip, with what net/http leaves out: how the connection ended that
// never got as far as the peer's SETTINGS.
func (t *transport) cause(err error) error {
	if !strings.Contains(err.Error(), "client conn could not be established") {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.broken == nil {
		return err
	}
	return fmt.Errorf("%w: %w", err, t.broken)
}

// roundTrip sends the head of a request and returns that of its answer. A body, if any, is made
// anew for each attempt.
func (t *transport) roundTrip(ctx context.Context, method string, body func() (io.ReadCloser, error)) (*http.Response, error) {
	var attempts atomic.Uint64 // by the goroutine that writes, which may outlive the call
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { attempts.Add(1) }})
	r, err := http.NewRequestWithContext(ctx, method, t.flow.Target, nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("User-Agent", userAgent)
	if body != nil {
		r.GetBody = body
		if r.Body, err = body(); err != nil {
			return nil, err
		}
	}
	response, err := t.RoundTrip(r)
	if n := attempts.Load(); n > 1 {
		t.meter.retried(n - 1)
	}
	if err != nil {
		return nil, t.cause(err)
	}
	return response, nil
}

// http2 is a client of HTTP/2 requests; it shares its connection with other workers.
type http2 struct {
	*transport
	body bytes.Buffer
}

func (c *http2) request() error {
	ctx, cancel := context.WithTimeout(context.Background(), c.timeout())
	defer cancel()
	response, err := c.roundTrip(ctx, http.MethodGet, nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	c.body.Reset()
	if _, err := c.body.ReadFrom(io.LimitReader(response.Body, maxBody)); err != nil {
		return err
	}
	return checkAnswer(response.Status, response.StatusCode, c.body.Bytes(), c.flow.Want)
}

func (c *http2) finish() error {
	c.CloseIdleConnections() // the last worker's call closes it
	return nil
}

// errSilent is why a stream's context is cancelled when no answer comes in time.
var errSilent = fmt.Errorf("no answer in the flow's timeout: %w", os.ErrDeadlineExceeded)

// h2Stream is a client of one long request after another, as gRPC's bidirectional streams are:
// it sends a message, waits for its echo, and ends the request when its life is over.
type h2Stream struct {
	*transport
	message message
	life    time.Duration // of the stream that is opened next

	// The open stream; body is nil when there is none.
	body    io.ReadCloser
	pipe    *io.PipeWriter
	expires time.Time
	ctx     context.Context // cancelled with errSilent as the cause
	cancel  context.CancelFunc
	watch   *time.Timer // cancels ctx unless stopped
}

func newH2Stream(t *transport, worker int) *h2Stream {
	return &h2Stream{transport: t, message: newMessage(t.flow, worker), life: firstLife(t.flow, worker)}
}

func (s *h2Stream) request() error {
	if s.body != nil && s.life > 0 && time.Now().After(s.expires) {
		if err := s.end(); err != nil {
			return err
		}
	}
	if s.body == nil {
		if err := s.open(); err != nil {
			return s.cut(err)
		}
	}
	s.watch.Reset(s.timeout())
	_, _ = s.pipe.Write(s.message.next()) // fails when the stream was cut: reading says how
	if _, err := io.ReadFull(s.body, s.message.echo); err != nil {
		return s.cut(fmt.Errorf("read the echo: %w", err))
	}
	s.watch.Stop()
	if err := s.message.check(); err != nil {
		return s.cut(err)
	}
	return nil
}

func (s *h2Stream) open() error {
	ctx, cancel := context.WithCancelCause(context.Background())
	s.ctx, s.cancel = ctx, func() { cancel(nil) }
	s.watch = time.AfterFunc(s.timeout(), func() { cancel(errSilent) })
	response, err := s.roundTrip(ctx, http.MethodPost, func() (body io.ReadCloser, _ error) {
		body, s.pipe = io.Pipe()
		return body, nil
	})
	if err != nil {
		return fmt.Errorf("open the stream: %w", err)
	}
	s.body = response.Body
	s.meter.opened()
	if response.StatusCode != http.StatusOK {
		return checkAnswer(response.Status, response.StatusCode, nil, "")
	}
	s.expires = time.Now().Add(s.life)
	return nil
}

// cut ends the stream after a failure, and returns why it failed.
func (s *h2Stream) cut(err error) error {
	if cause := context.Cause(s.ctx); errors.Is(cause, errSilent) {
		err = cause
	}
	s.drop()
	return err
}

func (s *h2Stream) drop() {
	s.watch.Stop()
	s.cancel()
	_ = s.pipe.Close()
	if s.body != nil {
		_ = s.body.Close()
		s.body = nil
	}
	s.life = time.Duration(s.flow.Life)
}

func (s *h2Stream) finish() error {
	defer s.CloseIdleConnections() // the last worker's call closes it
	if s.body == nil {
		return nil
	}
	return s.end()
}

// end ends the request body; the peer must then end the answer, with nothing more in it.
func (s *h2Stream) end() error {
	s.watch.Reset(s.timeout())
	_ = s.pipe.Close()
	if rest, err := io.ReadAll(io.LimitReader(s.body, maxBody)); err != nil {
		return s.cut(fmt.Errorf("end the stream: %w", err))
	} else if len(rest) > 0 {
		return s.cut(wrongf("%d bytes after the last echo", len(rest)))
	}
	s.drop()
	s.meter.ended()
	return nil
}
