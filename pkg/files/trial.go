package files

import (
	"cmp"
	"context"
	"os"
	"slices"

	"understudy.mesh/pkg/envoyfilter"
	"understudy.mesh/pkg/mesh/build"
)

// trialMemory is what an Envoy takes to try filters: on 1.40.0, 15 MiB of its own.
const trialMemory = 32 << 20

// try gives a verdict on the documents of which there is none. Those with Wasm filters come last, once their modules are there: a pod
// that serves is spared the moment at which one refuses what it guards for the lack of its module. again is called before that; nil is a
// start, at which there is nothing to spare.
func (f *filters) try(ctx context.Context, now sight, again func()) {
	b := build.New(f.c.Options) // the publisher's own is at work meanwhile
	modules := f.untried(now, func(some, _ bool) bool { return some })
	wait := func(context.Context) {}
	if again != nil && len(modules) > 0 {
		if out, err := b.Build(now.registry, now.vips, f.candidates(now, modules)); err == nil {
			wait = f.wasm.Prepare(out.Extensions)
		}
	}
	f.tryOn(ctx, b, now, func(some, _ bool) bool { return !some })
	if len(modules) == 0 {
		return
	}
	if again != nil {
		again()
	}
	wait(ctx)
	f.verdict(f.untried(now, func(_, only bool) bool { return only }), "")
	f.tryOn(ctx, b, now, func(some, only bool) bool { return some && !only })
}

// tryOn has an Envoy that serves nobody take those documents that no Envoy has seen, beside those that it is known to take. A
// configuration may freeze or end an Envoy, not only be refused: a script that loops. Of several documents, the one without which the
// others pass is found by halving.
func (f *filters) tryOn(ctx context.Context, b *build.Builder, now sight, which func(some, only bool) bool) {
	for ctx.Err() == nil {
		fresh := f.untried(now, which)
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

// untried are the documents of which there is no verdict, of those that have some modules, or only these.
func (f *filters) untried(now sight, which func(some, only bool) bool) []*envoyfilter.Filter {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(now.registry.EnvoyFilters()), func(doc *envoyfilter.Filter) bool {
		_, known := f.tried[versionOf(doc)]
		return known || !which(doc.Modules())
	})
}

// verdict notes what Envoy said of documents; "" is that it takes them.
func (f *filters) verdict(docs []*envoyfilter.Filter, reason string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, doc := range docs {
		f.tried[versionOf(doc)] = reason
	}
}

// candidates are fresh beside what an Envoy takes.
func (f *filters) candidates(now sight, fresh []*envoyfilter.Filter) *envoyfilter.Set {
	f.mu.Lock()
	defer f.mu.Unlock()
	return envoyfilter.NewSet(now.registry.EnvoyFilters(), f.c.Proxy, func(doc *envoyfilter.Filter) string {
		if verdict, known := f.tried[versionOf(doc)]; slices.Contains(fresh, doc) || known && verdict == "" {
			return ""
		}
		return "not in this trial"
	})
}

// ask has Envoy try fresh beside what it takes. reason is why it does not take them; asked is false where it could not be
// asked, which the Envoy that serves then is.
func (f *filters) ask(ctx context.Context, b *build.Builder, now sight, fresh []*envoyfilter.Filter) (reason string, asked bool) {
	if f.c.Check == nil {
		return "", false
	}
	out, err := b.Build(now.registry, now.vips, f.candidates(now, fresh))
	var bootstrap []byte
	if err == nil {
		bootstrap, err = out.Trial(f.serving())
	}
	if err != nil || bootstrap == nil {
		return "", err == nil // what cannot be built is the publisher's to report
	}
	refused, skipped, err := f.c.Check(ctx, bootstrap, trialMemory)
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
