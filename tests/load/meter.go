package load

import (
	"maps"
	"sync"
	"time"
)

// maxFailures is how many failures of a flow are kept with their texts: the first ones tell the
// story, and a report stays a line.
const maxFailures = 20

// Counts is what happened in some time.
type Counts struct {
	OK     uint64           `json:"ok"`               // requests answered, and rightly; for streams: messages
	Failed map[Class]uint64 `json:"failed,omitempty"` // requests that were not; for streams: also cut, or not opened
	// Retried counts requests that were made again after a kept connection was closed before any byte
	// of their answer (RFC 9112, 9.3.1), or after the peer said that it had not looked at them (RFC
	// 9113, 8.7). Their last attempt is in OK or Failed.
	Retried uint64 `json:"retried"`
	// Skipped counts requests that were due and never made, since the worker was late by more than a
	// second: the rate is more than the target, or the load generator, can do.
	Skipped uint64 `json:"skipped"`
	Opened  uint64 `json:"opened"` // connections, or h2-stream's streams
	// Ended counts those that ended as agreed: Connection: close, closed idle, or their life was over.
	Ended uint64 `json:"ended"`
	// Latency is of OK requests: from when a request was due (at a rate) or begun, until its answer was
	// complete. A request that waited for the one before it has waited, and that counts.
	Latency Histogram `json:"latency"`
}

// Failures is the number of failed requests of all classes.
func (c Counts) Failures() (total uint64) {
	for _, n := range c.Failed {
		total += n
	}
	return total
}

// Merge adds the counts of o.
func (c *Counts) Merge(o Counts) {
	c.OK += o.OK
	c.Retried += o.Retried
	c.Skipped += o.Skipped
	c.Opened += o.Opened
	c.Ended += o.Ended
	c.Latency.Merge(o.Latency)
	c.Failed = maps.Clone(c.Failed)
	for class, n := range o.Failed {
		c.fail(class, n)
	}
}

func (c *Counts) fail(class Class, n uint64) {
	if c.Failed == nil {
		c.Failed = make(map[Class]uint64)
	}
	c.Failed[class] += n
}

// meter counts for one flow. It is safe for its workers' use.
type meter struct {
	flow string

	mu       sync.Mutex
	total    Counts // up to the last snapshot
	interval Counts // since
	failures []Failure
}

// request counts one request that was due at start and has just ended.
func (m *meter) request(start time.Time, err error) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		m.interval.OK++
		m.interval.Latency.Add(now.Sub(start))
		return
	}
	class := classify(err)
	m.interval.fail(class, 1)
	if len(m.failures) < maxFailures {
		m.failures = append(m.failures, Failure{
			Time: now, Flow: m.flow, Class: class, Text: describe(err), Milliseconds: milliseconds(now.Sub(start)),
		})
	}
}

func (m *meter) opened()          { m.count(func(c *Counts) { c.Opened++ }) }
func (m *meter) ended()           { m.count(func(c *Counts) { c.Ended++ }) }
func (m *meter) retried(n uint64) { m.count(func(c *Counts) { c.Retried += n }) }
func (m *meter) skipped(n uint64) { m.count(func(c *Counts) { c.Skipped += n }) }

func (m *meter) count(change func(*Counts)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change(&m.interval)
}

// snapshot returns the counts of all time and since the last snapshot.
func (m *meter) snapshot() (total, interval Counts, failures []Failure) {
	m.mu.Lock()
	defer m.mu.Unlock()
	interval, m.interval = m.interval, Counts{}
	m.total.Merge(interval)
	total.Merge(m.total) // a copy: the report's reader shares nothing with the next snapshot
	return total, interval, append([]Failure(nil), m.failures...)
}
