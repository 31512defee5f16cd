package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"understudy.mesh/demo/screen"
	"understudy.mesh/tests/lab"
	"understudy.mesh/tests/load"
)

// story is one run.
type story struct {
	settings
	*narrator
	pod     *pod
	traffic *traffic
	watcher *watcher
	live    *live
	changes []*change
}

// errFailed is a story in which something was lost; the closing table has said what.
var errFailed = errors.New("FAILED")

// tell tells the story from the beginning to the end.
func tell(ctx context.Context, t lab.T, s settings) error {
	st := &story{settings: s, narrator: &narrator{Screen: screen.New(os.Stdout, os.Getenv("NO_COLOR") != "")}, traffic: newTraffic()}
	began := time.Now()
	st.thePod(t)
	st.theLoad(t)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	st.live = &live{screen: st.narrator, traffic: st.traffic, watcher: st.watcher, began: time.Now(), soak: s.soak}
	if s.soak {
		st.head()
	}
	lines := make(chan struct{})
	go func() { defer close(lines); st.live.run(ctx) }()
	err := st.theUpgrades(ctx, t)
	if ctx.Err() != nil { // the load is being killed: what it says now is of no use
		return lab.ErrInterrupted
	}
	cancel()
	<-lines
	return st.closing(began, err)
}

func (st *story) thePod(t lab.T) {
	st.Title("1. A pod with two slots")
	st.pod = newPod(t, st.settings)
	p := st.pod
	st.Say("Two containers as OpenKruise makes them: each with its own mount, PID and /dev/shm namespaces, a read-only",
		"root, uid 1337 and no capabilities; one network namespace, one hand-off directory, one /etc/istio/proxy.",
		fmt.Sprintf("postStart of both: /bin/sh -c %q; --upgradeDrainDuration %v.", postStart[2], st.drain),
		fmt.Sprintf("Slot 1 gets pilot-agent with Envoy %s, slot 2 the empty image (pilot-agent-standby).", p.release(0).version))
	p.start(t)
	st.watcher = &watcher{pod: p, release: p.release(0)}
	st.showEvents(p.kubelet.Log.String())
}

func (st *story) theLoad(t lab.T) {
	st.Title("2. Load")
	st.Say(fmt.Sprintf("From outside, to the application: %d requests/s, with those below, as new and kept HTTP/1.1 connections,", st.rate),
		"HTTP/2, and streams over HTTP/2 and TCP that are echoed message by message and live for "+st.life.String()+".",
		fmt.Sprintf("From the application: HTTP/1.1 to %s by its VIP %s, and %d DNS queries/s,", shopHost, st.pod.vip, st.dnsRate),
		"each sent once, over UDP and TCP. Probes: 15000, 15020, 15021.",
		"Every request is checked, and none is repeated but those that a server has not looked at (\"retried\").")
	st.traffic.start(t, st.pod.Out.Command(context.Background(), st.pod.load), outside(st.settings))
	st.traffic.start(t, st.pod.asApp(st.pod.load), inside(st.settings, st.pod))
}

// theUpgrades makes them, one after another. Requests that fail end a soak.
func (st *story) theUpgrades(ctx context.Context, t lab.T) error {
	if !st.soak {
		st.Title("3. %d upgrades", st.upgrades)
		st.Say("Each as the controller and the kubelet do it: the empty slot's container is killed, and made anew from",
			"the new image; it takes over; its postStart hook returns; the old slot's container is stopped, drains, and is",
			"replaced by the empty image. The next upgrade goes the other way.")
		st.head()
	}
	for n := range st.upgrades {
		if st.wait(st.pause, n) && st.soak {
			return nil
		}
		if err := st.upgrade(ctx, t, n+1); err != nil {
			return err
		}
	}
	st.wait(st.pause, st.upgrades)
	return nil
}

// wait lets the load go on for a while, and until its share before the upgrade after the nth was made.
// It reports whether the load is broken.
func (st *story) wait(d time.Duration, n int) (broken bool) {
	least := st.requests / uint64(st.upgrades) * uint64(n)
	timer := time.NewTimer(d)
	defer timer.Stop()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	stop := st.traffic.broken
	if !st.soak {
		stop = nil // to the end, whatever happens
	}
	for over := false; ; {
		select {
		case <-stop:
			return true
		case <-timer.C:
			over = true
		case <-tick.C:
		}
		if over && st.made() >= least {
			return false
		}
	}
}

// made is how many requests of an application's kind were made.
func (st *story) made() uint64 {
	total, _ := counts(st.traffic.now(), isRequest)
	return total.OK + total.Failures()
}

func (st *story) upgrade(ctx context.Context, t lab.T, n int) error {
	p := st.pod
	c := &change{number: n, old: p.kruise.Working(), new: 1 - p.kruise.Working(), from: p.release(n - 1), to: p.release(n)}
	if !st.soak {
		st.Title("Upgrade %d of %d: Envoy %s in slot %d -> Envoy %s in slot %d", n, st.upgrades, c.from.version, c.old+1, c.to.version, c.new+1)
	}
	st.watcher.begin(c)
	p.kruise.Upgrade(p.image(t, n))
	// A program in the program: an upgrade that does not come about is not the end of the story.
	err := lab.Program(ctx, io.Discard, func(t lab.T) error {
		p.kruise.WaitUpgraded(t)
		return nil
	})
	if err == nil {
		err = st.watcher.end()
	}
	if err != nil {
		return fmt.Errorf("upgrade %d: %w", n, err)
	}
	st.changes = append(st.changes, c)
	if !st.soak {
		st.showEvents(p.kubelet.Log.String())
	}
	return nil
}

// closing ends the load and says what came of it all, and of the upgrades.
func (st *story) closing(began time.Time, upgrades error) error {
	r, err := st.traffic.stop()
	if !st.soak {
		st.Title("4. What came of it")
	}
	st.Print(r.String() + "\n" + upgradeTable(st.changes, st.live, st.soak))
	st.evidence(r)
	requests, queries, probes := sum(r, isRequest), sum(r, isDNS), sum(r, isProbe)
	failed := r.Failures() > 0 || upgrades != nil || err != nil
	err = errors.Join(upgrades, err, st.keepLogs(r, failed))
	what := "demo-upgrade"
	if st.soak {
		what = "soak"
	}
	st.Title("%s: %d upgrades in %v; %d requests, %d failed; %d DNS queries, %d lost; %d probes, %d failed",
		what, len(st.changes), time.Since(began).Round(time.Second), requests.OK+requests.Failures(), requests.Failures(),
		queries.OK+queries.Failures(), queries.Failures(), probes.OK+probes.Failures(), probes.Failures())
	if err == nil && r.Failures() > 0 {
		err = errFailed
	}
	return err
}

func sum(r load.Report, of class) load.Counts {
	total, _ := counts(r, of)
	return total
}
