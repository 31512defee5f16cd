package serve

import (
	"encoding/json"
	"fmt"
	"sync"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"understudy.mesh/pkg/profile"
)

// profiles are the settings in force of each namespace. A change that is wrong leaves those before it in force.
type profiles struct {
	mu   sync.Mutex
	own  string // the injector's namespace, whose profile is the mesh's
	held map[string]held
	// bases are what has been made of them so far, by namespace; "" is of all those that have none of their own.
	bases map[string]*profile.Base
}

// held is what is known of one namespace's profile.
type held struct {
	// spec is in force; nil: there has been no valid one.
	spec *profile.Spec
	// generation is whose spec is in force, observed the newest one.
	generation, observed int64
	// err is what is wrong with the newest one.
	err error
}

func newProfiles(own string) *profiles {
	return &profiles{own: own, held: make(map[string]held), bases: make(map[string]*profile.Base)}
}

// set takes an object as it is now; nil: the namespace has none any more.
func (p *profiles) set(namespace string, object *unstructured.Unstructured) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if delete(p.bases, namespace); namespace == p.own {
		clear(p.bases)
	}
	if object == nil {
		delete(p.held, namespace)
		return
	}
	h := p.held[namespace]
	h.observed = object.GetGeneration()
	var read *profile.SidecarProfile
	if read, h.err = readProfile(object); h.err == nil {
		h.err = read.Validate(p.own)
	}
	if h.err == nil {
		h.spec, h.generation = &read.Spec, h.observed
	}
	p.held[namespace] = h
}

// readProfile is the typed form. What the API server has stored has no unknown fields: it drops them.
func readProfile(object *unstructured.Unstructured) (*profile.SidecarProfile, error) {
	text, err := object.MarshalJSON()
	if err != nil {
		return nil, fmt.Errorf("read SidecarProfile %s/%s: %w", object.GetNamespace(), object.GetName(), err)
	}
	read := &profile.SidecarProfile{}
	if err := json.Unmarshal(text, read); err != nil {
		return nil, fmt.Errorf("read SidecarProfile %s/%s: %w", object.GetNamespace(), object.GetName(), err)
	}
	return read, nil
}

// of is what is known of a namespace's profile.
func (p *profiles) of(namespace string) (held, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	h, ok := p.held[namespace]
	return h, ok
}

// base is the settings of a namespace and of the mesh. It is an error if one of them has a profile of which no state was ever
// valid: what its author wants is not known, and nothing else is right.
func (p *profiles) base(namespace string) (*profile.Base, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var layers []profile.Layer
	h, has := p.held[namespace]
	if has = has && namespace != p.own; !has {
		namespace = ""
	}
	if known := p.bases[namespace]; known != nil {
		return known, nil
	}
	switch {
	case has && h.spec == nil:
		return nil, fmt.Errorf("the SidecarProfile %s of namespace %s is not valid: %w", profile.Name, namespace, h.err)
	case has:
		layers = append(layers, profile.Layer{Source: "namespace " + namespace, Spec: h.spec})
	}
	mesh, err := p.meshLocked()
	if err != nil {
		return nil, err
	}
	made := profile.NewBase(append(layers, profile.Layer{Source: profile.SourceMesh, Spec: mesh})...)
	p.bases[namespace] = made
	return made, nil
}

// mesh is the mesh's settings; nil is that there are none.
func (p *profiles) mesh() (*profile.Spec, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.meshLocked()
}

func (p *profiles) meshLocked() (*profile.Spec, error) {
	h, ok := p.held[p.own]
	if ok && h.spec == nil {
		return nil, fmt.Errorf("the mesh's SidecarProfile %s/%s is not valid, and no earlier state of it is known: %w", p.own, profile.Name, h.err)
	}
	return h.spec, nil
}
