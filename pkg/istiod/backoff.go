package istiod

import (
	"errors"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// backoffFirst and backoffLast bound the pause before another attempt: anything from 0 to a limit that doubles, so that
	// the pods of a mesh, which lose their istiod at one moment, do not come back at one moment.
	backoffFirst = 500 * time.Millisecond
	backoffLast  = 30 * time.Second
	// backoffRest is the shortest pause once the limit is backoffLast: without it, one outage in 250 has more than 12 calls in its
	// first minute.
	backoffRest = 5 * time.Second
	// refusedFirst is the shortest pause after istiod has refused this agent as such, which hardly ends by itself.
	refusedFirst = 5 * time.Second
	// longLived is how long a stream lives whose end is no fault of istiod's: it ends each after half an hour, so that
	// agents spread over its replicas.
	longLived = time.Minute
)

// backoff is how long to wait before istiod is called again.
type backoff struct {
	failures int // in a row
	random   func(n time.Duration) time.Duration
}

func newBackoff() *backoff { return &backoff{random: rand.N[time.Duration]} }

// after returns the pause after a stream of this age has ended with err.
func (b *backoff) after(err error, age time.Duration) time.Duration {
	if refuses(err) {
		b.failures = 0
		return refusedFirst + b.random(backoffLast-refusedFirst)
	}
	if age >= longLived {
		b.failures = 0
		return b.random(backoffFirst)
	}
	if b.failures >= 6 { // 0.5 s doubled six times is beyond 30 s
		return backoffRest + b.random(backoffLast-backoffRest)
	}
	b.failures++
	return b.random(backoffFirst << (b.failures - 1))
}

// refuses says whether istiod does not want this agent, rather than cannot serve it now.
func refuses(err error) bool {
	switch code(err) {
	case codes.Unauthenticated, codes.PermissionDenied, codes.InvalidArgument:
		return true
	}
	return false
}

// code is the status of a call, Unknown for an error that is none.
func code(err error) codes.Code {
	var s interface{ GRPCStatus() *status.Status }
	if errors.As(err, &s) {
		return s.GRPCStatus().Code()
	}
	return codes.Unknown
}

// fires is when a timer does; never where there is none.
func fires(t *time.Timer) <-chan time.Time {
	if t == nil {
		return nil
	}
	return t.C
}
