package istiod

import (
	"context"
	"path/filepath"

	"understudy.mesh/tests/cluster/internal/build"
)

// Programs are Istio's, built from one release: host paths.
type Programs struct {
	Istiod, Agent string
	// template is what its agent makes Envoy's bootstrap of.
	template string
}

// Build builds what is not in the cache yet. The first time it takes minutes, of which say is told.
func Build(ctx context.Context, root, cache string, say func(string)) (p Programs, err error) {
	builder := build.Builder{Root: root, Cache: cache, Say: say}
	for _, b := range []struct {
		project build.Project
		path    *string
	}{{build.Istiod(), &p.Istiod}, {build.IstioAgent(), &p.Agent}} {
		dir, err := builder.Build(ctx, b.project)
		if err != nil {
			return p, err
		}
		if *b.path, err = filepath.Abs(filepath.Join(dir, b.project.Binaries[0])); err != nil {
			return p, err
		}
	}
	source, err := build.ModuleDir(ctx, root, build.IstioAgent(), "istio.io/istio")
	if err != nil {
		return p, err
	}
	p.template = filepath.Join(source, "tools/packaging/common/envoy_bootstrap.json")
	return p, nil
}
