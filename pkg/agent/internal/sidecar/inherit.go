package sidecar

import (
	"context"
	"maps"
	"time"

	"understudy.mesh/hotrestart"
	"understudy.mesh/hotrestart/handoff"
	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/contract"
	"understudy.mesh/pkg/envoy"
	"understudy.mesh/pkg/files"
	"understudy.mesh/pkg/istiod"
)

// Components of what a generation tells its successor, besides those of the control plane. A name, once
// released, keeps its meaning: another form of the same thing gets another name.
const (
	// stateCache is dnsproxy/cache.Cache.Export.
	stateCache = "dns-cache"
	// stateStats is hotenvoy.StatsReply.Marshal: the counters of the old Envoy.
	stateStats = "stats"
	// stateModules is a file for each part of wasm.Store.ExportModules, and stateModuleIndex wasm.Store.ExportIndex.
	stateModules, stateModuleIndex = "wasm-modules", "wasm-index"
)

// statsTimeout bounds how long the counters of Envoy may take: a successor waits for them.
const statsTimeout = time.Second

// Inheritance is what a generation has from the one before: its sockets, and what it
// knew. It owns the sockets; the files are read in New.
type Inheritance struct {
	Sockets *hotrestart.Sockets
	State   handoff.State
	Files   handoff.Files
}

// TakesFiles are the components of the generation before that a sidecar with these settings takes as files.
func TakesFiles(c *config.Config) (components []string) {
	if c.ConfigDir == "" {
		components = append(components, istiod.StateResources)
	} else {
		components = append(components, files.StateSnapshot)
	}
	if c.Wasm {
		components = append(components, stateModules)
	}
	return components
}

// inheritModules takes over the Wasm modules that the generation before has in use: its store may be another one, and nobody may be there to
// fetch them from.
func (s *Sidecar) inheritModules(i *Inheritance) {
	modules := i.Files.Parts(stateModules)
	if len(modules) == 0 {
		return
	}
	store, err := s.modules.open()
	if err != nil {
		s.log.Warn("the Wasm modules of the generation before are not taken over: they are fetched", "err", err)
		return
	}
	store.Import(modules, i.State[stateModuleIndex])
}

// InheritLast takes over what may have changed up to the moment at which the generation
// before let go.
func (s *Sidecar) InheritLast(state handoff.State) {
	s.plane.ImportLast(state)
	s.adopt(state)
}

// InheritCounters takes over what the Envoy of the generation before went on to count.
func (s *Sidecar) InheritCounters(state handoff.State) {
	if data, ok := state[stateStats]; ok {
		s.stats.Add(data, s.log)
	}
}

// adopt takes over what is not the control plane's: the DNS cache, and counters.
func (s *Sidecar) adopt(state handoff.State) {
	if data, ok := state[stateCache]; ok {
		if n, err := s.names.dns.Cache.Import(data); err != nil {
			s.log.Warn("the DNS cache of the generation before is not taken over", "err", err)
		} else {
			s.log.Debug("took the DNS cache over", "answers", n)
		}
	}
	s.InheritCounters(state)
}

// ExportState is what a successor is told as it arrives: all that warms it.
func (s *Sidecar) ExportState() handoff.State {
	state := handoff.State(s.plane.Export())
	state[stateCache] = s.names.dns.Cache.Export(maxCacheState)
	if s.identity != nil {
		maps.Copy(state, s.identity.Export())
	}
	if store := s.modules.opened(); store != nil {
		if index := store.ExportIndex(); index != nil {
			state[stateModuleIndex] = index
		}
	}
	return s.fit(state)
}

// ExportFiles are the parts of that which are large, as far as the successor takes them. They are the caller's.
func (s *Sidecar) ExportFiles(takes func(component string) bool) handoff.Files {
	files := handoff.Files{}
	for component, write := range s.plane.ExportFiles() {
		if !takes(component) {
			continue
		}
		file, err := handoff.NewFile(component, write)
		if err != nil {
			s.log.Warn("the newcomer does without", "err", err)
			continue
		}
		files[component] = file
	}
	if store := s.modules.opened(); store != nil && takes(stateModules) {
		for hash, file := range store.ExportModules() {
			files[stateModules+"/"+hash] = file
		}
	}
	for name, err := range files.Fit() {
		s.log.Warn("the newcomer does without", "component", name, "err", err)
	}
	return files
}

// ExportLast is what a successor is told as this generation lets go: what must not
// have changed behind its back since it arrived, and what Envoy has counted.
func (s *Sidecar) ExportLast(ctx context.Context) (handoff.State, *envoy.Counters) {
	state := handoff.State(s.plane.ExportLast())
	if !s.cfg.UpgradeStats {
		return s.fit(state), nil
	}
	counters, err := s.counters(ctx)
	if err != nil {
		s.log.Warn("Envoy's counters are not carried over", "err", err)
	} else {
		state[stateStats] = (*envoy.Counters)(nil).Delta(counters)
	}
	return s.fit(state), counters
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
	counters, err := s.counters(ctx)
	if err != nil {
		s.log.Debug("Envoy's counters", "err", err)
		return last
	}
	return counters
}

// Requests are those that Envoy has answered by itself; nil where it does not tell.
func (s *Sidecar) Requests(ctx context.Context) *contract.Requests {
	ctx, cancel := context.WithTimeout(ctx, statsTimeout)
	defer cancel()
	r, err := s.Envoy.Requests(ctx)
	if err != nil {
		s.log.Debug("Envoy's requests", "err", err)
		return nil
	}
	return &contract.Requests{Inbound: contract.Answers(r.Inbound), Outbound: contract.Answers(r.Outbound)}
}

func (s *Sidecar) counters(ctx context.Context) (*envoy.Counters, error) {
	ctx, cancel := context.WithTimeout(ctx, statsTimeout)
	defer cancel()
	return s.Envoy.Counters(ctx)
}

// fit leaves out of what a successor is told what does not fit into a hand-off: it starts without rather
// than not at all.
func (s *Sidecar) fit(state handoff.State) handoff.State {
	for name, size := range state.Fit(istiod.StateChanges, stateModuleIndex, stateStats, stateCache, files.StateResources) {
		s.log.Warn("the newcomer does without: too large to be handed over", "component", name, "bytes", size)
	}
	return state
}
