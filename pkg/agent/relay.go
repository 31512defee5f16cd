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

// census is what an Envoy has counted up to a moment.
type census struct {
	counters map[string]uint64
	rest     []byte // of hotrestart.StatsReply: how names are to be read
}

// counters asks Envoy. Its own protocol tells what they grew by since its last flush;
// its admin knows all of it.
func (s *sidecar) counters(ctx context.Context) (*census, error) {
	i := s.supervisor.hot()
	if i == nil {
		return nil, errNoHotRestart
	}
	reply, err := i.child.Stats(ctx)
	if err != nil {
		return nil, err
	}
	counters, err := s.admin.Counters(ctx)
	if err != nil {
		return nil, err
	}
	return &census{counters, reply.Rest}, nil
}

// growth is by how much the counters of later have grown since c (nil: since nothing),
// serialized as hotrestart.StatsReply.Marshal does; nil when there is nothing to tell.
func (c *census) growth(later *census) []byte {
	if later == nil {
		return nil
	}
	deltas := map[string]uint64{}
	for name, n := range later.counters {
		if c != nil {
			n -= min(n, c.counters[name])
		}
		if n > 0 {
			deltas[name] = n
		}
	}
	if len(deltas) == 0 {
		return nil
	}
	return hotrestart.StatsReply{CounterDeltas: deltas, Rest: later.rest}.Marshal()
}

// count is counters for a drain: now and then it is asked what Envoy counted meanwhile.
// It returns last when that is not wanted, or not known.
func (a *Agent) count(ctx context.Context, s *sidecar, last *census) *census {
	if !a.cfg.UpgradeStats {
		return last
	}
	ctx, cancel := context.WithTimeout(ctx, statsTimeout)
	defer cancel()
	counters, err := s.counters(ctx)
	if err != nil {
		a.log.Debug("Envoy's counters", "err", err)
		return last
	}
	return counters
}
