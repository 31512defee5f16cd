package load

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"
)

// TestHandoverFailsNothing moves a listening socket from one server to the next under load, as an
// upgrade does: the old one shuts down (GOAWAY, idle connections closed) while the next one accepts.
// New connections have servers of their own: net/http drops those that it has accepted and not yet
// read from when it shuts down (server.go, conn.serve), which http1-new finds in one run of three.
func TestHandoverFailsNothing(t *testing.T) {
	socket, plain := listen(t), listen(t)
	target := "http://" + socket.Addr().String()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()

	shutdown := startOn(t, socket, serveNamed("old"))
	shutdownPlain := startOn(t, plain, servePlain)
	reports := make(chan Report, 100)
	loadCtx, stopLoad := context.WithCancel(ctx)
	defer stopLoad()
	final := make(chan Report, 1)
	go func() {
		r, err := Run(loadCtx, Config{Flows: []Flow{
			{Kind: HTTP1New, Target: "http://" + plain.Addr().String(), Want: "ok", Rate: 200},
			{Kind: HTTP1Keep, Target: target, Want: "server=", Rate: 400},
			{Kind: HTTP2, Target: target, Want: "server=", Rate: 400, Workers: 8},
			// Lives shorter than a server waits for its streams.
			{Kind: H2Stream, Target: target + EchoPath, Rate: 100, Life: Duration(200 * time.Millisecond)},
		}}, func(r Report) { reports <- r })
		if err != nil {
			t.Error(err)
		}
		final <- r
	}()
	<-reports // the old server has worked
	startOn(t, socket, serveNamed("new"))
	startOn(t, plain, servePlain)
	shutdownPlain()
	shutdown()
	before := <-reports
	after := <-reports // and the new one
	stopLoad()
	r := <-final
	if r.Failures() != 0 {
		t.Errorf("the handover lost requests:\n%v", r)
	}
	for _, f := range r.Flows {
		if after.Flow(f.Name).Total.OK <= before.Flow(f.Name).Total.OK {
			t.Errorf("%s stands still after the handover:\n%v", f.Name, r)
		}
	}
	// The kept connections had to be opened again: the test has seen what it is about.
	if keep, h2 := r.Flow("http1-keep").Total, r.Flow("h2").Total; keep.Opened < 2*defaultWorkers || h2.Opened < 2*defaultConns {
		t.Errorf("http1-keep opened %d connections, h2 %d: there was no handover", keep.Opened, h2.Opened)
	}
	t.Logf("\n%v", r)
}

// startOn serves on a descriptor of its own of the socket, as another process would.
func startOn(t *testing.T, socket net.Listener, run func(context.Context, net.Listener) error) (shutdown func()) {
	t.Helper()
	file, err := socket.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	l, err := net.FileListener(file)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := run(ctx, l); err != nil {
			t.Error(err)
		}
	}()
	shutdown = func() { cancel(); <-ended }
	t.Cleanup(shutdown)
	return shutdown
}

// servePlain answers one request on each connection, and every connection that it has accepted.
func servePlain(ctx context.Context, l net.Listener) error {
	var connections sync.WaitGroup
	defer connections.Wait()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	for {
		c, err := l.Accept()
		if err != nil {
			return nil
		}
		connections.Go(func() {
			defer c.Close()
			answerThenClose(smallAnswer)(c.(*net.TCPConn))
		})
	}
}
