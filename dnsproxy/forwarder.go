package dnsproxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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

	// budgetTries is the budget of one query, in tries: two are 10 s, after
	// which glibc (timeout:5 attempts:2) has given up.
	budgetTries = 2

	// minTry is the shortest try when many servers share the budget.
	minTry = time.Second
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
	bounded, cancel := context.WithTimeout(ctx, budgetTries*f.timeout)
	defer cancel()
	if f.parallel {
		return f.allAtOnce(bounded, p, q)
	}
	f.probe(ctx, p, q)
	return f.inTurn(bounded, p, q)
}

// inTurn asks one server after the other, those that fail last, and again as
// often as resolv.conf says. One that answered badly is not asked again.
func (f *forwarder) inTurn(ctx context.Context, p plan, q *query) (answer, error) {
	worst := answer{source: SourceFailure}
	last := errBudget
	servers := slices.Clone(p.servers)
	try := f.tryTime(p)
	for range p.Attempts {
		again := servers[:0]
		for _, u := range servers {
			if ctx.Err() != nil {
				return worst, last
			}
			a, err := f.try(ctx, u, p, q, try)
			if err == nil && good(a) {
				return a, nil
			}
			if err == nil {
				worst = a
				continue
			}
			last = err
			again = append(again, u)
		}
		servers = again
	}
	return worst, last
}

// allAtOnce asks every server at one time (DNS_FORWARD_PARALLEL).
func (f *forwarder) allAtOnce(ctx context.Context, p plan, q *query) (answer, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		answer
		err error
	}
	results := make(chan result, len(p.servers))
	own := *q // tries may outlive this call
	for _, u := range p.servers {
		q.scope.tasks.Go(func() {
			a, err := f.try(ctx, u, p, &own, f.timeout)
			results <- result{a, err}
		})
	}
	worst := answer{source: SourceFailure}
	last := errBudget
	for range p.servers {
		r := <-results // comes within ctx: try ends with it
		switch {
		case r.err == nil && good(r.answer):
			return r.answer, nil
		case r.err == nil:
			worst = r.answer
		default:
			last = r.err
		}
	}
	return worst, last
}

func good(a answer) bool {
	code := rcodeOf(a.msg)
	return code != rcodeServFail && code != rcodeRefused && code != rcodeNotImp && code != rcodeFormErr
}

// try asks one server once.
func (f *forwarder) try(ctx context.Context, u *upstream, p plan, q *query, limit time.Duration) (answer, error) {
	try, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	begin := f.now()
	u.begin(begin)
	msg, err := exchange(try, u.addr, q, p.TCP)
	rtt := f.now().Sub(begin)
	if err != nil && errors.Is(ctx.Err(), context.Canceled) {
		return answer{}, fmt.Errorf("ask %s: %w", u.addr, context.Canceled) // another one won, or the end: says nothing about u
	}
	u.done(rtt, err)
	if err != nil {
		return answer{}, err
	}
	return answer{msg: msg, source: SourceUpstream, server: u.addr, rtt: rtt}, nil
}

// probe sends a copy of q to servers that fail and were long not asked. Nobody
// waits for what they say; it is for their health. ctx is not the query's, but
// that of all of its scope.
func (f *forwarder) probe(ctx context.Context, p plan, q *query) {
	now := f.now()
	for _, u := range p.servers[1:] {
		if u.due(now) {
			own := *q
			q.scope.tasks.Go(func() { f.try(ctx, u, p, &own, f.tryTime(p)) })
		}
	}
}

// tryTime is how long one server may take: what the settings say, but short
// enough that every server is asked within a query's budget.
func (f *forwarder) tryTime(p plan) time.Duration {
	limit := f.timeout
	if p.Timeout > 0 {
		limit = min(limit, p.Timeout)
	}
	share := budgetTries * f.timeout / time.Duration(max(len(p.servers), 1))
	return min(limit, max(share, min(minTry, f.timeout)))
}

// plan returns whom to ask now, in order.
func (f *forwarder) plan() plan {
	f.mu.Lock()
	defer f.mu.Unlock()
	if conf, changed := f.conf.read(f.now()); changed {
		f.current = f.adopt(conf)
	}
	p := f.current
	p.servers = slices.Clone(p.servers)
	if p.Rotate && len(p.servers) > 1 {
		n := rand.IntN(len(p.servers))
		p.servers = slices.Concat(p.servers[n:], p.servers[:n])
	}
	slices.SortStableFunc(p.servers, func(a, b *upstream) int {
		return rank(a) - rank(b)
	})
	return p
}

func rank(u *upstream) int {
	if u.failing() {
		return 1
	}
	return 0
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
	for _, u := range f.known {
		list = append(list, u.snapshot())
	}
	slices.SortFunc(list, func(a, b UpstreamStats) int { return a.Server.Compare(b.Server) })
	return list
}
