// Package offline owns what the commands read that need no cluster: SidecarProfiles and workloads, from files.
package offline

import (
	"errors"
	"fmt"
	"io"
	"os"

	"understudy.mesh/pkg/inject"
	"understudy.mesh/pkg/profile"
)

// InjectorNamespace is the injector's own, whose profile is the mesh's.
const InjectorNamespace = "understudy-system"

// Profiles are the settings that files hold.
type Profiles struct {
	// Tags are what istio.io/rev may say besides our revision.
	Tags []string

	image   string
	byPlace map[string]*profile.Spec // by namespace; "" is the mesh's
}

// ReadProfiles reads SidecarProfiles, several to a file if need be. image is the proxy's where nobody sets it.
func ReadProfiles(files []string, image string) (*Profiles, error) {
	p := &Profiles{image: image, byPlace: map[string]*profile.Spec{}}
	for _, file := range files {
		documents, err := read(file, nil)
		if err != nil {
			return nil, err
		}
		for _, d := range documents {
			if err := p.Add(d.text); err != nil {
				return nil, d.errorf("%s", d.lines(err.Error()))
			}
		}
	}
	return p, nil
}

// Add reads one profile more.
func (p *Profiles) Add(text []byte) error {
	read, err := profile.Decode(text)
	if err == nil {
		err = read.Validate(InjectorNamespace)
	}
	if err != nil {
		return err
	}
	place := read.Namespace
	if place == InjectorNamespace {
		place = ""
	}
	if p.byPlace[place] != nil {
		return fmt.Errorf("metadata.namespace: %q has a %s already: one of them counts: remove the other", read.Namespace, profile.Kind)
	}
	p.byPlace[place] = &read.Spec
	return nil
}

// Base is a namespace's settings, without those of the pod's annotations.
func (p *Profiles) Base(namespace string) *profile.Base {
	layers := []profile.Layer{{Source: profile.SourceMesh, Spec: p.byPlace[""]},
		{Source: "built-in", Spec: &profile.Spec{Proxy: &profile.Proxy{Image: &p.image}}}}
	if spec := p.byPlace[namespace]; spec != nil && namespace != "" {
		layers = append([]profile.Layer{{Source: "namespace " + namespace, Spec: spec}}, layers...)
	}
	return profile.NewBase(layers...)
}

// Policy is the mesh's.
func (p *Profiles) Policy() inject.Policy {
	return inject.Policy{Injection: *p.Base("").Resolve().Injection, Tags: p.Tags, Namespace: InjectorNamespace}
}

// maxFile bounds a file of workloads.
const maxFile = 64 << 20

// readFile reads a file; "-" is stdin, if there is one.
func readFile(name string, stdin io.Reader) ([]byte, error) {
	in := stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	if in == nil {
		return nil, errors.New("-: only one file can be stdin")
	}
	data, err := io.ReadAll(io.LimitReader(in, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("more than %d bytes", maxFile)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return data, nil
}
