package sidecar

import (
	"context"
	"time"

	"understudy.mesh/hotrestart"
	"understudy.mesh/hotrestart/handoff"
	"understudy.mesh/pkg/envoy"
)

// statsTimeout bounds how long the counters of Envoy may take: a newcomer waits for them.
const statsTimeout = time.Second

// Inheritance is what a generation has from the one before: its sockets, and what it
// knew. It owns the sockets.
type Inheritance struct {
	Sockets *hotrestart.Sockets
	State   handoff.State
}

// inherit warms the sidecar with what the generation before knew: Envoy starts with the
// resources that it had last, and what the files say then is a change of these. What
// cannot be read is left out; the files say it as well.
func (s *Sidecar) inherit(state handoff.State) {
	if data, ok := state[stateResources]; ok {
		out, exact, err := unmarshalOutput(data)
		if err != nil {
			s.log.Warn("Envoy starts without them", "err", err)
		} else {
			if bad := discardUnreadable(out); len(bad) > 0 {
				s.log.Warn("Envoy starts without resources of the generation before that cannot be read", "names", bad)
			}
			s.publisher.Inherit(out)
			if exact {
				s.heritage.Store(out)
			}
		}
	}
	s.adopt(state)
}

// InheritLast takes over what may have changed up to the moment at which the generation
// before let go.
func (s *Sidecar) InheritLast(state handoff.State) {
	if s.adopt(state) {
		s.changes.Again() // the VIPs are others than before
	}
}

// InheritCounters takes over what the Envoy of the generation before went on to count.
func (s *Sidecar) InheritCounters(state handoff.State) {
	if data, ok := state[stateStats]; ok {
		s.stats.Add(data, s.log)
	}
}

// adopt takes over VIPs, the DNS cache, and counters; true when the VIPs are others than before.
func (s *Sidecar) adopt(state handoff.State) (changed bool) {
	if data, ok := state[stateVIPs]; ok {
		var err error
		if changed, err = s.vips.Import(data); err != nil {
			s.log.Warn("the VIPs of the generation before are not taken over: those in the file are in force", "err", err)
		}
	}
	if data, ok := state[stateCache]; ok {
		if n, err := s.resolver.dns.ImportCache(data); err != nil {
			s.log.Warn("the DNS cache of the generation before is not taken over", "err", err)
		} else {
			s.log.Debug("took the DNS cache over", "answers", n)
		}
	}
	s.InheritCounters(state)
	return changed
}

// ExportState is what a successor is told as it arrives: all that warms it.
func (s *Sidecar) ExportState() handoff.State {
	state := s.exportVIPs()
	state[stateCache] = s.resolver.dns.ExportCache(maxCacheState)
	if out := s.publisher.Published(); out != nil {
		state[stateResources] = marshalOutput(out)
	}
	return s.fit(state)
}

// ExportLast is what a successor is told as this generation lets go: what must not
// have changed behind its back since it arrived, and what Envoy has counted.
func (s *Sidecar) ExportLast(ctx context.Context) (handoff.State, *envoy.Counters) {
	state := s.exportVIPs()
	if !s.cfg.UpgradeStats {
		return s.fit(state), nil
	}
	ctx, cancel := context.WithTimeout(ctx, statsTimeout)
	defer cancel()
	counters, err := s.Envoy.Counters(ctx)
	if err != nil {
		s.log.Warn("Envoy's counters are not carried over", "err", err)
	} else {
		state[stateStats] = (*envoy.Counters)(nil).Delta(counters)
	}
	return s.fit(state), counters
}

func (s *Sidecar) exportVIPs() handoff.State {
	s.vips.Compact() // the successor may be a release that finds no change in a journal
	return handoff.State{stateVIPs: s.vips.Export()}
}

// ExportCounters is what a successor that knows some counters is told of later ones; nil when
// there is nothing to tell.
func (s *Sidecar) ExportCounters(known, later *envoy.Counters) handoff.State {
	delta := known.Delta(later)
	if delta == nil {
		return nil
	}
	return s.fit(handoff.State{stateStats: delta})
}

// Count asks Envoy for its counters. It returns last when they are not wanted, or not known.
func (s *Sidecar) Count(ctx context.Context, last *envoy.Counters) *envoy.Counters {
	if !s.cfg.UpgradeStats {
		return last
	}
	ctx, cancel := context.WithTimeout(ctx, statsTimeout)
	defer cancel()
	counters, err := s.Envoy.Counters(ctx)
	if err != nil {
		s.log.Debug("Envoy's counters", "err", err)
		return last
	}
	return counters
}

// fit leaves out of what a newcomer is told what does not fit into a hand-off: it starts without rather
// than not at all.
func (s *Sidecar) fit(state handoff.State) handoff.State {
	for name, size := range state.Fit(stateStats, stateCache, stateResources) {
		s.log.Warn("the newcomer does without: too large to be handed over", "component", name, "bytes", size)
	}
	return state
}
