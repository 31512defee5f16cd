package envoy

import (
	"context"
	"log/slog"
	"sync"

	hotenvoy "understudy.mesh/hotrestart/envoy"
)

// CounterRelay carries the counters of the Envoy before over to this generation's, which
// asks for what they grew by every 5 s. The zero value has nothing to tell.
type CounterRelay struct {
	mu      sync.Mutex
	pending hotenvoy.StatsReply
	told    Requests // those that the running Envoy was told of
}

// Add takes counters, as hotenvoy.StatsReply.Marshal wrote them.
func (r *CounterRelay) Add(data []byte, log *slog.Logger) {
	reply, err := hotenvoy.ParseStatsReply(data)
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
func (r *CounterRelay) next(context.Context) (hotenvoy.StatsReply, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	reply := r.pending
	r.pending = hotenvoy.StatsReply{}
	of, _ := requestsOf(reply.CounterDeltas)
	r.told = Requests{r.told.Inbound.plus(of.Inbound), r.told.Outbound.plus(of.Outbound)}
	return reply, nil
}

// given are the requests that the running Envoy was told of; none without a relay.
func (r *CounterRelay) given() Requests {
	if r == nil {
		return Requests{}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.told
}

// begin is that an Envoy starts, which was told of nothing. It returns what that is to ask; nil without a relay.
func (r *CounterRelay) begin() func(context.Context) (hotenvoy.StatsReply, error) {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.told = Requests{}
	return r.next
}

// Counters is what an Envoy has counted up to a moment.
type Counters struct {
	values map[string]uint64
	rest   []byte // of hotenvoy.StatsReply: how names are to be read
}

// Counters asks Envoy. Its own protocol tells what they grew by since its last flush;
// its admin knows all of it.
func (s *Supervisor) Counters(ctx context.Context) (*Counters, error) {
	i := s.Hot()
	if i == nil {
		return nil, ErrNoHotRestart
	}
	reply, err := i.child.Stats(ctx)
	if err != nil {
		return nil, err
	}
	counters, err := s.cfg.Admin.counters(ctx)
	if err != nil {
		return nil, err
	}
	return &Counters{counters, reply.Rest}, nil
}

// Delta is by how much the counters of later have grown since c (nil: since nothing),
// serialized as hotenvoy.StatsReply.Marshal does; nil when there is nothing to tell.
func (c *Counters) Delta(later *Counters) []byte {
	if later == nil {
		return nil
	}
	deltas := map[string]uint64{}
	for name, n := range later.values {
		if c != nil {
			n -= min(n, c.values[name])
		}
		if n > 0 {
			deltas[name] = n
		}
	}
	if len(deltas) == 0 {
		return nil
	}
	return hotenvoy.StatsReply{CounterDeltas: deltas, Rest: later.rest}.Marshal()
}
