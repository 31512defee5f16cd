package publish

import (
	"sync/atomic"
	"time"

	"understudy.mesh/dnsproxy/table"
)

// HoldLimit is how long names wait at most for a successor that comes into force: one that hangs must not keep them for longer.
const HoldLimit = 10 * time.Second

// Others is what the Envoy of another generation leads somewhere that accepts connections as well: that of the one before does until a
// newcomer has settled, a newcomer's from when it is warm. A name that only one of the two knows leads nowhere in the other. Its
// methods may be called by any goroutine. It is made by newOthers.
type Others struct {
	there   atomic.Pointer[addresses] // nil: no other Envoy accepts
	limit   atomic.Pointer[time.Timer]
	changed chan struct{} // holds a token when there has changed
}

func newOthers() *Others { return &Others{changed: make(chan struct{}, 1)} }

// Beside says that another Envoy accepts connections as well, one that leads hosts somewhere and no others: until Alone, or for limit
// if that is not 0, a host without that answer there has the answer that it had here, or none.
func (o *Others) Beside(hosts []table.Host, limit time.Duration) {
	there := addressesOf(hosts)
	o.set(&there)
	if limit > 0 {
		o.limit.Store(time.AfterFunc(limit, func() {
			if o.there.CompareAndSwap(&there, nil) { // else it is of somebody who came later
				o.tell()
			}
		}))
	}
}

// Alone ends Beside: what waited is published.
func (o *Others) Alone() { o.set(nil) }

func (o *Others) set(there *addresses) {
	if limit := o.limit.Swap(nil); limit != nil {
		limit.Stop() // and it keeps nothing in memory that a standby gives back
	}
	if o.there.Swap(there) != there {
		o.tell()
	}
}

func (o *Others) tell() {
	select {
	case o.changed <- struct{}{}:
	default:
	}
}
