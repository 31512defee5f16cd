// Package skew tests that this release and the one before it take over from each other, in both
// directions, as an upgrade and a roll-back do. The file predecessor names the other one's commit.
package skew_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy.mesh/tests/lab"
)

// handoffs is how many the journey has: there, back, and there again.
const handoffs = 3

// direction is a hand-off between releases.
type direction struct{ from, to lab.Image }

func (d direction) String() string { return "from " + d.from.Name + " to " + d.to.Name }

// directions are the upgrade and the roll-back.
func (r releases) directions() []direction {
	return []direction{{r.before, r.this}, {r.this, r.before}}
}

// privateData gives each slot its own files, so that what moves has moved over the hand-off.
func privateData() []lab.Volume {
	volumes := lab.Volumes()
	for i := range volumes {
		volumes[i].Private = volumes[i].Name == lab.DataVolume
	}
	return volumes
}

// TestJourney upgrades, rolls back and upgrades again under load. No request fails, nobody complains, and
// everything is carried along.
func TestJourney(t *testing.T) {
	t.Parallel()
	r := newReleases(t)
	things := everything(t)
	var documents []string
	for _, c := range things {
		documents = append(documents, c.documents...)
	}
	p := newPod(t, r.before, lab.SlotsOptions{Volumes: privateData()}, documents...)
	p.mustBeServedBy(t, r.before)
	for i, d := range []direction{{r.before, r.this}, {r.this, r.before}, {r.before, r.this}} {
		seen := make([]string, len(things))
		for j, c := range things {
			c.bring(t, p, i)
			seen[j] = p.mustSee(t, c)
		}
		begin, traffic := time.Now(), p.startLoad(t, 1)
		positions := []int{p.slots.List[0].Log.Len(), p.slots.List[1].Log.Len()}
		p.upgrade(t, d.to)
		p.mustBeServedBy(t, d.to)
		for j, c := range things {
			p.mustSeeAgain(t, c, seen[j])
		}
		check(t, d.String(), traffic, 0)
		for j, position := range positions {
			if said := complaints(p.slots.List[j].Log, position); len(said) > 0 {
				t.Errorf("%v: %s complains: %q", d, p.slots.List[j].Name, said)
			}
		}
		t.Logf("%v: %v", d, time.Since(begin).Round(time.Millisecond))
		if t.Failed() {
			return
		}
	}
}

func (p *pod) mustSee(t *testing.T, c carried) (seen string) {
	t.Helper()
	lab.Eventually(t, lab.Deadline, c.name, func() (err error) {
		seen, err = c.see(p)
		return err
	})
	return seen
}

func (p *pod) mustSeeAgain(t *testing.T, c carried, want string) {
	t.Helper()
	look := func() error {
		seen, err := c.see(p)
		if err == nil && seen != want {
			err = fmt.Errorf("now\n%s\nand before\n%s", seen, want)
		}
		return err
	}
	if c.slowly {
		lab.Eventually(t, lab.Deadline, c.name, look)
	} else if err := look(); err != nil {
		t.Errorf("%s: %v", c.name, err)
	}
}

// TestFiles stops one release and starts the other one on what the first has left in the pod's volumes.
func TestFiles(t *testing.T) {
	t.Parallel()
	r := newReleases(t)
	vips := keptVIPs(t)
	p := newPod(t, r.before, lab.SlotsOptions{Env: []string{"TERMINATION_DRAIN_DURATION_SECONDS=0"}})
	for i, image := range []lab.Image{r.this, r.before} {
		vips.bring(t, p, i)
		seen := p.mustSee(t, vips)
		if code, _ := p.slots.List[p.serving].Stop(lab.Deadline); code != 0 {
			t.Errorf("the agent before: exit status %d", code)
		}
		p.start(t, p.serving, image)
		p.mustBeServedBy(t, image)
		p.mustSeeAgain(t, vips, seen)
	}
}

// holds is how long a generation waits for a newcomer that has its sockets and does not serve.
const holds = 2 * time.Minute

// TestRefusedNewcomer has newcomers whose Envoy never serves, until the generation before, which has served
// all the time, sends them away and says so. Both directions wait at the same time.
func TestRefusedNewcomer(t *testing.T) {
	t.Parallel()
	r := newReleases(t)
	type attempt struct {
		direction
		pod      *pod
		traffic  *lab.Traffic
		old, new *lab.Slot
	}
	var attempts []attempt
	for _, d := range r.directions() {
		p := newPod(t, d.from, lab.SlotsOptions{})
		a := attempt{d, p, p.startLoad(t, .1), p.slots.List[p.serving], nil}
		a.new, _ = p.newcomer(t, withHungEnvoy(t, p, d.to))
		attempts = append(attempts, a)
	}
	for _, a := range attempts {
		lab.Eventually(t, holds+lab.SettleWithin, a.String()+": the newcomer is sent away", func() error {
			if !strings.Contains(a.old.Log.String(), "this generation serves on") {
				return errors.New("not yet")
			}
			return nil
		})
		a.new.Log.WaitFor(t, "the take-over failed.*the other generation gave up: ")
		a.new.Kill()
		a.pod.upgrade(t, a.to)
		a.pod.mustBeServedBy(t, a.to)
		check(t, a.String(), a.traffic, 0)
	}
}

// withHungEnvoy is an image whose Envoy does nothing but say which hot restarts it can take part in.
func withHungEnvoy(t *testing.T, p *pod, image lab.Image) lab.Image {
	t.Helper()
	path := filepath.Join(p.Dir, "envoy")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n[ \"$1\" = --hot-restart-version ] && echo 11.104 && exit\nexec sleep infinity\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return lab.Image{Name: image.Name + ", with an Envoy that hangs", Agent: image.Agent, Envoy: path}
}

// TestFailedNewcomer ends the Envoy of a newcomer just after it took over: it gives the sockets back, and
// its next attempt succeeds.
func TestFailedNewcomer(t *testing.T) {
	t.Parallel()
	r := newReleases(t)
	for _, d := range r.directions() {
		t.Run(d.String(), func(t *testing.T) {
			t.Parallel()
			p := newPod(t, d.from, lab.SlotsOptions{})
			old := p.slots.List[p.serving]
			position := old.Log.Len()
			traffic := p.startLoad(t, 1)
			slot, agent := p.newcomer(t, d.to)
			slot.Log.WaitFor(t, "the generation before has let go")
			if err := syscall.Kill(agent.EnvoyPID(), syscall.SIGKILL); err != nil {
				t.Fatalf("kill the newcomer's Envoy: %v", err)
			}
			old.Log.WaitForAfter(t, position, "\trole=draining\t|this generation serves on.*gave up: this generation's Envoy ended just after it took over")
			if strings.Contains(old.Log.String()[position:], "\trole=draining\t") {
				t.Skip("this machine stood still for longer than the probation: the newcomer had taken over for good")
			}
			slot.WaitRole(t, lab.RoleServing)
			old.WaitRole(t, lab.RoleStandby)
			p.serving = 1 - p.serving
			p.mustBeServedBy(t, d.to)
			check(t, d.String(), traffic, inFlight)
		})
	}
}

// inFlight is how many requests of a flow an Envoy that is killed may have: the ones that it cut, and the
// next, made in the milliseconds until its sockets are closed.
const inFlight = 2 * workers

// TestStoppedNewcomer stops a pod in a hand-off: the newcomer, which is stopped last, says why it gives
// up, and the generation before, which serves on for it, ends as well.
func TestStoppedNewcomer(t *testing.T) {
	t.Parallel()
	r := newReleases(t)
	for _, d := range r.directions() {
		t.Run(d.String(), func(t *testing.T) {
			t.Parallel()
			p := newPod(t, d.from, lab.SlotsOptions{})
			old := p.slots.List[p.serving]
			position := old.Log.Len()
			slot, newcomer := p.newcomer(t, withHungEnvoy(t, p, d.to))
			slot.Log.WaitFor(t, "Envoy started")
			old.Agent().Signal(syscall.SIGTERM)
			old.Log.WaitForAfter(t, position, "serving on until the newcomer has taken over")
			newcomer.Signal(syscall.SIGTERM)
			for _, agent := range []*lab.Agent{newcomer, old.Agent()} {
				if code := agent.Wait(t, lab.SettleWithin); code != 0 && code != 1 {
					t.Errorf("exit status %d", code)
				}
			}
			if said := old.Log.String()[position:]; !strings.Contains(said, "this generation serves on") {
				t.Errorf("the generation before did not hear of it:\n%s", said)
			}
		})
	}
}
