package iptables_test

import (
	"testing"

	"understudy.mesh/iptables"
	"understudy.mesh/iptables/rule"
	"understudy.mesh/tests/capture"
)

// In a long chain only what differs is written, and it goes where it belongs.
func TestChangesInALongChain(t *testing.T) {
	long, steps := capture.LongChain()
	eachBackend(t, func(t *testing.T, b rule.Backend) {
		for i, c := range steps {
			c.Backend, long.Backend = b, b
			for _, turn := range []iptables.Config{c, long} {
				apply(t, turn)
				asWanted(t, turn, b)
				if t.Failed() {
					t.Fatalf("step %d", i)
				}
			}
		}
	})
}
