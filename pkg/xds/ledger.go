package xds

import (
	"maps"
	"slices"
	"strings"

	"understudy.mesh/pkg/xds/internal/history"
	"understudy.mesh/pkg/xds/internal/refusal"
	"understudy.mesh/pkg/xds/internal/wire"
)

// ledger is one type of resources as a relay knows it: what Envoy wants, what the upstream gave, and how much of that
// Envoy has taken. An Envoy that starts anew is served from it.
type ledger struct {
	url      string
	wildcard bool
	// names were asked for by name, by any Envoy so far: one that starts anew asks for them again by and by.
	names map[string]struct{}
	held  map[string]entry
	// absent are those of names that the upstream says there is nothing of.
	absent map[string]struct{}
	// complete says that the upstream has answered: of a wildcard, held is all that there is.
	complete bool
	answers  uint64 // responses that Envoy took or refused
	// refused is what Envoy does not take in its newest version, with its words.
	refused map[string]string
	// lost are those of refused that an earlier Envoy had taken, and the one that is connected has in no version.
	lost map[string]struct{}
	// unsent are responses of which no Envoy was sent anything yet.
	unsent []receipt

	upstream upstreamNews
}

// entry is one resource that Envoy has, or is about to have.
type entry struct {
	newest *kept  // what was given last, unless Envoy refused it
	taken  *kept  // what an Envoy took last; nil: nothing
	by     uint64 // the stream of the Envoy that took it
}

// receipt stands for a response of the upstream, which is to be told what Envoy says of it.
type receipt struct {
	number  uint64 // of all that were given, ascending
	session uint64
	nonce   string
}

// upstreamNews is what of a ledger the upstream has not been told.
type upstreamNews struct {
	asked                  bool // it knows the type, on its present stream
	silent                 bool // it has not answered for the type there yet
	distrusted             bool // its next response is passed on whole
	subscribe, unsubscribe map[string]struct{}
	answers                []Answer
}

func newLedger(url string) *ledger {
	return &ledger{
		url: url, names: make(map[string]struct{}), held: make(map[string]entry), absent: make(map[string]struct{}), refused: make(map[string]string), lost: make(map[string]struct{}),
		upstream: upstreamNews{subscribe: make(map[string]struct{}), unsubscribe: make(map[string]struct{})},
	}
}

// wanted says whether Envoy asks for anything of the type.
func (l *ledger) wanted() bool { return l.wildcard || len(l.names) > 0 }

// wants says whether anybody asked for a resource.
func (l *ledger) wants(name string) bool {
	_, named := l.names[name]
	return named || l.wildcard
}

// subscribe takes a name in.
func (l *ledger) subscribe(name string) {
	if name == wildcard {
		if !l.wildcard {
			l.wildcard = true
			l.upstream.change(name, l.upstream.subscribe, l.upstream.unsubscribe)
		}
		return
	}
	if _, known := l.names[name]; known {
		return
	}
	l.names[name] = struct{}{}
	l.upstream.change(name, l.upstream.subscribe, l.upstream.unsubscribe)
}

// unsubscribe takes a name out.
func (l *ledger) unsubscribe(name string) {
	if name == wildcard {
		l.wildcard = false
	} else if _, known := l.names[name]; !known {
		return
	}
	delete(l.names, name)
	l.upstream.change(name, l.upstream.unsubscribe, l.upstream.subscribe)
}

// withRoom is a map that may get n keys. One that has none gets room for all of them at once: growing leaves as much garbage as the map
// takes, just when memory is shortest.
func withRoom[V any](m map[string]V, n int) map[string]V {
	if len(m) > 0 || n == 0 {
		return m
	}
	return make(map[string]V, n)
}

// sortedKeys are the keys of a map in their order.
func sortedKeys[V any](m map[string]V) []string {
	keys := slices.AppendSeq(make([]string, 0, len(m)), maps.Keys(m))
	slices.Sort(keys)
	return keys
}

// change notes a name in one set, unless it cancels what the other one has of it.
func (u *upstreamNews) change(name string, in, other map[string]struct{}) {
	if _, pending := other[name]; pending {
		delete(other, name)
		return
	}
	in[name] = struct{}{}
}

// give takes in what the upstream says, and tells of each change that it makes.
func (l *ledger) give(resources []*kept, removed []string, changed func(change, name string)) {
	l.complete = true
	l.held = withRoom(l.held, len(resources))
	for _, k := range resources {
		if !l.wants(k.name) {
			continue // and nobody would say that it is gone
		}
		e, held := l.held[k.name]
		if !held {
			changed(history.Added, k.name)
		} else if e.newest.version != k.version {
			changed(history.Changed, k.name)
		}
		e.newest = k
		l.held[k.name] = e
		delete(l.absent, k.name)
	}
	for _, name := range removed {
		if _, held := l.held[name]; held {
			changed(history.Removed, name)
		}
		delete(l.held, name)
		delete(l.refused, name)
		delete(l.lost, name)
		if _, asked := l.names[name]; asked {
			l.absent[name] = struct{}{}
		}
	}
}

// take notes resources that the Envoy of a stream took.
func (l *ledger) take(resources []*kept, by uint64) {
	for _, k := range resources {
		e, held := l.held[k.name]
		if !held {
			continue // removed meanwhile
		}
		l.held[k.name] = entry{newest: e.newest, taken: k, by: by}
		if e.newest.version == k.version {
			delete(l.refused, k.name)
			delete(l.lost, k.name)
		}
	}
}

// retain notes what the Envoy of a stream has from an earlier one, by version.
func (l *ledger) retain(has map[string]string, by uint64) {
	for name, version := range has {
		if e := l.held[name]; e.taken != nil && e.taken.version == wire.ParseVersion(version) {
			e.by = by
			l.held[name] = e
		}
	}
}

// refuse notes that the Envoy of a stream did not take some of a response, or all of it: it keeps what it had.
func (l *ledger) refuse(f flight, message string, by uint64) {
	names := make([]string, 0, len(f.resources))
	for _, k := range f.resources {
		names = append(names, k.name)
	}
	blamed := refusal.BlamedBy(message, names)
	if len(blamed) == 0 { // the whole response
		blamed = make(map[string]string, len(names))
		for _, name := range names {
			blamed[name] = message
		}
		for name, e := range f.removed {
			if _, again := l.held[name]; !again && e.newest != nil {
				l.held[name] = e
			}
		}
	}
	var taken []*kept
	for _, k := range f.resources {
		reason, is := blamed[k.name]
		if !is {
			taken = append(taken, k)
			continue
		}
		l.refused[k.name] = refusal.Shorten(reason)
		switch e, held := l.held[k.name]; {
		case !held || e.newest.version != k.version: // it is gone, or a newer one is on its way
		case e.by != by: // it has none
			delete(l.held, k.name)
			if e.taken != nil {
				l.lost[k.name] = struct{}{}
			}
		default:
			e.newest = e.taken
			l.held[k.name] = e
		}
	}
	l.take(taken, by)
}

// missing is what an Envoy with these resources, by version, lacks of what it asks for, and what it has to lose.
func (l *ledger) missing(asked interest, has map[string]string) (resources []*kept, removed []string) {
	for name, e := range l.held {
		if asked.in(name) && wire.ParseVersion(has[name]) != e.newest.version {
			resources = append(resources, e.newest)
		}
	}
	for name := range has {
		if _, held := l.held[name]; !held && l.complete && asked.wildcard {
			removed = append(removed, name)
		}
	}
	for name := range asked.names {
		if _, absent := l.absent[name]; absent {
			removed = append(removed, name)
		}
	}
	slices.SortFunc(resources, func(a, b *kept) int { return strings.Compare(a.name, b.name) })
	slices.Sort(removed)
	return resources, removed
}

// news is what the upstream is to be told; it is told from here on. false: nothing.
func (l *ledger) news() (n News, some bool) {
	u := &l.upstream
	n = News{Type: l.url, Answers: u.answers}
	u.answers = nil
	switch {
	case !u.asked && !l.wanted():
		return n, false
	case !u.asked:
		u.asked, u.silent, n.First = true, true, true
		n.Subscribe = sortedKeys(l.names)
		if l.wildcard && len(l.names) > 0 {
			n.Subscribe = append(n.Subscribe, wildcard)
		}
		n.Held = make(map[string]string, len(l.held))
		for name, e := range l.held {
			if l.wants(name) { // else it would count as asked for
				n.Held[name] = wire.VersionText(e.newest.version)
			}
		}
	default:
		n.Subscribe, n.Unsubscribe = sortedKeys(u.subscribe), sortedKeys(u.unsubscribe)
	}
	for name := range u.unsubscribe {
		l.drop(name)
	}
	u.told()
	return n, n.First || len(n.Subscribe)+len(n.Unsubscribe)+len(n.Answers) > 0
}

// drop forgets a resource that nobody asks for any more.
func (l *ledger) drop(name string) {
	if l.wildcard {
		return
	}
	delete(l.held, name)
	delete(l.absent, name)
	delete(l.refused, name)
	delete(l.lost, name)
}

// forgetUpstream begins a new stream of the upstream, which knows nothing.
func (l *ledger) forgetUpstream() {
	u := &l.upstream
	u.asked, u.silent, u.answers = false, false, nil
	for name := range u.unsubscribe {
		l.drop(name)
	}
	u.told()
}

// told forgets the names that have been told, and their memory: the first ones of a large mesh are all.
func (u *upstreamNews) told() {
	if len(u.subscribe)+len(u.unsubscribe) > 0 {
		u.subscribe, u.unsubscribe = make(map[string]struct{}), make(map[string]struct{})
	}
}

func (l *ledger) status() Status {
	s := Status{Answers: l.answers, Held: len(l.held), Refused: maps.Clone(l.refused)}
	for name := range l.refused {
		if _, has := l.held[name]; !has {
			s.Lacking = append(s.Lacking, name)
		}
	}
	slices.Sort(s.Lacking)
	return s
}
