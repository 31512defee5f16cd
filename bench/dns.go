package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
	"understudy.mesh/tests/lab"
)

const (
	agentDNS   = "127.0.0.1:15053"
	unboundDNS = "127.0.0.1:5301"
	echoDNS    = "127.0.0.1:5302"
	hotNames   = 100     // forwarded names that are asked for again and again
	hotTTL     = 3600    // seconds: no forwarded name expires while it is measured
	outstand   = "100"   // dnsperf's queries in flight
	coldNames  = 150_000 // forwarded names of which each comes round when it has long left every cache
	latencyQPS = "5000"  // the rate at which latency is measured: far from any of the servers' limits
	// dnsperfExtra is what a load may take beyond its time: dnsperf waits for lost queries.
	dnsperfExtra = 30 * time.Second
)

// dnsTarget is one server with one kind of names.
type dnsTarget struct {
	name, addr, file string
	pid              func() int
	tcp              bool // over connections that are kept, queries pipelined

	cpu, qps, p99 []float64 // µs a query, queries/s, µs; one sample a round
}

// dnsContest is one kind of names of the agent's and of its peers.
type dnsContest struct {
	agent, unbound *dnsTarget
	echo           *dnsTarget // nil: over TCP and for what goes upstream there is none
}

// benchDNS loads the agent, unbound and the echo server in turn.
func benchDNS(t lab.T, s settings) []result {
	l := lab.New(t)
	agent := startDNSAgent(t, l, s.entries)
	unbound := startUnbound(t, l, s.entries)
	echoServer := startEcho(t, l)
	table := writeQueries(t, l, "table", "host-%d.bench.example", s.entries)
	hot := writeQueries(t, l, "hot", "hot-%d.forwarded.example", hotNames)
	cold := writeQueries(t, l, "cold", "cold-%d.forwarded.example", coldNames)
	echo := &dnsTarget{name: "raw UDP echo", addr: echoDNS, file: table, pid: echoServer}
	contests := []dnsContest{
		{&dnsTarget{name: "agent, table", addr: agentDNS, file: table, pid: agent.PID},
			&dnsTarget{name: "unbound, local-data", addr: unboundDNS, file: table, pid: unbound}, echo},
		{&dnsTarget{name: "agent, cache", addr: agentDNS, file: hot, pid: agent.PID},
			&dnsTarget{name: "unbound, cache", addr: unboundDNS, file: hot, pid: unbound}, echo},
		{&dnsTarget{name: "agent, cold forward", addr: agentDNS, file: cold, pid: agent.PID},
			&dnsTarget{name: "unbound, cold forward", addr: unboundDNS, file: cold, pid: unbound}, nil},
		{&dnsTarget{name: "agent, table over TCP", addr: agentDNS, file: table, pid: agent.PID, tcp: true},
			&dnsTarget{name: "unbound, local-data over TCP", addr: unboundDNS, file: table, pid: unbound, tcp: true}, nil},
		{&dnsTarget{name: "agent, cache over TCP", addr: agentDNS, file: hot, pid: agent.PID, tcp: true},
			&dnsTarget{name: "unbound, cache over TCP", addr: unboundDNS, file: hot, pid: unbound, tcp: true}, nil},
	}
	targets := []*dnsTarget{echo}
	for _, c := range contests {
		targets = append(targets, c.agent, c.unbound)
	}
	for _, target := range targets {
		if target.file == cold {
			dnsperf(t, l, target, "-l", "1") // not all of them: they are not to be in caches
			continue
		}
		dnsperf(t, l, target, "-n", "2") // fills caches, and shows that every name is answered
	}
	for round := range s.rounds {
		for i := range targets {
			// Another one is first each round, so that none has always the same neighbour.
			targets[(i+round)%len(targets)].measure(t, l, s.duration)
		}
	}
	return append(dnsResults(contests), dnsConnections(t, l, s.rounds, contests)...)
}

// dnsResults has a row for each of the agent's targets against each of its peers.
func dnsResults(contests []dnsContest) (results []result) {
	for _, c := range contests {
		kind := "DNS " + strings.TrimPrefix(c.agent.name, "agent, ")
		for _, peer := range []*dnsTarget{c.unbound, c.echo} {
			if peer == nil {
				continue
			}
			results = append(results,
				measured(kind+": CPU", "µs/query", c.agent.cpu).against(peer.name, peer.cpu),
				measured(kind+": rate", "queries/s", c.agent.qps).against(peer.name, peer.qps),
				measured(kind+": p99 at "+latencyQPS+"/s", "µs", c.agent.p99).against(peer.name, peer.p99))
		}
	}
	return results
}

// entryYAML is the i-th ServiceEntry of the benchmarks, with a host that gets a VIP.
func entryYAML(i int) string {
	return fmt.Sprintf(`---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: bench-%d, namespace: default}
spec:
  hosts: [host-%d.bench.example]
  location: MESH_EXTERNAL
  ports: [{number: 443, name: tls, protocol: TLS}]
  resolution: STATIC
  endpoints: [{address: 198.51.100.%d}]
`, i, i, 1+i%250)
}

func entriesYAML(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(entryYAML(i))
	}
	return b.String()
}

func startDNSAgent(t lab.T, l *lab.Lab, entries int) *lab.Agent {
	upstream := l.StartDNS(t, nil)
	upstream.SetTTL(hotTTL)
	for i := range hotNames {
		upstream.Set(fmt.Sprintf("hot-%d.forwarded.example", i), "198.51.100.7")
	}
	for i := range coldNames {
		upstream.Set(fmt.Sprintf("cold-%d.forwarded.example", i), "198.51.100.8")
	}
	c := l.NewContainer(t, lab.ContainerOptions{ReadOnly: true, Envoy: lab.EnvoyBinary(t)})
	c.Write(t, "bench.yaml", entriesYAML(entries))
	agent := c.StartAgent(t, lab.AgentOptions{})
	agent.WaitReady(t)
	return agent
}

// startUnbound starts a Debian unbound with one thread, the same names as local-data, and the
// lab's name server for all others. Its caches are so small that the cold names leave them.
func startUnbound(t lab.T, l *lab.Lab, entries int) func() int {
	var conf strings.Builder
	fmt.Fprintf(&conf, `server:
  verbosity: 0
  interface: 127.0.0.1@5301
  username: ""
  chroot: ""
  directory: %q
  pidfile: ""
  use-syslog: no
  do-daemonize: no
  num-threads: 1
  module-config: "iterator"
  msg-cache-size: 1m
  rrset-cache-size: 1m
  local-zone: "bench.example." typetransparent
`, l.Dir)
	for i := range entries {
		fmt.Fprintf(&conf, "  local-data: \"host-%d.bench.example. 30 IN A 240.240.%d.%d\"\n", i, 1+i/250, 1+i%250)
	}
	fmt.Fprintf(&conf, "remote-control:\n  control-enable: no\nforward-zone:\n  name: \".\"\n  forward-addr: %s\n", lab.NameServer)
	path := filepath.Join(l.Dir, "unbound.conf")
	if err := os.WriteFile(path, []byte(conf.String()), 0o644); err != nil {
		t.Fatalf("write unbound's configuration: %v", err)
	}
	return startServer(t, l, unboundDNS, "unbound", "-d", "-c", path)
}

func startEcho(t lab.T, l *lab.Lab) func() int {
	self, err := os.Executable()
	if err != nil {
		t.Fatalf("find this program: %v", err)
	}
	return startServer(t, l, echoDNS, self, "-echo", echoDNS)
}

// startServer starts a DNS server in the pod, waits until it answers, and returns its pid.
func startServer(t lab.T, l *lab.Lab, addr string, argv ...string) func() int {
	cmd := l.Pod.Command(context.Background(), argv...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", argv[0], err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	lab.Eventually(t, lab.Deadline, argv[0]+" answers", func() error {
		_, err := l.Pod.Exchange("udp", addr, "host-0.bench.example", dns.TypeA)
		return err
	})
	return func() int { return cmd.Process.Pid }
}

// writeQueries writes a dnsperf data file.
func writeQueries(t lab.T, l *lab.Lab, name, pattern string, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, pattern+" A\n", i)
	}
	path := filepath.Join(l.Dir, name+".queries")
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
		t.Fatalf("write queries: %v", err)
	}
	return path
}

// measure takes one sample of everything.
func (d *dnsTarget) measure(t lab.T, l *lab.Lab, duration time.Duration) {
	seconds := strconv.Itoa(max(1, int(duration.Seconds())))
	before := cpuTime(t, d.pid())
	output := dnsperf(t, l, d, "-l", seconds)
	used := cpuTime(t, d.pid()) - before
	completed := figure(t, output, `Queries completed:\s+(\d+)`)
	d.cpu = append(d.cpu, float64(used.Microseconds())/completed)
	d.qps = append(d.qps, figure(t, output, `Queries per second:\s+([\d.]+)`))
	d.p99 = append(d.p99, percentile99(t, dnsperf(t, l, d, "-l", "1", "-Q", latencyQPS, "-v")))
}

// dnsperf runs it and demands that it lost next to nothing and every answer is NOERROR.
func dnsperf(t lab.T, l *lab.Lab, d *dnsTarget, args ...string) string {
	out := runDNSPerf(t, l, d, args...)
	sent, completed := figure(t, out, `Queries sent:\s+(\d+)`), figure(t, out, `Queries completed:\s+(\d+)`)
	good := figure(t, out, `NOERROR (\d+)`)
	const tolerated = 0.999
	if completed < tolerated*sent || good < completed {
		t.Fatalf("dnsperf against %s: a server that does not answer has no rate:\n%s", d.name, lastLines(out))
	}
	return out
}

// runDNSPerf runs it, whatever becomes of the queries.
func runDNSPerf(t lab.T, l *lab.Lab, d *dnsTarget, args ...string) string {
	host, port, _ := strings.Cut(d.addr, ":")
	argv := append([]string{"dnsperf", "-f", "inet", "-s", host, "-p", port, "-d", d.file, "-q", outstand, "-T", "1", "-c", "4"}, args...)
	if d.tcp {
		argv = append(argv, "-m", "tcp")
	}
	ctx, cancel := context.WithTimeout(context.Background(), dnsperfExtra)
	defer cancel()
	var exit *exec.ExitError
	out, err := l.Pod.Command(ctx, argv...).Output()
	if err != nil {
		if e, ok := err.(*exec.ExitError); ok {
			exit = e
			t.Fatalf("dnsperf against %s: %v: %s", d.name, err, exit.Stderr)
		}
		t.Fatalf("dnsperf against %s: %v", d.name, err)
	}
	return string(out)
}

// figure finds a number in dnsperf's report.
func figure(t lab.T, output, pattern string) float64 {
	match := regexp.MustCompile(pattern).FindStringSubmatch(output)
	if match == nil {
		t.Fatalf("dnsperf reports no %q:\n%s", pattern, lastLines(output))
	}
	v, err := strconv.ParseFloat(match[1], 64)
	if err != nil {
		t.Fatalf("dnsperf reports %q: %v", match[0], err)
	}
	return v
}

// percentile99 reads the latency of every query from dnsperf's verbose lines ("> NOERROR name A
// 0.000123"), and returns the 99th percentile in µs.
func percentile99(t lab.T, output string) float64 {
	var micros []float64
	scanner := bufio.NewScanner(strings.NewReader(output))
	for scanner.Scan() {
		fields := strings.Fields(scanner.Text())
		if len(fields) != 5 || fields[0] != ">" {
			continue
		}
		if v, err := strconv.ParseFloat(fields[4], 64); err == nil {
			micros = append(micros, v*1e6)
		}
	}
	if len(micros) == 0 {
		t.Fatalf("dnsperf shows no latencies:\n%s", lastLines(output))
	}
	slices.Sort(micros)
	return micros[len(micros)*99/100]
}

// lastLines is the part of a long output that has the report.
func lastLines(output string) string {
	const enough = 2000
	return output[max(0, len(output)-enough):]
}
