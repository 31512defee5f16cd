package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"time"

	"understudy.mesh/tests/lab"
	"understudy.mesh/tests/load"
)

// probeRate is of each probe, a second: far more than a kubelet's, for a blink to be seen.
const probeRate = 20

// closeWithin bounds the end of the clients: the requests that are in flight.
const closeWithin = 15 * time.Second

// outside are the clients of the pod: those of the application connect to its Service, and so see whether the pod is ready.
func outside(s settings) load.Config {
	url, rate := "http://"+lab.ServiceIP+":"+appHTTP+"/", float64(s.rate)
	life := load.Duration(s.life)
	return load.Config{Source: "outside", Flows: append(dense(s, "in", url, "", "server=app"), []load.Flow{
		{Name: "in: http/1.1, new", Kind: load.HTTP1New, Target: url, Rate: .30 * rate, Workers: 16, Want: "server=app"},
		{Name: "in: http/1.1, kept", Kind: load.HTTP1Keep, Target: url, Rate: .20 * rate, Workers: 16, Want: "server=app"},
		{Name: "in: http/2", Kind: load.HTTP2, Target: url, Rate: .15 * rate, Workers: 16, Want: "server=app"},
		{Name: "in: http/2 streams", Kind: load.H2Stream, Target: url + load.EchoPath[1:], Rate: .05 * rate, Workers: 20, Life: life},
		{Name: "in: tcp streams", Kind: load.TCPStream, Target: lab.ServiceIP + ":" + appEcho, Rate: .10 * rate, Workers: 20, Life: life},
		{Name: "probe 15020", Kind: load.Probe, Target: "http://" + lab.PodIP + ":" + lab.StatusPort + "/healthz/ready", Rate: probeRate},
		{Name: "probe 15021", Kind: load.Probe, Target: "http://" + lab.PodIP + ":" + lab.HealthPort + "/healthz/ready", Rate: probeRate},
	}...)}
}

// denseWorkers is how many connections the dense flow has at a time: with fewer, each worker of
// Envoy's is idle now and then, and what goes wrong between two connections does not show.
const denseWorkers = 12

// dense is the flow that has a connection in every phase of its life at any moment.
func dense(s settings, way, url, connect, want string) []load.Flow {
	if s.newRate == 0 {
		return nil
	}
	return []load.Flow{{
		Name: way + ": http/1.1, dense", Kind: load.HTTP1New, Target: url, Connect: connect,
		Rate: float64(s.newRate), Workers: denseWorkers, Want: want,
	}}
}

// inside are those of the application.
func inside(s settings, p *pod) load.Config {
	url, vip, rate := "http://"+shopHost+"/", p.vip.String()+":80", float64(s.rate)
	server, dnsRate := lab.NameServer+":53", float64(s.dnsRate)
	table, forwarded := []string{shopHost}, []string{elsewhereHost}
	const tableWant = "240.240."
	return load.Config{Source: "inside", Flows: append(dense(s, "out", url, vip, "server=shop"), []load.Flow{
		{Name: "out: http/1.1, new", Kind: load.HTTP1New, Target: url, Connect: vip, Rate: .10 * rate, Workers: 16, Want: "server=shop"},
		{Name: "out: http/1.1, kept", Kind: load.HTTP1Keep, Target: url, Connect: vip, Rate: .10 * rate, Workers: 16, Want: "server=shop"},
		{Name: "dns: udp, kept socket", Kind: load.DNSUDP, Target: server, Names: table, Want: tableWant, Rate: .35 * dnsRate, Workers: 8},
		{Name: "dns: udp, new socket", Kind: load.DNSUDP, Target: server, Names: table, Want: tableWant, Rate: .35 * dnsRate, Workers: 8, NewSocket: true},
		{Name: "dns: udp, cached", Kind: load.DNSUDP, Target: server, Names: forwarded, Want: elsewhereIP, Rate: .10 * dnsRate, NewSocket: true},
		{Name: "dns: tcp, kept", Kind: load.DNSTCP, Target: server, Names: table, Want: tableWant, Rate: .10 * dnsRate},
		{Name: "dns: tcp, new", Kind: load.DNSTCP, Target: server, Names: table, Want: tableWant, Rate: .10 * dnsRate, NewSocket: true},
		{Name: "probe 15000", Kind: load.Probe, Target: "http://127.0.0.1:" + lab.AdminPort + "/ready", Rate: probeRate},
	}...)}
}

// class is what of the traffic a number is about.
type class func(load.Kind) bool

func isDNS(k load.Kind) bool     { return k == load.DNSUDP || k == load.DNSTCP }
func isProbe(k load.Kind) bool   { return k == load.Probe }
func isRequest(k load.Kind) bool { return !isDNS(k) && !isProbe(k) }

// counts are a report's numbers of a class: since the beginning, and in the last interval.
func counts(r load.Report, of class) (total, last load.Counts) {
	for _, f := range r.Flows {
		if of(f.Kind) {
			total.Merge(f.Total)
			last.Merge(f.Interval)
		}
	}
	return total, last
}

// traffic is the load processes and what they last said.
type traffic struct {
	running sync.WaitGroup
	clients []*exec.Cmd

	mu      sync.Mutex // guards what follows
	reports []load.Report
	err     error         // of a process that did not do its work
	broken  chan struct{} // closed with the first failure of any kind
}

func newTraffic() *traffic { return &traffic{broken: make(chan struct{})} }

// start runs a load as a process.
func (tr *traffic) start(t lab.T, cmd *exec.Cmd, c load.Config) {
	config, err := json.Marshal(c)
	if err != nil {
		t.Fatalf("write the load's configuration: %v", err)
	}
	cmd.Args = append(cmd.Args, "run", "-config", "-")
	cmd.Stdin = bytes.NewReader(config)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatalf("make the load's pipe: %v", err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start the load: %v", err)
	}
	tr.clients = append(tr.clients, cmd)
	index := len(tr.reports)
	tr.reports = append(tr.reports, load.Report{})
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	tr.running.Go(func() {
		for r, err := range load.Follow(out) {
			tr.note(index, r, err)
		}
		_ = cmd.Wait()
		if last := tr.report(index); !last.Final {
			tr.note(index, last, fmt.Errorf("the load %s ended early: %v: %s", c.Source, cmd.ProcessState, &stderr))
		}
	})
}

func (tr *traffic) note(index int, r load.Report, err error) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if err == nil {
		tr.reports[index] = r
	}
	tr.err = errors.Join(tr.err, err)
	if err == nil && r.Failures() == 0 {
		return
	}
	select {
	case <-tr.broken:
	default:
		close(tr.broken)
	}
}

func (tr *traffic) report(index int) load.Report {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.reports[index]
}

// now is the last reports of all as one.
func (tr *traffic) now() load.Report {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.merged()
}

func (tr *traffic) merged() (merged load.Report) {
	for _, r := range tr.reports {
		merged = merged.Merge(r)
	}
	return merged
}

// stop ends the load and returns what it counted in all.
func (tr *traffic) stop() (load.Report, error) {
	for _, c := range tr.clients {
		_ = c.Process.Signal(syscall.SIGTERM)
	}
	ended := make(chan struct{})
	go func() { tr.running.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(closeWithin):
		return tr.now(), fmt.Errorf("the load has not ended within %v", closeWithin)
	}
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.merged(), tr.err
}

// failures are the first of each flow, in their order.
func failures(r load.Report) (all []load.Failure) {
	for _, f := range r.Flows {
		all = append(all, f.Failures...)
	}
	slices.SortFunc(all, func(a, b load.Failure) int { return a.Time.Compare(b.Time) })
	return all
}
