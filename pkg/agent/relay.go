package agent

import (
	"context"
	"log/slog"
	"sync"

	"understudy.mesh/hotrestart"
)

// relay carries the counters of the Envoy before over to this generation's, which
// asks for what they grew by every 5 s. The zero value has nothing to tell.
type relay struct {
	mu      sync.Mutex
	pending hotrestart.StatsReply
}

// add takes counters, as hotrestart.StatsReply.Marshal wrote them.
func (r *relay) add(data []byte, log *slog.Logger) {
	reply, err := hotrestart.ParseStatsReply(data)
	if err != nil {
		log.Warn("the counters of the Envoy before are not carried over", "err", err)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pending.CounterDeltas == nil {
		r.pending.CounterDeltas = map[string]uint64{}
	}
	for name, delta := range reply.CounterDeltas {
		r.pending.CounterDeltas[name] += delta
	}
	r.pending.Rest = append(r.pending.Rest, reply.Rest...) // maps and lists: protobuf merges what is appended
}

// next tells what was added since it was asked last.
func (r *relay) next(context.Context) (hotrestart.StatsReply, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	reply := r.pending
	r.pending = hotrestart.StatsReply{}
	return reply, nil
}

// counters are Envoy's, as they are now, for the next Envoy: serialized as
// hotrestart.StatsReply.Marshal does.
func (s *sidecar) counters(ctx context.Context) ([]byte, error) {
	i := s.supervisor.current()
	if i == nil || i.child == nil {
		return nil, errNoHotRestart
	}
	reply, err := i.child.Stats(ctx)
	if err != nil {
		return nil, err
	}
	// Envoy tells what they grew by since its own last flush; its admin knows all of it.
	if reply.CounterDeltas, err = s.admin.Counters(ctx); err != nil {
		return nil, err
	}
	reply.Gauges, reply.MemoryAllocated, reply.Connections = nil, 0, 0
	return reply.Marshal(), nil
}

// envoyVersion is the running Envoy's, "" while it is not known.
func (s *sidecar) envoyVersion() string {
	version, _ := s.version.Load().(string)
	return version
}
