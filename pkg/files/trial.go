package files

import (
	"cmp"
	"context"
	"os"
	"slices"

	"understudy.mesh/pkg/envoyfilter"
	"understudy.mesh/pkg/mesh/build"
)

// What an Envoy takes to try filters: on 1.40.0, 15 MiB of its own, and up to 8 times each Wasm module, which it compiles.
const (
	trialMemory  = 32 << 20
	moduleFactor = 8
)

// try has an Envoy that serves nobody take the documents that no Envoy has seen, beside those that it is known to take. A
// configuration may freeze or end an Envoy, not only be refused: a script that loops, a module that traps. Of several
// documents, the one without which the others pass is found by halving.
func (f *filters) try(ctx context.Context, now sight) {
	b := build.New(f.c.Options) // the publisher's own is at work meanwhile
	for ctx.Err() == nil {
		fresh := f.untried(now)
		if len(fresh) == 0 {
			return
		}
		reason, asked := f.ask(ctx, b, now, fresh)
		if !asked || reason == "" {
			f.verdict(fresh, "")
			return
		}
		if why := f.unsound(ctx, b, now); why != "" {
			f.log.Warn("EnvoyFilters are not tried before they are in force: an Envoy does not take the rest either, without them", "reason", why)
			f.verdict(fresh, "")
			return
		}
		taken, bad := 0, len(fresh)
		for bad-taken > 1 && ctx.Err() == nil {
			half := (taken + bad) / 2
			if why, _ := f.ask(ctx, b, now, fresh[:half]); why != "" {
				bad, reason = half, why
			} else {
				taken = half
			}
		}
		if ctx.Err() == nil {
			f.verdict(fresh[bad-1:bad], "Envoy does not take it: "+reason)
		}
	}
}

// untried are the documents of which there is no verdict.
func (f *filters) untried(now sight) []*envoyfilter.Filter {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(now.registry.EnvoyFilters()), func(doc *envoyfilter.Filter) bool {
		_, known := f.tried[versionOf(doc)]
		return known
	})
}

// verdict notes what Envoy said of documents; "" is that it takes them.
func (f *filters) verdict(docs []*envoyfilter.Filter, reason string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, doc := range docs {
		f.tried[versionOf(doc)] = reason
		if reason != "" {
			continue
		}
		for _, path := range doc.Modules() {
			f.admitted[path] = f.admitted[path] || isFile(path)
		}
	}
}

// ask has Envoy try fresh beside what it takes. reason is why it does not take them; asked is false where it could not be
// asked, which the Envoy that serves then is.
func (f *filters) ask(ctx context.Context, b *build.Builder, now sight, fresh []*envoyfilter.Filter) (reason string, asked bool) {
	if f.c.Check == nil {
		return "", false
	}
	f.mu.Lock()
	tried := f.tried
	set := envoyfilter.NewSet(now.registry.EnvoyFilters(), f.c.Proxy, isFile, func(doc *envoyfilter.Filter) string {
		if verdict, known := tried[versionOf(doc)]; slices.Contains(fresh, doc) || known && verdict == "" {
			return ""
		}
		return "not in this trial"
	})
	f.mu.Unlock()
	out, err := b.Build(now.registry, now.vips, set)
	var bootstrap []byte
	if err == nil {
		bootstrap, err = out.Trial(f.serving())
	}
	if err != nil || bootstrap == nil {
		return "", err == nil // what cannot be built is the publisher's to report
	}
	refused, skipped, err := f.c.Check(ctx, bootstrap, memoryFor(set.Documents(nil, "")))
	switch {
	case ctx.Err() != nil:
	case err != nil:
		f.log.Warn("EnvoyFilters are not tried before they are in force", "err", err)
	case skipped != "":
		f.log.Warn("EnvoyFilters are not tried before they are in force", "reason", skipped)
	}
	return refused, err == nil && skipped == ""
}

// serving is the bootstrap of the Envoy that serves; none of it can be read where the user brings it.
func (f *filters) serving() []byte {
	text, err := os.ReadFile(f.c.Bootstrap)
	if err != nil {
		return nil
	}
	return text
}

// unsound is why a trial without any EnvoyFilter fails too, "" if it does not: then it is not they that are refused.
func (f *filters) unsound(ctx context.Context, b *build.Builder, now sight) string {
	out, err := b.Build(now.registry, now.vips, nil)
	if err != nil {
		return err.Error()
	}
	bootstrap, err := out.Baseline(f.serving())
	if err != nil {
		return err.Error()
	}
	refused, skipped, err := f.c.Check(ctx, bootstrap, trialMemory)
	if err != nil {
		return err.Error()
	}
	return cmp.Or(refused, skipped)
}

// memoryFor is about how many bytes an Envoy takes to try documents.
func memoryFor(docs []*envoyfilter.Filter) int64 {
	sum := int64(trialMemory)
	for _, doc := range docs {
		for _, path := range doc.Modules() {
			if info, err := os.Stat(path); err == nil {
				sum += moduleFactor * info.Size()
			}
		}
	}
	return sum
}
