package dnsproxy

import "context"

// chain answers the queries of one Serving: the names of this host itself, and all others
// by the stages from the first one on.
type chain struct {
	server  *Server
	first   stage
	flights flights
}

// respond answers one message, appending to dst (empty, its capacity is used):
// at once with done true, or it leaves the query in q for wait. A nil reply
// with done true means silence.
func (c *chain) respond(q *query, msg []byte, limit int, dst []byte) (reply []byte, done bool) {
	switch q.parse(msg, limit) {
	case dropIt:
		c.server.counters.dropped.Add(1)
		return nil, true
	case rejectIt:
		c.server.counters.reply(SourceReject, q.qtype, q.rcode)
		return appendReject(dst, q), true
	}
	a, ok := c.fast(q, dst)
	if !ok {
		return nil, false
	}
	return c.server.finish(q, a), true
}

func (c *chain) fast(q *query, dst []byte) (answer, bool) {
	if m, ok := c.server.localhost.find(q); ok {
		return c.server.localhost.answer(q, m, dst), true
	}
	return c.first.fast(q, dst, &c.flights)
}

// wait answers a query that respond could not, however long that takes.
func (c *chain) wait(ctx context.Context, q *query) []byte {
	return c.server.finish(q, c.first.serve(ctx, q, &c.flights))
}

// overload is the reply when nobody more can wait.
func (c *chain) overload(q *query, dst []byte) []byte {
	c.server.counters.refused.Add(1)
	return c.server.finish(q, answer{msg: appendReply(dst, q, 0, rcodeServFail), source: SourceFailure})
}

func (s *Server) finish(q *query, a answer) []byte {
	s.counters.reply(a.source, q.qtype, rcodeOf(a.msg))
	return finish(q, a.msg)
}

// stage is one before the forwarder: the walk over the search list, the table, the cache.
type stage interface {
	// fast answers from memory, appending to dst; false when that takes
	// waiting. It never blocks and keeps neither q nor dst.
	fast(q *query, dst []byte, via *flights) (answer, bool)
	// serve answers q in any case, within ctx. It keeps nothing of q.
	serve(ctx context.Context, q *query, via *flights) answer
}
