package main

import (
	"math"
	"runtime/debug"
	"testing"
)

// TestCollectorIsTuned: for bursts of reviews, and never against the environment.
func TestCollectorIsTuned(t *testing.T) {
	const own, none = 123, math.MaxInt64
	defer debug.SetGCPercent(debug.SetGCPercent(own))
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(none))
	for _, tt := range []struct {
		percent, limit string // the environment
		wantPercent    int
		wantLimit      int64
	}{
		{"", "", gcPercent, memoryLimit},
		{"50", "", own, memoryLimit}, // the runtime has read it at the start
		{"", "64MiB", gcPercent, none},
	} {
		t.Setenv("GOGC", tt.percent)
		t.Setenv("GOMEMLIMIT", tt.limit)
		debug.SetGCPercent(own)
		debug.SetMemoryLimit(none)
		tuneCollector()
		if percent, limit := debug.SetGCPercent(own), debug.SetMemoryLimit(-1); percent != tt.wantPercent || limit != tt.wantLimit {
			t.Errorf("GOGC=%s GOMEMLIMIT=%s: %d, %d", tt.percent, tt.limit, percent, limit)
		}
	}
}
