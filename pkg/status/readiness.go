package status

import (
	"cmp"
	"slices"
	"strings"
	"sync"
)

// Readiness owns the answer to "may traffic be sent to this pod?": a set of
// named tasks, each of which must be done. It says no while nothing has been
// registered yet, so the zero value is usable and not ready. All methods are
// safe for concurrent use.
type Readiness struct {
	mu    sync.Mutex
	tasks map[string]task
	off   string // why this agent takes no more traffic; "" while it may
}

// task is what is known of one task; a done one stays in the map, for it is
// what tells "everything is done" from "nothing was ever registered".
type task struct {
	reason string
	done   bool
	failed bool
}

// Pending is one thing that readiness waits for, or that keeps it off.
type Pending struct {
	Task   string // the name given to [Readiness.Pending], or "drain"
	Reason string // what it waits for, or why it failed
	failed bool   // it will not go away by waiting
}

// State is waiting, failed or off.
func (p Pending) State() string {
	switch {
	case p.Task == drainTask:
		return "off"
	case p.failed:
		return "failed"
	}
	return "waiting"
}

// String is the line of /healthz/ready.
func (p Pending) String() string {
	return p.Task + ": " + p.State() + ": " + strings.Join(strings.Fields(p.Reason), " ")
}

// drainTask names the entry that [Readiness.Off] makes in the list.
const drainTask = "drain"

// Pending registers the task, or says something new about it. A task that was
// done is pending again: what was ready once need not stay so.
func (r *Readiness) Pending(name, reason string) {
	r.set(name, task{reason: reason})
}

// Done finishes a task. One that was never registered counts as registered
// and done.
func (r *Readiness) Done(name string) {
	r.set(name, task{done: true})
}

// Fail marks a task as one that failed, with the cause; Pending or Done on the
// same name take that back.
func (r *Readiness) Fail(name string, cause error) {
	r.set(name, task{reason: cause.Error(), failed: true})
}

// Off makes the agent not ready whatever its tasks say, because it drains.
// The reason is what the body of /healthz/ready then says.
func (r *Readiness) Off(reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.off = cmp.Or(reason, "draining")
}

// On takes Off back: a generation whose successor died serves again.
func (r *Readiness) On() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.off = ""
}

// Check reports whether everything is done and, if not, what is not, sorted
// by name.
func (r *Readiness) Check() (ready bool, pending []Pending) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, t := range r.tasks {
		if !t.done {
			pending = append(pending, Pending{Task: name, Reason: t.reason, failed: t.failed})
		}
	}
	slices.SortFunc(pending, func(a, b Pending) int { return cmp.Compare(a.Task, b.Task) })
	if r.off != "" {
		pending = slices.Insert(pending, 0, Pending{Task: drainTask, Reason: r.off, failed: true})
	}
	if len(r.tasks) == 0 && r.off == "" {
		pending = append(pending, Pending{Task: "start", Reason: "the agent has not said yet what it waits for"})
	}
	return len(pending) == 0, pending
}

// Finished lists the tasks that are done, sorted by name.
func (r *Readiness) Finished() (done []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, t := range r.tasks {
		if t.done {
			done = append(done, name)
		}
	}
	slices.Sort(done)
	return done
}

func (r *Readiness) set(name string, t task) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tasks == nil {
		r.tasks = make(map[string]task)
	}
	r.tasks[name] = t
}
