package istiod

import (
	"encoding/json"
	"io"
	"sync/atomic"
	"time"

	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/pkg/ecds"
	"understudy.mesh/pkg/istiod/internal/hosts"
	"understudy.mesh/pkg/publish"
	"understudy.mesh/pkg/xds"
)

// Components of what a generation tells its successor. A released name keeps its meaning: another form of the same thing gets
// another name.
const (
	// StateResources is a file, which xds.Relay.Export writes.
	StateResources = "xds"
	// stateNames is what hosts.Marshal writes.
	stateNames = "names"
	// stateHealth is a health in JSON.
	stateHealth = "health"
	// stateExtensions is a list in JSON: the types of the extensions by which Envoy has taken what it has.
	stateExtensions = "extensions"
	// StateChanges is a list of xds.Change in JSON.
	StateChanges = "changes"
)

// health is how the stream of the generation before is.
type health struct {
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since"` // of Connected
}

// before is what a newcomer has from the generation before.
type before struct {
	resources bool // its Envoy starts with that one's
	connected bool // that one's stream to istiod is open
	// extensions are those that its Envoy needs for what it has taken, by type.
	extensions []string
	served     atomic.Bool // this generation serves: what it lacks is nobody else's to serve
}

// Export is what a successor is told as it arrives.
func (i *Istiod) Export() map[string][]byte {
	state := make(map[string][]byte)
	now := i.now()
	if b, err := json.Marshal(health{now.Connected, now.Since}); err == nil { // it cannot fail
		state[stateHealth] = b
	}
	for component, list := range map[string]any{stateExtensions: i.inForce(), StateChanges: i.c.Relay.Changes()} {
		if b, err := json.Marshal(list); err == nil { // it cannot fail
			state[component] = b
		}
	}
	if modules := i.c.Modules.Export(); modules != nil {
		state[ecds.Component] = modules
	}
	i.exportNames(state, publish.HoldLimit)
	return state
}

// exportNames adds the names that DNS answers. The successor's Envoy accepts connections as soon as it is warm: for as long as limit,
// or until Alone, a name that is new waits if only Envoy knows its address.
func (i *Istiod) exportNames(state map[string][]byte, limit time.Duration) {
	if answered := i.names.answered(); answered != nil {
		state[stateNames] = hosts.Marshal(*answered)
		i.names.names.Beside(*answered, limit)
	}
}

// ExportFiles are the resources, for a successor that knows them.
func (i *Istiod) ExportFiles() map[string]func(io.Writer) error {
	return map[string]func(io.Writer) error{StateResources: func(w io.Writer) error {
		_, err := i.c.Relay.Export(w)
		return err
	}}
}

// ExportLast is what a successor is told as this generation lets go: by then it has a stream of its own, but it gives the names that
// come from now on.
func (i *Istiod) ExportLast() map[string][]byte {
	state := make(map[string][]byte)
	i.exportNames(state, 0)
	return state
}

// Import takes over what the generation before exported: Envoy starts with the resources that it had last, and what istiod says
// then is a change of these. What cannot be read is left out; istiod says it as well. It must be called before Publish.
func (i *Istiod) Import(state map[string][]byte, open func(component string) io.Reader) {
	from := open(StateResources)
	if from == nil {
		return // names without their routes lead nowhere
	}
	if err := i.c.Relay.Import(from); err != nil {
		i.log.Warn("Envoy starts without them", "err", err)
		return
	}
	var changes []xds.Change
	i.before.resources = true
	i.loop.heard()
	if b, ok := state[stateHealth]; ok {
		var h health
		if err := json.Unmarshal(b, &h); err != nil {
			i.log.Warn("how the stream of the generation before is, is not known", "err", err)
		} else if i.before.connected = h.Connected; !h.Connected && !h.Since.IsZero() {
			i.show(func(s *shown) { s.Since = h.Since })
		}
	}
	for component, list := range map[string]any{stateExtensions: &i.before.extensions, StateChanges: &changes} {
		if b, ok := state[component]; ok {
			if err := json.Unmarshal(b, list); err != nil {
				i.log.Warn("what the generation before tells is left out", "component", component, "err", err)
			}
		}
	}
	i.c.Relay.Inherit(changes)
	i.c.Modules.Import(state[ecds.Component], i.c.Relay.Held(extensionsType))
	if hosts := i.importNames(state); hosts != nil {
		i.names.want(hosts)
		i.names.names.Beside(hosts, 0)
	}
}

// importNames are the hosts that the generation before answered; nil: it does not say, or nobody wants to know.
func (i *Istiod) importNames(state map[string][]byte) []table.Host {
	b, ok := state[stateNames]
	if !ok || i.names == nil {
		return nil
	}
	answered, err := hosts.Unmarshal(b)
	if err != nil {
		i.log.Warn("the names of the generation before are not taken over", "err", err)
		return nil
	}
	return answered
}

// ImportLast takes over which names the generation before answered up to the moment at which it let go: until Alone its Envoy
// accepts as well. A release that does not say has some that are newer than what it said as this one arrived.
func (i *Istiod) ImportLast(state map[string][]byte) {
	if hosts := i.importNames(state); hosts != nil {
		i.names.names.Beside(hosts, 0)
		return
	}
	i.Alone()
}

// Alone says that no Envoy of another generation accepts: names wait for none any more.
func (i *Istiod) Alone() {
	if i.names != nil {
		i.names.names.Alone()
	}
}

// Served says that this generation has begun to serve: what Envoy does not ask for by then it does not need.
func (i *Istiod) Served() {
	i.before.served.Store(true)
	i.c.Modules.Served()
	i.c.Relay.Forget()
}

// newcomer says whether the generation before still serves, and had better go on if this one cannot do the same.
func (i *Istiod) newcomer() bool { return i.before.resources && !i.before.served.Load() }

// giveUp has a newcomer not take over.
func (i *Istiod) giveUp(err error) {
	select {
	case i.unfit <- err:
	default: // an earlier one counts
	}
}
