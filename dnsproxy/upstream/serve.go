package upstream

import (
	"context"
	"time"

	"understudy.mesh/dnsproxy/internal/wire"
)

// Serve answers q, with SERVFAIL when no server does. It keeps nothing of q.
func (f *Forwarder) Serve(ctx context.Context, q *wire.Query, via *Transport) wire.Answer {
	a, err := f.forward(ctx, q, via)
	if err != nil {
		f.log.Debug("dns query failed", "type", q.Type, "error", err)
	}
	if a.Msg == nil {
		a.Msg = wire.AppendReply(nil, q, 0, wire.RcodeServFail)
	}
	return a
}

// forward returns the first good answer. Where there was none but a server
// said SERVFAIL or REFUSED, that is the answer.
func (f *Forwarder) forward(ctx context.Context, q *wire.Query, via *Transport) (wire.Answer, error) {
	p := f.plan()
	if len(p.servers) == 0 {
		return wire.Answer{Source: wire.SourceFailure}, errNoServers
	}
	f.probe(&p, q, via)
	r := newHedgedQuery(f, &p, q, via)
	if !f.parallel && !p.TCP {
		if a, done := r.first(ctx); done {
			return a, nil
		}
	}
	return r.run(ctx)
}

// probe sends a copy of q to servers that are slow or fail, if they have not been asked
// for long and others are well. Nobody waits for the answers: they show how the servers are.
func (f *Forwarder) probe(p *plan, q *wire.Query, via *Transport) {
	if f.Health.down.Load() {
		return // they are asked anyway
	}
	now := f.now()
	for _, u := range p.servers[1:] {
		if u.due(now) {
			own := *q
			via.Leave(func(ctx context.Context) {
				ctx, cancel := context.WithTimeout(ctx, f.heard(p))
				defer cancel()
				defer context.AfterFunc(via.lives, cancel)()
				t := &try{u: u, q: &own, via: via, tcp: p.TCP, limit: time.Now().Add(f.heard(p))}
				err := f.begin(t, false)
				if err == nil {
					_, err = t.finish(ctx)
				}
				f.ended(ctx, t, err)
			})
		}
	}
}
