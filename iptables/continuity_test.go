package iptables_test

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"understudy.mesh/iptables"
	"understudy.mesh/iptables/rule"
	"understudy.mesh/tests/capture"
)

var kills = flag.Int("kills", 12, "how many applies are killed, for each back end")

const (
	changesUnderTraffic = 20 // of the configuration
	appliesUnderTraffic = 50 // of a configuration that is there already
)

// newConnections is how often a new connection is made while rules change: 200 a second.
const newConnections = 5 * time.Millisecond

// watched is a probe and where it must land, whatever else changes.
type watched struct {
	from place
	probe
	want string
}

// alwaysCaptured are the application's connections and those to it, most of them out.
func alwaysCaptured() (out []watched) {
	application := owner{1000, 1000}
	for _, to := range []string{"1.2.3.4:80", "[2600::1]:80", "240.240.1.1:443", "[2001:2::1]:443"} {
		out = append(out, watched{inPod, probe{owner: application, network: "tcp", to: netip.MustParseAddrPort(to)}, "15001"})
	}
	for _, to := range []string{capture.PodV4 + ":4000", "[" + capture.PodV6 + "]:4000"} {
		out = append(out, watched{inWorld, probe{owner: application, network: "tcp", to: netip.MustParseAddrPort(to)}, "15006"})
	}
	for _, to := range []string{"9.9.9.9:53", "[2001:db8::53]:53"} {
		out = append(out, watched{inPod, probe{owner: application, network: "udp", to: netip.MustParseAddrPort(to)}, "15053"})
	}
	return out
}

// changing returns the i-th of the configurations that capture alwaysCaptured and
// differ in everything else.
func changing(i int) iptables.Config {
	c := capture.Full()
	c.ExcludeCIDRs = append(c.ExcludeCIDRs, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 200, byte(i), 0}), 24))
	c.ExcludeOutboundPorts = append(c.ExcludeOutboundPorts, uint16(9000+i))
	if i%2 == 1 {
		c.DNS = iptables.DNS{Capture: true, All: true}
	}
	if i%3 == 1 {
		c.DropInvalid = true
	}
	if i%4 == 1 {
		c.VirtInterfaces, c.ExcludeInterfaces = []string{"tap0"}, []string{"tap1"}
	}
	if i%5 == 1 {
		c.IncludeGroups, c.GIDs = []uint32{1000, 202}, append(c.GIDs, 7)
	}
	if i%7 == 1 {
		c.IncludeOutboundPorts, c.LoopbackV4 = []uint16{80}, netip.MustParsePrefix("127.0.0.0/8")
	}
	return c
}

// traffic makes new connections until it is stopped.
type traffic struct {
	t       *testing.T
	probes  []watched
	probers []*prober // of each probe
	quit    chan struct{}
	done    sync.WaitGroup
	mu      sync.Mutex
	made    int
	lost    []string // those that landed elsewhere
}

// watch starts traffic. It must be stopped on the test's goroutine.
func (l *lab) watch(probes []watched) *traffic {
	l.t.Helper()
	w := &traffic{t: l.t, probes: probes, quit: make(chan struct{})}
	spaces := map[place]string{inPod: l.pod, inWorld: l.world}
	for _, p := range probes {
		w.probers = append(w.probers, l.prober(spaces[p.from]))
	}
	w.done.Go(w.run)
	return w
}

func (w *traffic) run() {
	tick := time.NewTicker(newConnections)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-w.quit:
			return
		case <-tick.C:
		}
		p, landed := w.probes[i%len(w.probes)], make(chan string, 1)
		w.probers[i%len(w.probes)].asked <- request{p.probe, landed}
		w.done.Go(func() { w.count(p, <-landed) })
	}
}

func (w *traffic) count(p watched, landed string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.made++
	if landed != p.want {
		w.lost = append(w.lost, fmt.Sprintf("from the %s, %v: lands at %q, want %q", p.from, p.probe, landed, p.want))
	}
}

// stop ends the traffic and fails the test for what went astray.
func (w *traffic) stop() {
	w.t.Helper()
	close(w.quit)
	w.done.Wait()
	w.t.Logf("%d connections, %d of them went astray", w.made, len(w.lost))
	for i, s := range w.lost {
		if i == 10 {
			break
		}
		w.t.Error(s)
	}
	if w.made < len(w.probes) {
		w.t.Errorf("only %d connections: the test tells nothing", w.made)
	}
}

// eachWay runs a test with each back end, and with one after the other: backend says
// which one is next.
func eachWay(t *testing.T, test func(t *testing.T, l *lab, backend func(i int) rule.Backend)) {
	for _, b := range backends {
		t.Run(string(b), func(t *testing.T) {
			l := newLab(t)
			skipBackend(t, b)
			test(t, l, func(int) rule.Backend { return b })
		})
	}
	t.Run("in turn", func(t *testing.T) {
		l := newLab(t)
		for _, b := range backends {
			skipBackend(t, b)
		}
		test(t, l, func(i int) rule.Backend { return backends[i/2%len(backends)] })
	})
}

// No connection escapes, and none fails, while the rules are applied again and change.
func TestNothingEscapesWhileRulesChange(t *testing.T) {
	eachWay(t, func(t *testing.T, l *lab, backend func(int) rule.Backend) {
		c := changing(0)
		c.Backend = backend(0)
		apply(t, c)
		w := l.watch(alwaysCaptured())
		for i := range changesUnderTraffic {
			c := changing(i)
			c.Backend = backend(i)
			apply(t, c)
			for range appliesUnderTraffic / changesUnderTraffic {
				apply(t, c)
			}
		}
		for range appliesUnderTraffic % changesUnderTraffic {
			c.Backend = rule.Auto
			apply(t, c)
		}
		w.stop()
	})
}

// An apply that is killed, as a container with all its processes, leaves capture in
// force, and the next one repairs what it left.
func TestKilledApplyIsRepaired(t *testing.T) {
	eachWay(t, func(t *testing.T, l *lab, backend func(int) rule.Backend) {
		capture.Sh(t, capture.Script(capture.ForeignCommands, rule.NFT)+capture.Script(capture.ForeignCommands, rule.Legacy))
		before := rulesNow(t)
		c := changing(0)
		c.Backend = backend(0)
		apply(t, c)
		w := l.watch(alwaysCaptured())
		shortest := time.Hour
		unfinished := 0
		for i := range *kills {
			limit := shortest
			if i > 1 { // the first two end by themselves, to know how long it takes
				limit = rand.N(shortest + shortest/8)
			}
			took, killed := applyUntil(t, backend(i), i+1, limit)
			if killed {
				unfinished++
			} else {
				shortest = min(shortest, took)
			}
			if i%3 == 2 { // what a crash leaves may crash, too
				continue
			}
			c := changing(i)
			c.Backend = backend(i)
			apply(t, c)
			asWanted(t, c, c.Backend)
		}
		c = changing(0)
		c.Backend = backend(0)
		apply(t, c)
		w.stop()
		inForce(t, c, c.Backend)
		clean(t)
		if d := cmp.Diff(before, rulesNow(t)); d != "" {
			t.Errorf("cleaning does not give back what was there:\n%s", d)
		}
		t.Logf("%d of %d applies were killed before their end", unfinished, *kills)
		if unfinished == 0 {
			t.Error("no apply was killed: the test tells nothing")
		}
	})
}

// applyUntil applies the i-th changing configuration in a process of its own, which
// it kills when it takes longer than limit.
func applyUntil(t *testing.T, b rule.Backend, i int, limit time.Duration) (took time.Duration, killed bool) {
	t.Helper()
	cmd := self(0, "apply", string(b), fmt.Sprint(i))
	cmd.SysProcAttr.Setpgid = true // with its children
	var out bytes.Buffer
	cmd.Stdout = &out
	start, ended := time.Now(), make(chan error, 1)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { ended <- cmd.Wait() }()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("apply: %v: %s", err, &out)
		}
		return time.Since(start), false
	case <-timer.C:
	}
	syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	err := <-ended
	return time.Since(start), err != nil
}
