package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"sync"
	"time"

	"understudy.mesh/tests/lab"
)

// Watch is what became of a namespace's pods and endpoints, and when: what a controller or a client of the API sees.
type Watch struct {
	mu        sync.Mutex
	pods      []PodAt
	endpoints []EndpointsAt
	processes []*exec.Cmd
	readers   sync.WaitGroup
}

// PodAt is a pod from a moment on, until the next of its name. Gone is that there is none.
type PodAt struct {
	At   time.Time
	Gone bool
	Pod
}

// EndpointsAt is the endpoints of a Service from a moment on: an EndpointSlice of it, of which a small Service has one.
type EndpointsAt struct {
	At             time.Time
	Service        string
	Ready, Unready []string // addresses
}

// watchEvent is a line of kubectl get --watch --output-watch-events.
type watchEvent struct {
	Type   string
	Object json.RawMessage
}

type endpointSlice struct {
	Metadata struct {
		Labels map[string]string
	}
	Endpoints []struct {
		Addresses  []string
		Conditions struct{ Ready *bool }
	}
}

// Watch follows the namespace's pods and endpoints until the test ends, or the API server does.
func (n *Namespace) Watch(t lab.T) *Watch {
	t.Helper()
	w := &Watch{}
	t.Cleanup(w.stop)
	w.follow(t, n, "pods", w.notePod)
	w.follow(t, n, "endpointslices", w.noteEndpoints)
	return w
}

func (w *Watch) follow(t lab.T, n *Namespace, what string, note func(watchEvent) error) {
	t.Helper()
	cmd, err := n.cluster.enter(context.Background(), []string{"--net"}, n.cluster.kubectlBinary(),
		"--namespace", n.Name, "get", what, "--watch", "--output-watch-events", "--output", "json")
	if err != nil {
		t.Fatalf("%v", err)
	}
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatalf("watch %s: %v", what, err)
	}
	w.processes = append(w.processes, cmd)
	w.readers.Go(func() {
		decoder := json.NewDecoder(stdout)
		for {
			var e watchEvent
			if decoder.Decode(&e) != nil || note(e) != nil {
				break // it was stopped, or the API server was
			}
		}
		_, _ = io.Copy(io.Discard, stdout)
		_ = cmd.Wait()
	})
}

func (w *Watch) stop() {
	for _, cmd := range w.processes {
		_ = cmd.Process.Kill()
	}
	w.readers.Wait()
}

func (w *Watch) notePod(e watchEvent) error {
	var object podObject
	if err := json.Unmarshal(e.Object, &object); err != nil {
		return fmt.Errorf("read a pod: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pods = append(w.pods, PodAt{At: time.Now(), Gone: e.Type == "DELETED", Pod: object.pod()})
	return nil
}

func (w *Watch) noteEndpoints(e watchEvent) error {
	var slice endpointSlice
	if err := json.Unmarshal(e.Object, &slice); err != nil {
		return fmt.Errorf("read endpoints: %w", err)
	}
	at := EndpointsAt{At: time.Now(), Service: slice.Metadata.Labels["kubernetes.io/service-name"]}
	for _, endpoint := range slice.Endpoints {
		if ready := endpoint.Conditions.Ready; e.Type != "DELETED" && (ready == nil || *ready) { // nil: unknown, which means ready
			at.Ready = append(at.Ready, endpoint.Addresses...)
		} else {
			at.Unready = append(at.Unready, endpoint.Addresses...)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.endpoints = append(w.endpoints, at)
	return nil
}

// Pod is what has become of a pod so far, in order.
func (w *Watch) Pod(name string) []PodAt {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(w.pods), func(p PodAt) bool { return p.Name != name })
}

// Endpoints is what has become of a Service's endpoints so far, in order.
func (w *Watch) Endpoints(service string) []EndpointsAt {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(w.endpoints), func(e EndpointsAt) bool { return e.Service != service })
}

// Unready is when a pod was not ready since it was for the first time, as times from when to when; the zero time is now.
func (w *Watch) Unready(pod string) (spans [][2]time.Time) {
	var ready, was bool
	for _, p := range w.Pod(pod) {
		now := p.Ready && !p.Gone
		switch {
		case was && ready && !now:
			spans = append(spans, [2]time.Time{p.At})
		case was && !ready && now:
			spans[len(spans)-1][1] = p.At
		}
		ready, was = now, was || now
	}
	return spans
}
