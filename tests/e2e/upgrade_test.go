package e2e_test

import (
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy.mesh/pkg/contract"
	"understudy.mesh/tests/lab"
)

// upgrades is how many upgrades TestUpgrades does: $UPGRADES, else 3.
func upgrades(t *testing.T) int {
	t.Helper()
	value := os.Getenv("UPGRADES")
	if value == "" {
		return 3
	}
	n, err := strconv.Atoi(value)
	if err != nil || n < 1 {
		t.Fatalf("UPGRADES: %q: give a positive number", value)
	}
	return n
}

// TestUpgrades is the plain case again and again, as Kruise does it: the two slots and the two
// versions of Envoy take turns.
func TestUpgrades(t *testing.T) {
	t.Parallel()
	p := newKruisePod(t, lab.SlotsOptions{}, lab.KubeletOptions{PostStart: manualWait, MaxRestartPeriod: lab.QuickRestarts})
	p.mustServe(t, 0, p.older)
	load := startLoad(t, p)
	images := []lab.Image{p.newer, p.older}
	for i := range upgrades(t) {
		begin := time.Now()
		slot, image := (i+1)%2, images[i%2]
		p.kruise.Upgrade(image)
		p.kruise.WaitUpgraded(t)
		if p.kruise.Working() != slot {
			t.Fatalf("upgrade %d: slot %d works, want %d", i+1, p.kruise.Working(), slot)
		}
		p.mustServe(t, slot, image)
		t.Logf("upgrade %d to %s in %s: %v", i+1, image.Name, p.slot(slot).Name, time.Since(begin).Round(time.Millisecond))
		// Not a synchronisation: a pod that is switched sooner leaves its Service, as TestKruiseSwitchedTooOften shows.
		<-time.After(lab.QuickRestarts)
	}
	load.check(t)
	t.Logf("%v requests", load.done)
}

// TestUpgradeHeldConnection keeps a connection through an upgrade: it drains in the old generation
// until the client has done, SIGTERM or not, and then that generation ends.
func TestUpgradeHeldConnection(t *testing.T) {
	t.Parallel()
	p := newSlotPod(t, lab.SlotsOptions{})
	p.start(t, 0, p.older, 1, 0)
	p.mustServe(t, 0, p.older)
	load := startLoad(t, p)
	held := dial(t, p.Out, lab.PodIP+":9000")
	send(t, held, "before")
	expect(t, held, "before")

	p.start(t, 1, p.newer, 2, 1)
	p.waitRole(t, 1, roleServing)
	p.waitRole(t, 0, roleDraining)
	send(t, held, "draining")
	expect(t, held, "draining")
	lab.Eventually(t, settleWithin, "others are told of the drain", func() error {
		return p.toldOutside(func(g contract.GenerationStatus) error {
			if g.Role != roleDraining || g.Connections != 1 || g.Drain == nil || g.Drain.TCP != 1 || g.LastAttempt == nil || len(g.Sockets) > 0 {
				return fmt.Errorf("no drain of one TCP connection, which is all that they need: %+v", g)
			}
			return nil
		})
	})
	old := p.slot(0).Agent()
	old.Signal(syscall.SIGTERM)
	// Not a synchronisation: what must not happen has no event.
	<-time.After(2 * lab.TerminationDrain)
	send(t, held, "after SIGTERM")
	expect(t, held, "after SIGTERM")
	select {
	case <-old.Done():
		t.Error("SIGTERM ended an agent that still drained")
	default:
	}
	must(t, held.Close())
	if code := old.Wait(t, lab.Deadline); code != 0 {
		t.Errorf("the drained agent: exit status %d", code)
	}
	p.mustServe(t, 1, p.newer)
	load.check(t)
}

// TestUpgradeWhileStopping stops the old generation just before the new one starts: the pod is not
// ready then, but while the ordinary drain lasts it can still be taken over from, and nothing is lost.
func TestUpgradeWhileStopping(t *testing.T) {
	t.Parallel()
	p := newSlotPod(t, lab.SlotsOptions{Env: []string{"TERMINATION_DRAIN_DURATION_SECONDS=5"}})
	p.start(t, 0, p.older, 1, 0)
	p.mustServe(t, 0, p.older)
	p.probes = nil
	load := startLoad(t, p)
	old := p.slot(0).Agent()
	old.Signal(syscall.SIGTERM)
	p.start(t, 1, p.newer, 2, 1)
	p.mustServe(t, 1, p.newer)
	if code := old.Wait(t, lab.Deadline); code != 0 {
		t.Errorf("the old agent: exit status %d", code)
	}
	load.check(t)
}

// TestUpgradeNewer starts agents with the numbers of every order.
func TestUpgradeNewer(t *testing.T) {
	t.Parallel()
	p := newSlotPod(t, lab.SlotsOptions{})
	p.start(t, 0, p.older, 5, 0)
	p.mustServe(t, 0, p.older)
	load := startLoad(t, p)

	// An older one stands by, whatever its hook thinks of that, and SIGTERM ends it at once.
	p.start(t, 1, p.newer, 4, 5)
	p.waitRole(t, 1, roleStandby)
	if got := p.slot(1).Run(t, lab.AgentPath, "wait"); got.Code != 0 {
		t.Errorf("wait in a standby: %v", got)
	}
	p.mustServe(t, 0, p.older)
	standby := p.slot(1).Agent()
	standby.Signal(syscall.SIGTERM)
	if code := standby.Wait(t, stopMargin); code != 0 {
		t.Errorf("SIGTERM to a standby: exit status %d", code)
	}

	// A restored cluster's numbers went backwards, and its owner says so.
	p.slot(1).AddArgs("--takeover=force")
	p.start(t, 1, p.newer, 4, 5)
	p.mustServe(t, 1, p.newer)
	p.waitRole(t, 0, roleStandby)
	load.check(t)
}

// TestUpgradeTwoNewcomers starts two newcomers in one moment.
func TestUpgradeTwoNewcomers(t *testing.T) {
	t.Parallel()
	p := newSlotPod(t, lab.SlotsOptions{Slots: 3})
	p.start(t, 0, p.older, 1, 0)
	p.mustServe(t, 0, p.older)
	load := startLoad(t, p)
	p.start(t, 1, p.newer, 2, 1)
	p.start(t, 2, p.newer, 2, 1)
	winner := -1
	lab.Eventually(t, settleWithin, "one newcomer serves", func() (err error) {
		winner, err = p.onlyOneServes()
		return err
	})
	if winner == 0 {
		t.Fatal("no newcomer took over")
	}
	p.mustServe(t, winner, p.newer)
	// Either the other one was refused once and says why, or it came second and took over in its turn.
	for _, slot := range []int{1, 2} {
		attempt, err := p.lastAttempt(slot)
		if err != nil {
			t.Error(err)
		} else if attempt.Result != "success" && attempt.Reason == "" {
			t.Errorf("%s lost and does not say why: %+v", p.slot(slot).Name, attempt)
		}
	}
	load.check(t)
}

// TestUpgradeTellsRequests: each generation says what its own Envoy has answered, though Envoy's statistics go on from those of the
// one before: whoever compares the two needs both.
func TestUpgradeTellsRequests(t *testing.T) {
	t.Parallel()
	p := newSlotPod(t, lab.SlotsOptions{})
	app := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/fail" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})}
	ln := p.Pod.Listen(t, "[::]:8081")
	go func() { _ = app.Serve(ln) }()
	t.Cleanup(func() { _ = app.Close() })
	p.start(t, 0, p.older, 1, 0)
	p.mustServe(t, 0, p.older)
	before := p.tellsRequests(t, "1", contract.Requests{})
	p.answers(t, 40, 10)
	older := before
	older.Inbound = contract.Answers{Completed: before.Inbound.Completed + 50, Errors: before.Inbound.Errors + 10}
	p.tellsRequests(t, "1", older)

	p.start(t, 1, p.newer, 2, 1)
	p.mustServe(t, 1, p.newer)
	lab.Eventually(t, settleWithin, "Envoy goes on from what the one before has counted", func() error {
		_, stats, err := p.Pod.Get("http://127.0.0.1:15000/stats?filter=http.inbound_0.0.0.0.downstream_rq_(completed|5xx)")
		if err == nil && !strings.Contains(stats, fmt.Sprintf("5xx: %d\n", older.Inbound.Errors)) {
			err = fmt.Errorf("want %d errors: %s", older.Inbound.Errors, stats)
		}
		return err
	})
	p.tellsRequests(t, "1", older)
	first := p.tellsRequests(t, "2", contract.Requests{})
	if first.Inbound.Errors > 0 || first.Inbound.Completed >= 40 {
		t.Errorf("the new Envoy is told to have answered what the old one has: %+v, and that one %+v", first, older)
	}
	p.answers(t, 5, 3)
	first.Inbound.Completed, first.Inbound.Errors = first.Inbound.Completed+8, first.Inbound.Errors+3
	p.tellsRequests(t, "2", first)
}

// answers has the application answer so many requests, and so many with 503.
func (p *slotPod) answers(t *testing.T, good, failed int) {
	t.Helper()
	for i := range good + failed {
		path, want := "/", http.StatusOK
		if i >= good {
			path, want = "/fail", http.StatusServiceUnavailable
		}
		if status, _, err := p.Out.Get("http://" + lab.PodIP + ":8081" + path); err != nil || status != want {
			t.Fatalf("%s: %d, %v, want %d", path, status, err, want)
		}
	}
}

// tellsRequests waits until the generation of a version is told to have answered so many requests, or any if that is zero.
func (p *slotPod) tellsRequests(t *testing.T, version string, want contract.Requests) (got contract.Requests) {
	t.Helper()
	lab.Eventually(t, settleWithin, "the requests of generation "+version+" are told", func() error {
		return p.toldOutside(func(g contract.GenerationStatus) error {
			if g.SidecarSetVersion != version || g.Requests == nil || want != (contract.Requests{}) && *g.Requests != want {
				return fmt.Errorf("generation %s: %+v, want %+v", g.SidecarSetVersion, g.Requests, want)
			}
			got = *g.Requests
			return nil
		})
	})
	return got
}
