package envoy

import (
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
)

// The numbers of envoy.HotRestartMessage.Reply.Stats.
const (
	fieldMemory        protowire.Number = 1
	fieldConnections   protowire.Number = 2
	fieldCounterDeltas protowire.Number = 3
	fieldGauges        protowire.Number = 4

	fieldKey   protowire.Number = 1 // of an entry of a map
	fieldValue protowire.Number = 2
)

// StatsReply is what an Envoy tells the next one of its statistics. The zero value is a
// good answer: it tells nothing.
type StatsReply struct {
	// MemoryAllocated, in bytes, and Connections are added to the new Envoy's
	// server.memory_allocated and server.total_connections until the next reply.
	MemoryAllocated, Connections uint64
	// CounterDeltas are added to the counters of the same names. An Envoy gives what they
	// grew by since they were last latched: by its last reply, or by its own flush, which
	// is every 5 s (stats_flush_interval).
	CounterDeltas map[string]uint64
	// Gauges are absolute; Envoy knows which of them add up and which are not imported. One
	// that a later reply lacks stays as it was until Envoy terminates its parent, see Ended.
	Gauges map[string]uint64
	// Rest is every other field as it came, to be passed on: which parts of a name are
	// dynamic, and the tags. The new Envoy needs it to recognize its own names.
	Rest []byte
}

// ParseStatsReply reads what Marshal wrote.
func ParseStatsReply(b []byte) (StatsReply, error) {
	s := StatsReply{CounterDeltas: map[string]uint64{}, Gauges: map[string]uint64{}}
	err := eachField(b, func(f field) error {
		switch {
		case f.is(fieldMemory, protowire.VarintType):
			s.MemoryAllocated = f.value
		case f.is(fieldConnections, protowire.VarintType):
			s.Connections = f.value
		case f.is(fieldCounterDeltas, protowire.BytesType):
			return parseEntry(f.bytes, s.CounterDeltas)
		case f.is(fieldGauges, protowire.BytesType):
			return parseEntry(f.bytes, s.Gauges)
		default:
			s.Rest = append(s.Rest, f.raw...)
		}
		return nil
	})
	if err != nil {
		return StatsReply{}, fmt.Errorf("parse Envoy's statistics: %w", err)
	}
	return s, nil
}

func parseEntry(entry []byte, into map[string]uint64) error {
	var key string
	var value uint64
	err := eachField(entry, func(f field) error {
		switch {
		case f.is(fieldKey, protowire.BytesType):
			key = string(f.bytes)
		case f.is(fieldValue, protowire.VarintType):
			value = f.value
		}
		return nil
	})
	if err == nil {
		into[key] = value
	}
	return err
}

// Ended is the reply to give when the Envoy that gave s has ended: it takes back what its
// gauges added, and adds nothing.
func (s StatsReply) Ended() StatsReply {
	gauges := make(map[string]uint64, len(s.Gauges))
	for name := range s.Gauges {
		gauges[name] = 0
	}
	return StatsReply{Gauges: gauges, Rest: s.Rest}
}

// Marshal gives the serialized envoy.HotRestartMessage.Reply.Stats, in a fixed order.
func (s StatsReply) Marshal() []byte {
	b := appendVarint(nil, fieldMemory, s.MemoryAllocated)
	b = appendVarint(b, fieldConnections, s.Connections)
	b = appendEntries(b, fieldCounterDeltas, s.CounterDeltas)
	b = appendEntries(b, fieldGauges, s.Gauges)
	return append(b, s.Rest...)
}

func appendEntries(b []byte, number protowire.Number, entries map[string]uint64) []byte {
	for _, key := range slices.Sorted(maps.Keys(entries)) {
		entry := appendBytes(nil, fieldKey, []byte(key))
		b = appendBytes(b, number, appendVarint(entry, fieldValue, entries[key]))
	}
	return b
}
