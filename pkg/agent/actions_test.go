package agent

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"understudy.mesh/hotrestart"
	hotenvoy "understudy.mesh/hotrestart/envoy"
	"understudy.mesh/hotrestart/handoff"
	"understudy.mesh/pkg/config"
)

// newcomer begins to take over from m, as the generation id.
func (p *pod) newcomer(m *member, id string) *handoff.Client {
	p.t.Helper()
	c, err := handoff.Dial(p.t.Context(), p.dir(id), m.me.ID)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(c.Close)
	return c
}

// released has m let go of its listeners for c, and returns what m tells then.
func released(t *testing.T, c *handoff.Client) handoff.State {
	t.Helper()
	var sockets hotrestart.Sockets
	defer sockets.Close()
	if err := c.Sockets(t.Context(), &sockets); err != nil {
		t.Fatal(err)
	}
	state, err := c.Ready(t.Context(), &sockets)
	if err != nil {
		t.Fatal(err)
	}
	return state
}

// readiness is the status of the kubelet's port; 0 while nobody answers.
func (p *pod) readiness() int {
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/healthz/ready", p.cfg.ReadyPort))
	if err != nil {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

// TestReadyForANewcomerDuringAStop: the drain of a stop turns readiness off; while a newcomer takes over
// it is on, and off again where that fails.
func TestReadyForANewcomerDuringAStop(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	a := p.start("a", func(c *config.Config, _ *fakeEnvoy) { c.TerminationDrainDuration = time.Minute })
	a.settles(handoff.RoleServing)
	becomes := func(status int) {
		t.Helper()
		waitFor(t, fmt.Sprintf("readiness to be %d", status), func() bool { return p.readiness() == status })
	}
	becomes(http.StatusOK)
	a.ask()
	becomes(http.StatusServiceUnavailable)
	c := p.newcomer(a, "c")
	a.becomes(handoff.RoleHandingOff)
	becomes(http.StatusOK)
	released(t, c)
	c.Close()
	a.becomes(handoff.RoleServing)
	becomes(http.StatusServiceUnavailable)
}

// TestPublishesAfterATakeBack: what the files say after a failed hand-off comes into force.
func TestPublishesAfterATakeBack(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	a := p.start("a")
	a.settles(handoff.RoleServing)
	c := p.newcomer(a, "c")
	released(t, c)
	c.Close()
	a.becomes(handoff.RoleServing)
	p.answers("a")
	if err := os.WriteFile(filepath.Join(p.cfg.ConfigDir, "entries.yaml"), []byte(twoEntries), 0o600); err != nil {
		t.Fatal(err)
	}
	query := new(dns.Msg).SetQuestion("b.example.", dns.TypeA)
	waitFor(t, "the name that is new", func() bool {
		reply, err := dns.Exchange(query, p.cfg.DNSAddrs[0].String())
		return err == nil && len(reply.Answer) == 1 && strings.HasSuffix(reply.Answer[0].String(), "10.1.2.4")
	})
}

// TestReuseportIsUnrestrictedAfterATakeBack: a newcomer with fewer workers had the kernel keep connections from
// the others, which serve again.
func TestReuseportIsUnrestrictedAfterATakeBack(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	a := p.start("a")
	a.settles(handoff.RoleServing)
	c := p.newcomer(a, "c")
	var taken hotrestart.Sockets
	defer taken.Close()
	if err := c.Sockets(t.Context(), &taken); err != nil {
		t.Fatal(err)
	}
	address := "tcp://" + p.listen
	first, err := taken.Copy(hotrestart.EnvoySocketName(address, 0))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(first)
	given, err := taken.Dup()
	if err != nil {
		t.Fatal(err)
	}
	defer given.Close()
	second, err := unix.Dup(first) // as if of another worker
	if err == nil {
		err = given.AddDescriptor(hotrestart.EnvoySocketName(address, 1), second)
	}
	if err != nil {
		t.Fatal(err)
	}
	if n, err := hotrestart.RestrictReuseport(given, &taken); n != 1 || err != nil {
		t.Fatalf("%d listeners restricted, %v", n, err)
	}
	if _, err := c.Ready(t.Context(), &taken); err != nil {
		t.Fatal(err)
	}
	c.Close()
	a.becomes(handoff.RoleServing)
	if err := unix.SetsockoptInt(first, unix.SOL_SOCKET, unix.SO_DETACH_REUSEPORT_BPF, 0); !errors.Is(err, unix.ENOENT) {
		t.Errorf("asked to remove the restriction, the kernel says %v, want that there is none", err)
	}
}

// TestStartsInPlaceOfOneThatLeaves: whoever was asked to stop is no reason to stand by, however new it is.
func TestStartsInPlaceOfOneThatLeaves(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	n := p.neighbour("n", handoff.RoleServing, func(i *handoff.Identity) { i.Started = time.Now().Add(time.Hour) }, nil)
	n.listen(t, p.listen)
	if err := n.server.SetReport(handoff.Report{Role: handoff.RoleServing, Leaving: true}); err != nil {
		t.Fatal(err)
	}
	a := p.start("a")
	a.settles(handoff.RoleServing)
	a.entered(handoff.RoleStarting, handoff.RoleServing)
}

// TestSaysThatItLeaves: others hear that a generation was asked to stop, and do not count on it themselves.
func TestSaysThatItLeaves(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	a := p.start("a")
	a.settles(handoff.RoleServing)
	n := p.neighbour("n", handoff.RoleStarting, nil, nil) // a serves on for it
	leaves := func() bool {
		neighbours, err := n.dir.Look(t.Context())
		if err != nil || len(neighbours) != 1 || neighbours[0].Err != nil {
			t.Fatalf("%+v, %v", neighbours, err)
		}
		return neighbours[0].Report.Leaving
	}
	if leaves() {
		t.Error("before it is asked to stop")
	}
	a.ask()
	waitFor(t, "a to say that it leaves", leaves)

	for _, leaving := range []bool{false, true} {
		if err := n.server.SetReport(handoff.Report{Role: handoff.RoleStandby, Leaving: leaving}); err != nil {
			t.Fatal(err)
		}
		waitFor(t, fmt.Sprintf("relief with leaving %v", leaving), func() bool {
			_, _, relief := a.successors(t.Context())
			return relief == !leaving
		})
	}
}

// TestDrainsAreHurried: after POST /drain a stop does not wait for connections, of however many Envoys.
func TestDrainsAreHurried(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	a := p.start("a")
	a.settles(handoff.RoleServing)
	for _, id := range []string{"n1", "n2"} {
		held := p.connect()
		if got := readName(held); got != "a" {
			t.Fatalf("served by %q", got)
		}
		n := p.replace(a, id)
		a.becomes(handoff.RoleDraining)
		if id == "n1" {
			n.leave()
			a.settles(handoff.RoleServing)
			p.becomesServedBy("a")
		} else if !open(held) {
			t.Error("a connection was cut")
		}
	}
	a.goesOn(handoff.RoleDraining)
	a.skipDrain()
	a.ask()
	a.endsWell()
}

// TestCountersAreToldOnce: what Envoy has counted reaches the newcomer in parts, whose sum is the whole.
func TestCountersAreToldOnce(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	asked := filepath.Join(t.TempDir(), "asked")
	a := p.start("a", func(c *config.Config, f *fakeEnvoy) { c.UpgradeStats, f.Counts = true, asked })
	a.settles(handoff.RoleServing)
	n := p.neighbour("n", handoff.RoleStarting, nil, nil)
	c, err := handoff.Dial(t.Context(), n.dir, a.me.ID)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	told := countsIn(t, released(t, c))
	if told == 0 {
		t.Error("nothing is told as the listeners are released")
	}
	n.becomes(t, handoff.RoleServing)
	if err := c.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	for done := false; !done; {
		drained, news, err := c.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		told += countsIn(t, news)
		done = drained.Done
	}
	text, err := os.ReadFile(asked)
	if err != nil {
		t.Fatal(err)
	}
	if counted, err := strconv.ParseUint(string(text), 10, 64); err != nil || told != counted || counted < 2 {
		t.Errorf("told %d, and Envoy has counted %d (%v)", told, counted, err)
	}
}

// countsIn is what a state has of the counter that fakeEnvoy.Counts makes.
func countsIn(t *testing.T, state handoff.State) uint64 {
	t.Helper()
	data, ok := state["stats"]
	if !ok {
		return 0
	}
	reply, err := hotenvoy.ParseStatsReply(data)
	if err != nil {
		t.Fatal(err)
	}
	return reply.CounterDeltas[fakeCounter]
}
