package ecds

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"understudy.mesh/pkg/wasm"
	"understudy.mesh/pkg/xds"
)

// ready says what of the modules a start waits for: those that traffic may not pass without, the others for 5 s, and all that the
// generation before has in force, but none that it lacks as well. A pod that was ready once stays so. The caller holds mu.
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
		if e.inForce() || x.lacking[name] {
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

// Component is the name of what Export gives in a hand-off, under either control plane.
const Component = "wasm"

// inherited is one extension of the generation before.
type inherited struct {
	Name   string `json:"name"`
	SHA256 string `json:"sha256,omitempty"` // of the module that is in force; "": what stands in its place is
	Digest string `json:"digest,omitempty"`
	Size   int64  `json:"size,omitempty"`
	// Wanted is the configuration as a control plane has sent it that may not be there to send it again: a google.protobuf.Any in bytes, which may
	// have a pull secret in it; nil: whoever wants it says so.
	Wanted []byte `json:"wanted,omitempty"`
}

// Export is what is in force, for a successor, which has the modules from the store.
func (x *Extensions) Export() []byte { return x.export(false) }

// export adds what is wanted.
func (x *Extensions) export(wanted bool) []byte {
	x.mu.Lock()
	defer x.mu.Unlock()
	all := []inherited{}
	for _, name := range slices.Sorted(maps.Keys(x.all)) {
		e, i := x.all[name], inherited{Name: name}
		if wanted {
			i.Wanted, _ = proto.Marshal(e.Config) // it was read from such bytes
		}
		if v := e.good; v != nil {
			i.SHA256, i.Digest, i.Size = v.module.SHA256, v.module.Digest, v.module.Size
		}
		all = append(all, i)
	}
	data, err := json.Marshal(all)
	if err != nil || len(all) == 0 {
		return nil
	}
	return data
}

// Import takes over what Export gave, here or in another release, and the resources that the Envoy of the generation before runs: what is in
// force there is waited for, and serves on until the module is there that is wanted. What cannot be read is none.
func (x *Extensions) Import(data []byte, running []xds.Resource) { x.inherit(data, running) }

// inherit returns what was read.
func (x *Extensions) inherit(data []byte, running []xds.Resource) []inherited {
	var all []inherited
	if len(data) > 0 {
		if err := json.Unmarshal(data, &all); err != nil {
			x.c.Log.Warn("which Wasm modules the generation before has in force is not known", "err", err)
			all = nil
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	modules := make(map[string]wasm.Module, len(all))
	if all != nil {
		x.before, x.lacking = make(map[string]bool, len(all)), map[string]bool{}
	}
	for _, i := range all {
		if i.SHA256 == "" {
			x.lacking[i.Name] = true
			continue
		}
		x.before[i.Name] = true
		modules[i.Name] = wasm.Module{SHA256: i.SHA256, Digest: i.Digest, Size: i.Size}
	}
	x.theirs = make(map[string]*version, len(running))
	for _, m := range running {
		if e, is := read(m); is { // else it may be a placeholder
			x.theirs[m.Name] = &version{Resource: m, of: e.Config, module: modules[m.Name], made: time.Now()}
		}
	}
	return all
}
