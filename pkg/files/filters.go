package files

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"understudy.mesh/pkg/ecds"
	"understudy.mesh/pkg/envoyfilter"
	"understudy.mesh/pkg/mesh"
	"understudy.mesh/pkg/mesh/build"
	"understudy.mesh/pkg/status"
	"understudy.mesh/pkg/xds"
)

// filters are the EnvoyFilters of one generation: which version of each applies, and what became of it.
//
// A version applies once an Envoy that serves nobody has taken it (see trial.go); until then, and if it is refused, the
// version before does. What the Envoy that serves refuses all the same is withdrawn as well.
type filters struct {
	c    Config
	log  *slog.Logger
	wasm *ecds.Extensions
	// queued holds the newest configuration whose filters are to be tried.
	queued chan sight

	mu    sync.Mutex // guards what follows
	began bool
	// tried has Envoy's verdict on versions: "" where it takes it.
	tried   map[version]string
	inForce map[name]*envoyfilter.Filter // the last version of each that the Envoy which serves took
	good    map[name]*envoyfilter.Filter // the last version of each document that Envoy took
	before  map[string]bool              // those that the generation before has in force, by their short titles
	last    *build.Output                // what was built last
	told    map[string]bool              // what was logged and still holds
}

// name is a document's across versions: kind, namespace and name.
type name string

// version is a document as it is now.
type version uint64

// sight is what the EnvoyFilters are about: one state of the files.
type sight struct {
	registry *mesh.Registry
	vips     map[string][]netip.Addr
}

func newFilters(c Config, wasm *ecds.Extensions) *filters {
	return &filters{
		c: c, log: c.Log("agent"), wasm: wasm, queued: make(chan sight, 1), tried: map[version]string{}, inForce: map[name]*envoyfilter.Filter{},
		good: map[name]*envoyfilter.Filter{}, told: map[string]bool{},
	}
}

func versionOf(f *envoyfilter.Filter) version { return version(f.Sum) }

func nameOf(f *envoyfilter.Filter) name { return name(f.Title()) }

// short is a title in the hand-off and in metrics: of an EnvoyFilter, which both had first, without the kind.
func short(title string) string { return strings.TrimPrefix(title, "EnvoyFilter ") }

// build makes the resources with the versions that apply. Before anything is in force, what is not tried yet is tried
// first: a pod must not serve without the filters that guard it. Later, a trial keeps nothing else waiting.
func (f *filters) build(ctx context.Context, b *build.Builder, now sight) (*build.Output, error) {
	f.mu.Lock()
	first := !f.began
	f.began = true
	f.mu.Unlock()
	if first {
		f.try(ctx, now, nil)
	}
	set, untried := f.choose(now.registry.EnvoyFilters())
	out, err := b.Build(now.registry, now.vips, set)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	f.last = out
	f.tell()
	f.mu.Unlock()
	if untried {
		select {
		case <-f.queued: // of an older state
		default:
		}
		f.queued <- now // the only sender
	}
	return out, nil
}

// choose picks the version of each document that applies.
func (f *filters) choose(all []*envoyfilter.Filter) (set *envoyfilter.Set, untried bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	tried, good, withheld := map[version]string{}, map[name]*envoyfilter.Filter{}, map[*envoyfilter.Filter]string{}
	var chosen []*envoyfilter.Filter
	for _, doc := range all {
		v, before := versionOf(doc), f.good[nameOf(doc)]
		verdict, known := f.tried[v]
		if known {
			tried[v] = verdict
		}
		switch {
		case known && verdict == "":
			before, chosen = doc, append(chosen, doc)
		case known:
			withheld[doc], chosen = verdict, append(chosen, doc)
		default:
			untried = true
		}
		if before == nil {
			continue
		}
		good[nameOf(doc)] = before
		if before != doc {
			chosen = append(chosen, before)
			tried[versionOf(before)] = ""
			if verdict != "" {
				withheld[doc] += "; its version before stays in force"
			}
		}
	}
	f.tried, f.good = tried, good
	return envoyfilter.NewSet(chosen, f.c.Proxy, func(doc *envoyfilter.Filter) string { return withheld[doc] }), untried
}

// answered takes in what Envoy said to what was built last, and says whether a document is withdrawn for it: of those that
// patched what it refuses, the versions that were never in force.
func (f *filters) answered(refused *xds.RejectedError) (withdrawn bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.last == nil {
		return false
	}
	inForce := map[name]*envoyfilter.Filter{}
	for _, doc := range f.last.Filters.Documents(nil, "") {
		was := f.inForce[nameOf(doc)]
		listener := f.blamed(doc, refused)
		if listener == "" || was != nil && was.Sum == doc.Sum {
			inForce[nameOf(doc)] = doc
			continue
		}
		f.tried[versionOf(doc)], withdrawn = fmt.Sprintf("Envoy refuses %s with it: %s", listener, reasonFor(refused, listener)), true
		if delete(f.good, nameOf(doc)); was != nil {
			f.good[nameOf(doc)], inForce[nameOf(doc)] = was, was
		}
	}
	f.inForce = inForce
	return withdrawn
}

// blamed is a listener that Envoy refuses and a document patched; "" if there is none.
func (f *filters) blamed(doc *envoyfilter.Filter, refused *xds.RejectedError) string {
	if refused == nil {
		return ""
	}
	for _, id := range refused.Resources {
		if id.Type == build.ListenerType && slices.Contains(f.last.Filters.Documents(f.last.Patched, id.Name), doc) {
			return id.Name
		}
	}
	return ""
}

// export is the documents that Envoy has taken, for a successor.
func (f *filters) export() []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	var lines []string
	for n := range f.inForce {
		lines = append(lines, short(string(n)))
	}
	slices.Sort(lines)
	return []byte(strings.Join(lines, "\n"))
}

// inherit takes in what export gave, here or in another release.
func (f *filters) inherit(lines []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.before = map[string]bool{}
	for line := range strings.Lines(string(lines)) {
		f.before[strings.TrimSuffix(line, "\n")] = true
	}
}

// inherited says whether the generation before has documents in force.
func (f *filters) inherited() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.before) > 0
}

// expected are the extensions of those documents, as far as they are there.
func (f *filters) expected(now sight) []envoyfilter.Extension {
	all := now.registry.EnvoyFilters()
	out, err := build.New(f.c.Options).Build(now.registry, now.vips, f.candidates(now, all))
	if err != nil {
		return nil // it is the publisher's to report
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.DeleteFunc(out.Extensions, func(e envoyfilter.Extension) bool { return !f.before[short(e.Document)] })
}

// lost is why a document that the generation before has in force is not in force here in any version, nil if there is none:
// what it guards is better served by that one.
func (f *filters) lost() error {
	refused, applies := map[string]string{}, map[string]bool{}
	for _, r := range f.report() {
		for _, p := range r.Patches {
			if p.Result == envoyfilter.Refused {
				refused[r.Title()] = p.Reason
			} else {
				applies[r.Title()] = true
			}
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(refused)) {
		if f.before[short(name)] && !applies[name] {
			return fmt.Errorf("what the generation before serves is refused here: %s: %s", name, refused[name])
		}
	}
	return nil
}

// reasonFor is what Envoy said of a resource.
func reasonFor(refused *xds.RejectedError, name string) string {
	for _, reason := range refused.Reasons {
		if strings.Contains(reason, name) {
			return reason
		}
	}
	return "it does not say why"
}

// tell logs each trouble once, and once more when it is over. The caller holds mu.
func (f *filters) tell() {
	now := map[string]bool{}
	for _, r := range f.last.Filters.Report(f.last.Patched) {
		for _, p := range r.Patches {
			if p.Result == envoyfilter.Applied || p.Result == envoyfilter.Skipped {
				continue
			}
			line := string(p.Result) + ": " + r.Title() + ": " + p.Reason
			if now[line] {
				continue
			}
			now[line] = true
			if f.told[line] {
				continue
			}
			if p.Result == envoyfilter.Refused {
				f.log.Error("document " + line)
			} else {
				f.log.Warn("patch " + line)
			}
		}
	}
	for line := range f.told {
		if !now[line] {
			f.log.Info("no longer " + line)
		}
	}
	f.told = now
}

// run tries what is queued until ctx ends, and calls again when some of it may come into force.
func (f *filters) run(ctx context.Context, again func()) {
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-f.queued:
			f.try(ctx, now, again)
			again()
		}
	}
}

func (f *filters) report() []envoyfilter.FilterReport {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.last == nil {
		return nil
	}
	return f.last.Filters.Report(f.last.Patched)
}

// samples count the patches of each document by what became of them.
func (f *filters) samples() []status.Sample {
	type key struct {
		name   string
		result envoyfilter.Result
	}
	counts := map[key]int{}
	for _, r := range f.report() {
		for _, p := range r.Patches {
			counts[key{short(r.Title()), p.Result}]++
		}
	}
	var out []status.Sample
	for k, n := range counts {
		out = append(out, status.Sample{
			Name: "envoyfilter_patches", Help: "Patches of an EnvoyFilter by what became of them: applied, unmatched, skipped, pending or refused.",
			Labels: map[string]string{"name": k.name, "result": string(k.result)}, Value: float64(n), Gauge: true,
		})
	}
	return out
}
