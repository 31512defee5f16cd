// Package restart owns the way of a namespace's workloads to new pods: which of them have pods that differ from what they would get now, how
// each kind gets new ones, and whether these come.
package restart

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"understudy.mesh/cmd/sidecar-injector/internal/cluster"
)

// Options say what is restarted, and how fast.
type Options struct {
	All       bool          // also what does not differ
	DryRun    bool          // only say what would be
	Workloads int           // how many at a time
	Timeout   time.Duration // how long nothing may go on with one
	Live      bool          // the output is a terminal
	// Stop is closed when nothing new is to be started. What is under way is watched to its end, or to that of the context.
	Stop <-chan struct{}

	every time.Duration // between two looks; 0: lookEvery
}

// Run restarts the workloads of a namespace whose pods differ, and says of each on one line what became of it. An error names those whose pods
// go on to differ.
func Run(ctx context.Context, c *cluster.Cluster, s Settings, o Options, out io.Writer) error {
	plans, same, err := s.plans(ctx, c, o.All)
	if err != nil {
		return err
	}
	run := &run{Options: o, cluster: c, settings: s, screen: &screen{out: out, live: o.Live, total: len(plans)}}
	if o.DryRun {
		run.announce(plans)
	} else {
		run.all(ctx, plans)
	}
	if same > 0 {
		run.screen.line("%s: nothing to do", count(same, "workload"))
	}
	return run.failure()
}

func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// run is one run of the command.
type run struct {
	Options
	cluster  *cluster.Cluster
	settings Settings
	screen   *screen

	mu      sync.Mutex
	stuck   bool     // a workload's new pods do not come
	differs []string // workloads whose pods go on to differ
	left    []string // workloads that were not begun
}

// announce says what would be done.
func (r *run) announce(plans []*plan) {
	for _, p := range plans {
		if p.skip != "" {
			r.screen.line("%s", p.untouched())
			continue
		}
		r.screen.line("%s: would be restarted, by %s: %s", p.owner, p.way, p.why())
	}
}

// why is what differs, in how many pods.
func (p *plan) why() string {
	if p.stale == 0 {
		return p.reason
	}
	return fmt.Sprintf("%d of %s: %s", p.stale, count(len(p.owner.Pods), "pod"), p.reason)
}

// untouched says why a workload is left alone.
func (p *plan) untouched() string {
	if p.reason == "" {
		return fmt.Sprintf("%s: left as it is: %s", p.owner, p.skip)
	}
	return fmt.Sprintf("%s: left as it is: %s (%s)", p.owner, p.skip, p.why())
}

// all restarts the workloads, some at a time.
func (r *run) all(ctx context.Context, plans []*plan) {
	places := make(chan struct{}, r.Workloads)
	var group sync.WaitGroup
	for _, p := range plans {
		if p.skip != "" {
			r.screen.line("%s", p.untouched())
			r.differ(p)
			continue
		}
		select {
		case <-r.Stop:
		case places <- struct{}{}:
		}
		if r.stopping() {
			r.mu.Lock()
			r.left = append(r.left, p.owner.String())
			r.mu.Unlock()
			continue
		}
		group.Go(func() {
			defer func() { <-places }()
			r.one(ctx, p)
		})
	}
	group.Wait()
	r.screen.end()
}

// stopping reports whether nothing new is to be started.
func (r *run) stopping() bool {
	select {
	case <-r.Stop:
		return true
	default:
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stuck
}

// one restarts one workload.
func (r *run) one(ctx context.Context, p *plan) {
	name := p.owner.String()
	began := time.Now()
	w := &roll{plan: p, cluster: r.cluster, settings: r.settings, timeout: r.Timeout, every: cmp.Or(r.every, lookEvery), stopping: r.stopping,
		say: func(text string) { r.screen.say(name, text) }}
	pods, why := len(p.old), p.why()
	err := w.run(ctx)
	r.screen.done(name)
	switch {
	case err == nil && p.keep > 0:
		r.screen.line("%s: restarted but for %s, which %s keeps (%s)", name, count(p.keep, "pod"), p.keeps, why)
		r.differ(p)
	case err == nil:
		r.screen.line("%s: restarted, %s in %s (%s)", name, count(pods, "pod"), time.Since(began).Round(time.Second), why)
	default:
		r.screen.line("%s: %v", name, err)
		r.differ(p)
		r.mu.Lock()
		r.stuck = r.stuck || errors.As(err, new(stuckError))
		r.mu.Unlock()
	}
}

// differ notes that a workload's pods go on to differ.
func (r *run) differ(p *plan) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.differs = append(r.differs, p.owner.String())
}

// failure is an error if not all pods are as they would be.
func (r *run) failure() error {
	var parts []string
	if len(r.differs) > 0 {
		parts = append(parts, "not restarted: "+strings.Join(r.differs, ", "))
	}
	if len(r.left) > 0 {
		why := "interrupted"
		if r.stuck {
			why = "since new pods do not come"
		}
		parts = append(parts, fmt.Sprintf("not begun, %s: %s", why, strings.Join(r.left, ", ")))
	}
	if len(parts) == 0 {
		return nil
	}
	return errors.New(strings.Join(parts, "; ") + "; run it again to go on")
}
