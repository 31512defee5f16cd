package dnsproxy

import (
	"context"

	"understudy.mesh/dnsproxy/cache"
	"understudy.mesh/dnsproxy/internal/wire"
)

// chain answers the queries of one Serving: the names of this host itself, and all others
// by the stages from the first one on.
type chain struct {
	server  *Server
	first   stage
	flights cache.Flights
}

// respond answers one message, appending to dst (empty, its capacity is used):
// at once with done true, or it leaves q and what was found for wait. A nil reply
// with done true means silence.
func (c *chain) respond(q *wire.Query, msg []byte, limit int, dst []byte) (reply []byte, f found, done bool) {
	switch q.Parse(msg, limit) {
	case wire.DropIt:
		c.server.counters.dropped.Add(1)
		return nil, found{}, true
	case wire.RejectIt:
		c.server.counters.reply(wire.SourceReject, q.Type, q.Rcode)
		return wire.AppendReject(dst, q), found{}, true
	}
	a, f, ok := c.fast(q, dst)
	if !ok {
		return nil, f, false
	}
	return c.server.finish(q, a), f, true
}

func (c *chain) fast(q *wire.Query, dst []byte) (wire.Answer, found, bool) {
	if m, ok := c.server.localhost.Find(q); ok {
		return c.server.localhost.Answer(q, m, dst), found{}, true
	}
	return c.first.Fast(q, dst, &c.flights)
}

// wait answers a query that respond could not, however long that takes.
func (c *chain) wait(ctx context.Context, q *wire.Query, f found) []byte {
	return c.server.finish(q, c.first.Serve(ctx, q, f, &c.flights))
}

// overload is the reply when nobody more can wait.
func (c *chain) overload(q *wire.Query, dst []byte) []byte {
	c.server.counters.refused.Add(1)
	return c.server.finish(q, wire.Answer{Msg: wire.AppendReply(dst, q, 0, wire.RcodeServFail), Source: wire.SourceFailure})
}

func (s *Server) finish(q *wire.Query, a wire.Answer) []byte {
	s.counters.reply(a.Source, q.Type, wire.RcodeOf(a.Msg))
	return wire.Finish(q, a.Msg)
}

// stage is what a query begins with.
type stage interface {
	// Fast answers from memory, appending to dst; false when that takes
	// waiting. It never blocks and keeps neither q nor dst.
	Fast(q *wire.Query, dst []byte, via *cache.Flights) (wire.Answer, found, bool)
	// Serve answers q, for which Fast has found f, in any case, within ctx. It keeps nothing of q.
	Serve(ctx context.Context, q *wire.Query, f found, via *cache.Flights) wire.Answer
}

// found is how far a query got that Fast could not answer, so that nobody is asked again.
type found struct {
	looked bool         // the table was there
	known  bool         // to the table, which has other types
	miss   cache.Miss   // what the cache has
	denied *wire.Answer // of the name as it is, where it is looked for below the search domains
}
