package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"understudy.mesh/tests/lab"
	"understudy.mesh/tests/load"
)

const (
	target = "http://" + lab.PodIP + ":8080/"
	// share of the machine's capacity at which latency is measured.
	share = 3
	// calibration is how long the capacity is measured, and lull how long the load is steady before
	// each upgrade and after the last.
	calibration = 3 * time.Second
	lull        = 3 * time.Second
	// loadWorkers keep two workers of Envoy busy; an upgrade's stall is shared by so many requests.
	loadWorkers = 16
	// loadUpgrades is how often the generations change under one load.
	loadUpgrades = 3
)

// flows are kept and new connections to the application, at rates that sum up to the given ones.
func flows(kept, fresh float64) []load.Flow {
	return []load.Flow{
		{Kind: load.HTTP1Keep, Target: target, Rate: kept, Workers: loadWorkers},
		{Kind: load.HTTP1New, Target: target, Rate: fresh, Workers: loadWorkers},
	}
}

// serveApp serves the application, from this process, to captured connections.
func serveApp(t lab.T, l *lab.Lab) {
	l.Capture(t)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	listener := l.Pod.Listen(t, ":8080")
	go func() { _ = load.ServeHTTP(ctx, listener, "app") }()
	// A connection of a few milliseconds each leaves a TIME_WAIT of a minute.
	l.Out.Run(t, "sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65535", "net.ipv4.tcp_tw_reuse=1")
}

// benchUpgradeLoad changes generations at a third of what the machine can do with as many kept as
// new connections, which it finds out first.
func benchUpgradeLoad(t lab.T, _ settings) []result {
	p := newSlotPod(t, fewEntries)
	serveApp(t, p.Lab)
	current := p.start(t, 0, p.image)
	current.awaitRole(t, roleServing)
	all := startClients(t, p.Out, load.Config{Flows: flows(0, 0), Duration: load.Duration(calibration)})
	<-time.After(calibration)
	full := all.stop()
	kept, fresh := rate(full, load.HTTP1Keep)/share, rate(full, load.HTTP1New)/share
	some := startClients(t, p.Out, load.Config{Flows: flows(kept, fresh)})
	var steady, switches, upgrades []span
	for i := range loadUpgrades {
		quiet := span{time.Now().Add(time.Second), time.Now().Add(lull)} // without the second in which the one before it ended
		<-time.After(lull)
		upgrade := span{begin: time.Now()}
		newer := p.start(t, (i+1)%2, p.image)
		_, ready := newer.awaitReady(t)
		newer.awaitRole(t, roleServing)
		current.awaitRole(t, roleStandby)
		upgrade.end = time.Now()
		steady, switches, upgrades = append(steady, quiet), append(switches, span{ready, ready.Add(time.Second)}), append(upgrades, upgrade)
		current.slot.Kill()
		current = newer
	}
	<-time.After(time.Second)
	final := some.stop()
	return append([]result{measured("capacity: requests, half of them on new connections", "1/s", []float64{share * (kept + fresh)})},
		underLoad(t, some, final, steady, switches, upgrades)...)
}

// span is a time.
type span struct{ begin, end time.Time }

func rate(r load.Report, kind load.Kind) float64 {
	return float64(r.Flow(string(kind)).Total.OK) / r.Elapsed
}

func underLoad(t lab.T, c *clients, final load.Report, steady, switches, upgrades []span) []result {
	// worst of the seconds that each span touches
	worst := func(spans []span) (samples []float64) {
		for _, s := range spans {
			samples = append(samples, slices.Max(append(c.during(s.begin, s.end), 0)))
		}
		return samples
	}
	var quiet []float64
	for _, s := range steady {
		quiet = append(quiet, c.during(s.begin, s.end)...)
	}
	total := final.Total()
	for _, f := range final.Flows {
		for _, failure := range f.Failures {
			t.Logf("%v", failure)
		}
	}
	n := fmt.Sprintf("at 1/%d of it: ", share)
	atSwitch := measured(n+"p99 in the second of the switch", "ms", worst(switches))
	return []result{
		atSwitch.against("steady", quiet),
		atSwitch.against("limit, twice the steady one and 50 ms", []float64{2*median(quiet) + 50}),
		measured(n+"p99 in the worst second from start to standby", "ms", worst(upgrades)).against("steady", quiet),
		measured(n+"slowest request", "ms", []float64{milliseconds(total.Latency.Max())}).against("limit", []float64{1000}),
		measured(n+"requests", "", []float64{float64(total.OK)}),
		measured(n+"requests that failed", "", []float64{float64(total.Failures())}),
		// More than none: something else took this machine, and the latencies say nothing.
		measured(n+"requests never made, a second late", "", []float64{float64(total.Skipped)}),
	}
}
