// Package upstream owns the way to the servers of resolv.conf: which there are, how well
// each one is, what carries a question to it, and which one is asked next.
package upstream

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"understudy.mesh/dnsproxy/internal/wire"
)

const (
	// defaultTimeout is the longest try at one server, Istio's
	// DNS_FORWARD_TIMEOUT.
	defaultTimeout = 5 * time.Second

	// clientPatience is how long a client waits for an answer before it asks
	// again or gives up: glibc, musl and Go all take 5 s, timeout in
	// resolv.conf(5).
	clientPatience = 5 * time.Second

	// answerMargin is how much of the client's patience is left for it to hear
	// that there is no answer, rather than to ask again.
	answerMargin = 200 * time.Millisecond

	// clientTries is how often a client asks before it gives up: glibc, Go and
	// older c-ares do so twice, and take the answer to the first question until then.
	clientTries = 2

	// maxLate bounds the queries that go on for an answer that comes late; each
	// has a socket for every try.
	maxLate = 128

	// slowTrust is how long after its last answer a server that fails counts as
	// merely slow.
	slowTrust = time.Minute

	// minTries is how many tries, one after the other, must fit into the
	// time that a query has, if there may be so many.
	minTries = 2

	// maxKnown is how many servers may be known before those that
	// resolv.conf has no more are forgotten: each is a handful of metrics.
	maxKnown = 16
)

var (
	errNoServers = errors.New("no upstream server to ask")
	errBudget    = errors.New("no upstream server answered in time")
)

// Forwarder is the last handler: it asks the servers of resolv.conf.
type Forwarder struct {
	asker
	log      *slog.Logger
	timeout  time.Duration
	parallel bool
	noHedge  bool
	conf     *confFile
	own      []netip.AddrPort // where we listen: never ask these
	Health   *Health
	late     chan struct{} // one slot for each query that goes on when its query has ended
	// searched is told the file's search domains when they have changed.
	searched func([]string)

	mu      sync.Mutex
	known   map[netip.AddrPort]*server
	current plan
}

// plan is whom to ask and how, made from one reading of resolv.conf.
type plan struct {
	resolvConf
	servers []*server
}

// Config is what New needs.
type Config struct {
	Own []netip.AddrPort // where this proxy listens: a server that is one of these is never asked
	// Mark is set on every socket to an upstream (SO_MARK), so that capture knows the
	// proxy's queries by it; 0: none. It takes CAP_NET_ADMIN or, from Linux 5.17 on,
	// CAP_NET_RAW; without, every forwarded query fails.
	Mark       uint32
	ResolvConf string        // path of the file with the servers; it need not exist, and is read again when it changes
	Timeout    time.Duration // per try; 0: five seconds
	Parallel   bool          // ask all servers at once
	NoHedge    bool          // ask the next server only when one fails or is out of time
	Log        *slog.Logger
	Now        func() time.Time
}

// New returns a forwarder that has read c.ResolvConf.
func New(c Config) *Forwarder {
	f := &Forwarder{
		asker:    asker{now: c.Now, mark: c.Mark, buffers: sync.Pool{New: func() any { return new([udpBuffer]byte) }}},
		log:      c.Log,
		timeout:  cmp.Or(c.Timeout, defaultTimeout),
		parallel: c.Parallel,
		noHedge:  c.NoHedge,
		conf:     &confFile{path: c.ResolvConf, log: c.Log},
		Health:   newHealth(c.Now),
		late:     make(chan struct{}, maxLate),
		known:    map[netip.AddrPort]*server{},
		searched: func([]string) {},
	}
	for _, a := range c.Own {
		f.own = append(f.own, netip.AddrPortFrom(a.Addr().Unmap(), a.Port()))
	}
	f.plan()
	return f
}

// Follow has searched told resolv.conf's search domains, now and whenever they change.
func (f *Forwarder) Follow(searched func([]string)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.searched = searched
	searched(f.current.Search)
}

// ended records how a try went, and says how long it took. One that was called
// off says nothing about its server.
func (f *Forwarder) ended(ctx context.Context, t *try, err error) (rtt time.Duration) {
	if err != nil && errors.Is(ctx.Err(), context.Canceled) {
		return 0
	}
	rtt = f.now().Sub(t.began)
	was, is := t.u.done(t.began, rtt, err)
	f.updateHealth(was, is)
	return rtt
}

// updateHealth draws from a server's change of state what it means for all.
func (f *Forwarder) updateHealth(was, is state) {
	switch {
	case was == is:
	case was == failing:
		f.Health.over()
	case is == failing:
		f.mu.Lock()
		defer f.mu.Unlock()
		f.Health.down.Store(f.current.failing())
	}
}

// failing says whether there is no server that answers.
func (p plan) failing() bool {
	return !slices.ContainsFunc(p.servers, func(u *server) bool { return !u.failing() })
}

// budget is the time that a query has, from the first question on: a little less
// than a client waits, so that it gets the answer or hears that there is none.
// With `options timeout:1 attempts:2` that is two seconds. A DNS_FORWARD_TIMEOUT
// above it means clients that wait longer.
func (f *Forwarder) budget(p *plan) time.Duration {
	patience := clientPatience
	if p.Timeout > 0 {
		patience = min(p.Timeout*time.Duration(p.Attempts), max(p.Timeout, clientPatience))
	}
	if f.timeout > defaultTimeout {
		patience = max(patience, f.timeout)
	}
	return patience - min(patience/10, answerMargin)
}

// Patience is how long q waits for what another query has asked.
func (f *Forwarder) Patience(q *wire.Query) time.Duration {
	p := f.plan()
	return f.timeLeft(&p, q)
}

// heard is how long the answer to one try is listened to: as long as all tries of
// the client's own resolver take together, since it takes the answer to the first
// one even after it has sent the second. A DNS_FORWARD_TIMEOUT below the default
// is the limit for answers, too.
func (f *Forwarder) heard(p *plan) time.Duration {
	if f.timeout < defaultTimeout {
		return f.timeout
	}
	return max(clientTries*clientPatience, f.budget(p))
}

// timeLeft is what is left of q's budget, or time for one try, whichever is longer: where
// queries are held for that long, clients wait longer.
func (f *Forwarder) timeLeft(p *plan, q *wire.Query) time.Duration {
	return max(f.budget(p)-q.Held, f.tryTime(p))
}

// tryTime is how long one server may take before there is another try: what the
// settings say, but short enough that there is time for one.
func (f *Forwarder) tryTime(p *plan) time.Duration {
	tries := min(minTries, len(p.servers)*p.Attempts)
	limit := min(f.timeout, f.budget(p)/time.Duration(tries))
	if p.Timeout > 0 {
		limit = min(limit, p.Timeout)
	}
	return limit
}

// Look reads resolv.conf anew if it has changed, which otherwise waits for the next query.
func (f *Forwarder) Look() { f.plan() }

// plan returns whom to ask now, in order: the file's, or any with `options
// rotate`, but those that are slow and then those that fail come last. A faster
// server does not overtake one that is fast enough: the file's order was chosen.
func (f *Forwarder) plan() plan {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reread()
	p := f.current
	if len(p.servers) < 2 {
		return p
	}
	p.servers = slices.Clone(p.servers)
	if p.Rotate {
		n := rand.IntN(len(p.servers))
		p.servers = slices.Concat(p.servers[n:], p.servers[:n])
	}
	slices.SortStableFunc(p.servers, func(a, b *server) int {
		return int(a.health()) - int(b.health())
	})
	return p
}

// reread adopts resolv.conf if it has changed. One without a server is passed
// over where an earlier one had some: it is on its way to be written, or the
// last servers are still a better guess than none. The caller has the lock.
func (f *Forwarder) reread() {
	conf, changed := f.conf.read(f.now())
	switch {
	case !changed:
		return
	case len(conf.Servers) == 0 && len(f.current.servers) > 0:
		f.log.Warn("no dns upstream any more: the last ones are asked on", "file", f.conf.path, "servers", f.current.Servers)
		return
	}
	if !slices.Equal(conf.Search, f.current.Search) {
		f.searched(conf.Search)
	}
	f.current = f.adopt(conf)
	f.Health.over() // the failures were others'
	f.Health.down.Store(len(f.current.servers) > 0 && f.current.failing())
}

// adopt turns a reading of resolv.conf into a plan, without the servers that
// are ourselves: a query sent there would come back for ever.
func (f *Forwarder) adopt(conf resolvConf) plan {
	p := plan{resolvConf: conf}
	for _, addr := range conf.Servers {
		if slices.ContainsFunc(f.own, func(own netip.AddrPort) bool { return isSelf(own, addr) }) {
			f.log.Warn("dns upstream is this proxy itself and is not asked", "server", addr, "file", f.conf.path)
			continue
		}
		u := f.known[addr]
		if u == nil {
			u = &server{addr: addr, log: f.log}
			f.known[addr] = u
		}
		p.servers = append(p.servers, u)
	}
	if len(p.servers) == 0 {
		f.log.Warn("no dns upstream: names outside the mesh get SERVFAIL", "file", f.conf.path)
	}
	if len(f.known) > maxKnown {
		maps.DeleteFunc(f.known, func(_ netip.AddrPort, u *server) bool { return !slices.Contains(p.servers, u) })
	}
	return p
}

// isSelf says whether a message to server arrives at a socket bound to own.
func isSelf(own, server netip.AddrPort) bool {
	if own.Port() != server.Port() {
		return false
	}
	return own.Addr() == server.Addr() || own.Addr().IsUnspecified() && (server.Addr().IsLoopback() || server.Addr().IsUnspecified())
}

// Stats returns what is known of every server that resolv.conf has or had, sorted by address.
func (f *Forwarder) Stats() []Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := make([]Stats, 0, len(f.known))
	for addr, u := range f.known {
		s := u.snapshot()
		s.InUse = slices.ContainsFunc(f.current.servers, func(u *server) bool { return u.addr == addr })
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b Stats) int { return a.Server.Compare(b.Server) })
	return list
}
