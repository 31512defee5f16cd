package load

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// A report a second: what a person watches, and what "the second of the switch" is measured in.
	reportEvery = time.Second
	// How late a worker may be before it gives up the requests that it missed: a stall is seen whole,
	// an impossible rate does not pile up.
	maxLate = time.Second
)

// client makes the requests of one worker, one after another.
type client interface {
	// request makes one request; nil when it was answered rightly, in the flow's time.
	request() error
	// finish ends what is open, as agreed with the peer; an error is a stream that was cut.
	finish() error
}

// runner is a run in progress.
type runner struct {
	config  Config
	meters  []*meter // one for each flow
	started time.Time
	left    atomic.Int64 // requests still to be made, when their number is bounded
	stop    context.CancelFunc
}

// Run makes the load until ctx is done, or the configuration's duration or number of requests is
// reached. Requests that are in flight then are finished and counted, streams are ended. It
// calls report every second, from one goroutine, and returns the final report, which report has not
// seen. It fails only for a configuration that is wrong; failed requests are in the report.
func Run(ctx context.Context, c Config, report func(Report)) (Report, error) {
	c, err := c.complete()
	if err != nil {
		return Report{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if c.Duration > 0 {
		ctx, cancel = context.WithTimeout(ctx, time.Duration(c.Duration))
		defer cancel()
	}
	r := &runner{config: c, started: time.Now(), stop: cancel}
	r.left.Store(int64(c.Requests))

	var workers sync.WaitGroup
	for _, f := range c.Flows {
		m := &meter{flow: f.Name}
		r.meters = append(r.meters, m)
		for i, worker := range newClients(f, m) {
			p := newPacer(f, i, r.started)
			workers.Go(func() { r.work(ctx, worker, m, p) })
		}
	}
	done := make(chan struct{})
	go func() { workers.Wait(); close(done) }()

	last := r.started
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	for {
		select {
		case <-done:
			final := r.snapshot(last)
			final.Final = true
			return final, nil
		case <-tick.C:
			current := r.snapshot(last)
			last = current.Time
			report(current)
		}
	}
}

// newClients makes one client for each worker of the flow.
func newClients(f Flow, m *meter) []client {
	e := endpoint{flow: f, meter: m}
	clients := make([]client, f.Workers)
	transports := newTransports(e)
	for i := range clients {
		switch f.Kind {
		case HTTP1New, Probe:
			clients[i] = newHTTP1(e, false)
		case HTTP1Keep:
			clients[i] = newHTTP1(e, true)
		case HTTP2:
			clients[i] = &http2{transport: transports[i%len(transports)]}
		case H2Stream:
			clients[i] = newH2Stream(transports[i%len(transports)], i)
		case TCPStream:
			clients[i] = newTCPStream(e, i)
		case DNSUDP:
			clients[i] = newDNSUDP(e)
		case DNSTCP:
			clients[i] = newDNSTCP(e)
		default:
			panic(fmt.Sprintf("load: kind %q passed its check and has no client", f.Kind))
		}
	}
	return clients
}

// work is one worker. The context only keeps it from beginning another request: what was begun is
// the flow's Timeout's to end.
func (r *runner) work(ctx context.Context, c client, m *meter, p *pacer) {
	for {
		start, skipped, ok := p.wait(ctx)
		if skipped > 0 {
			m.skipped(skipped)
		}
		if !ok || !r.take() {
			break
		}
		m.request(start, c.request())
	}
	start := time.Now()
	if err := c.finish(); err != nil {
		m.request(start, err)
	}
}

// take reports whether one more request may be made; the first that may not ends the run.
func (r *runner) take() bool {
	if r.config.Requests == 0 || r.left.Add(-1) >= 0 {
		return true
	}
	r.stop()
	return false
}

func (r *runner) snapshot(last time.Time) Report {
	now := time.Now()
	report := Report{
		Source: r.config.Source, Time: now, CPU: cpuSeconds(),
		Elapsed: now.Sub(r.started).Seconds(), Interval: now.Sub(last).Seconds(),
	}
	for i, m := range r.meters {
		f := FlowReport{Name: m.flow, Kind: r.config.Flows[i].Kind}
		f.Total, f.Interval, f.Failures = m.snapshot()
		report.Flows = append(report.Flows, f)
	}
	return report
}

// cpuSeconds is what the process has used so far; 0 when the kernel will not say.
func cpuSeconds() float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()).Seconds()
}

// pacer says when a worker's requests are due.
type pacer struct {
	period time.Duration // 0: at once
	due    time.Time
	timer  *time.Timer
}

// newPacer spreads the flow's workers over the period, so that they do not all fire at once.
func newPacer(f Flow, worker int, start time.Time) *pacer {
	p := &pacer{due: start}
	if f.Rate > 0 {
		p.period = time.Duration(float64(f.Workers) / f.Rate * float64(time.Second))
		p.due = start.Add(time.Duration(float64(worker) / f.Rate * float64(time.Second)))
		p.timer = time.NewTimer(time.Until(p.due))
	}
	return p
}

// wait returns when the next request is due, with the time that its latency counts from: when it was
// due, if the request before it took longer than that, so that a stall is not hidden by
// the requests that it kept from being made ("coordinated omission"); else now, so that the
// timer's own lateness (up to 1 ms) is not counted. ok is false when ctx is done.
func (p *pacer) wait(ctx context.Context) (start time.Time, skipped uint64, ok bool) {
	now := time.Now()
	if p.period == 0 {
		return now, 0, ctx.Err() == nil
	}
	if late := now.Sub(p.due); late > maxLate {
		skipped = uint64(late / p.period)
		p.due = p.due.Add(time.Duration(skipped) * p.period)
	}
	start = p.due
	p.due = p.due.Add(p.period)
	if !start.After(now) {
		return start, skipped, ctx.Err() == nil
	}
	p.timer.Reset(start.Sub(now))
	select {
	case <-ctx.Done():
		return start, skipped, false
	case <-p.timer.C:
		return time.Now(), skipped, true
	}
}
