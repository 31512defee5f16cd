package upstream

import (
	"context"
	"time"

	"understudy.mesh/dnsproxy/internal/wire"
)

const (
	// plainFor is how long a server is asked without EDNS once that got an answer
	// which EDNS did not; then it is tried anew, for servers are replaced. So long,
	// too, one that answered with EDNS is believed to mean its failures.
	plainFor = 10 * time.Minute

	// plainTime is how long the same question without EDNS may take: the server
	// has just answered.
	plainTime = time.Second
)

// dialect is what is known of a server and EDNS. There are servers, and middleboxes
// before servers, that drop what has an OPT record, or answer it with any failure
// instead of FORMERR (RFC 6891 section 7), or with garbage.
type dialect struct {
	spoken, plain time.Time // when it last answered well with EDNS; without, but not with
}

// speaks says whether u is known to answer EDNS.
func (u *server) speaks(now time.Time) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return recent(u.dialect.spoken, now)
}

// understood says whether u is known to answer with EDNS, or without.
func (u *server) understood(now time.Time) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return recent(u.dialect.spoken, now) || recent(u.dialect.plain, now)
}

// edns says whether to ask u with an OPT record. again says that it was asked with one
// and has not answered: then it is asked without, unless it is known to answer that.
func (u *server) edns(now time.Time, again bool) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return !recent(u.dialect.plain, now) && (!again || recent(u.dialect.spoken, now))
}

// learn notes that u has answered well at a time, with EDNS or without.
func (u *server) learn(now time.Time, edns bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case edns:
		u.dialect = dialect{spoken: now}
	case !recent(u.dialect.plain, now): // or it would never be tried anew
		u.dialect = dialect{plain: now}
		u.log.Info("dns upstream answers without EDNS only", "server", u.addr, "tried anew after", plainFor)
	}
}

func recent(since, now time.Time) bool { return !since.IsZero() && now.Sub(since) < plainFor }

// accept says what becomes of an answer, as canonical has it: it is the last word, or
// the question is worth to be asked without EDNS.
func (t *try) accept(msg []byte, err error) (final bool) {
	if err != nil {
		return !t.edns || t.u.speaks(t.f.now())
	}
	switch wire.RcodeOf(msg) {
	case wire.RcodeSuccess, wire.RcodeNXDomain:
		t.u.learn(t.f.now(), t.edns)
		return true
	case wire.RcodeFormErr, wire.RcodeNotImp:
		return !t.edns
	}
	return !t.edns || t.u.speaks(t.f.now())
}

// plainly asks without EDNS. Where that gets no better answer, the one that was there counts.
func (t *try) plainly(ctx context.Context, msg []byte, err error) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, plainTime)
	defer cancel()
	t.edns = false
	reply, failed := t.ask(ctx)
	if failed != nil {
		return msg, err
	}
	plain, failed := wire.Canonical(reply, t.q)
	if failed != nil {
		return msg, err
	}
	t.accept(plain, nil)
	return plain, nil
}
