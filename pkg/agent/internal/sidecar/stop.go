package sidecar

import (
	"context"
	"time"

	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/envoy"
)

const (
	// abandonGrace is how long what the Envoy of a failed take-over has accepted may take; the
	// next attempt waits for it.
	abandonGrace = 5 * time.Second
	// lastGrace is how long what Envoy serves at the end of an ordinary stop may take, when nobody
	// new reaches it any more: time for a request. lastPoll is how often it is asked: Envoy counts
	// its connections only when it is, and the kernel tells of no queue that it is empty.
	lastGrace = time.Second
	lastPoll  = 50 * time.Millisecond
	// streamGrace is how long Envoy has to see that its configuration stream was closed, before it is ended:
	// its main thread does that at once, unless it hangs.
	streamGrace = time.Second
	// stopReason is why a generation is not ready any more.
	stopReason = "the agent is stopping"
)

// Unready turns readiness off before a stop.
func (s *Sidecar) Unready() { s.Ready.Off(stopReason) }

// DrainInbound closes Envoy's inbound listeners to new connections, and nothing else (POST /drain).
func (s *Sidecar) DrainInbound(ctx context.Context) error {
	return s.admin.Drain(ctx, envoy.DrainOptions{InboundOnly: s.cfg.Role == config.Sidecar, Graceful: true, SkipExit: true})
}

// Drain is the first part of an ordinary stop: readiness off, inbound drained, all else goes
// on. cut ends it early. The others are empty and end.
func (s *Sidecar) Drain(cut context.Context) {
	s.Unready()
	s.endWork()
	s.plane.Keep()
	s.names.vips.Compact() // whoever starts next may be a release that finds no change in a journal
	s.Envoy.Release()
	if !s.Envoy.HasServed() || cut.Err() != nil {
		return
	}
	s.Envoy.Drain(cut, envoy.DrainPlan{
		InboundOnly: s.cfg.Role == config.Sidecar,
		Duration:    s.cfg.TerminationDrainDuration,
		UntilIdle:   s.cfg.ExitOnZeroActiveConnections,
		Minimum:     s.cfg.MinimumDrainDuration,
		IdleTimeout: s.cfg.DrainIdleTimeout,
	}, s.log)
}

// Empty is the second part: nobody new reaches a socket, so that nobody who waits in one, or has
// just been accepted, is reset at the end. It takes lastGrace at most. This generation must be the
// only one that has the sockets.
func (s *Sidecar) Empty(ctx context.Context) {
	if !s.Envoy.HasServed() {
		return
	}
	s.Sockets.Quench()
	ctx, cancel := context.WithTimeout(ctx, lastGrace)
	defer cancel()
	tick := time.NewTicker(lastPoll)
	defer tick.Stop()
	for {
		left, err := s.Envoy.Connections(ctx)
		if err == nil && left == 0 && s.Sockets.Queued() == 0 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-s.Envoy.Exited():
			return
		case <-tick.C:
		}
	}
}

// Retire lets connections end after a successor took over: Envoy stops accepting and asks its clients
// to go, and every copy of a socket is closed, so that nobody queues in one. It returns when no connection is
// left, when for DrainIdleTimeout none but idle ones has been, or at the end of ctx, with Envoy gone. left gets what there
// still is now and then, and at the end (final).
func (s *Sidecar) Retire(ctx context.Context, left func(l envoy.Load, final bool)) {
	s.endWork()
	s.publisher.suspend()
	if s.identity != nil {
		s.identity.Retire()
	}
	s.Envoy.Release()
	if err := s.Envoy.StopAccepting(ctx); err != nil {
		s.log.Warn("Envoy was not told to drain", "err", err)
	}
	s.Sockets.Close()
	s.log.Info("draining after the hand-off")
	s.Envoy.AwaitIdle(ctx, s.cfg.DrainIdleTimeout, func(l envoy.Load) { left(l, false) }, s.log)
	if l, err := s.Envoy.Load(context.Background()); err == nil {
		left(l, true)
	}
	s.End()
}

// Abandon ends the sidecar of a take-over that failed. What its Envoy has accepted, beside that of
// the generation before, may finish; whoever connects from now on reaches the latter.
func (s *Sidecar) Abandon() {
	s.Envoy.Release() // an Envoy that has died is not started again, beside the one that serves
	s.serving.release(s.base)
	s.probation.fail()
	if i := s.Envoy.Current(); i == nil || !IsClosed(i.Accepts()) || IsClosed(i.Done()) {
		s.End()
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), abandonGrace)
	defer cancel()
	s.Retire(ctx, func(envoy.Load, bool) {})
}

// endStream closes Envoy's configuration stream: an Envoy that ends warns of one that is open, as of a fault.
func (s *Sidecar) endStream() {
	s.xds.End()
	if s.clients != nil {
		s.clients.End()
	}
	if s.identity != nil {
		s.identity.End()
	}
	ctx, cancel := context.WithTimeout(context.Background(), streamGrace)
	defer cancel()
	s.Envoy.AwaitStreamEnd(ctx)
}

// End stops everything at once, and returns when nothing is left.
func (s *Sidecar) End() {
	s.endBase()
	<-s.done
}
