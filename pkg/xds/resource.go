package xds

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"hash/maphash"
	"slices"
	"strconv"
)

// Resource is one resource, ready to be sent.
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

// NewResource makes a resource of body, which it keeps.
func NewResource(name string, body []byte) Resource {
	return Resource{Name: name, Body: body, version: versionOf(body)}
}

// versions makes hashes differ from one process to the next: no Envoy outlives its agent.
var versions = maphash.MakeSeed()

// versionOf is never 0, which is what a stream believes of a resource whose version it does not know.
func versionOf(body []byte) uint64 { return max(maphash.Bytes(versions, body), 1) }

// Snapshot is a whole desired state: resources by type URL. Their order means nothing.
type Snapshot map[string][]Resource

// versionDigits is how many a version has on the wire.
const versionDigits = 16

// versionText and parseVersion are the two directions of a version on the wire, which
// to Envoy is opaque. What is not of our making is 0: unknown.
func versionText(v uint64) string { return string(appendVersionText(nil, v)) }

func appendVersionText(b []byte, v uint64) []byte {
	return hex.AppendEncode(b, binary.BigEndian.AppendUint64(make([]byte, 0, versionDigits/2), v))
}

func parseVersion(s string) uint64 {
	v, err := strconv.ParseUint(s, 16, 64)
	if err != nil {
		return 0
	}
	return v
}

// state is a snapshot as the streams use it: numbered, and each type sorted by name.
type state struct {
	version   uint64
	resources map[string][]Resource // by type URL
}

// newState copies the slices, not the bodies. Of two resources with one name the first
// stays; the names of the others are given back.
func newState(version uint64, snap Snapshot) (st *state, duplicates []string) {
	st = &state{version: version, resources: make(map[string][]Resource, len(snap))}
	for url, list := range snap {
		list = slices.Clone(list)
		slices.SortStableFunc(list, func(a, b Resource) int { return cmp.Compare(a.Name, b.Name) })
		st.resources[url] = slices.CompactFunc(list, func(a, b Resource) bool {
			if a.Name == b.Name {
				duplicates = append(duplicates, b.Name)
			}
			return a.Name == b.Name
		})
	}
	return st, duplicates
}

// find returns the resource of this type and name, if the state has it.
func (st *state) find(url, name string) (r Resource, has bool) {
	list := st.resources[url]
	i, has := slices.BinarySearchFunc(list, name, func(r Resource, name string) int { return cmp.Compare(r.Name, name) })
	if !has {
		return Resource{}, false
	}
	return list[i], true
}
