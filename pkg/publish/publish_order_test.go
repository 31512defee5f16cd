package publish

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"understudy.mesh/pkg/xds"
)

func (s *stage) answered(name string) []netip.Addr {
	for _, h := range s.p.told {
		if h.Name == name {
			return h.Addrs
		}
	}
	return nil
}

// A name whose address changes is answered with its old address until Envoy has the new
// one; the old listener must live at least that long.
func TestOldListenerOutlivesItsName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		s.next(output(map[string]string{"a.example": "10.0.0.1"}))
		s.applied <- nil
		s.publish(t.Context())

		s.change() // a newer one waits: superseded
		s.next(output(map[string]string{"a.example": "10.0.0.2"}))
		s.publish(t.Context())
		time.Sleep(33 * time.Second) // Envoy is slow, or changes come all the time
		s.next(output(map[string]string{"a.example": "10.0.0.2", "c.example": "10.0.0.3"}))
		s.change()
		s.publish(t.Context())
		if got := s.answered("a.example"); slices.Contains(got, netip.MustParseAddr("10.0.0.1")) && !slices.Contains(s.nowListeners(), "10.0.0.1_80") {
			t.Errorf("DNS answers a.example with %v, and Envoy has only %v", got, s.nowListeners())
		}
	})
}

// The same when Envoy answers late: the listener goes with the name, not a TTL after it.
func TestListenerStaysForTheTTLOfTheLastAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		s.next(output(map[string]string{"a.example": "10.0.0.1"}))
		s.applied <- nil
		go func() { s.p.Run(ctx); close(done) }()
		s.change()
		synctest.Wait()
		s.next(output(map[string]string{"a.example": "10.0.0.2"}))
		s.change()
		time.Sleep(40 * time.Second) // Envoy answers late; a.example is 10.0.0.1 meanwhile
		s.applied <- nil
		synctest.Wait()
		time.Sleep(time.Second)
		synctest.Wait()
		if !slices.Contains(s.nowListeners(), "10.0.0.1_80") {
			t.Errorf("10.0.0.1 was answered with a TTL of 30 s one second ago, and its listener is gone: %v", s.nowListeners())
		}
		cancel()
		<-done
	})
}

// A refusal that names no resource leaves open what is in force.
func TestNamelessRefusalPublishesNothing(t *testing.T) {
	s := newStage()
	s.next(output(map[string]string{"a.example": "240.240.0.1"}))
	s.applied <- &xds.RejectedError{Reasons: []string{`one of 1 resources Listener: Proto constraint validation failed`}}
	s.publish(t.Context())
	if len(s.nowNames()) != 0 {
		t.Errorf("Envoy refused the response, and DNS answers %v", s.nowNames())
	}
	if slices.Contains(s.nowEvents(), "settled") {
		t.Error("nobody knows what is in force, and it counts as settled")
	}
	if s.p.refused == "" {
		t.Error("it is not tried again")
	}
}

// Changes that come faster than Envoy answers do not keep names from being published.
func TestNamesAreNotStarved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		s.p.Applied = func(ctx context.Context, _ uint64) error { // Envoy takes 150 ms
			select {
			case <-time.After(150 * time.Millisecond):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		s.next(output(map[string]string{"a.example": "10.0.0.1"}))
		go func() { s.p.Run(ctx); close(done) }()
		for range 600 { // a minute
			s.change()
			time.Sleep(100 * time.Millisecond)
		}
		if len(s.nowNames()) == 0 {
			t.Error("a minute of changes, and a.example was never published")
		}
		cancel()
		<-done
	})
}

// What Envoy refuses does not take away what it has: the name stays with the version that Envoy
// keeps, with the address that it had, and with an earlier version in an Envoy that is new.
func TestRefusalKeepsWhatIsInForce(t *testing.T) {
	one := func(addr, body string) *Snapshot {
		out := output(map[string]string{"a.example": addr})
		out.Resources[listenerType][0] = xds.NewStored(out.Resources[listenerType][0].Name, []byte(body))
		return out
	}
	const x, y = "10.0.0.1", "10.0.0.2"
	for name, tc := range map[string]struct {
		wanted  *Snapshot
		answers []error // of Envoy's, to what comes second
		addr    string  // the answer then
		body    string  // what Envoy was given last for that address
		sets    int
	}{
		"Envoy keeps a version": {one(x, "2"), []error{keeps(x + "_80")}, x, "2", 1},
		"another address":       {one(y, "2"), []error{refuses(y + "_80")}, x, "1", 1},
		"a new Envoy":           {one(x, "2"), []error{refuses(x + "_80"), nil}, x, "1", 2},
		"nothing is left": {one(x, "2"), []error{
			refuses(x + "_80"), refuses(x + "_80"),
		}, "", "1", 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStage()
				given := map[string]string{}
				set := s.p.Set
				s.p.Set = func(snap xds.Snapshot) uint64 {
					for _, l := range snap[listenerType] {
						given[l.Name] = string(bodyOf(l))
					}
					return set(snap)
				}
				s.next(one(x, "1"))
				s.applied <- nil
				s.publish(t.Context())
				s.next(tc.wanted)
				for _, err := range tc.answers {
					s.applied <- err
				}
				s.publish(t.Context())
				got := ""
				if addrs := s.answered("a.example"); len(addrs) > 0 {
					got = addrs[0].String()
				}
				if got != tc.addr || given[x+"_80"] != tc.body {
					t.Errorf("DNS answers %q, Envoy was given %v; want %q, %q", got, given, tc.addr, tc.body)
				}
				events := s.nowEvents()
				if sets := len(slices.DeleteFunc(events, func(e string) bool { return e != "set" })); sets != tc.sets {
					t.Errorf("Envoy was given %d configurations, want %d", sets, tc.sets)
				}
				time.Sleep(time.Hour)
				s.p.send()
				if want := cmp.Or(tc.addr, x) + "_80"; !slices.Contains(s.nowListeners(), want) {
					t.Errorf("after an hour Envoy has %v; want %s", s.nowListeners(), want)
				}
			})
		})
	}
}

// A new Envoy may refuse what the one before took: its names go, though no file has changed.
func TestNewEnvoyIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		renewed := make(chan struct{}, 1)
		s.p.Renewed = renewed
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		s.next(output(map[string]string{"a.example": "10.0.0.1", "b.example": "10.0.0.2"}))
		s.applied <- nil
		go func() { s.p.Run(ctx); close(done) }()
		s.change()
		synctest.Wait()
		s.applied <- because("the port is taken", "10.0.0.1_80")
		renewed <- struct{}{}
		synctest.Wait()
		if got := s.answered("a.example"); len(got) != 0 || len(s.answered("b.example")) != 1 {
			t.Errorf("a.example is answered with %v, b.example with %v", got, s.answered("b.example"))
		}
		cancel()
		<-done
	})
}
