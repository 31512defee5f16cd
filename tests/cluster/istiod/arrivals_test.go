package istiod_test

import (
	"fmt"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"understudy.mesh/tests/cluster/istiod"
)

// TestArrivalsDuringUpgrades has hosts come one after the other while generations change: each is asked as soon as it has a name, and
// answers, whichever Envoy accepts.
func TestArrivalsDuringUpgrades(t *testing.T) {
	rounds := 3
	if *long {
		rounds = 30
	}
	u := upgrades{t: t, p: inMesh(t, 2, map[string]string{"hosts": istiod.Hosts(1000)}, "UNDERSTUDY_UPGRADE_DRAIN_DURATION=1s")}
	u.next()
	stop := arrivals(t, u.p)
	for range rounds {
		u.next()
	}
	if came := stop(); came == 0 {
		t.Errorf("no host came during %d upgrades", rounds)
	} else {
		t.Logf("%d hosts came during %d upgrades", came, rounds)
	}
}

// arrivals has hosts come, in turn of HTTP and of TCP, until stop is called, which says how many there were.
func arrivals(t *testing.T, p *istiod.Pod) (stop func() int) {
	t.Helper()
	stopped, ended, came := make(chan struct{}), make(chan struct{}), 0
	go func() {
		defer close(ended)
		for ; ; came++ {
			name, protocol := fmt.Sprintf("new-%d", came), [...]string{"HTTP", "TCP"}[came%2]
			host := name + ".mesh.test"
			p.Istiod.Write(name, istiod.Entry(host, protocol, "198.51.100.80"))
			var addr netip.Addr
			for err := fmt.Errorf("not asked"); err != nil; {
				select {
				case <-stopped:
					return
				case <-time.After(time.Millisecond):
				}
				addr, err = lookup(p, host)
			}
			if status, body, err := p.Pod.Get("http://" + addr.String() + "/"); err != nil || status != http.StatusOK {
				t.Errorf("%s of %s, just named %v: %d %q, %v", host, protocol, addr, status, body, err)
			}
		}
	}()
	return func() int { close(stopped); <-ended; return came }
}
