package main

import (
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"time"
	"understudy.mesh/tests/lab"
	"understudy.mesh/tests/proxywasm"
)

const (
	// modulesAddress is where the modules are, outside of the pod.
	modulesAddress = "198.51.100.70:80"
	wasmHeader     = "x-wasm"
	// wasmSlack times the limits of times, which are of a machine that does nothing else, is what they are held to.
	wasmSlack = 3
	// updatesEachRound of a module are made for what they leave in Envoy's memory: 100 by default.
	updatesEachRound = 20
	// functionsOfMiB of proxywasm's are 1 MiB of code.
	functionsOfMiB = 780
)

// detection has a connection count as HTTP however long its client leaves it silent.
const detection = "protocolDetectionTimeout: 0s\n"

var withDetection = []string{"--meshConfig", lab.ConfigMount + "/mesh/mesh.cfg"}

func serveModules(t lab.T, l *lab.Lab) *proxywasm.Server {
	s := &proxywasm.Server{}
	t.Cleanup(s.Start(l.Out.Listen(t, modulesAddress)))
	return s
}

// wasmPlugin is a WasmPlugin for captured inbound requests.
func wasmPlugin(path, more string) string {
	return proxywasm.Plugin("bench", "http://"+modulesAddress+path, more)
}

// newWasmPod is a pod that serves, with an application, modules at the outside and one of them in force.
func newWasmPod(t lab.T) *wasmPod {
	p := &wasmPod{slotPod: newSlotPod(t, fewEntries, withDetection...)}
	serveApp(t, p.Lab)
	p.modules = serveModules(t, p.Lab)
	p.slots.Write(t, "mesh.cfg", detection)
	p.generation = p.start(t, 0, p.image)
	p.generation.awaitRole(t, roleServing)
	p.load(t, proxywasm.Module{})
	return p
}

// wasmPod is a pod with a module, which each load replaces.
type wasmPod struct {
	*slotPod
	modules    *proxywasm.Server
	generation *generation
	loads      int
}

// load has another module come into force. It returns how long it took from the document to the first response through it, and the most
// MiB that the agent had meanwhile above what it had before.
func (p *wasmPod) load(t lab.T, m proxywasm.Module) (took time.Duration, grown float64) {
	p.loads++
	m.Header, m.Value, m.Salt = wasmHeader, fmt.Sprint("v", p.loads), uint64(p.loads)
	path := fmt.Sprint("/", p.loads)
	p.modules.Put(path, m)
	client := p.Out.Client()
	defer client.CloseIdleConnections()
	agent := p.generation.agent.PID()
	before := memoryOf(t, agent).rss
	begin := time.Now()
	p.slots.Write(t, "wasm.yaml", wasmPlugin(path, ""))
	poll(t, func() bool {
		grown = max(grown, memoryOf(t, agent).rss-before)
		resp, err := client.Get(target)
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK && resp.Header.Get(wasmHeader) == m.Value
	})
	return time.Since(begin), grown
}

// benchWasmLoad has modules come into force: how long it takes, and what it takes of the agent's memory meanwhile.
func benchWasmLoad(t lab.T, s settings) []result {
	p := newWasmPod(t)
	var results []result
	for _, m := range []struct {
		name   string
		module proxywasm.Module
		limit  time.Duration
	}{
		{"a module of 1 MB, all of it code", proxywasm.Module{Functions: functionsOfMiB}, 2 * time.Second},
		{"one of 50 MB, 1 MB of it code", proxywasm.Module{Functions: functionsOfMiB, Pad: 49 << 20}, 5 * time.Second},
	} {
		var times, grown []float64
		for range s.rounds {
			took, more := p.load(t, m.module)
			times, grown = append(times, milliseconds(took)), append(grown, more)
		}
		results = append(results,
			measured(m.name+": document to first response", "ms", times).against("limit", []float64{milliseconds(m.limit)}).ratioAtMost(wasmSlack),
			measured(m.name+": what the agent grows by meanwhile", "MiB", grown).against("limit", []float64{8}).ratioAtMost(1))
	}
	return results
}

// benchWasmUpdates replaces a small module again and again, and looks at what that leaves in Envoy's memory.
func benchWasmUpdates(t lab.T, s settings) []result {
	p := newWasmPod(t)
	const warm = 10 // updates after which each of Envoy's threads has had a module, and thrown one away
	for range warm {
		p.load(t, proxywasm.Module{})
	}
	<-time.After(settle)
	envoy := p.generation.agent.EnvoyPID()
	before := pssOf(t, envoy)
	var times []float64
	updates := updatesEachRound * s.rounds
	for range updates {
		took, _ := p.load(t, proxywasm.Module{})
		times = append(times, milliseconds(took))
	}
	<-time.After(settle)
	return []result{
		measured("a small module: document to first response", "ms", times),
		measured(fmt.Sprintf("%d updates: what Envoy's PSS has grown by", updates), "MiB", []float64{pssOf(t, envoy) - before}).against("limit", []float64{8}).ratioAtMost(1),
	}
}

// wasmStart is a start: how long from exec until all other documents are in force, and until ready; and memory some time after it.
type wasmStart struct {
	others, ready float64
	agent         memory
}

// benchWasmStart starts agents whose registry is dead, in turn with one that wants no module.
func benchWasmStart(t lab.T, s settings) []result {
	l := lab.New(t)
	l.StartDNS(t, nil)
	serveApp(t, l)
	c := l.NewContainer(t, lab.ContainerOptions{ReadOnly: true, Envoy: lab.EnvoyBinary(t)})
	c.Write(t, "bench.yaml", entriesYAML(fewEntries))
	c.Write(t, "mesh.cfg", detection)
	modules := &proxywasm.Server{}
	modules.Put("/kept", proxywasm.Module{Header: wasmHeader, Value: "kept"})
	stop := modules.Start(l.Out.Listen(t, modulesAddress))
	document := map[string]string{
		"filled": wasmPlugin("/kept", ", imagePullPolicy: Always"),
		"empty":  wasmPlugin("/none", ", failStrategy: FAIL_OPEN"),
		"off":    "",
	}
	startWasm(t, l, c, document["filled"]) // which fills the store
	stop()
	all := map[string][]wasmStart{}
	for range s.rounds {
		for _, name := range []string{"off", "filled", "empty"} {
			all[name] = append(all[name], startWasm(t, l, c, document[name]))
		}
	}
	column := func(name string, of func(wasmStart) float64) (samples []float64) {
		for _, start := range all[name] {
			samples = append(samples, of(start))
		}
		return samples
	}
	ready, others := func(s wasmStart) float64 { return s.ready }, func(s wasmStart) float64 { return s.others }
	later := func(name string, of func(wasmStart) float64, limit float64) result {
		without := median(column("off", of))
		var late []float64
		for _, sample := range column(name, of) {
			late = append(late, max(0, sample-without))
		}
		return measured("", "ms", late).against("limit", []float64{limit}).ratioAtMost(wasmSlack)
	}
	filled, empty := later("filled", ready, 500), later("empty", others, 100)
	filled.What, empty.What = "registry dead, module in the store: later ready than without", "registry dead, store empty: other documents later in force than without"
	return []result{
		measured("no Wasm filter: exec to ready", "ms", column("off", ready)), filled,
		measured("no Wasm filter: exec to the documents in force", "ms", column("off", others)), empty,
		measured("module in the store: agent's RSS", "MiB", column("filled", func(s wasmStart) float64 { return s.agent.rss })).
			against("no Wasm filter", column("off", func(s wasmStart) float64 { return s.agent.rss })),
	}
}

// onlyWaitsForWasm says whether all but modules is in force: readiness names what is not, a line each.
func onlyWaitsForWasm(l *lab.Lab) bool {
	status, body, err := l.Pod.Get("http://127.0.0.1:" + lab.HealthPort + "/healthz/ready")
	return err == nil && status == http.StatusServiceUnavailable && strings.HasPrefix(body, "wasm: ") && strings.Count(body, "\n") == 1
}

// startWasm runs an agent that has nothing of an earlier one but the modules in its store, until its memory was read.
func startWasm(t lab.T, l *lab.Lab, c *lab.Container, document string) (sample wasmStart) {
	_ = c.Run(t, lab.As{UID: lab.RootUID}, "sh", "-c",
		"rm -rf /etc/istio/proxy/*; find /var/lib/istio/data -mindepth 1 -maxdepth 1 ! -name understudy -exec rm -rf {} +")
	c.Write(t, "wasm.yaml", document)
	begin := time.Now()
	agent := c.StartAgent(t, lab.AgentOptions{Args: withDetection})
	poll(t, func() bool { return agent.Ready() == nil || onlyWaitsForWasm(l) })
	sample.others = milliseconds(time.Since(begin))
	poll(t, func() bool { return agent.Ready() == nil })
	sample.ready = milliseconds(time.Since(begin))
	<-time.After(settle)
	sample.agent = memoryOf(t, agent.PID())
	agent.Signal(syscall.SIGKILL)
	agent.Wait(t, lab.Deadline)
	waitGone(t, l)
	return sample
}
