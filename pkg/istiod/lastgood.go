package istiod

import (
	"errors"
	"io"
	"io/fs"
	"runtime"
	"slices"
	"time"

	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/internal/atomicfile"
	"understudy.mesh/pkg/istiod/internal/hosts"
	"understudy.mesh/pkg/istiod/internal/store"
	"understudy.mesh/pkg/xds"
)

const (
	// storedAfter is how long istiod may take to answer an Envoy that starts before that gets what an agent of this pod has kept.
	storedAfter = 2 * time.Second
	// storeEvery is the time between two looks at whether there is something to keep.
	storeEvery = 10 * time.Second
	// muchTaken is how much of a response is put into a file as soon as Envoy has taken it: the next ones come while this one is in memory.
	muchTaken = 2 << 20
)

// unkept are types that are not kept on a disk: they may have secrets in them.
func unkept() []string { return []string{secretType, extensionsType} }

// lastGood keeps what istiod has said over a restart of the container. The zero value keeps nothing.
type lastGood struct {
	store   *store.Store
	after   *time.Timer   // until Envoy gets what was kept; nil: Envoy has not asked yet, or there is no need any more
	over    bool          // there is none
	every   time.Duration // storeEvery
	ticks   *time.Ticker  // between two looks
	kept    content       // what the file has
	rest    time.Time     // until then nothing is written
	failing bool          // nothing could be written the last time
	much    []string      // types of which istiod has said much at a time
}

// content is what istiod has said.
type content struct {
	given uint64        // responses for Envoy
	names *[]table.Host // that DNS answers
}

// due fires when it is time for a look.
func (l *loop) due() <-chan time.Time {
	if l.lastGood.ticks == nil {
		return nil
	}
	return l.lastGood.ticks.C
}

// awaitIstiod begins to wait for istiod, once Envoy has said who it is.
func (l *loop) awaitIstiod() {
	g := &l.lastGood
	if g.store == nil || g.over || g.after != nil || l.i.c.Relay.Node() == nil {
		return
	}
	if g.after = time.NewTimer(storedAfter); l.retry != nil { // it could not be reached before Envoy was there
		l.restore()
	}
}

// note takes in that istiod has said so many bytes of a type.
func (g *lastGood) note(url string, given int) {
	if given >= muchTaken && g.store != nil && g.kept == (content{}) && !slices.Contains(unkept(), url) {
		g.much = append(g.much, url)
	}
}

// heard says that there is no need for what was kept.
func (l *loop) heard() { l.lastGood.over, l.lastGood.after = true, nil }

// restore gives Envoy what was kept.
func (l *loop) restore() {
	if l.lastGood.over || l.lastGood.store == nil || l.i.c.Relay.Node() == nil {
		return
	}
	l.heard()
	healthy, err := l.lastGood.store.Load(store.Key(l.i.c.Relay.Node(), l.i.c.Dial.Address), time.Now(), l.adopt)
	switch {
	case errors.Is(err, fs.ErrNotExist): // the first start of the pod
	case err != nil:
		l.i.log.Warn("Envoy waits for istiod: what was kept of its configuration is not used", "err", err)
	default:
		l.i.log.Warn("istiod does not answer: Envoy starts with what it has said before", "age", time.Since(healthy).Round(time.Second))
		l.i.show(func(s *shown) {
			if !s.Connected {
				s.Since = healthy
			}
		})
	}
}

// adopt takes over what was kept. Names that cannot be read are left out.
func (l *loop) adopt(names []byte, resources io.Reader) error {
	if err := l.i.c.Relay.Import(resources); err != nil {
		return err
	}
	if l.i.names == nil || len(names) == 0 || l.i.names.waiting || l.i.names.begun {
		return nil
	}
	known, err := hosts.Unmarshal(names)
	if err != nil {
		l.i.log.Warn("DNS waits for istiod: the names that were kept are not used", "err", err)
		return nil
	}
	l.i.names.want(known)
	return nil
}

// keep writes what Envoy has, if it is what istiod says now.
func (l *loop) keep() {
	g, relay := &l.lastGood, l.i.c.Relay
	if g.store == nil || l.stream == nil || l.applied == 0 || !l.succession.over || !relay.Reconciled() {
		return
	}
	var err error
	switch now := (content{relay.Given(), l.i.names.answered()}); {
	case now == g.kept && g.store.Own():
		err = g.store.Touch(time.Now())
	case time.Now().Before(g.rest):
		return // the file grows old meanwhile
	default:
		if err = l.save(now); err == nil {
			g.kept = now
		}
		g.rest = time.Now().Add(atomicfile.Rest(g.store.Size()))
	}
	if err != nil {
		g.kept = content{}
		if !g.failing { // its words have a name that is another each time
			l.i.log.Warn("what istiod says is not kept for a restart of the container", "err", err)
		}
	}
	g.failing = err != nil
}

// save writes what there is. From then on the relay has the resources in the file, and not in memory.
func (l *loop) save(now content) error {
	g, relay := &l.lastGood, l.i.c.Relay
	head := store.Head{Key: store.Key(relay.Node(), l.i.c.Dial.Address)}
	if now.names != nil {
		head.Names = hosts.Marshal(*now.names)
	}
	var exported xds.Exported
	begin, err := g.store.Save(head, func(w io.Writer) (err error) {
		exported, err = relay.Export(w, unkept()...)
		return err
	})
	if err != nil {
		return err
	}
	f, err := g.store.Open()
	if err != nil {
		return nil // the successor's is in its place already
	}
	l.giveBack.add(relay.Release(exported, f, begin))
	return nil
}

// spill puts what Envoy has taken of a type into a file, if it is much and the pod starts: later the store's has it.
func (l *loop) spill(url string) {
	g, at := &l.lastGood, slices.Index(l.lastGood.much, url)
	if at < 0 {
		return
	}
	g.much = slices.Delete(g.much, at, at+1)
	f, err := g.store.Beside()
	if err != nil {
		return // keep will say so
	}
	exported, err := l.i.c.Relay.Export(f, slices.DeleteFunc(order(), func(other string) bool { return other == url })...)
	if err != nil {
		_ = f.Close()
		return
	}
	l.i.c.Relay.Release(exported, f, 0)
	runtime.GC() // it would let the heap grow to twice of what was there before
}

// keepNow does so whenever the last time was.
func (l *loop) keepNow() {
	l.lastGood.rest = time.Time{}
	l.keep()
}

// repair fetches everything anew where Envoy cannot be given what it has asked for again.
func (l *loop) repair() {
	if err := l.i.c.Relay.Damaged(); err != nil {
		l.i.log.Error("everything is fetched anew from istiod, as what was kept of its configuration cannot be read: is the volume of "+l.i.c.LastGood+" in order?", "err", err)
		l.fetchAnew()
	}
}
