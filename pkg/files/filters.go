package files

import (
	"context"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"understudy.mesh/pkg/envoyfilter"
	"understudy.mesh/pkg/mesh/build"
	"understudy.mesh/pkg/status"
)

// moduleLook is how often the files of Wasm modules that filters name are looked for: a volume may be filled late.
const moduleLook = time.Second

// filters are the EnvoyFilters of one generation: what of them applies, and what became of each.
type filters struct {
	proxy envoyfilter.Proxy
	log   *slog.Logger

	mu      sync.Mutex      // guards what follows
	modules map[string]bool // the files that patches name, and whether they were there
	reports []envoyfilter.FilterReport
	told    map[string]bool // what was logged and still holds
}

func newFilters(p envoyfilter.Proxy, log *slog.Logger) *filters {
	return &filters{proxy: p, log: log, modules: map[string]bool{}, told: map[string]bool{}}
}

// set is what of the documents is to apply.
func (f *filters) set(all []*envoyfilter.Filter) *envoyfilter.Set {
	modules := map[string]bool{}
	set := envoyfilter.NewSet(all, f.proxy, func(path string) bool {
		modules[path] = isFile(path)
		return modules[path]
	}, func(*envoyfilter.Filter) string { return "" })
	f.mu.Lock()
	defer f.mu.Unlock()
	f.modules = modules
	return set
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// built notes what became of each document.
func (f *filters) built(out *build.Output) {
	reports := out.Filters.Report(out.Patched)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reports = reports
	f.tell()
}

// tell logs each trouble once, and once more when it is over. The caller holds mu.
func (f *filters) tell() {
	now := map[string]bool{}
	for _, r := range f.reports {
		for _, p := range r.Patches {
			if p.Result == envoyfilter.Applied || p.Result == envoyfilter.Skipped {
				continue
			}
			line := string(p.Result) + ": EnvoyFilter " + r.Namespace + "/" + r.Name + ": " + p.Reason
			if now[line] {
				continue
			}
			now[line] = true
			if f.told[line] {
				continue
			}
			if p.Result == envoyfilter.Refused {
				f.log.Error("EnvoyFilter " + line)
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

// watch calls again when a module's file has come or gone, until ctx ends.
func (f *filters) watch(ctx context.Context, again func()) {
	look := time.NewTicker(moduleLook)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
		f.mu.Lock()
		modules := f.modules // replaced, never changed
		f.mu.Unlock()
		for path, was := range modules {
			if isFile(path) != was {
				again()
				break
			}
		}
	}
}

func (f *filters) report() []envoyfilter.FilterReport {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reports
}

// samples count the patches of each document by what became of them.
func (f *filters) samples() []status.Sample {
	var out []status.Sample
	for _, r := range f.report() {
		results := map[string]int{}
		for _, p := range r.Patches {
			results[string(p.Result)]++
		}
		for _, result := range slices.Sorted(maps.Keys(results)) {
			out = append(out, status.Sample{
				Name: "envoyfilter_patches", Help: "Patches of an EnvoyFilter by what became of them: applied, unmatched, skipped, pending or refused.",
				Labels: map[string]string{"name": r.Namespace + "/" + r.Name, "result": result}, Value: float64(results[result]), Gauge: true,
			})
		}
	}
	return out
}
