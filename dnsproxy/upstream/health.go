package upstream

import (
	"sync"
	"sync/atomic"
	"time"
)

// recheckOutage is how often one question is let through to servers of which
// none answers: what is kept of failures ends within that time of the first
// server's return.
const recheckOutage = 500 * time.Millisecond

// Health is what the upstreams' health means for answers that are kept: with
// no server that answers there is no use in asking for each name anew, and with
// the first one that is back every failure before is void.
type Health struct {
	now   func() time.Time
	start time.Time // the times below are counted from it, in ns

	down      atomic.Bool  // every server fails
	ended     atomic.Int64 // when a server that failed answered again
	rechecked atomic.Int64

	mu   sync.Mutex
	back chan struct{} // closed at the next end
}

func newHealth(now func() time.Time) *Health {
	// The start lies in the past, so that no time is zero by chance.
	return &Health{now: now, start: now().Add(-recheckOutage), back: make(chan struct{})}
}

// Clock returns the time as failures are kept with it.
func (o *Health) Clock() int64 { return int64(o.now().Sub(o.start)) }

// Holds says whether a failure at that time, 0 for none, still counts.
func (o *Health) Holds(failed int64, forAtMost time.Duration) bool {
	return failed != 0 && o.Clock()-failed < int64(forAtMost) && failed > o.ended.Load()
}

// EndedAfter says whether a server has come back after that time.
func (o *Health) EndedAfter(began int64) bool { return o.ended.Load() > began }

// AllFail says whether no server answers.
func (o *Health) AllFail() bool { return o.down.Load() }

// Due says whether it is time for a question to servers that all fail.
func (o *Health) Due() bool {
	return o.down.Load() && o.Clock()-o.rechecked.Load() >= int64(recheckOutage)
}

// Recheck says true to one of those that ask when that is due: it has to send
// the question.
func (o *Health) Recheck() bool {
	last := o.rechecked.Load()
	return o.Due() && o.rechecked.CompareAndSwap(last, o.Clock())
}

// Returned has the next recheck be due at once: who was told to ask has nothing to send.
func (o *Health) Returned() { o.rechecked.Store(o.Clock() - int64(recheckOutage)) }

// over is told that a server which failed has answered.
func (o *Health) over() {
	o.down.Store(false)
	o.ended.Store(o.Clock())
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.back)
	o.back = make(chan struct{})
}

// end returns a channel that is closed when a server is back.
func (o *Health) end() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.back
}
