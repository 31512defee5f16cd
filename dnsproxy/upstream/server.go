package upstream

import (
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"
)

const (
	// failingAfter, slowAfter and overtakenAfter are how many in a row make a
	// state: one lost datagram or one cold name is not worth a line in the
	// log. To be overtaken says less than to fail: the other server may have
	// had the name in its cache.
	failingAfter   = 2
	slowAfter      = 3
	overtakenAfter = 4

	// slowRTT is slow for a server of names: clients give up at 5 s.
	slowRTT = time.Second

	// probeEvery is how often a server that is slow or fails gets a copy of a
	// query while others answer, so that it is used again soon after it is back.
	probeEvery = 5 * time.Second

	// The time that a server has before the next one is asked as well: less
	// than minPatience would double the load whenever a name must be looked
	// up afar, more than maxPatience an application would feel. The first is
	// for a server that never answered yet.
	firstPatience = 300 * time.Millisecond
	minPatience   = 100 * time.Millisecond
	maxPatience   = time.Second

	// plainFor is how long a server is asked without EDNS once that got an answer
	// which EDNS did not; then it is tried anew, for servers are replaced. So long,
	// too, one that answered with EDNS is believed to mean its failures.
	plainFor = 10 * time.Minute

	// askAgain is the least time before one server is asked a second time:
	// for a lost datagram, or for another instance behind the same address.
	askAgain = 500 * time.Millisecond
)

// state is the state of a server, for the order of asking and the log.
type state uint8

const (
	healthy state = iota
	slow
	failing
)

// StateHealthy is Stats.State of a server that answers in time.
const StateHealthy = "healthy"

func (h state) String() string {
	names := [...]string{healthy: StateHealthy, slow: "slow", failing: "failing"}
	if int(h) < len(names) {
		return names[h]
	}
	return fmt.Sprintf("state %d", uint8(h))
}

// server is what is known of one server. It lives as long as the forwarder,
// whatever resolv.conf says meanwhile, because it has the counters.
type server struct {
	addr netip.AddrPort
	log  *slog.Logger

	mu       sync.Mutex
	state    state
	failures int       // in a row
	slows    int       // in a row
	overs    int       // in a row
	watched  bool      // a try goes on though it was overtaken
	last     time.Time // when it was last asked
	answered time.Time // when it last answered
	rtt      smoothed
	err      error // the last one
	erred    time.Time
	stats    Stats

	// There are servers, and middleboxes before servers, that drop what has an OPT record,
	// or answer it with any failure instead of FORMERR (RFC 6891 section 7), or with garbage.
	spoken, plain time.Time // when it last answered well with EDNS; without, but not with
}

// smoothed is a mean and the mean deviation from it, both moving, as RFC 6298
// section 2 keeps them of round trips.
type smoothed struct {
	mean, deviation time.Duration
	known           bool
}

func (s *smoothed) observe(d time.Duration) {
	if !s.known {
		s.mean, s.deviation, s.known = d, d/2, true
		return
	}
	s.deviation += ((s.mean - d).Abs() - s.deviation) / 4
	s.mean += (d - s.mean) / 8
}

// begin counts a try that starts.
func (u *server) begin(now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.stats.Requests++
	u.last = now
}

// hedge counts a try that starts because another one takes long.
func (u *server) hedge() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.stats.Hedges++
}

// done counts how a try ended that began then, and returns the state before and
// after. Whether the server answered is what matters: SERVFAIL and REFUSED are
// about a name, not about the server's health. A try that fails does not count
// either, if the server has answered another since it began.
func (u *server) done(began time.Time, rtt time.Duration, err error) (was, is state) {
	u.mu.Lock()
	defer u.mu.Unlock()
	was = u.state
	if err != nil {
		u.stats.Failures++
		u.err, u.erred = err, began.Add(rtt)
		if began.Before(u.answered) {
			return was, was
		}
		u.slows = 0
		if u.failures++; u.failures >= failingAfter {
			u.become(failing, "error", err)
		}
		return was, u.state
	}
	u.stats.Latency.observe(rtt)
	u.rtt.observe(rtt)
	u.failures, u.overs = 0, 0
	u.answered = began.Add(rtt)
	u.slows++
	switch {
	case rtt < slowRTT:
		u.slows = 0
		u.become(healthy, "rtt", rtt)
	case u.slows >= slowAfter:
		u.become(slow, "rtt", rtt)
	case u.state == failing:
		u.become(healthy, "rtt", rtt)
	}
	return was, u.state
}

// overtaken counts a try that has no answer yet although another server, asked
// later, has answered, as err says. That makes a server slow, and not failing: the
// other one may be fast. watch says that the try must go on until its end, for done
// and then unwatch: otherwise it would never be known how long an answer takes, and
// patience would stay too short for it.
func (u *server) overtaken(at time.Time, err error) (watch bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.stats.Overtaken++
	u.err, u.erred = err, at
	if u.overs++; u.overs >= overtakenAfter && u.state == healthy {
		u.become(slow, "error", err)
	}
	watch, u.watched = !u.watched, true
	return watch
}

// unwatch notes that the try which overtaken made go on has ended.
func (u *server) unwatch() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.watched = false
}

// become logs a change of state once.
func (u *server) become(state state, key string, value any) {
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

func (u *server) health() state {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.state
}

func (u *server) failing() bool { return u.health() == failing }

// mayBeSlow says whether u may answer yet though it took longer than a query may:
// it has not failed before, or has answered since.
func (u *server) mayBeSlow(now time.Time) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.state != failing || !u.answered.IsZero() && now.Sub(u.answered) < slowTrust
}

// patience is how long to wait for u before another server is asked as well:
// nearly all its answers come within the mean and four deviations.
func (u *server) patience() time.Duration {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.rtt.patience()
}

func (s *smoothed) patience() time.Duration {
	if !s.known {
		return firstPatience
	}
	return min(max(s.mean+4*s.deviation, minPatience), maxPatience)
}

// due says whether a server that is not asked first should get a copy of a query.
func (u *server) due(now time.Time) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.state != healthy && now.Sub(u.last) >= probeEvery
}

func (u *server) snapshot() Stats {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := u.stats
	s.Server, s.State = u.addr, u.state.String()
	s.RTT, s.Patience = u.rtt.mean, u.rtt.patience()
	if u.err != nil {
		s.Error, s.ErrorAt = u.err.Error(), u.erred
	}
	return s
}

// speaks says whether u is known to answer EDNS.
func (u *server) speaks(now time.Time) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return recent(u.spoken, now)
}

// understood says whether u is known to answer with EDNS, or without.
func (u *server) understood(now time.Time) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return recent(u.spoken, now) || recent(u.plain, now)
}

// edns says whether to ask u with an OPT record. again says that it was asked with one
// and has not answered: then it is asked without, unless it is known to answer that.
func (u *server) edns(now time.Time, again bool) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return !recent(u.plain, now) && (!again || recent(u.spoken, now))
}

// learn notes that u has answered well at a time, with EDNS or without.
func (u *server) learn(now time.Time, edns bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case edns:
		u.spoken, u.plain = now, time.Time{}
	case !recent(u.plain, now): // or it would never be tried anew
		u.spoken, u.plain = time.Time{}, now
		u.log.Info("dns upstream answers without EDNS only", "server", u.addr, "tried anew after", plainFor)
	}
}

func recent(since, now time.Time) bool { return !since.IsZero() && now.Sub(since) < plainFor }
