package istiod

import (
	"context"
	"errors"
	"strings"
	"testing"
)

// TestHealth: istiod is told how the application is, after Envoy has asked for listeners and not before; when that changes; and
// on every stream again. Without a stream nothing is lost.
func TestHealth(t *testing.T) {
	f := startFake(t)
	var say func(error)
	known := make(chan struct{})
	a := newAgent(t, f, func(i *Istiod) {
		i.c.Names, i.names = nil, nil
		i.c.Health = func(ctx context.Context, tell func(error)) {
			say = tell
			tell(nil)
			close(known)
			<-ctx.Done()
		}
	})
	<-known
	e := a.envoy()
	e.asks(clusterType)
	s := f.stream()
	s.asked("Cluster node")
	say(nil)
	s.quiet()
	e.asks(listenerType)
	s.asked("Listener", "HealthInformation")

	say(errors.New("no \xff disk"))
	if req := s.next(); request(req) != "HealthInformation nack"+" " || req.GetErrorDetail().GetMessage() != "no ? disk" {
		t.Errorf("istiod is told %v", req)
	}
	if got := a.health.String(); got != "unhealthy: no ? disk" {
		t.Errorf("the page says %q", got)
	}
	say(errors.New(strings.Repeat("é", maxHealth)))
	if got := len(s.next().GetErrorDetail().GetMessage()); got != maxHealth {
		t.Errorf("istiod is told %d bytes, want %d", got, maxHealth)
	}

	s.end <- nil
	s = f.stream()
	s.asked("Cluster node", "Listener", "HealthInformation nack ")
	say(nil)
	s.asked("HealthInformation")
}
