package istiod

import (
	"context"
	"path/filepath"

	"understudy.mesh/tests/cluster/internal/build"
)

// Programs are Istio's, built from one release: host paths.
type Programs struct {
	Istiod, Agent, Istioctl string
	// template is what its agent makes Envoy's bootstrap of.
	template string
	// charts are its charts, of the same release.
	charts string
}

// Build builds what is not in the cache yet. The first time it takes minutes, of which say is told.
func Build(ctx context.Context, root, cache string, say func(string)) (p Programs, err error) {
	builder := build.Builder{Root: root, Cache: cache, Say: say}
	for _, b := range []struct {
		project build.Project
		paths   []*string
	}{{build.Istiod(), []*string{&p.Istiod, &p.Istioctl}}, {build.IstioAgent(), []*string{&p.Agent}}} {
		dir, err := builder.Build(ctx, b.project)
		if err != nil {
			return p, err
		}
		for i, path := range b.paths {
			if *path, err = filepath.Abs(filepath.Join(dir, b.project.Binaries[i])); err != nil {
				return p, err
			}
		}
	}
	source, err := build.ModuleDir(ctx, root, build.IstioAgent(), "istio.io/istio")
	if err != nil {
		return p, err
	}
	p.charts = filepath.Join(source, "manifests")
	p.template = filepath.Join(source, "tools/packaging/common/envoy_bootstrap.json")
	return p, nil
}
