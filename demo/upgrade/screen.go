package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"understudy.mesh/demo/screen"
	"understudy.mesh/tests/load"
)

// narrator writes the narration, and a line a second of what is measured.
type narrator struct {
	*screen.Screen

	mu     sync.Mutex
	events int // how much of the kubelet's log was shown
}

// showEvents shows what the kubelet and Kruise have done since the last call.
func (n *narrator) showEvents(log string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for line := range strings.Lines(log[n.events:]) {
		n.Faint(strings.TrimRight(line, "\n"))
	}
	n.events = len(log)
}

const (
	headFormat = "%5s  %6s %7s %10s  %6s %5s  %13s  %-20s  %s"
	lineFormat = "%5s  %6.0f %7d %7.0f ms  %6.0f %5d  %13d  %-20s  %s"
)

func (n *narrator) head() {
	n.Strong(fmt.Sprintf(headFormat, "time", "req/s", "failed", "p99", "dns/s", "lost", "failed probes", "serves", ""))
}

// sample is what was measured in one second.
type sample struct {
	at  time.Time
	p99 time.Duration
}

// live shows the traffic every second (in a soak, every minute) until ctx ends, and keeps the samples.
type live struct {
	screen  *narrator
	traffic *traffic
	watcher *watcher
	began   time.Time
	soak    bool // a line a minute, and how far it is

	mu      sync.Mutex
	samples []sample
}

func (l *live) run(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	every := time.Second
	if l.soak {
		every = time.Minute
	}
	var last time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		report := l.traffic.now()
		if report.Time.IsZero() {
			continue // nothing is known yet
		}
		_, interval := counts(report, isRequest)
		l.mu.Lock()
		l.samples = append(l.samples, sample{at: report.Time, p99: interval.Latency.Quantile(0.99)})
		l.mu.Unlock()
		if now := time.Now(); now.Sub(last) > every-time.Second/2 {
			last = now
			l.line(ctx, report)
		}
	}
}

func (l *live) line(ctx context.Context, r load.Report) {
	serves, doing := l.watcher.look(ctx)
	if l.soak {
		doing = fmt.Sprintf("%d upgrades done, %s", l.watcher.finished(), doing)
	} else {
		l.screen.showEvents(l.watcher.pod.kubelet.Log.String())
	}
	requests, lastRequests := counts(r, isRequest)
	queries, lastQueries := counts(r, isDNS)
	probes, _ := counts(r, isProbe)
	elapsed := time.Since(l.began).Round(time.Second)
	l.screen.Say(fmt.Sprintf(lineFormat, clock(elapsed), perSecond(lastRequests, r.Interval), requests.Failures(),
		inMilliseconds(lastRequests.Latency.Quantile(0.99)), perSecond(lastQueries, r.Interval), queries.Failures(), probes.Failures(), serves, doing))
}

func perSecond(c load.Counts, seconds float64) float64 {
	if seconds == 0 {
		return 0
	}
	return float64(c.OK+c.Failures()) / seconds
}

// worst is the largest p99 of the seconds that overlap a span of time.
func (l *live) worst(from, to time.Time) (worst time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.samples {
		if s.at.After(from) && s.at.Add(-time.Second).Before(to) {
			worst = max(worst, s.p99)
		}
	}
	return worst
}

func inMilliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func clock(d time.Duration) string {
	if d >= time.Hour {
		return fmt.Sprintf("%d:%02d:%02d", d/time.Hour, d/time.Minute%60, d/time.Second%60)
	}
	return fmt.Sprintf("%d:%02d", d/time.Minute, d/time.Second%60)
}
