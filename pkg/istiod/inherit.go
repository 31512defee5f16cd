package istiod

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync/atomic"
	"time"

	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/pkg/ecds"
	"understudy.mesh/pkg/publish"
	"understudy.mesh/pkg/xds"
)

// Components of what a generation tells its successor. A released name keeps its meaning: another form of the same thing gets
// another name.
const (
	// StateResources is a file, which xds.Relay.Export writes.
	StateResources = "xds"
	// stateNames is what marshalNames writes.
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
	if hosts := i.names.answered(); hosts != nil {
		state[stateNames] = marshalNames(*hosts)
		i.names.names.Beside(*hosts, limit)
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
	hosts, err := unmarshalNames(b)
	if err != nil {
		i.log.Warn("the names of the generation before are not taken over", "err", err)
		return nil
	}
	return hosts
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

// named is a host as a successor is told of it.
type named struct {
	Name      string       `json:"name"`
	Addrs     []netip.Addr `json:"addrs,omitempty"`
	VIP       bool         `json:"vip,omitempty"`
	Forwarded bool         `json:"forwarded,omitempty"`
}

// marshalNames is a list of these in JSON. There are ten thousand of them, which the encoder of the standard library is slow for.
func marshalNames(hosts []table.Host) []byte {
	b := append(make([]byte, 0, 2+96*len(hosts)), '[')
	for k, h := range hosts {
		if k > 0 {
			b = append(b, ',')
		}
		b = appendString(append(b, `{"name":`...), h.Name)
		for i, addr := range h.Addrs {
			text, _ := addr.MarshalText() // it cannot fail; "" is of none, as String is not
			b = appendString(append(b, [...]string{`,"addrs":[`, `,`}[min(i, 1)]...), string(text))
		}
		if len(h.Addrs) > 0 {
			b = append(b, ']')
		}
		if h.VIP {
			b = append(b, `,"vip":true`...)
		}
		if h.Forwarded {
			b = append(b, `,"forwarded":true`...)
		}
		b = append(b, '}')
	}
	return append(b, ']')
}

// appendString appends a string in JSON.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			quoted, err := json.Marshal(s)
			if err != nil {
				return append(b, `""`...) // it cannot fail
			}
			return append(b, quoted...)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}

// unmarshalNames reads what marshalNames wrote, here or in another release.
func unmarshalNames(b []byte) ([]table.Host, error) {
	var list []named
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("read the names of the generation before: %w", err)
	}
	seen := make(map[string]bool, len(list))
	hosts := make([]table.Host, len(list))
	for k, h := range list {
		if h.Name == "" || seen[h.Name] || (len(h.Addrs) == 0) != h.Forwarded {
			return nil, fmt.Errorf("read the names of the generation before: host %q: %w", h.Name, errHost)
		}
		seen[h.Name] = true
		hosts[k] = table.Host(h)
	}
	return hosts, nil
}

// errHost says that a host is not what it ought to be.
var errHost = errors.New("without a name, twice, or without an address and not forwarded")
