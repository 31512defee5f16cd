package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"understudy.mesh/tests/lab"
	"understudy.mesh/tests/load"
)

// generate makes the load whose configuration in is, until ctx ends, and writes a report a second.
func generate(ctx context.Context, in io.Reader, out io.Writer) error {
	c, err := load.ReadConfig(in)
	if err != nil {
		return err
	}
	lines := json.NewEncoder(out)
	final, err := load.Run(ctx, c, func(r load.Report) { _ = lines.Encode(r) })
	if err != nil {
		return err
	}
	return lines.Encode(final)
}

// clients are a load from outside the pod, in a process of its own.
type clients struct {
	stop func() load.Report // ends it, and returns all that it counted

	mu      sync.Mutex
	reports []load.Report // a second each
}

// startClients begins a load.
func startClients(t lab.T, n *lab.Namespace, c load.Config) *clients {
	self, err := os.Executable()
	if err != nil {
		t.Fatalf("find this program: %v", err)
	}
	config, err := json.Marshal(c)
	if err != nil {
		t.Fatalf("encode the load's configuration: %v", err)
	}
	cmd := n.Command(context.Background(), self, "-load")
	cmd.Stdin, cmd.Stderr = bytes.NewReader(config), os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatalf("start the load: %v", err)
	}
	made, read := &clients{}, make(chan error, 1)
	go func() { read <- made.follow(out) }()
	var final load.Report
	made.stop = sync.OnceValue(func() load.Report {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := <-read; err != nil {
			t.Logf("the load's reports: %v", err)
		}
		_ = cmd.Wait()
		made.mu.Lock()
		defer made.mu.Unlock()
		if n := len(made.reports); n > 0 && made.reports[n-1].Final {
			final = made.reports[n-1]
			made.reports = made.reports[:n-1]
		}
		return final
	})
	t.Cleanup(func() { made.stop() })
	return made
}

func (c *clients) follow(out io.Reader) error {
	for r, err := range load.Follow(out) {
		if err != nil {
			return err
		}
		c.mu.Lock()
		c.reports = append(c.reports, r)
		c.mu.Unlock()
	}
	return nil
}

// during returns the p99 in milliseconds of every second that has a part in the time from begin to
// end; to be called when the load was stopped.
func (c *clients) during(begin, end time.Time) (p99 []float64) {
	for _, r := range c.reports {
		if from := r.Time.Add(-time.Duration(r.Interval * float64(time.Second))); from.Before(end) && r.Time.After(begin) {
			p99 = append(p99, milliseconds(r.Last().Latency.Quantile(0.99)))
		}
	}
	return p99
}
