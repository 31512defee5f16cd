package ecds

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"understudy.mesh/pkg/wasm"
)

// ready says what of the modules a start waits for: those that traffic may not pass without, the others for 5 s, and all that the
// generation before has in force. A pod that was ready once stays so. The caller holds mu.
func (x *Extensions) ready() {
	if len(x.all) == 0 && x.before == nil {
		return
	}
	if x.served {
		x.c.Ready.Done(task)
		return
	}
	waited := time.Since(x.began)
	for _, name := range slices.Sorted(maps.Keys(x.all)) {
		e := x.all[name]
		if e.inForce() {
			continue
		}
		why := fmt.Sprintf("the Wasm module of %s is not in force yet: %s", name, x.why(e))
		switch {
		case x.before[name] && (e.trouble() != "" || x.modules.State(e.filter.Source).Phase == wasm.Failed):
			x.c.Ready.Fail(task, errors.New("what the generation before serves cannot be had here: "+why))
			return
		case x.before[name], !e.filter.Open:
			x.c.Ready.Pending(task, why)
			return
		case waited < patience:
			x.c.Ready.Pending(task, why)
			time.AfterFunc(patience-waited, x.lookAgain)
			return
		}
	}
	x.c.Ready.Done(task)
}

func (x *Extensions) lookAgain() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.ready()
	x.c.Changed() // whoever asks for readiness then asks again
}

// inherited is one extension that the generation before has in force.
type inherited struct {
	Name   string `json:"name"`
	SHA256 string `json:"sha256"`
}

// Export is what is in force, for a successor, whose store is the same.
func (x *Extensions) Export() []byte {
	x.mu.Lock()
	defer x.mu.Unlock()
	all := []inherited{}
	for _, name := range slices.Sorted(maps.Keys(x.all)) {
		if e := x.all[name]; e.good != nil {
			all = append(all, inherited{name, e.good.module.SHA256})
		}
	}
	data, err := json.Marshal(all)
	if err != nil || len(all) == 0 {
		return nil
	}
	return data
}

// Import takes over what Export gave, here or in another release: it is waited for. What cannot be read is none.
func (x *Extensions) Import(data []byte) {
	var all []inherited
	if len(data) == 0 {
		return
	}
	if err := json.Unmarshal(data, &all); err != nil {
		x.c.Log.Warn("which Wasm modules the generation before has in force is not known", "err", err)
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.before = make(map[string]bool, len(all))
	for _, e := range all {
		x.before[e.Name] = true
	}
}
