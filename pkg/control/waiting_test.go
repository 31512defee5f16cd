package control

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
)

// TestWaitingEndsByItself: the agent sees the whole body, and only when the `wait` is done.
func TestWaitingEndsByItself(t *testing.T) {
	began, ended := make(chan struct{}), make(chan error, 1)
	agent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadFull(r.Body, make([]byte, 1)); err != nil {
			t.Errorf("no first byte: %v", err)
		}
		close(began)
		_, err := io.Copy(io.Discard, r.Body)
		ended <- err
	}))
	defer agent.Close()
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", agent.Listener.Addr().String())
	}
	c := &Client{control: &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial}}}
	done := c.Waiting(t.Context())
	<-began
	select {
	case err := <-ended:
		t.Fatalf("it ended before it was done: %v", err)
	default:
	}
	done()
	if err := <-ended; err != nil {
		t.Errorf("it did not end by itself: %v", err)
	}
}
