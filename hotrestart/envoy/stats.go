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

// StatsReply is what an Envoy tells the next one of its statistics, but for what is true
// only as long as it lives: its gauges and its memory. The zero value is a good answer: it
// tells nothing.
type StatsReply struct {
	// Connections are those that Envoy has. The new one adds them to its
	// server.total_connections until the next reply.
	Connections uint64
	// CounterDeltas are added to the counters of the same names. An Envoy gives what they
	// grew by since they were last latched: by its last reply, or by its own flush, which
	// is every 5 s (stats_flush_interval).
	CounterDeltas map[string]uint64
	// Rest is which parts of a name are dynamic, and the tags, as they came, to be passed
	// on: the new Envoy needs it to recognize its own names.
	Rest []byte
}

// ParseStatsReply reads what Marshal wrote.
func ParseStatsReply(b []byte) (StatsReply, error) {
	s := StatsReply{CounterDeltas: map[string]uint64{}}
	err := eachField(b, func(f field) error {
		switch {
		case f.number == fieldMemory, f.number == fieldGauges:
		case f.is(fieldConnections, protowire.VarintType):
			s.Connections = f.value
		case f.is(fieldCounterDeltas, protowire.BytesType):
			return parseEntry(f.bytes, s.CounterDeltas)
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

// Marshal gives the serialized envoy.HotRestartMessage.Reply.Stats, in a fixed order.
func (s StatsReply) Marshal() []byte {
	b := appendVarint(nil, fieldConnections, s.Connections)
	for _, key := range slices.Sorted(maps.Keys(s.CounterDeltas)) {
		entry := appendVarint(appendBytes(nil, fieldKey, []byte(key)), fieldValue, s.CounterDeltas[key])
		b = appendBytes(b, fieldCounterDeltas, entry)
	}
	return append(b, s.Rest...)
}
