package publish

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/pkg/xds"
)

// The types of the tests.
const (
	clusterType  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	listenerType = "type.googleapis.com/envoy.config.listener.v3.Listener"
)

// stage stands in for Envoy and DNS, and writes down what the publisher does in order.
type stage struct {
	p       *Publisher
	applied chan error // Envoy's answers
	changed chan struct{}

	mu        sync.Mutex
	out       *Snapshot // what comes next
	warming   uint64
	events    []string
	names     []string
	listeners []string
}

// locked runs f while the publisher is kept from the stage.
func (s *stage) locked(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *stage) event(e string) { s.locked(func() { s.events = append(s.events, e) }) }

// next is what comes next.
func (s *stage) next(out *Snapshot) { s.locked(func() { s.out = out }) }

func (s *stage) setWarming(n uint64) { s.locked(func() { s.warming = n }) }

// seen returns what happened, what DNS answers, and what Envoy was given, so far.
func (s *stage) seen() (events, names, listeners []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.events), slices.Clone(s.names), slices.Clone(s.listeners)
}

func (s *stage) nowNames() []string     { _, names, _ := s.seen(); return names }
func (s *stage) nowListeners() []string { _, _, listeners := s.seen(); return listeners }
func (s *stage) nowEvents() []string    { events, _, _ := s.seen(); return events }

// forwarded is behind a name of the stage's that the table leaves to the upstream.
const forwarded = " forwarded"

func newStage() *stage {
	s := &stage{applied: make(chan error, 10), changed: make(chan struct{}, 1)}
	s.p = New(Config{
		Changed: s.changed,
		Next: func() (out *Snapshot, err error) {
			s.locked(func() { out = s.out })
			return out, nil
		},
		Envoy: Envoy{
			Set: func(snap xds.Snapshot) uint64 {
				var given []string
				for _, l := range snap[listenerType] {
					given = append(given, l.Name)
				}
				slices.Sort(given)
				s.locked(func() { s.listeners = given })
				s.event("set")
				return 1
			},
			Applied: func(ctx context.Context, _ uint64) error {
				select {
				case err := <-s.applied:
					s.event("applied")
					return err
				case <-ctx.Done():
					return ctx.Err()
				}
			},
			Connected: func() (bool, <-chan struct{}) { return true, nil },
			Warming: func(context.Context) (n, _ uint64, _ error) {
				s.locked(func() { n = s.warming })
				return n, 0, nil
			},
		},
		Names: func(set []table.Host, gone []string) {
			s.locked(func() {
				for _, h := range set {
					gone = append(gone, h.Name) // with its old address
				}
				s.names = slices.DeleteFunc(s.names, func(n string) bool { return slices.Contains(gone, strings.TrimSuffix(n, forwarded)) })
				for _, h := range set {
					if h.Forwarded {
						h.Name += forwarded
					}
					s.names = append(s.names, h.Name)
				}
				slices.Sort(s.names)
			})
			s.event("names")
		},
		TTL: 30 * time.Second, Log: slog.New(slog.DiscardHandler),
		Answered: func(*xds.RejectedError) { s.event("settled") },
	})
	return s
}

// output has one host per name, each with the listener of its address.
func output(addrs map[string]string) *Snapshot {
	out := &Snapshot{Resources: xds.Snapshot{}}
	for name, addr := range addrs {
		out.Hosts = append(out.Hosts, table.Host{Name: name, Addrs: []netip.Addr{netip.MustParseAddr(addr)}, VIP: true})
		out.Resources[listenerType] = append(out.Resources[listenerType], xds.NewStored(addr+"_80", []byte(name)))
		out.Resources[clusterType] = append(out.Resources[clusterType], xds.NewStored("outbound|80||"+name, []byte(name)))
	}
	slices.SortFunc(out.Hosts, func(a, b table.Host) int { return a.Addrs[0].Compare(b.Addrs[0]) })
	return out
}

func (s *stage) publish(ctx context.Context) {
	s.locked(func() { s.events = nil })
	s.p.publish(ctx)
}

// change says that there is something new.
func (s *stage) change() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

func TestNameAppearsAfterItsListenerIsInForce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		s.next(output(map[string]string{"a.example": "240.240.0.1"}))
		s.setWarming(1)
		done := make(chan struct{})
		go func() { s.publish(t.Context()); close(done) }()
		synctest.Wait()
		if slices.Contains(s.nowNames(), "a.example") {
			t.Fatal("the name is out before Envoy acknowledged anything")
		}
		s.applied <- nil
		time.Sleep(time.Second)
		if slices.Contains(s.nowNames(), "a.example") {
			t.Fatal("the name is out while its cluster still warms")
		}
		s.setWarming(0)
		<-done
		if want := []string{"set", "applied", "names", "settled"}; !slices.Equal(s.nowEvents(), want) {
			t.Errorf("order is %v, want %v", s.nowEvents(), want)
		}
		if !slices.Equal(s.nowNames(), []string{"a.example"}) {
			t.Errorf("names are %v", s.nowNames())
		}
	})
}

func TestRemovedNameGoesFirstAndItsListenerLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		s.next(output(map[string]string{"a.example": "240.240.0.1", "b.example": "240.240.0.2"}))
		s.applied <- nil
		s.publish(t.Context())

		s.next(output(map[string]string{"b.example": "240.240.0.2"}))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { s.publish(ctx); close(done) }()
		synctest.Wait() // Envoy has not answered yet
		if !slices.Equal(s.nowNames(), []string{"b.example"}) {
			t.Errorf("names while Envoy is slow: %v, want only b.example", s.nowNames())
		}
		if want := []string{"240.240.0.1_80", "240.240.0.2_80"}; !slices.Equal(s.nowListeners(), want) {
			t.Errorf("listeners within the TTL: %v, want %v", s.nowListeners(), want)
		}
		cancel()
		<-done
		time.Sleep(33 * time.Second)
		s.p.send()
		if want := []string{"240.240.0.2_80"}; !slices.Equal(s.nowListeners(), want) {
			t.Errorf("listeners after the TTL: %v, want %v", s.nowListeners(), want)
		}
	})
}

func TestRunDropsDelayedResourcesByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		s.next(output(map[string]string{"a.example": "240.240.0.1"}))
		s.applied <- nil
		s.applied <- nil
		go func() { s.p.Run(ctx); close(done) }()
		s.change()
		synctest.Wait()
		s.next(output(nil))
		s.change()
		synctest.Wait()
		if len(s.nowListeners()) != 1 {
			t.Fatalf("listeners just after the removal: %v, want the old one", s.nowListeners())
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(s.nowListeners()) != 0 {
			t.Errorf("listeners a minute later: %v, want none", s.nowListeners())
		}
		cancel()
		<-done
	})
}

func TestReturningHostEndsTheDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		both := map[string]string{"a.example": "240.240.0.1", "b.example": "240.240.0.2"}
		for _, hosts := range []map[string]string{both, {"b.example": "240.240.0.2"}, both} {
			s.next(output(hosts))
			s.applied <- nil
			s.publish(t.Context())
		}
		if len(s.p.delayed) != 0 {
			t.Errorf("%d resources are delayed although all are wanted", len(s.p.delayed))
		}
		time.Sleep(time.Minute)
		s.p.send()
		if len(s.nowListeners()) != 2 {
			t.Errorf("listeners: %v, want both", s.nowListeners())
		}
	})
}

func TestRefusedHostStaysUnknown(t *testing.T) {
	s := newStage()
	s.next(output(map[string]string{"a.example": "240.240.0.1", "b.example": "240.240.0.2"}))
	s.applied <- refuses("240.240.0.1_80")
	s.publish(t.Context())
	if !slices.Equal(s.nowNames(), []string{"b.example"}) {
		t.Errorf("names are %v, want only the host whose listener Envoy took", s.nowNames())
	}
}

// A wildcard does not answer for a host whose listener Envoy refused: it is another server.
func TestRefusedHostBelowAWildcard(t *testing.T) {
	s := newStage()
	out := output(map[string]string{"*.example": "240.240.0.1", "a.example": "240.240.0.2", "b.other": "240.240.0.3"})
	s.next(out)
	s.applied <- refuses("240.240.0.2_80", "outbound|80||b.other")
	s.publish(t.Context())
	if want := []string{"*.example", "a.example" + forwarded}; !slices.Equal(s.nowNames(), want) {
		t.Errorf("names are %v, want %v", s.nowNames(), want)
	}
	if n := s.p.unknown.Load(); n != 2 {
		t.Errorf("%d hosts count as unknown, want 2", n)
	}
	if len(out.Hosts[1].Addrs) != 1 {
		t.Error("what was built has changed")
	}
	s.next(out)
	s.applied <- nil
	s.publish(t.Context())
	if want := []string{"*.example", "a.example", "b.other"}; !slices.Equal(s.nowNames(), want) {
		t.Errorf("names are %v after Envoy took everything, want %v", s.nowNames(), want)
	}
}

func TestRefusedResourceIsTriedAgain(t *testing.T) {
	want := output(map[string]string{"a.example": "240.240.0.1"})
	for name, begin := range map[string]func(s *stage){
		"of the files":             func(s *stage) { s.next(want); s.change() },
		"of the generation before": func(s *stage) { s.p.Inherit(want) }, // while the files say nothing yet
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStage()
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan struct{})
				begin(s)
				s.applied <- because("port taken", "240.240.0.1_80")
				go func() { s.p.Run(ctx); close(done) }()
				synctest.Wait()
				if len(s.nowNames()) != 0 {
					t.Errorf("names are %v while Envoy refuses the listener", s.nowNames())
				}
				s.applied <- nil // the port is free now
				time.Sleep(2 * retryRefused)
				synctest.Wait()
				if !slices.Equal(s.nowNames(), []string{"a.example"}) {
					t.Errorf("names are %v after Envoy took the listener", s.nowNames())
				}
				cancel()
				<-done
			})
		})
	}
}

func TestBuildFailureKeepsWhatIsThere(t *testing.T) {
	s := newStage()
	s.p.Next = func() (*Snapshot, error) { return nil, errors.New("no") }
	s.publish(t.Context())
	if len(s.nowEvents()) != 0 {
		t.Errorf("a failed build had effects: %v", s.nowEvents())
	}
}

func TestNewerConfigurationCutsTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		s.next(output(map[string]string{"a.example": "240.240.0.1"}))
		s.change()
		s.publish(t.Context()) // Envoy never answers; it returns all the same
		if slices.Contains(s.nowEvents(), "settled") {
			t.Error("a configuration that was given up counts as settled")
		}
	})
}

// TestEnvoyGoesWhileANewerConfigurationWaits: the wait for an Envoy that is gone ends as it goes.
func TestEnvoyGoesWhileANewerConfigurationWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		gone := make(chan struct{})
		s.p.Connected = func() (bool, <-chan struct{}) {
			select {
			case <-gone:
				return false, nil
			default:
				return true, gone
			}
		}
		s.next(output(map[string]string{"a.example": "240.240.0.1"}))
		const after = 10 * time.Millisecond
		began := time.Now()
		time.AfterFunc(after, func() { close(gone) })
		s.change()
		s.publish(t.Context())
		if took := time.Since(began); took != after {
			t.Errorf("it took %v, and Envoy was gone after %v", took, after)
		}
	})
}

// DNS hears of what became different, and of nothing else.
func TestDifference(t *testing.T) {
	host := func(name, addr string, vip bool) table.Host {
		return table.Host{Name: name, Addrs: []netip.Addr{netip.MustParseAddr(addr)}, VIP: vip}
	}
	old := []table.Host{host("a", "10.0.0.1", false), host("b", "10.0.0.2", false), host("d", "10.0.0.4", false), host("e", "10.0.0.5", false)}
	for name, tc := range map[string]struct {
		wanted    []table.Host
		set, gone []string
	}{
		"the same":   {old, nil, nil},
		"all go":     {nil, nil, []string{"a", "b", "d", "e"}},
		"first goes": {old[1:], nil, []string{"a"}},
		"one comes":  {slices.Concat(old[:2], []table.Host{host("c", "10.0.0.3", true)}, old[2:]), []string{"c"}, nil},
		"one moves":  {slices.Concat(old[:3], []table.Host{host("e", "10.0.0.9", false)}), []string{"e"}, nil},
		"VIP":        {slices.Concat(old[:3], []table.Host{host("e", "10.0.0.5", true)}), []string{"e"}, nil},
		"others":     {[]table.Host{host("c", "10.0.0.3", false)}, []string{"c"}, []string{"a", "b", "d", "e"}},
	} {
		hosts, gone := difference(old, tc.wanted)
		var set []string
		for _, h := range hosts {
			set = append(set, h.Name)
		}
		if !slices.Equal(set, tc.set) || !slices.Equal(gone, tc.gone) {
			t.Errorf("%s: set %v, gone %v; want %v, %v", name, set, gone, tc.set, tc.gone)
		}
	}
}

// TestNamesWaitForAnotherEnvoy: while another Envoy accepts as well, DNS answers nothing that leads nowhere there; afterwards what
// waited is there without another word of Envoy's.
func TestNamesWaitForAnotherEnvoy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { s.p.Run(ctx); close(done) }()
		step := func(what string, hosts map[string]string, want ...string) {
			t.Helper()
			if hosts != nil {
				s.next(output(hosts))
				s.applied <- nil
				s.change()
			}
			synctest.Wait()
			if got := s.nowNames(); !slices.Equal(got, want) {
				t.Errorf("%s: names are %v, want %v", what, got, want)
			}
		}
		step("alone", map[string]string{"a.example": "240.240.0.1", "b.example": "10.0.0.2"}, "a.example", "b.example")
		before := s.p.Published().Hosts
		s.p.Beside(before, 0)
		step("beside", map[string]string{"a.example": "240.240.0.1", "b.example": "10.0.0.3", "c.example": "240.240.0.3"},
			"a.example", "b.example")
		if i := slices.IndexFunc(s.p.Published().Hosts, func(h table.Host) bool { return h.Name == "b.example" }); s.p.Published().Hosts[i].Addrs[0] != netip.MustParseAddr("10.0.0.2") {
			t.Errorf("b.example has moved: %v", s.p.Published().Hosts)
		}
		if !slices.Contains(s.nowListeners(), "240.240.0.3_80") {
			t.Errorf("Envoy waits as well: %v", s.nowListeners())
		}
		s.p.Beside(before[1:], 0)
		step("one fewer there", nil, "b.example")
		step("one is gone", map[string]string{"a.example": "240.240.0.1", "c.example": "240.240.0.3"})
		s.p.Alone()
		step("alone again", nil, "a.example", "c.example")
		s.p.Alone()
		step("once more", map[string]string{"d.example": "240.240.0.4"}, "d.example")
		cancel()
		<-done
	})
}

// bodyOf is the body of a resource, which is in memory.
func bodyOf(r *xds.Stored) []byte {
	body, err := r.Body()
	if err != nil {
		panic(err)
	}
	return body
}
