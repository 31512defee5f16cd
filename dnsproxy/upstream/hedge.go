package upstream

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"understudy.mesh/dnsproxy/internal/wire"
)

// hedgedQuery asks servers for one query, one after the other, until one answers well:
// the next one when one fails, and also when one takes longer than it usually
// does (a hedge), while the first is still listened to. That goes on as often
// as resolv.conf says. A server that answered badly is not asked again.
type hedgedQuery struct {
	f        *Forwarder
	p        *plan
	q        *wire.Query
	via      *Transport
	deadline time.Time
	tryTime  time.Duration // until another try is begun
	heard    time.Duration // until a try is given up

	rounds  int       // how often each server is asked
	asked   int       // tries begun, in p's order, round after round
	next    time.Time // when another is begun though none has failed
	running []*try
	results chan result   // of the tries that somebody listens to
	over    chan struct{} // closed when nobody reads results any more
	bad     map[*server]bool
	goesOn  bool // though nobody waits, see late

	worst wire.Answer // what to say when nobody answers well
	last  error
}

// result is how a try ended.
type result struct {
	t   *try
	msg []byte
	err error
}

func newHedgedQuery(f *Forwarder, p *plan, q *wire.Query, via *Transport) *hedgedQuery {
	rounds := p.Attempts
	if rounds == 1 && slices.ContainsFunc(p.servers, func(u *server) bool { return !u.understood(f.now()) }) {
		rounds = 2 // the second one without EDNS
	}
	return &hedgedQuery{
		f: f, p: p, q: q, via: via, rounds: rounds, deadline: time.Now().Add(f.timeLeft(p, q)), tryTime: f.tryTime(p), heard: f.heard(p),
		worst: wire.Answer{Source: wire.SourceFailure}, last: errBudget,
	}
}

// first asks the first server, in the goroutine of the query. done says that
// it has answered well; otherwise run goes on.
func (r *hedgedQuery) first(ctx context.Context) (a wire.Answer, done bool) {
	t, err := r.begin()
	if err != nil {
		r.lost(ctx, t, err)
		return wire.Answer{}, false
	}
	msg, done, err := t.soon(ctx, r.next)
	switch {
	case !done:
		r.running = append(r.running, t)
		return wire.Answer{}, false
	case err != nil:
		r.lost(ctx, t, err)
		return wire.Answer{}, false
	}
	return r.take(ctx, t, msg)
}

// run goes on until there is an answer, no try is left, or time is up.
func (r *hedgedQuery) run(ctx context.Context) (wire.Answer, error) {
	late, cancel := context.WithDeadline(ctx, r.deadline)
	defer cancel()
	defer r.end(ctx)
	r.results, r.over = make(chan result), make(chan struct{})
	for _, t := range r.running {
		r.listen(ctx, t)
	}
	back := r.f.Health.end()
	timer := time.NewTimer(0)
	defer timer.Stop()
	extra := 0
	for len(r.running) > 0 || r.more() {
		now := time.Now()
		if len(r.running) == 0 || r.more() && !now.Before(r.next) {
			r.another(ctx)
			continue
		}
		timer.Reset(r.wake(now))
		select {
		case got := <-r.results:
			r.drop(got.t)
			if got.err != nil {
				r.lost(ctx, got.t, got.err)
			} else if a, done := r.take(ctx, got.t, got.msg); done {
				r.overtaken(got.t)
				return a, nil
			}
			r.next = time.Now()
		case <-back:
			// Somebody answers again: ask at once, not when it is time.
			back = nil
			r.another(ctx)
		case <-timer.C:
			if extra < maxRechecks && !r.more() && r.f.Health.Recheck() {
				extra++
				r.another(ctx)
			}
		case <-late.Done():
			return r.late(ctx), r.last
		}
	}
	return r.worst, r.last
}

// maxRechecks is how many questions beyond resolv.conf's attempts a query may
// send to see whether a server is back.
const maxRechecks = 16

// wake is how long to sleep.
func (r *hedgedQuery) wake(now time.Time) time.Duration {
	if r.more() {
		return r.next.Sub(now)
	}
	return recheckOutage
}

// more says whether a try is left.
func (r *hedgedQuery) more() bool {
	for ; r.asked < len(r.p.servers)*r.rounds; r.asked++ {
		if !r.bad[r.server()] {
			return true
		}
	}
	return false
}

// server is the one whose turn it is.
func (r *hedgedQuery) server() *server { return r.p.servers[r.asked%len(r.p.servers)] }

// begin sends the question to the server whose turn it is.
func (r *hedgedQuery) begin() (*try, error) {
	u := r.server()
	hedge := len(r.running) > 0 && !r.f.parallel
	r.asked++
	now := time.Now()
	t := &try{u: u, q: r.q, via: r.via, tcp: r.p.TCP, limit: now.Add(r.heard)}
	r.next = now.Add(r.patience(u))
	if hedge {
		u.hedge()
	}
	return t, r.f.begin(t, r.asked > len(r.p.servers))
}

// patience is how long u may take before the next server is asked, too.
func (r *hedgedQuery) patience(u *server) time.Duration {
	wait := min(u.patience(), r.tryTime)
	switch {
	case r.f.noHedge && !r.f.parallel:
		return r.tryTime
	case r.asked%len(r.p.servers) == 0 && r.p.Attempts == 1: // there is a next round for EDNS only
		return r.f.budget(r.p) / minTries
	case r.asked%len(r.p.servers) == 0: // the next round
		return max(wait, min(askAgain, r.tryTime))
	case r.f.parallel:
		return 0
	}
	return wait
}

// another begins a try and listens for its answer.
func (r *hedgedQuery) another(ctx context.Context) {
	t, err := r.begin()
	if err != nil {
		r.lost(ctx, t, err)
		return
	}
	r.running = append(r.running, t)
	r.listen(ctx, t)
}

// listen has t's end come to results.
func (r *hedgedQuery) listen(ctx context.Context, t *try) {
	own := *r.q // tries may outlive the query
	t.q = &own
	try, cancel := context.WithDeadline(ctx, t.limit)
	t.cancel = cancel
	r.via.tasks.Go(func() {
		defer cancel()
		defer t.abandon()
		msg, err := t.finish(try)
		select {
		case r.results <- result{t, msg, err}:
		case <-r.over:
		}
	})
}

// take judges an answer.
func (r *hedgedQuery) take(ctx context.Context, t *try, msg []byte) (wire.Answer, bool) {
	rtt := r.f.ended(ctx, t, nil)
	a := wire.Answer{Msg: msg, Source: wire.SourceUpstream, Server: t.u.addr, RTT: rtt}
	if isLame(r.q, msg) {
		a.Msg = wire.AppendReply(nil, r.q, 0, wire.RcodeServFail)
	}
	if wire.Good(a) {
		return a, true
	}
	if r.bad == nil {
		r.bad = map[*server]bool{}
	}
	r.bad[t.u] = true
	r.worst = a
	return a, false
}

// isLame says whether msg only points elsewhere, though q asked for the whole
// answer: the server is neither an authority nor willing to ask one, and says
// neither yes nor no. glibc and Go ask the next one, too. One that says nothing
// at all is believed: small servers say "no such record" like that.
func isLame(q *wire.Query, msg []byte) bool {
	if !q.Has(wire.FlagRD) || wire.FlagsOf(msg)&(wire.FlagAA|wire.FlagRA) != 0 || wire.RcodeOf(msg) != wire.RcodeSuccess || binary.BigEndian.Uint16(msg[6:]) != 0 {
		return false
	}
	elsewhere := false
	walk := wire.RecordsOf(msg, wire.HeaderLen+len(q.Question()))
	for rec, ok := walk.Next(); ok; rec, ok = walk.Next() {
		if rec.Type == wire.TypeSOA {
			return false
		}
		elsewhere = elsewhere || rec.Type == wire.TypeNS
	}
	return elsewhere
}

// lost records a try without an answer.
func (r *hedgedQuery) lost(ctx context.Context, t *try, err error) {
	r.f.ended(ctx, t, err)
	if !errors.Is(err, errBudget) {
		r.last = err
	}
}

func (r *hedgedQuery) drop(t *try) {
	r.running = slices.DeleteFunc(r.running, func(other *try) bool { return other == t })
}

// overtaken tells the servers that winner's answer came before theirs, though they were
// asked long before.
func (r *hedgedQuery) overtaken(winner *try) {
	for _, t := range r.running {
		if t.u != winner.u && winner.sent.Sub(t.sent) >= minPatience {
			t.watched = t.u.overtaken(r.f.now(), fmt.Errorf("ask %s: %s answered first", t.u.addr, winner.u.addr))
		}
	}
}

// late ends the tries for their query, whose time is up. If one of the servers may merely be
// slow, they go on for the client's next query, and the answer's Late delivers what comes.
func (r *hedgedQuery) late(ctx context.Context) wire.Answer {
	a, now := r.worst, r.f.now()
	slow := ctx.Err() == nil &&
		slices.ContainsFunc(r.running, func(t *try) bool { return t.u.mayBeSlow(now) })
	for _, t := range r.running {
		r.lost(ctx, t, errBudget)
	}
	if !slow {
		return a
	}
	select {
	case r.f.late <- struct{}{}:
	default:
		return a // too many wait: so many servers are not slow
	}
	own := *r.q
	r.q, r.goesOn = &own, true
	late := make(chan wire.Answer, 1)
	r.via.tasks.Go(func() {
		defer func() { <-r.f.late }()
		late <- r.linger(ctx)
	})
	a.Late = late
	return a
}

// linger waits for the tries that run, and calls off the others when one has answered. No other
// query asks the same meanwhile, so it also tries whether servers that fail are back.
func (r *hedgedQuery) linger(ctx context.Context) wire.Answer {
	defer r.callOff()
	back := r.f.Health.end()
	recheck := time.NewTicker(recheckOutage)
	defer recheck.Stop()
	lasts := time.Now().Add(r.heard) // and so no more than twice as long
	for len(r.running) > 0 {
		select {
		case got := <-r.results:
			r.drop(got.t)
			if got.err != nil { // it was counted when the query's time was up
				continue
			}
			if a, done := r.take(ctx, got.t, got.msg); done {
				return a
			}
		case <-back:
			back = nil
			r.another(ctx)
		case now := <-recheck.C:
			if now.Before(lasts) && r.f.Health.Recheck() {
				r.another(ctx)
			}
		case <-r.via.lives.Done():
			return wire.Answer{Source: wire.SourceFailure, Msg: wire.AppendReply(nil, r.q, 0, wire.RcodeServFail), Pending: true}
		}
	}
	if r.worst.Msg == nil {
		r.worst.Msg = wire.AppendReply(nil, r.q, 0, wire.RcodeServFail)
	}
	return r.worst
}

// callOff ends the tries that run; results are not read any more.
func (r *hedgedQuery) callOff() {
	for _, t := range r.running {
		t.cancel()
	}
	close(r.over)
}

// end calls off the tries that run, but for those that are watched.
func (r *hedgedQuery) end(ctx context.Context) {
	if r.goesOn {
		return
	}
	r.running = slices.DeleteFunc(r.running, func(t *try) bool {
		if !t.watched {
			t.cancel()
		}
		return !t.watched
	})
	if len(r.running) == 0 {
		close(r.over)
		return
	}
	r.via.tasks.Go(func() { r.watch(ctx, r.via.lives.Done()) })
}

// watch records how the watched tries end, until ended is closed.
func (r *hedgedQuery) watch(ctx context.Context, ended <-chan struct{}) {
	defer r.callOff()
	for len(r.running) > 0 {
		select {
		case got := <-r.results:
			if got.t.watched {
				r.drop(got.t)
				r.f.ended(ctx, got.t, got.err)
				got.t.u.unwatch()
			}
		case <-ended:
			for _, t := range r.running {
				t.u.unwatch()
			}
			return
		}
	}
}
