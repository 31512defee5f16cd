package cluster

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"sync"
	"time"

	"understudy.mesh/tests/cluster/internal/node"
	"understudy.mesh/tests/lab"
	"understudy.mesh/tests/load"
)

// Where is where a load comes from.
type Where struct {
	pod, container string
}

// FromNode is the node itself: what is outside of every pod.
func FromNode() Where { return Where{} }

// FromPod is a container of a pod, whose image must have the program of load (those of the cluster's applications have):
// its network, its files, resolv.conf among them, and root as the user, which capture takes like any application.
func FromPod(pod, container string) Where { return Where{pod, container} }

// Load is traffic that goes on until Stop.
type Load struct {
	process *exec.Cmd
	said    bytes.Buffer // on standard error
	done    chan struct{}

	mu   sync.Mutex
	last load.Report
	err  error
	// stopped is that Stop was there.
	stopped bool
}

// loadEnds is how long a load may take to end, with the requests that it is at work on.
const loadEnds = time.Minute

// patience is how long a request may take, unless its flow says otherwise: longer than a busy machine may stand still, and shorter
// than what is lost.
const patience = load.Duration(20 * time.Second)

// Load starts flows of traffic. They end with Stop, or with the test.
func (n *Namespace) Load(t lab.T, from Where, flows ...load.Flow) *Load {
	t.Helper()
	flows = slices.Clone(flows)
	for i := range flows {
		flows[i].Timeout = cmp.Or(flows[i].Timeout, patience)
	}
	config, err := json.Marshal(load.Config{Flows: flows})
	if err != nil {
		t.Fatalf("write the load's configuration: %v", err)
	}
	pid, program := 0, "/usr/local/bin/"+loader
	if from.pod == "" {
		program = node.BinDir + "/" + loader
		if pid, err = n.cluster.pid(); err != nil {
			t.Fatalf("%v", err)
		}
	} else {
		pid = n.Process(t, from.pod, from.container)
	}
	// Not the process namespace: a signal then reaches it.
	l := &Load{process: enter(context.Background(), pid, []string{"--net", "--mount"}, os.Environ(), program, "-config", "-"), done: make(chan struct{})}
	l.process.Stdin, l.process.Stderr = bytes.NewReader(config), &l.said
	stdout, err := l.process.StdoutPipe()
	if err == nil {
		err = l.process.Start()
	}
	if err != nil {
		t.Fatalf("start the load: %v", err)
	}
	t.Cleanup(func() { _, _ = l.end() })
	go func() {
		defer close(l.done)
		for report, err := range load.Follow(stdout) {
			l.mu.Lock()
			if err != nil {
				l.err = err
			} else {
				l.last = report
			}
			l.mu.Unlock()
		}
		_ = l.process.Wait() // its exit status says whether requests failed, as the last report does
	}()
	lab.Eventually(t, callLimit, "the load begins", func() error {
		select {
		case <-l.done:
			return fmt.Errorf("it has ended: %s", l.said.Bytes())
		default:
		}
		if l.Report().Time.IsZero() {
			return fmt.Errorf("no report yet")
		}
		return nil
	})
	return l
}

// Report is what the load has counted, a second ago at most.
func (l *Load) Report() load.Report {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

// Await returns when each flow has so many more answers than it has now.
func (l *Load) Await(t lab.T, limit time.Duration, n uint64) {
	t.Helper()
	before := l.Report()
	lab.Eventually(t, limit, fmt.Sprintf("%d more requests of each flow", n), func() error {
		report := l.Report()
		for _, flow := range report.Flows {
			if done := flow.Total.OK - before.Flow(flow.Name).Total.OK; done < n {
				return fmt.Errorf("%d so far; the load:\n%v", done, report)
			}
		}
		return nil
	})
}

// Stop ends the load and returns what it has counted in all.
func (l *Load) Stop(t lab.T) load.Report {
	t.Helper()
	report, err := l.end()
	if err != nil {
		t.Fatalf("stop the load: %v", err)
	}
	return report
}

func (l *Load) end() (load.Report, error) {
	l.mu.Lock()
	stopped := l.stopped
	l.stopped = true
	l.mu.Unlock()
	if !stopped {
		_ = l.process.Process.Signal(os.Interrupt)
	}
	select {
	case <-l.done:
	case <-time.After(loadEnds):
		_ = l.process.Process.Kill()
		<-l.done
		return l.Report(), fmt.Errorf("it did not end within %v: %s", loadEnds, l.said.Bytes())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil || !l.last.Final {
		return l.last, errors.Join(l.err, fmt.Errorf("no last report: %s", l.said.Bytes()))
	}
	return l.last, nil
}
