package xds

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"understudy.mesh/pkg/xds/internal/body"
	"understudy.mesh/pkg/xds/internal/records"
)

// Export writes what Envoy has taken, for the relay of the next generation, but for some types. What Envoy refuses, or has not
// answered for, is not in it. It says what is where.
func (r *Relay) Export(w io.Writer, without ...string) (Exported, error) {
	out, from := records.NewWriter(w), body.Reader{}
	var e Exported
	for _, t := range r.taken(without) {
		out.Type(t.url)
		for i, k := range t.resources {
			content, err := k.read(&from)
			if err != nil {
				return Exported{}, fmt.Errorf("read %s %q again: %w", kindOf(t.url), k.name, err)
			}
			t.places[i] = uint32(out.Resource(k.name, content))
		}
		for _, name := range t.absent {
			out.Absent(name)
		}
		e.types = append(e.types, t)
	}
	if err := out.Flush(); err != nil {
		return Exported{}, fmt.Errorf("write the resources of istiod: %w", err)
	}
	return e, nil
}

// Taken passes to do the body of each resource that Envoy has taken, which does not change any more.
func (r *Relay) Taken(do func(body []byte)) {
	for _, t := range r.taken(nil) {
		for _, k := range t.resources {
			if loaded, err := k.load(t.url); err == nil { // else it is no longer, either
				do(loaded.body())
			}
		}
	}
}

// EachName calls do with the name of each resource of a type that Envoy has taken. The relay waits meanwhile.
func (r *Relay) EachName(url string, do func(name string)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l := r.ledgers[url]; l != nil {
		for name, e := range l.held {
			if e.taken != nil {
				do(name)
			}
		}
	}
}

// Held are the resources of a type that Envoy has taken, or that Import has for it to take.
func (r *Relay) Held(url string) (all []Resource) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l := r.ledgers[url]; l != nil {
		for name, e := range l.held {
			if loaded, err := e.taken.load(url); err == nil { // else Envoy gets it no more
				all = append(all, NewResource(name, loaded.body()))
			}
		}
	}
	return all
}

// Exported is what Export has written.
type Exported struct{ types []exported }

// exported is one type of resources.
type exported struct {
	url       string
	resources []*kept
	places    []uint32 // of their bodies
	absent    []string
}

// Release has the relay read the bodies of what it has exported from a file when it needs them again, and keep them in memory no
// longer. What Export has written begins there at a place. Nothing of the file may change, which closes itself. It returns how many
// bytes that were.
func (r *Relay) Release(e Exported, file *os.File, begin int64) (bytes int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range e.types {
		l := r.ledgers[t.url]
		for i, k := range t.resources {
			have, held := l.held[k.name]
			if !held || have.taken != k {
				continue // another one by now
			}
			released := k.in(file, uint32(begin)+t.places[i])
			if have.newest == have.taken {
				have.newest = released
			}
			have.taken = released
			l.held[k.name] = have
			bytes += len(k.raw)
		}
	}
	return bytes
}

// taken is what Envoy has taken, in the order in which it lies in a file.
func (r *Relay) taken(without []string) (all []exported) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, url := range slices.Sorted(maps.Keys(r.ledgers)) {
		l := r.ledgers[url]
		if !l.complete || !l.wanted() || slices.Contains(without, url) {
			continue
		}
		t := exported{url: url, absent: slices.Collect(maps.Keys(l.absent)), resources: make([]*kept, 0, len(l.held))}
		for _, e := range l.held {
			if e.taken != nil {
				t.resources = append(t.resources, e.taken)
			}
		}
		slices.SortFunc(t.resources, func(a, b *kept) int { return cmp.Compare(a.at, b.at) })
		t.places = make([]uint32, len(t.resources))
		all = append(all, t)
	}
	return all
}

// Import takes over what the relay of the generation before has exported: Envoy is served from it, and the first responses of
// the upstream are compared with it. Of a type for which the upstream has answered it takes nothing, and with an error nothing
// at all.
func (r *Relay) Import(from io.Reader) error {
	ledgers := make(map[string]*ledger)
	for record, err := range records.Read(from) {
		if err != nil {
			return fmt.Errorf("read the resources of the generation before: %w", err)
		}
		l := ledgers[record.Type]
		if l == nil {
			l = newLedger(record.Type)
			l.complete = true
			ledgers[record.Type] = l
		}
		switch {
		case record.Absent:
			l.absent[record.Name] = struct{}{}
		case record.Name != "":
			k := keep(l.url, NewResource(record.Name, record.Body))
			l.held[k.name] = entry{newest: k, taken: k}
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for url, l := range ledgers {
		if have := r.ledgers[url]; have == nil {
			r.ledgers[url] = l
		} else if !have.complete {
			have.held, have.absent, have.complete = l.held, l.absent, true
			r.serve(url, have)
		}
	}
	return nil
}

// serve gives the Envoy that is connected what it has asked for of a type.
func (r *Relay) serve(url string, l *ledger) {
	if r.stream == nil || r.stream.interests[url] == nil {
		return
	}
	sub := r.stream.interests[url]
	resources, absent := l.missing(*sub, nil)
	removed := make(map[string]entry, len(absent))
	for _, name := range absent {
		removed[name] = entry{}
	}
	r.stream.respond(url, l, sub, resources, removed)
}

// Forget drops what was taken over, or asked for before Envoy did, and Envoy has not asked for.
func (r *Relay) Forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for url, l := range r.ledgers {
		if l.wildcard {
			continue
		}
		r.forgetForeseen(url, l)
		unasked := func(name string) bool { _, named := l.names[name]; return !named }
		maps.DeleteFunc(l.held, func(name string, _ entry) bool { return unasked(name) })
		maps.DeleteFunc(l.absent, func(name string, _ struct{}) bool { return unasked(name) })
	}
}

// forgetForeseen has the upstream told that nobody wants what Envoy, which is connected, has not asked for.
func (r *Relay) forgetForeseen(url string, l *ledger) {
	if r.stream == nil {
		return // what it asked for is known once it is back
	}
	sub := r.stream.interests[url]
	for name := range l.names {
		if sub == nil || !sub.in(name) {
			l.unsubscribe(name)
		}
	}
	if sub == nil { // nobody will answer
		r.resolve(l, l.unsent, "")
		l.unsent = nil
	}
	r.wake()
}

// Lost is a resource that an earlier Envoy had and this one refuses, and why; "": there is none.
func (r *Relay) Lost() (name, refusal string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, url := range slices.Sorted(maps.Keys(r.ledgers)) {
		if l := r.ledgers[url]; len(l.lost) > 0 {
			name = slices.Min(slices.Collect(maps.Keys(l.lost)))
			return kindOf(url) + " " + name, l.refused[name]
		}
	}
	return "", ""
}
