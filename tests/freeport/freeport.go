// Package freeport finds ports for the servers that a test starts, such as an Envoy, which are told their port and cannot choose
// one themselves.
package freeport

import (
	"fmt"
	"math/rand/v2"
	"net"
	"testing"
)

// The ports that are given out, [lowest, end). The kernel gives them to no client and to no socket that asks for any port:
// by default net.ipv4.ip_local_port_range begins at 32768 (man 7 ip).
const (
	lowest = 20000
	end    = 32000
)

// Get returns a TCP port on which nothing listens. No other call gets it until t is over, in no process of this network
// namespace: a port that was only looked for could be found twice before the first to find it listens.
func Get(t testing.TB) uint16 {
	t.Helper()
	for range 1000 {
		port := lowest + rand.N(end-lowest)
		// An abstract Unix socket belongs to the network namespace, as the port does, and ends with its process (man 7 unix).
		claim, err := net.Listen("unix", fmt.Sprintf("@understudy-test-port-%d", port))
		if err != nil {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			claim.Close()
			continue
		}
		l.Close()
		t.Cleanup(func() { claim.Close() })
		return uint16(port)
	}
	t.Fatalf("no free port between %d and %d", lowest, end)
	return 0
}

// GetN returns n ports as Get does, all different.
func GetN(t testing.TB, n int) []uint16 {
	t.Helper()
	ports := make([]uint16, n)
	for i := range ports {
		ports[i] = Get(t)
	}
	return ports
}
