package dnsproxy

import (
	"log/slog"
	"net/netip"
	"sync"
	"time"
)

const (
	// failingAfter and slowAfter are how many in a row make a state: one
	// lost datagram or one cold name is not worth a line in the log.
	failingAfter = 2
	slowAfter    = 3

	// slowRTT is slow for a server of names: clients give up at 5 s.
	slowRTT = time.Second

	// probeEvery is how often a failing server gets a copy of a query while
	// others answer, so that it is used again soon after it is back.
	probeEvery = 5 * time.Second
)

// health is the state of an upstream server, for the order of asking and the
// log.
type health uint8

const (
	healthy health = iota
	slow
	failing
)

func (h health) String() string { return [...]string{"healthy", "slow", "failing"}[h] }

// upstream is what is known of one server. It lives as long as the forwarder,
// whatever resolv.conf says meanwhile, because it has the counters.
type upstream struct {
	addr netip.AddrPort
	log  *slog.Logger

	mu       sync.Mutex
	state    health
	failures int // in a row
	slows    int // in a row
	last     time.Time
	stats    UpstreamStats
}

// begin counts a try that starts.
func (u *upstream) begin(now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.stats.Requests++
	u.last = now
}

// done counts how a try ended. Whether the server answered is what matters:
// SERVFAIL and REFUSED are about a name, not about the server's health.
func (u *upstream) done(rtt time.Duration, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if err != nil {
		u.stats.Failures++
		u.slows = 0
		if u.failures++; u.failures >= failingAfter {
			u.become(failing, "error", err)
		}
		return
	}
	u.stats.Latency.observe(rtt)
	u.failures = 0
	if rtt < slowRTT {
		u.slows = 0
		u.become(healthy, "rtt", rtt)
		return
	}
	if u.slows++; u.slows >= slowAfter {
		u.become(slow, "rtt", rtt)
	} else if u.state == failing {
		u.become(healthy, "rtt", rtt)
	}
}

// become logs a change of state once.
func (u *upstream) become(state health, key string, value any) {
	if u.state == state {
		return
	}
	u.state = state
	if state == healthy {
		u.log.Info("dns upstream is healthy again", "server", u.addr, key, value)
		return
	}
	u.log.Warn("dns upstream is "+state.String(), "server", u.addr, key, value)
}

func (u *upstream) failing() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.state == failing
}

// due says whether a failing server should get a copy of a query.
func (u *upstream) due(now time.Time) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.state == failing && now.Sub(u.last) >= probeEvery
}

func (u *upstream) snapshot() UpstreamStats {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := u.stats
	s.Server, s.State = u.addr, u.state.String()
	return s
}
