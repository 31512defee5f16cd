package sidecar

import (
	"context"
	"sync"

	"golang.org/x/sync/errgroup"
)

// life is how far a sidecar has come, and what ends it.
type life struct {
	inForce chan struct{}
	once    sync.Once // closes inForce
	serves  chan struct{}
	begins  sync.Once // closes serves

	group   *errgroup.Group
	base    context.Context // ends with the sidecar
	endBase context.CancelFunc
	work    context.Context // ends when it takes no more changes
	endWork context.CancelFunc
	// failures takes the error of a server that broke, which ends the sidecar.
	failures chan error
	done     chan struct{}
	err      error // set before done is closed
}

// fail ends the sidecar with err.
func (l *life) fail(err error) {
	select {
	case l.failures <- err:
	default: // an earlier one counts
	}
}

// InForce is closed once Envoy serves its whole configuration, and DNS has its names.
func (l *life) InForce() <-chan struct{} { return l.inForce }

// Done is closed when nothing of it runs any more.
func (l *life) Done() <-chan struct{} { return l.done }

// Err is what ended it early. It is valid after Done.
func (l *life) Err() error { return l.err }
