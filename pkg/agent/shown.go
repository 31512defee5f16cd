package agent

import (
	"time"

	"understudy.mesh/hotrestart/handoff"
	"understudy.mesh/pkg/agent/internal/sidecar"
	"understudy.mesh/pkg/contract"
	"understudy.mesh/pkg/status"
)

// Results of an Attempt.
const (
	resultRunning = "running"
	resultSuccess = "success"
	resultFailure = "failure"
	resultRefused = "refused"
)

// shown is what others than the loop may see of it.
type shown struct {
	role    handoff.Role
	since   time.Time
	sidecar *sidecar.Sidecar
	left    int             // connections, while draining
	drain   *contract.Drain // what they are; nil while that is unknown
	attempt *contract.Attempt
	// requests are those that its Envoy had answered when it handed over; nil while it serves, and if that is unknown.
	requests *contract.Requests
	// notTaken is why the last attempt to take over failed; "" when none did, or one succeeded.
	notTaken   string
	failure    string    // why this agent ends; "" while it goes on, or where that was asked for
	asked      time.Time // when a command asked for its role last
	waitFailed string    // what a `wait` said that failed before this agent was ready
	// successor is for whom this generation stands by, and whether that one serves.
	successor       string
	successorServes bool
	predecessor     *handoff.Drained  // nil: there is none
	upgrades        map[[2]string]int // by result and reason
	durations       durations
}

// durations sums up how long hand-offs took that succeeded.
type durations struct {
	count   uint64
	sum     time.Duration
	buckets [len(durationBounds)]uint64
}

// durationBounds, in seconds, lie around the probation, which is 2 s of every hand-off.
var durationBounds = [...]float64{2.25, 2.5, 3, 4, 6, 10, 20, 60, 120, 300}

func (d *durations) observe(took time.Duration) {
	d.count++
	d.sum += took
	for i, bound := range durationBounds {
		if took.Seconds() <= bound {
			d.buckets[i]++
		}
	}
}

func (d *durations) histogram() *status.Histogram {
	h := &status.Histogram{Count: d.count, Sum: d.sum.Seconds(), Buckets: map[float64]uint64{}}
	for i, bound := range durationBounds {
		h.Buckets[bound] = d.buckets[i]
	}
	return h
}
