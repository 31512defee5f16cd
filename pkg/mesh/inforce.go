package mesh

import (
	"hash/maphash"
	"maps"
	"slices"

	"understudy.mesh/pkg/mesh/internal/document"
)

// attempt is a registry of certain objects, and what each of them was told.
type attempt struct {
	registry *Registry
	lost     map[*object]*document.Error   // nothing of it is in force
	excepted map[*object][]*document.Error // this of it is not
}

func try(objects map[key]*object, o Options, seed maphash.Seed) attempt {
	list := slices.Collect(maps.Values(objects))
	t := attempt{lost: map[*object]*document.Error{}, excepted: map[*object][]*document.Error{}}
	t.registry = newRegistry(list, o, seed, func(obj *object, v verdict) {
		if v.whole {
			t.lost[obj] = v.Error
		} else {
			t.excepted[obj] = append(t.excepted[obj], v.Error)
		}
	})
	return t
}

// registry merges the good objects, and notes at their documents what others do to them. Where a document cannot be in
// force beside the others, its version before stays, as with one that is bad by itself; if that cannot be either, or
// there is none, nothing of it is in force.
func (d *directory) registry(o Options, seed maphash.Seed) *Registry {
	objects, conflicts := d.good, map[*object]*document.Error{}
	t := try(objects, o, seed)
	for len(t.lost) > 0 {
		turn := maps.Clone(objects)
		for obj, err := range t.lost {
			k := obj.key()
			if last := d.lastInForce(k); last != nil && last != obj && d.good[k] == obj {
				turn[k], conflicts[obj] = last, err
			}
		}
		if maps.Equal(turn, objects) { // after at most a turn an object, as none is put back twice
			break
		}
		objects, t = turn, try(turn, o, seed)
	}
	for obj, err := range t.lost {
		if d.good[obj.key()] == obj {
			conflicts[obj] = err
		}
	}
	d.remember(objects, conflicts, t)
	return t.registry
}

// lastInForce returns the version of an object that the last registry had, or nil.
func (d *directory) lastInForce(k key) *object {
	if instead, refused := d.refused[k]; refused {
		return instead
	}
	return d.before[k]
}

// remember keeps what is in force in the place of what is not, and tells the documents.
func (d *directory) remember(objects map[key]*object, conflicts map[*object]*document.Error, t attempt) {
	refused := make(map[key]*object, len(conflicts))
	for obj := range conflicts {
		k := obj.key()
		if refused[k] = nil; objects[k] != obj && t.lost[objects[k]] == nil {
			refused[k] = objects[k]
		}
	}
	d.refused, d.before = refused, nil
	for _, f := range d.files {
		for i := range f.docs {
			if doc := &f.docs[i]; doc.obj != nil && doc.conflict == nil {
				doc.conflict, doc.exception = conflicts[doc.obj], document.Join(t.excepted[doc.obj]...)
				doc.kept = doc.conflict != nil && refused[doc.obj.key()] != nil
			}
		}
	}
}
