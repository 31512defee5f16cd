package main

import (
	"fmt"
	"regexp"
	"strconv"
	"time"

	"understudy.mesh/tests/lab"
)

const (
	roleServing = "serving"
	roleStandby = "standby"

	// fewEntries is a pod that calls a handful of services, and manyTimes how many times -entries
	// is the largest pod that is measured.
	fewEntries = 10
	manyTimes  = 10

	mib = 1 << 20
)

// benchUpgradeStart starts an agent cold and has another one take over from it, in turn, without
// load. Both are timed in the same way: from the agent's own first instant until it says that it is
// ready, which is when its Envoy is live, its workers accept, and all its configuration is in force.
func benchUpgradeStart(t lab.T, s settings) (results []result) {
	for _, entries := range []int{fewEntries, s.entries} {
		h := measureHandoffs(t, entries, s.rounds)
		n := fmt.Sprintf("%d ServiceEntries: ", entries)
		results = append(results,
			measured(n+"new process to its Envoy accepting, hand-off", "ms", h.taken).against("cold start", h.cold),
			measured(n+"processor time of both until then", "ms", h.takenCPU).against("cold start", h.coldCPU))
		if entries == s.entries {
			results = append(results, stateResults(n, h.state, h.received)...)
		}
	}
	many := manyTimes * s.entries
	size, after := measureState(t, many)
	return append(results, stateResults(fmt.Sprintf("%d ServiceEntries: ", many), []float64{size}, []float64{after})...)
}

func stateResults(n string, size, after []float64) []result {
	return []result{
		measured(n+"state that is handed over", "MiB", size),
		measured(n+"asking for state and sockets until they are there", "ms", after),
	}
}

// measureState does not wait for the take-over: with very many listeners Envoy needs most of a minute.
func measureState(t lab.T, entries int) (size, after float64) {
	p := newSlotPod(t, entries)
	p.start(t, 0, p.image).awaitReady(t)
	newer := p.start(t, 1, p.image)
	newer.poll(t, func() bool { return handedOverLine.MatchString(newer.slot.Log.String()) })
	return handedOver(t, newer)
}

// handoffs are samples of starts: milliseconds, and MiB of state.
type handoffs struct{ cold, taken, coldCPU, takenCPU, state, received []float64 }

func measureHandoffs(t lab.T, entries, rounds int) (h handoffs) {
	p := newSlotPod(t, entries)
	p.handoffOnce(t) // warms the page cache
	for range rounds {
		cold, taken := p.handoffOnce(t)
		h.cold, h.taken = append(h.cold, cold.ready), append(h.taken, taken.ready)
		h.coldCPU, h.takenCPU = append(h.coldCPU, cold.cpu), append(h.takenCPU, taken.cpu)
		h.state, h.received = append(h.state, taken.state), append(h.received, taken.received)
	}
	return h
}

// generationSample is one start: milliseconds, and MiB of state.
type generationSample struct{ ready, cpu, state, received float64 }

// handoffOnce starts an agent cold, and another one that takes over from it.
func (p *slotPod) handoffOnce(t lab.T) (cold, taken generationSample) {
	defer p.clear(t)
	cold, _ = p.startOnce(t, 0)
	taken, newer := p.startOnce(t, 1)
	taken.state, taken.received = handedOver(t, newer)
	newer.awaitRole(t, roleServing)
	return cold, taken
}

func (p *slotPod) startOnce(t lab.T, slot int) (generationSample, *generation) {
	g := p.start(t, slot, p.image)
	began, ready := g.awaitReady(t)
	used := cpuTime(t, g.agent.PID()) + cpuTime(t, g.agent.EnvoyPID())
	return generationSample{ready: milliseconds(ready.Sub(began)), cpu: milliseconds(used)}, g
}

var handedOverLine = regexp.MustCompile(`has told and given what it has\sbytes=(\d+)\ssockets=\d+\safter=(\S+)`)

// handedOver is what the newer generation logged of the older one's state: MiB, and milliseconds
// until it was there.
func handedOver(t lab.T, newer *generation) (size, after float64) {
	matches := handedOverLine.FindAllStringSubmatch(newer.slot.Log.String(), -1)
	if matches == nil {
		t.Fatalf("%s does not say what it was told: %s", newer.slot.Name, lastLines(newer.slot.Log.String()))
	}
	last := matches[len(matches)-1]
	bytes, err := strconv.Atoi(last[1])
	took, wrong := time.ParseDuration(last[2])
	if err != nil || wrong != nil {
		t.Fatalf("read %q: %v, %v", last[0], err, wrong)
	}
	return float64(bytes) / mib, milliseconds(took)
}

// benchUpgradeMemory upgrades to and fro between two versions of Envoy. The other slot has the
// standby binary first, as Kruise leaves it.
func benchUpgradeMemory(t lab.T, s settings) []result {
	p := newSlotPod(t, s.entries)
	images := []lab.Image{p.image, p.newImage(t, "other", lab.OtherEnvoyBinary(t))}
	empty := lab.Image{Name: "empty", Agent: p.copyProgram(t, "empty", lab.StandbyBinary(t))}
	var m upgradeMemory
	current := p.start(t, 0, images[0])
	current.awaitReady(t)
	for round := range memoryRounds {
		slot := (round + 1) % 2
		p.startEmpty(t, slot, empty)
		<-time.After(settle) // the definition of the measurement, not a synchronisation
		m.steady = append(m.steady, p.pss(t))
		m.empty = append(m.empty, memoryOf(t, p.slots.List[slot].Agent().PID()).rss)
		p.slots.List[slot].Kill()
		newer := p.start(t, slot, images[slot])
		newer.awaitReady(t)
		m.overlap = append(m.overlap, p.pss(t))
		current.awaitRole(t, roleStandby)
		newer.awaitRole(t, roleServing)
		<-time.After(settle)
		m.standby = append(m.standby, memoryOf(t, current.agent.PID()))
		m.serving = append(m.serving, memoryOf(t, newer.agent.PID()))
		current.slot.Kill()
		current = newer
	}
	return m.results(fmt.Sprintf("%d ServiceEntries: ", s.entries))
}

// memoryRounds is one upgrade there and one back: memory hardly varies.
const memoryRounds = 2

// startEmpty runs the agent of the empty image.
func (p *slotPod) startEmpty(t lab.T, slot int, empty lab.Image) {
	if err := p.slots.List[slot].Start(empty); err != nil {
		t.Fatalf("%v", err)
	}
}

// upgradeMemory has a sample an upgrade, in MiB.
type upgradeMemory struct {
	steady, overlap, empty []float64
	standby, serving       []memory
}

func (m *upgradeMemory) results(n string) []result {
	part := func(of []memory, part func(memory) float64) (samples []float64) {
		for _, one := range of {
			samples = append(samples, part(one))
		}
		return samples
	}
	rss, anon := func(m memory) float64 { return m.rss }, func(m memory) float64 { return m.anon }
	return []result{
		measured(n+"whole pod's PSS in the overlap, two versions of Envoy", "MiB", m.overlap).against("steady, other slot empty", m.steady),
		measured(n+"new agent's RSS", "MiB", part(m.serving, rss)).against("limit", []float64{30}),
		measured(n+"of it anonymous", "MiB", part(m.serving, anon)).against("limit", []float64{12}),
		measured(n+"old agent's RSS, standing by", "MiB", part(m.standby, rss)),
		measured(n+"of it anonymous", "MiB", part(m.standby, anon)).against("limit", []float64{10}),
		measured("pilot-agent-standby's RSS", "MiB", m.empty).against("limit", []float64{3}),
	}
}
