package webhook

import (
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"understudy.mesh/tests/lab"
)

// balancer is what a Service is: connections go to one of the replicas that are ready.
type balancer struct {
	mu    sync.Mutex
	ready []string
	next  int
}

// balance listens at an address until the test ends. It looks at the replicas' readiness as the kubelet does.
func balance(t *testing.T, address string, replicas func() []*injector) {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	b, done := &balancer{}, make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		client := &http.Client{Timeout: time.Second}
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			var ready []string
			for _, i := range replicas() {
				if response, err := client.Get(i.status + "/readyz"); err == nil {
					_ = response.Body.Close()
					if response.StatusCode == http.StatusOK {
						ready = append(ready, i.address)
					}
				}
			}
			b.mu.Lock()
			b.ready = ready
			b.mu.Unlock()
			select {
			case <-done:
				return
			case <-tick.C:
			}
		}
	})
	group.Go(func() {
		for {
			c, err := listener.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				go b.forward(c)
			}
		}
	})
	t.Cleanup(func() { close(done); _ = listener.Close(); group.Wait() })
	lab.Eventually(t, limit, "a replica is ready for the Service", func() error {
		b.mu.Lock()
		defer b.mu.Unlock()
		if len(b.ready) == 0 {
			return errors.New("none is")
		}
		return nil
	})
}

func (b *balancer) forward(c net.Conn) {
	defer c.Close()
	b.mu.Lock()
	if len(b.ready) == 0 {
		b.mu.Unlock()
		return
	}
	b.next++
	address := b.ready[b.next%len(b.ready)]
	b.mu.Unlock()
	to, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer to.Close()
	go func() { _, _ = io.Copy(to, c); _ = to.(*net.TCPConn).CloseWrite() }()
	_, _ = io.Copy(c, to)
}

// load creates pods until it is stopped, each of which has to be injected.
type load struct {
	made, failed atomic.Int64
	first        atomic.Pointer[string]
	done         chan struct{}
	group        sync.WaitGroup
}

func (w *world) load(namespace string) *load {
	l := &load{done: make(chan struct{})}
	for range 2 {
		l.group.Go(func() {
			tick := time.NewTicker(50 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-l.done:
					return
				case <-tick.C:
				}
				l.made.Add(1)
				if made, err := w.once(namespace, pod()); err != nil || !made.injected {
					l.failed.Add(1)
					text := time.Now().Format(time.TimeOnly) + ": not injected"
					if err != nil {
						text = time.Now().Format(time.TimeOnly) + ": " + err.Error()
					}
					l.first.CompareAndSwap(nil, &text)
				}
			}
		})
	}
	return l
}

// stop ends the load, of which nothing may have failed.
func (l *load) stop(t *testing.T) {
	t.Helper()
	close(l.done)
	l.group.Wait()
	t.Logf("%d pods, %d failed", l.made.Load(), l.failed.Load())
	if l.failed.Load() > 0 || l.made.Load() == 0 {
		t.Errorf("of %d pods %d were refused or not injected: %v", l.made.Load(), l.failed.Load(), *l.first.Load())
	}
}
