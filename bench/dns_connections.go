package main

import (
	"strings"

	"understudy.mesh/tests/lab"
)

// manyConnections is how many dnsperf opens at once: a whole run's that were closed a moment ago
// may still be there when the next run begins.
const manyConnections = "64"

// dnsConnections counts what is lost over TCP where one burst of connections follows another.
func dnsConnections(t lab.T, l *lab.Lab, rounds int, contests []dnsContest) (results []result) {
	for _, c := range contests {
		if c.agent.tcp {
			continue // the same names, asked for over TCP in any case
		}
		agent, peer := *c.agent, *c.unbound
		agent.tcp, peer.tcp = true, true
		var lost, peers []float64
		for range rounds {
			lost, peers = append(lost, lostAtOnce(t, l, &agent)), append(peers, lostAtOnce(t, l, &peer))
		}
		kind := "DNS " + strings.TrimPrefix(c.agent.name, "agent, ")
		results = append(results, measured(kind+": lost, "+manyConnections+" new connections twice", "queries", lost).largest().against(peer.name, peers))
	}
	return results
}

// lostAtOnce is what the second of two runs loses, of which one follows right after the other.
func lostAtOnce(t lab.T, l *lab.Lab, d *dnsTarget) float64 {
	args := []string{"-c", manyConnections, "-l", "1"}
	runDNSPerf(t, l, d, args...)
	return figure(t, runDNSPerf(t, l, d, args...), `Queries lost:\s+(\d+)`)
}
