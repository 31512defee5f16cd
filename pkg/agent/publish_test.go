package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"understudy.mesh/dnsproxy"
	"understudy.mesh/pkg/mesh"
	"understudy.mesh/pkg/xds"
)

// stage stands in for Envoy and DNS, and writes down what the publisher does in order.
type stage struct {
	p         *publisher
	events    []string
	out       *mesh.Output // what the next registry builds to
	applied   chan error   // Envoy's answers
	warming   uint64
	names     []string
	listeners []string
}

func newStage() *stage {
	s := &stage{applied: make(chan error, 10)}
	s.p = &publisher{
		assign: func([]string) (map[string][]netip.Addr, error) { return nil, nil },
		build: func(*mesh.Registry, map[string][]netip.Addr) (*mesh.Output, error) {
			return s.out, nil
		},
		set: func(snap xds.Snapshot) uint64 {
			s.listeners = nil
			for _, l := range snap.Listeners {
				s.listeners = append(s.listeners, l.Name)
			}
			slices.Sort(s.listeners)
			s.events = append(s.events, "set")
			return 1
		},
		applied: func(ctx context.Context, _ uint64) error {
			select {
			case err := <-s.applied:
				s.events = append(s.events, "applied")
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		},
		warming: func(context.Context) (uint64, uint64, error) { return s.warming, 0, nil },
		names: func(hosts []dnsproxy.Host) {
			s.names = nil
			for _, h := range hosts {
				s.names = append(s.names, h.Name)
			}
			s.events = append(s.events, "names")
		},
		ttl: 30 * time.Second, now: time.Now, log: slog.New(slog.DiscardHandler),
		settled: func(*xds.RejectedError) { s.events = append(s.events, "settled") },
	}
	return s
}

// output has one host per name, each with the listener of its address.
func output(addrs map[string]string) *mesh.Output {
	out := &mesh.Output{}
	for name, addr := range addrs {
		out.Hosts = append(out.Hosts, mesh.Host{Name: name, Addrs: []netip.Addr{netip.MustParseAddr(addr)}, VIP: true})
		out.Listeners = append(out.Listeners, mesh.Message{Name: addr + "_80", Body: []byte(name)})
		out.Clusters = append(out.Clusters, mesh.Message{Name: "outbound|80||" + name, Body: []byte(name)})
	}
	slices.SortFunc(out.Hosts, func(a, b mesh.Host) int { return a.Addrs[0].Compare(b.Addrs[0]) })
	return out
}

func (s *stage) publish(ctx context.Context, changes chan *mesh.Registry) {
	s.events = nil
	s.p.publish(ctx, &mesh.Registry{}, changes)
}

func TestNameAppearsAfterItsListenerIsInForce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		s.out = output(map[string]string{"a.example": "240.240.0.1"})
		s.warming = 1
		done := make(chan struct{})
		go func() { s.publish(t.Context(), nil); close(done) }()
		synctest.Wait()
		if slices.Contains(s.names, "a.example") {
			t.Fatal("the name is out before Envoy acknowledged anything")
		}
		s.applied <- nil
		time.Sleep(time.Second)
		if slices.Contains(s.names, "a.example") {
			t.Fatal("the name is out while its cluster still warms")
		}
		s.warming = 0
		<-done
		if want := []string{"names", "set", "applied", "names", "settled"}; !slices.Equal(s.events, want) {
			t.Errorf("order is %v, want %v", s.events, want)
		}
		if !slices.Equal(s.names, []string{"a.example"}) {
			t.Errorf("names are %v", s.names)
		}
	})
}

func TestRemovedNameGoesFirstAndItsListenerLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		s.out = output(map[string]string{"a.example": "240.240.0.1", "b.example": "240.240.0.2"})
		s.applied <- nil
		s.publish(t.Context(), nil)

		s.out = output(map[string]string{"b.example": "240.240.0.2"})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { s.publish(ctx, nil); close(done) }()
		synctest.Wait() // Envoy has not answered yet
		if !slices.Equal(s.names, []string{"b.example"}) {
			t.Errorf("names while Envoy is slow: %v, want only b.example", s.names)
		}
		if want := []string{"240.240.0.1_80", "240.240.0.2_80"}; !slices.Equal(s.listeners, want) {
			t.Errorf("listeners within the TTL: %v, want %v", s.listeners, want)
		}
		cancel()
		<-done
		time.Sleep(33 * time.Second)
		s.p.send()
		if want := []string{"240.240.0.2_80"}; !slices.Equal(s.listeners, want) {
			t.Errorf("listeners after the TTL: %v, want %v", s.listeners, want)
		}
	})
}

func TestRunDropsLingerersByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		ctx, cancel := context.WithCancel(t.Context())
		changes := newMailbox()
		done := make(chan struct{})
		s.out = output(map[string]string{"a.example": "240.240.0.1"})
		s.applied <- nil
		s.applied <- nil
		go func() { s.p.run(ctx, changes.ch); close(done) }()
		changes.put(&mesh.Registry{})
		synctest.Wait()
		s.out = output(nil)
		changes.put(&mesh.Registry{})
		synctest.Wait()
		if len(s.listeners) != 1 {
			t.Fatalf("listeners just after the removal: %v, want the old one", s.listeners)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(s.listeners) != 0 {
			t.Errorf("listeners a minute later: %v, want none", s.listeners)
		}
		cancel()
		<-done
	})
}

func TestReturningHostStopsLingering(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		both := map[string]string{"a.example": "240.240.0.1", "b.example": "240.240.0.2"}
		for _, hosts := range []map[string]string{both, {"b.example": "240.240.0.2"}, both} {
			s.out = output(hosts)
			s.applied <- nil
			s.publish(t.Context(), nil)
		}
		if len(s.p.lingering) != 0 {
			t.Errorf("%d resources linger although all are wanted", len(s.p.lingering))
		}
		time.Sleep(time.Minute)
		s.p.send()
		if len(s.listeners) != 2 {
			t.Errorf("listeners: %v, want both", s.listeners)
		}
	})
}

func TestRefusedHostStaysUnknown(t *testing.T) {
	s := newStage()
	s.out = output(map[string]string{"a.example": "240.240.0.1", "b.example": "240.240.0.2"})
	s.applied <- &xds.RejectedError{Resources: []string{"240.240.0.1_80"}}
	s.publish(t.Context(), nil)
	if !slices.Equal(s.names, []string{"b.example"}) {
		t.Errorf("names are %v, want only the host whose listener Envoy took", s.names)
	}
}

func TestRefusedResourceIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		ctx, cancel := context.WithCancel(t.Context())
		changes, done := newMailbox(), make(chan struct{})
		s.out = output(map[string]string{"a.example": "240.240.0.1"})
		s.applied <- &xds.RejectedError{Resources: []string{"240.240.0.1_80"}, Reasons: []string{"port taken"}}
		go func() { s.p.run(ctx, changes.ch); close(done) }()
		changes.put(&mesh.Registry{})
		synctest.Wait()
		if len(s.names) != 0 {
			t.Errorf("names are %v while Envoy refuses the listener", s.names)
		}
		s.applied <- nil // the port is free now
		time.Sleep(2 * retryRefused)
		synctest.Wait()
		if !slices.Equal(s.names, []string{"a.example"}) {
			t.Errorf("names are %v after Envoy took the listener", s.names)
		}
		cancel()
		<-done
	})
}

func TestBuildFailureKeepsWhatIsThere(t *testing.T) {
	s := newStage()
	s.p.build = func(*mesh.Registry, map[string][]netip.Addr) (*mesh.Output, error) {
		return nil, errors.New("no")
	}
	s.publish(t.Context(), nil)
	if len(s.events) != 0 {
		t.Errorf("a failed build had effects: %v", s.events)
	}
}

func TestNewerConfigurationCutsTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		s.out = output(map[string]string{"a.example": "240.240.0.1"})
		changes := make(chan *mesh.Registry, 1)
		changes <- &mesh.Registry{}
		s.publish(t.Context(), changes) // Envoy never answers; it returns all the same
		if slices.Contains(s.events, "settled") {
			t.Error("a configuration that was given up counts as settled")
		}
	})
}
