package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"understudy.mesh/tests/lab"
)

const (
	// chaosDrain is --upgradeDrainDuration: longer than any connection of the load in an upgrade.
	chaosDrain = 20 * time.Second
	chaosPoll  = 100 * time.Millisecond
	// soakRounds is from how many rounds on the chaos tests have their long form.
	soakRounds = 100
)

// rounds is how many rounds of chaos there are: $ROUNDS, else 20.
func rounds(t *testing.T) int {
	t.Helper()
	return int(number(t, "ROUNDS", 20))
}

func number(t *testing.T, env string, otherwise uint64) uint64 {
	t.Helper()
	value := os.Getenv(env)
	if value == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(value, 10, 32)
	if err != nil || n == 0 {
		t.Fatalf("%s: %q: give a positive number", env, value)
	}
	return n
}

// chance is the test's own source of random numbers: $SEED, or one that it prints, and its name.
func chance(t *testing.T) *rand.Rand {
	t.Helper()
	seed := number(t, "SEED", uint64(rand.Uint32())+1)
	t.Logf("SEED=%d", seed)
	name := fnv.New64()
	_, _ = name.Write([]byte(t.Name()))
	return rand.New(rand.NewPCG(seed, name.Sum64()))
}

// chaosPod is a pod with two slots, of which one serves.
type chaosPod struct {
	*slotPod
	vip     string
	serving int       // the slot
	image   lab.Image // in it
	version int       // SIDECARSET_VERSION of the last start
}

func newChaosPod(t *testing.T) *chaosPod {
	t.Helper()
	volumes := lab.Volumes()
	for i := range volumes { // small enough to be filled up
		volumes[i].Size = "2m"
	}
	p := &chaosPod{slotPod: newSlotPod(t, lab.SlotsOptions{
		Volumes: volumes,
		// Envoy says at this level when its workers start.
		Args: []string{"--upgradeDrainDuration", chaosDrain.String(), "--proxyComponentLogLevel", "config:info"},
	})}
	p.image = p.older
	p.launch(t, 0, p.older).await(t, becameServing)
	p.waitReady(t)
	p.vip = (&pod{Lab: p.Lab}).vip(t, "http.example", dns.TypeA).String()
	must(t, p.settled())
	return p
}

// What the logs say. Envoy's line comes before it accepts on any socket.
const (
	saysTakingOver   = "\ttaking over\t"
	saysEnvoyStarted = "\tEnvoy started\t"
	saysWorkersStart = "starting workers"
	saysEnvoyServes  = "\tEnvoy serves\t"
	saysLetGo        = "the generation before has let go"
	becameServing    = "\trole=serving\t"
	becameDraining   = "\trole=draining\t"
	becameStandby    = "\trole=standby\t"
)

// life is one start of an agent in a slot.
type life struct {
	*lab.Agent
	slot     *lab.Slot
	position int // of its log
}

// launch starts an image in a slot, as the next generation.
func (p *chaosPod) launch(t *testing.T, slot int, image lab.Image) life {
	t.Helper()
	p.version++
	l := life{slot: p.slot(slot), position: p.slot(slot).Log.Len()}
	p.start(t, slot, image, p.version, p.version-1)
	l.Agent = l.slot.Agent()
	return l
}

func (l life) await(t *testing.T, words string) {
	t.Helper()
	l.Log.WaitForAfter(t, l.position, words)
}

func (l life) said(words string) bool {
	return strings.Contains(l.Log.String()[l.position:], words)
}

// probation is how long the old generation can take back, after it has let go. What is this near
// to its end may be on either side of it.
const (
	probation = 2 * time.Second
	nearIts   = 100 * time.Millisecond
)

// committed reports whether the probation of a newcomer was over at a time.
func (l life) committed(t *testing.T, at time.Time) bool {
	t.Helper()
	for line := range strings.Lines(l.Log.String()[l.position:]) {
		if !strings.Contains(line, saysLetGo) {
			continue
		}
		stamp, _, _ := strings.Cut(line, "\t")
		letGo, err := time.Parse(time.RFC3339Nano, stamp)
		must(t, err)
		return at.Sub(letGo) > probation-nearIts
	}
	return false
}

// newcomer launches the other image in the idle slot.
func (p *chaosPod) newcomer(t *testing.T, image lab.Image) life {
	t.Helper()
	p.vacate(t)
	return p.launch(t, 1-p.serving, image)
}

// vacate stops whatever stands by in the slot that does not serve.
func (p *chaosPod) vacate(t *testing.T) {
	t.Helper()
	if _, was := p.slot(1 - p.serving).Stop(chaosDrain); was {
		p.version++ // whoever comes next is newer than the one that serves
	}
}

func (p *chaosPod) other() lab.Image {
	if p.image.Name == p.older.Name {
		return p.newer
	}
	return p.older
}

// upgrade is a good one: nothing may fail.
func (p *chaosPod) upgrade(t *testing.T) {
	t.Helper()
	begin := time.Now()
	image := p.other()
	p.vacate(t)
	load := p.startLoad(t)
	old := p.slot(p.serving)
	position := old.Log.Len()
	p.launch(t, 1-p.serving, image).await(t, becameServing)
	report := load.stop(t)
	nothing.check(t, "the good upgrade", report)
	old.Log.WaitForAfter(t, position, becameStandby)
	p.serving, p.image = 1-p.serving, image
	p.settle(t)
	t.Logf("upgraded to %s in %s: %v", image.Name, p.slot(p.serving).Name, time.Since(begin).Round(time.Millisecond))
}

// settle waits until exactly one generation serves, with one Envoy, and none drains.
func (p *chaosPod) settle(t *testing.T) {
	t.Helper()
	lab.Eventually(t, settleWithin, "one generation serves, and every socket is its own", patiently(p.settled))
}

func (p *chaosPod) settled() error {
	if err := p.decided(roleStandby); err != nil {
		return err
	}
	if envoys := p.ProcessesOf(lab.EnvoyPath); len(envoys) != 1 {
		return fmt.Errorf("%d Envoys: %q", len(envoys), envoys)
	}
	return p.socketsAreRead()
}

// decide waits until exactly one generation serves, and notes which.
func (p *chaosPod) decide(t *testing.T) {
	t.Helper()
	lab.Eventually(t, settleWithin, "one generation serves", patiently(func() error { return p.decided(roleStandby, roleDraining) }))
}

// patiently pauses after a check that failed: what these ask costs the pod more than a request.
func patiently(check func() error) func() error {
	return func() error {
		err := check()
		if err != nil {
			<-time.After(chaosPoll)
		}
		return err
	}
}

// decided returns nil when one slot serves, and what else runs has one of the roles.
func (p *chaosPod) decided(others ...string) error {
	serving := -1
	for i, s := range p.slots.List {
		image, running := s.Running()
		if !running {
			continue
		}
		_, self, err := p.upgradeStatus(i)
		switch {
		case err != nil:
			return err
		case self.Role == roleServing && serving >= 0:
			return errors.New("both slots serve")
		case self.Role == roleServing:
			serving, p.image = i, image
		case !slices.Contains(others, self.Role):
			return fmt.Errorf("%s is %s", s.Name, self.Role)
		}
	}
	if serving < 0 {
		return errors.New("no slot serves")
	}
	p.serving = serving
	return nil
}

// proxyPorts are those that agent and Envoy listen on; true where it is Envoy.
var proxyPorts = map[string]bool{
	lab.OutboundPort: true, lab.InboundPort: true, lab.EnvoyStats: true,
	lab.AdminPort: false, lab.StatusPort: false, lab.HealthPort: false, lab.DNSPort: false,
}

// socketsAreRead demands of every listening socket of the proxy that only the generation that
// serves has it, that whoever accepts on it lives, and that nothing waits in it.
func (p *chaosPod) socketsAreRead() error {
	life := p.slot(p.serving).Agent()
	agentPID, envoyPID := life.PID(), life.EnvoyPID()
	out, err := p.Pod.Command(context.Background(), "ss", "-Hlntup").CombinedOutput()
	if err != nil {
		return fmt.Errorf("ss: %w: %s", err, out)
	}
	seen := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			return fmt.Errorf("ss: %q", line)
		}
		port := fields[4][strings.LastIndexByte(fields[4], ':')+1:]
		isEnvoys, ours := proxyPorts[port]
		if !ours {
			continue
		}
		seen[port] = true
		reader := agentPID
		if isEnvoys {
			reader = envoyPID
		}
		owners := ownersOf(line)
		stranger := slices.ContainsFunc(owners, func(pid int) bool { return pid != agentPID && pid != envoyPID })
		if stranger || !slices.Contains(owners, reader) || fields[2] != "0" {
			return fmt.Errorf("the socket is not read by pid %d only (agent %d, Envoy %d), or not now: %s", reader, agentPID, envoyPID, line)
		}
	}
	if len(seen) != len(proxyPorts) {
		return fmt.Errorf("not every port is listened on: %v", seen)
	}
	return nil
}

// ownersOf are the processes of a line of ss -p.
func ownersOf(line string) (pids []int) {
	for _, part := range strings.Split(line, "pid=")[1:] {
		number, _, _ := strings.Cut(part, ",")
		pid, _ := strconv.Atoi(number)
		pids = append(pids, pid)
	}
	return pids
}

// everyPortServes opens n connections to each port, and each must be served.
func (p *chaosPod) everyPortServes(t *testing.T, n int) {
	t.Helper()
	pod, loopback := "http://"+lab.PodIP, "http://127.0.0.1:"
	asks := []func() error{
		func() error { return answers(p.Out, pod+":8080/") },
		func() error { return answers(p.Out, "http://["+lab.PodIPv6+"]:8080/") },
		func() error { return answers(p.Pod, "http://"+p.vip+"/") },
		func() error { return answers(p.Out, pod+":"+lab.EnvoyStats+"/stats/prometheus") },
		func() error { return answers(p.Out, pod+":"+lab.StatusPort+"/healthz/ready") },
		func() error { return answers(p.Out, pod+":"+lab.HealthPort+"/healthz/ready") },
		func() error { return answers(p.Pod, loopback+lab.AdminPort+"/ready") },
		func() error { return resolves(p.Pod) },
		func() error {
			_, err := p.Pod.Exchange("tcp", lab.NameServer+":53", "http.example", dns.TypeA)
			return err
		},
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failures []error
	for _, ask := range asks {
		wg.Go(func() {
			for range n {
				if err := ask(); err != nil {
					mu.Lock()
					failures = append(failures, err)
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	if len(failures) > 0 {
		t.Errorf("%d of %d connections were not served: %v", len(failures), n*len(asks), failures[:min(3, len(failures))])
	}
}

// portrait is what must not change in the generation that serves, while others fail.
type portrait struct {
	ID, Role string
	Sockets  []string
	Envoy    string // its version
	EnvoyPID int
}

func (p *chaosPod) portrait(t *testing.T) portrait {
	t.Helper()
	_, self, err := p.upgradeStatus(p.serving)
	must(t, err)
	return portrait{self.ID, self.Role, self.Sockets, self.EnvoyVersion, p.slot(p.serving).Agent().EnvoyPID()}
}

// unchanged demands that the old generation is as it was, and shows so on its ports.
func (p *chaosPod) unchanged(t *testing.T, before portrait) {
	t.Helper()
	if now := p.portrait(t); fmt.Sprint(now) != fmt.Sprint(before) {
		t.Errorf("the generation that serves on is\n%+v\nand was\n%+v", now, before)
	}
	_, info, err := p.Pod.Get("http://127.0.0.1:15000/server_info")
	must(t, errors.Join(err, contains(info, `"LIVE"`, "/"+before.Envoy+"/")))
	_, metrics, err := p.Out.Get("http://" + lab.PodIP + ":15020/stats/prometheus")
	must(t, errors.Join(err, contains(metrics, "envoy_", `generation="`+before.ID+`"`, `role="serving"`)))
	must(t, p.ready())
}

// signal sends a signal to a slot's Envoy, if there is one.
func signalEnvoy(l life, s syscall.Signal) (sent bool) {
	pid := l.EnvoyPID()
	return pid != 0 && syscall.Kill(pid, s) == nil
}
