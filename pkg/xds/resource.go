package xds

import (
	"cmp"
	"slices"

	"understudy.mesh/pkg/xds/internal/body"
)

// Resource is one resource in memory, ready to be sent.
type Resource struct {
	// Name is unique within its type.
	Name string
	// Body is the serialized message itself, not an Any. It must not change any more.
	Body []byte
	// version is a hash of Body, never 0, which says something in this process alone.
	version uint64
	// raw is the resource as a field of a response, in which Body begins at a place; nil: it has yet to be made.
	raw []byte
	at  uint32
}

// ID names one resource of a snapshot: a cluster and a route may have one name.
type ID struct{ Type, Name string }

// NewResource makes a resource whose body content is, which it keeps.
func NewResource(name string, content []byte) Resource {
	return Resource{Name: name, Body: content, version: body.Version(content)}
}

// Snapshot is a whole desired state: resources by type URL. Their order means nothing.
type Snapshot map[string][]*Stored

// state is a snapshot as the streams use it: numbered, and each type sorted by name.
type state struct {
	version   uint64
	resources Snapshot // by type URL
}

// newState copies the slices, not the bodies. Of two resources with one name the first
// stays; the names of the others are given back.
func newState(version uint64, snap Snapshot) (st *state, duplicates []string) {
	st = &state{version: version, resources: make(Snapshot, len(snap))}
	for url, list := range snap {
		list = slices.Clone(list)
		slices.SortStableFunc(list, func(a, b *Stored) int { return cmp.Compare(a.Name, b.Name) })
		st.resources[url] = slices.CompactFunc(list, func(a, b *Stored) bool {
			if a.Name == b.Name {
				duplicates = append(duplicates, b.Name)
			}
			return a.Name == b.Name
		})
	}
	return st, duplicates
}

// find returns the resource of this type and name, if the state has it.
func (st *state) find(url, name string) (r *Stored, has bool) {
	list := st.resources[url]
	i, has := slices.BinarySearchFunc(list, name, func(r *Stored, name string) int { return cmp.Compare(r.Name, name) })
	if !has {
		return nil, false
	}
	return list[i], true
}
