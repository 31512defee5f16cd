package e2e_test

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
	"understudy.mesh/tests/lab"
	traffic "understudy.mesh/tests/load"
)

const (
	// denseRate is how many connections of one request there are a second, each way, where the machine
	// can do it: so many that at any moment some are in each phase of a connection's life.
	denseRate = 3000
	// denseWorkers is how many there are at a time.
	denseWorkers = 12
	// denseHosts is how many more hosts the pod knows: the more listeners Envoy has, the longer it takes
	// to stop them.
	denseHosts = 300
)

// slowPause is how long a slow client takes over its request, in which it keeps Envoy in its listener
// filters; slowRate keeps some 24 of them there.
const (
	slowPause = 300 * time.Millisecond
	slowRate  = 80
)

// denseLoad begins new connections at the highest rate that the machine has: from outside to the
// application, from the application to a VIP, and DNS over TCP; and beside them slow clients,
// and the flows besides.
func (p *slotPod) denseLoad(t *testing.T, besides ...traffic.Flow) *chaosLoad {
	t.Helper()
	vip := (&pod{Lab: p.Lab}).vip(t, "http.example", dns.TypeA).String()
	http := func(name, target string) []traffic.Flow {
		return []traffic.Flow{
			{Name: name, Kind: traffic.HTTP1New, Target: target, Rate: denseRate, Workers: denseWorkers},
			{Name: name + " slow", Kind: traffic.HTTP1New, Target: target, Rate: slowRate, Workers: 2 * denseWorkers, Pause: traffic.Duration(slowPause)},
		}
	}
	outside := append(http("inbound", "http://"+lab.PodIP+":8080/"), besides...)
	inside := append(http("outbound", "http://"+vip+"/"), traffic.Flow{
		Name: "DNS TCP", Kind: traffic.DNSTCP, Target: lab.NameServer + ":53", Names: []string{"http.example"}, Want: "240.240.",
		Rate: denseRate / 10, NewSocket: true,
	})
	sides := []lab.TrafficSide{{From: p.Out, Flows: outside}, {From: p.Pod, Flows: inside}}
	for _, side := range sides {
		for i := range side.Flows {
			side.Flows[i].Timeout = traffic.Duration(chaosTimeout)
		}
	}
	return &chaosLoad{lab.StartTraffic(t, sides...)}
}

// keptFlows are connections of more than one request, and of bytes.
func keptFlows() []traffic.Flow {
	return []traffic.Flow{
		{Name: "inbound HTTP/2", Kind: traffic.HTTP2, Target: "http://" + lab.PodIP + ":8080/", Rate: 100},
		{Name: "inbound TCP", Kind: traffic.TCPStream, Target: lab.PodIP + ":9000", Rate: 300, Workers: denseWorkers, Life: traffic.Duration(50 * time.Millisecond)},
	}
}

// TestDenseUpgrades upgrades again and again under new connections without a pause: nothing is lost.
func TestDenseUpgrades(t *testing.T) {
	for name, test := range map[string]struct {
		drain time.Duration
		hosts int
		// slow is done to the Envoy that is about to be replaced.
		slow func(*testing.T, int)
	}{
		// What the old generation accepts last, at the end of the probation, has its time although
		// the drain ends with it.
		"drain as short as the probation": {drain: probation},
		// The main thread of an Envoy that stops its listeners one after the other stands still in
		// between, while its workers go on to accept.
		"slow main thread": {drain: chaosDrain, hosts: denseHosts, slow: starve},
	} {
		t.Run(name, func(t *testing.T) {
			p := newSlotPod(t, lab.SlotsOptions{Args: []string{"--upgradeDrainDuration", test.drain.String()}})
			p.slots.Write(t, "more.yaml", manyHosts(test.hosts))
			p.start(t, 0, p.older, 1, 0)
			p.mustServe(t, 0, p.older)
			load := p.denseLoad(t, keptFlows()...)
			images := []lab.Image{p.newer, p.older}
			for i := range int(number(t, "UPGRADES", 5)) {
				if test.slow != nil {
					p.eachEnvoy(t, test.slow)
				}
				p.replace(t, (i+1)%2, images[i%2], i+2)
			}
			nothing.check(t, "upgrades", load.stop(t))
		})
	}
}

// TestDenseTakeBack stops newcomers in their probation: the old generation takes back, and nothing is
// lost, neither of what it has itself nor of what the newcomer had accepted.
func TestDenseTakeBack(t *testing.T) {
	p := newChaosPod(t)
	load := p.denseLoad(t, keptFlows()...)
	for range int(number(t, "UPGRADES", 5)) {
		newcomer := p.launch(t, 1-p.serving, p.newer)
		newcomer.await(t, saysLetGo)
		newcomer.Signal(syscall.SIGTERM)
		newcomer.Wait(t, lab.Deadline)
		p.slot(p.serving).WaitRole(t, lab.RoleServing)
	}
	nothing.check(t, "take-backs", load.stop(t))
}

// replace takes over in a slot from the other one, whose agent is stopped once it has drained.
func (p *slotPod) replace(t *testing.T, slot int, image lab.Image, version int) {
	t.Helper()
	p.start(t, slot, image, version, version-1)
	p.slot(slot).WaitRole(t, lab.RoleServing)
	p.slot(1-slot).WaitRole(t, lab.RoleStandby)
	old := p.slot(1 - slot).Agent()
	old.Signal(syscall.SIGTERM)
	if code := old.Wait(t, lab.Deadline); code != 0 {
		t.Errorf("the agent of %s: exit status %d", p.slot(1-slot).Name, code)
	}
}

// manyHosts are documents of n hosts.
func manyHosts(n int) string {
	docs := make([]string, n)
	for i := range docs {
		docs[i] = static(fmt.Sprintf("more-%d", i), fmt.Sprintf("more-%d.example", i), 80, "HTTP", "198.51.100.11", 80)
	}
	return documents(docs...)
}

// eachEnvoy calls do with the process of every Envoy of the pod.
func (p *slotPod) eachEnvoy(t *testing.T, do func(t *testing.T, pid int)) {
	t.Helper()
	for _, line := range p.ProcessesOf(lab.EnvoyPath) {
		var pid int
		if _, err := fmt.Sscan(line, &pid); err != nil {
			t.Fatalf("read the pid of %q: %v", line, err)
		}
		do(t, pid)
	}
}

// starve has a process's first thread, an Envoy's main thread, run only when nothing else wants to.
func starve(t *testing.T, pid int) {
	t.Helper()
	const schedIdle = 5 // SCHED_IDLE, sched(7)
	must(t, unix.SchedSetAttr(pid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: schedIdle}, 0))
}

// TestDenseStop stops the only generation under new connections without a pause: who comes too late
// is refused, and nobody is reset.
func TestDenseStop(t *testing.T) {
	p := newSlotPod(t, lab.SlotsOptions{})
	p.start(t, 0, p.newer, 1, 0)
	p.mustServe(t, 0, p.newer)
	load := p.denseLoad(t)
	for round := range int(number(t, "UPGRADES", 5)) {
		agent := p.slot(0).Agent()
		agent.Signal(syscall.SIGTERM)
		if code := agent.Wait(t, lab.Deadline); code != 0 {
			t.Errorf("stop %d: exit status %d", round+1, code)
		}
		p.start(t, 0, p.newer, round+2, 0)
		p.mustServe(t, 0, p.newer)
	}
	report := load.stop(t)
	for _, f := range report.Flows {
		for class, n := range f.Total.Failed {
			if class != traffic.Refused {
				t.Errorf("%s: %d %s of %d; the first: %v", f.Name, n, class, f.Total.OK, f.Failures[:min(3, len(f.Failures))])
			}
		}
		t.Logf("%s: %d answered, %d refused", f.Name, f.Total.OK, f.Total.Failed[traffic.Refused])
	}
}
