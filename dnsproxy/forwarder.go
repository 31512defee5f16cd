package dnsproxy

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	// DefaultForwardTimeout is the longest try at one server, Istio's
	// DNS_FORWARD_TIMEOUT.
	DefaultForwardTimeout = 5 * time.Second

	// clientPatience is how long a client waits for an answer before it asks
	// again or gives up: glibc, musl and Go all take 5 s, timeout in
	// resolv.conf(5).
	clientPatience = 5 * time.Second

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

// forwarder is the last handler: it asks the servers of resolv.conf.
type forwarder struct {
	log      *slog.Logger
	now      func() time.Time
	timeout  time.Duration
	parallel bool
	conf     *confFile
	own      []netip.AddrPort // where we listen: never ask these
	outage   *outage
	buffers  sync.Pool // of *[upstreamBuffer]byte

	mu      sync.Mutex
	known   map[netip.AddrPort]*upstream
	current plan
}

// plan is whom to ask and how, made from one reading of resolv.conf.
type plan struct {
	ResolvConf
	servers []*upstream
}

func newForwarder(c Config) *forwarder {
	f := &forwarder{
		log:      c.Log,
		now:      c.Now,
		timeout:  c.ForwardTimeout,
		parallel: c.ForwardParallel,
		conf:     &confFile{path: c.ResolvConf, log: c.Log},
		own:      c.Own,
		outage:   newOutage(c.Now),
		buffers:  sync.Pool{New: func() any { return new([upstreamBuffer]byte) }},
		known:    map[netip.AddrPort]*upstream{},
	}
	f.plan()
	return f
}

func (f *forwarder) fast(*query, []byte) (answer, bool) { return answer{}, false }

func (f *forwarder) serve(ctx context.Context, q *query) answer {
	a, err := f.forward(ctx, q)
	if err != nil {
		f.log.Debug("dns query failed", "type", q.qtype, "error", err)
	}
	if a.msg == nil {
		a.msg = appendReply(nil, q, 0, rcodeServFail)
	}
	return a
}

// forward returns the first good answer. Where there was none but a server
// said SERVFAIL or REFUSED, that is the answer.
func (f *forwarder) forward(ctx context.Context, q *query) (answer, error) {
	p := f.plan()
	if len(p.servers) == 0 {
		return answer{source: SourceFailure}, errNoServers
	}
	f.probe(&p, q)
	r := newRace(f, &p, q)
	if !f.parallel && !p.TCP {
		if a, done := r.first(ctx); done {
			return a, nil
		}
	}
	return r.run(ctx)
}

func good(a answer) bool {
	code := rcodeOf(a.msg)
	return code != rcodeServFail && code != rcodeRefused && code != rcodeNotImp && code != rcodeFormErr
}

// probe sends a copy of q to servers that fail and were long not asked, while
// others do not. Nobody waits for what they say; it is for their health.
func (f *forwarder) probe(p *plan, q *query) {
	if f.outage.down.Load() {
		return // they are asked anyway
	}
	now := f.now()
	for _, u := range p.servers[1:] {
		if u.due(now) && q.scope.ctx != nil {
			own := *q
			q.scope.leave(func(ctx context.Context) {
				ctx, cancel := context.WithTimeout(ctx, f.tryTime(p))
				defer cancel()
				t, err := f.begin(u, &own, p, time.Now().Add(f.tryTime(p)))
				if err == nil {
					_, err = t.finish(ctx)
				}
				f.ended(ctx, t, err)
			})
		}
	}
}

// ended records how a try went, and says how long it took. One that was called
// off says nothing about its server.
func (f *forwarder) ended(ctx context.Context, t *try, err error) (rtt time.Duration) {
	if err != nil && errors.Is(ctx.Err(), context.Canceled) {
		return 0
	}
	rtt = f.now().Sub(t.began)
	was, is := t.u.done(t.began, rtt, err)
	f.reckon(was, is)
	return rtt
}

// reckon draws from a server's change of state what it means for all.
func (f *forwarder) reckon(was, is health) {
	switch {
	case was == is:
	case was == failing:
		f.outage.over()
	case is == failing:
		f.mu.Lock()
		defer f.mu.Unlock()
		f.outage.down.Store(f.current.failing())
	}
}

// failing says whether there is no server that answers.
func (p plan) failing() bool {
	return !slices.ContainsFunc(p.servers, func(u *upstream) bool { return !u.failing() })
}

// budget is the time that a query has, from the first question to the last: a
// little less than a client waits, so that it gets the answer or hears that
// there is none. With `options timeout:1 attempts:2` that is two seconds. Who
// sets DNS_FORWARD_TIMEOUT to more has clients that wait longer.
func (f *forwarder) budget(p *plan) time.Duration {
	patience := clientPatience
	if p.Timeout > 0 {
		patience = min(p.Timeout*time.Duration(p.Attempts), max(p.Timeout, clientPatience))
	}
	if f.timeout > DefaultForwardTimeout {
		patience = max(patience, f.timeout)
	}
	return patience - patience/10
}

// tryTime is how long one server may take: what the settings say, but short
// enough that there is time for another try.
func (f *forwarder) tryTime(p *plan) time.Duration {
	tries := min(minTries, len(p.servers)*p.Attempts)
	limit := min(f.timeout, f.budget(p)/time.Duration(tries))
	if p.Timeout > 0 {
		limit = min(limit, p.Timeout)
	}
	return limit
}

// plan returns whom to ask now, in order: the file's, or any with `options
// rotate`, but those that are slow and then those that fail come last. A faster
// server does not overtake one that is fast enough: the order in the file is
// somebody's will.
func (f *forwarder) plan() plan {
	f.mu.Lock()
	defer f.mu.Unlock()
	if conf, changed := f.conf.read(f.now()); changed {
		f.current = f.adopt(conf)
		f.outage.over() // the failures were others'
		f.outage.down.Store(len(f.current.servers) > 0 && f.current.failing())
	}
	p := f.current
	if len(p.servers) < 2 {
		return p
	}
	p.servers = slices.Clone(p.servers)
	if p.Rotate {
		n := rand.IntN(len(p.servers))
		p.servers = slices.Concat(p.servers[n:], p.servers[:n])
	}
	slices.SortStableFunc(p.servers, func(a, b *upstream) int {
		return int(a.health()) - int(b.health())
	})
	return p
}

// adopt turns a reading of resolv.conf into a plan, without the servers that
// are ourselves: a query sent there would come back for ever.
func (f *forwarder) adopt(conf ResolvConf) plan {
	p := plan{ResolvConf: conf}
	for _, addr := range conf.Servers {
		if slices.ContainsFunc(f.own, func(own netip.AddrPort) bool { return isSelf(own, addr) }) {
			f.log.Warn("dns upstream is this proxy itself and is not asked", "server", addr, "file", f.conf.path)
			continue
		}
		u := f.known[addr]
		if u == nil {
			u = &upstream{addr: addr, log: f.log}
			f.known[addr] = u
		}
		p.servers = append(p.servers, u)
	}
	if len(p.servers) == 0 {
		f.log.Warn("no dns upstream: names outside the mesh get SERVFAIL", "file", f.conf.path)
	}
	if len(f.known) > maxKnown {
		maps.DeleteFunc(f.known, func(_ netip.AddrPort, u *upstream) bool { return !slices.Contains(p.servers, u) })
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

func (f *forwarder) upstreams() []UpstreamStats {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := make([]UpstreamStats, 0, len(f.known))
	for addr, u := range f.known {
		s := u.snapshot()
		s.InUse = slices.ContainsFunc(f.current.servers, func(u *upstream) bool { return u.addr == addr })
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b UpstreamStats) int { return a.Server.Compare(b.Server) })
	return list
}
