package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"sync"
	"time"

	"understudy.mesh/tests/lab"
)

// What an agent logs at the moments that count.
const (
	logStarting = `info\tagent\tstarting`
	logServing  = `info\tagent\tserving; the generation before has let go`
	logStopped  = `info\tagent\tstopped`
)

// lookTimeout bounds a question to an agent: one that is being stopped need not answer.
const lookTimeout = 5 * time.Second

// change is one upgrade, and when its parts happened.
type change struct {
	number   int
	old, new int // slots
	from, to release

	asked           time.Time // the image was changed
	oldLog, newLog  int       // positions in the slots' logs at that time
	started, serves time.Time // the new agent
	stopped         time.Time // the old one
}

// watcher knows what goes on in the pod.
type watcher struct {
	pod *pod

	mu      sync.Mutex
	serving int     // slot
	release release // of its Envoy
	current *change // nil: none
	done    int     // upgrades
}

func (w *watcher) finished() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.done
}

// begin notes that an upgrade is asked for.
func (w *watcher) begin(c *change) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c.asked = time.Now()
	c.oldLog, c.newLog = w.pod.slots.List[c.old].Log.Len(), w.pod.slots.List[c.new].Log.Len()
	w.current = c
}

// end notes that it is done, and reads when its parts happened.
func (w *watcher) end() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.current
	w.current = nil
	list := w.pod.slots.List
	var errs [3]error
	c.started, errs[0] = timeOf(list[c.new].Log.String()[c.newLog:], logStarting)
	c.serves, errs[1] = timeOf(list[c.new].Log.String()[c.newLog:], logServing)
	c.stopped, errs[2] = timeOf(list[c.old].Log.String()[c.oldLog:], logStopped)
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	w.serving, w.release, w.done = c.new, c.to, c.number
	return nil
}

// timeOf finds the time of the first line of an agent's log that the pattern matches.
func timeOf(log, pattern string) (time.Time, error) {
	found := regexp.MustCompile(`(?m)^(\S+)\t` + pattern).FindStringSubmatch(log)
	if found == nil {
		return time.Time{}, fmt.Errorf("the agent has not logged %q", pattern)
	}
	return time.Parse(time.RFC3339Nano, found[1])
}

// look says who serves, and what goes on.
func (w *watcher) look(ctx context.Context) (serves, doing string) {
	w.mu.Lock()
	c, slot, envoy := w.current, w.serving, w.release
	w.mu.Unlock()
	if c == nil {
		return name(slot, envoy), "steady"
	}
	newcomer := w.pod.slots.List[c.new]
	if _, err := timeOf(newcomer.Log.String()[c.newLog:], logServing); err == nil {
		return name(c.new, c.to), w.afterwards(ctx, c)
	}
	if _, err := timeOf(newcomer.Log.String()[c.newLog:], logStarting); err == nil {
		return name(slot, envoy), fmt.Sprintf("slot %d takes over", c.new+1)
	}
	return name(slot, envoy), fmt.Sprintf("slot %d gets its container", c.new+1)
}

func name(slot int, r release) string { return fmt.Sprintf("slot %d, Envoy %s", slot+1, r.version) }

// generations is as much as we read of `pilot-agent upgrade-status -o json`.
type generations struct {
	Generations []struct {
		Self        bool   `json:"self"`
		Role        string `json:"role"`
		Connections int    `json:"connections"`
	} `json:"generations"`
}

// afterwards says what becomes of the old generation.
func (w *watcher) afterwards(ctx context.Context, c *change) string {
	status, _ := w.pod.kubelet.Status()
	if status[c.old].Image != imageName(c.number-1) {
		return fmt.Sprintf("slot %d has the standby", c.old+1)
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	got, err := w.pod.slots.List[c.new].Exec(ctx, lab.AgentPath, "upgrade-status", "-o", "json")
	var all generations
	if err == nil {
		err = json.Unmarshal([]byte(got.Stdout), &all)
	}
	if err != nil {
		return "?"
	}
	for _, g := range all.Generations {
		switch {
		case g.Self:
		case g.Role == "draining" && g.Connections == 0: // not counted yet, or about to end
			return fmt.Sprintf("slot %d drains", c.old+1)
		case g.Role == "draining":
			return fmt.Sprintf("slot %d drains, %d connections left", c.old+1, g.Connections)
		case g.Role == "handing-off":
			return fmt.Sprintf("slot %d has let go, and could come back", c.old+1)
		case g.Role != "":
			return fmt.Sprintf("slot %d: %s", c.old+1, g.Role)
		}
	}
	return fmt.Sprintf("slot %d has drained", c.old+1)
}
