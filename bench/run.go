package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
)

// run is what a section of the benchmark has instead of a *testing.T: the lab cleans up by it.
type run struct {
	mu       sync.Mutex
	cleanups []func()
	ended    bool
	failure  error
}

// failed unwinds a section; the reason is in run.failure.
type failed struct{}

// isolated runs one section and cleans up after it, also when it fails or ctx ends.
func isolated(ctx context.Context, section func(*run) []result) (results []result, err error) {
	r := &run{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if p := recover(); p != nil && p != any(failed{}) {
				r.failure = fmt.Errorf("panic: %v", p)
			}
		}()
		results = section(r)
	}()
	select {
	case <-done:
		r.cleanup()
		return results, r.failure
	case <-ctx.Done():
		r.cleanup()
		return nil, errors.New("interrupted")
	}
}

// cleanup runs what was registered, last first. What is registered later runs at once.
func (r *run) cleanup() {
	r.mu.Lock()
	r.ended = true
	cleanups := r.cleanups
	r.cleanups = nil
	r.mu.Unlock()
	for i := len(cleanups) - 1; i >= 0; i-- {
		cleanups[i]()
	}
}

// Cleanup implements lab.T.
func (r *run) Cleanup(f func()) {
	r.mu.Lock()
	if !r.ended {
		r.cleanups = append(r.cleanups, f)
		f = func() {}
	}
	r.mu.Unlock()
	f()
}

// Fatalf implements lab.T: it ends the section.
func (r *run) Fatalf(format string, args ...any) {
	r.failure = fmt.Errorf(format, args...)
	panic(failed{})
}

// Skipf implements lab.T. A benchmark that cannot run has failed.
func (r *run) Skipf(format string, args ...any) { r.Fatalf(format, args...) }

// Logf implements lab.T.
func (r *run) Logf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// Failed implements lab.T.
func (r *run) Failed() bool { return r.failure != nil }

// Helper implements lab.T.
func (r *run) Helper() {}
