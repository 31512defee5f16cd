package security

import (
	"maps"
	"slices"
	"time"
)

// trust is the set of roots by which Envoy knows the certificates of peers. It holds PEM, one certificate each.
type trust struct {
	current []string             // those of the last certificate
	old     map[string]time.Time // those of certificates before, and when they go
	bundle  []string             // those that the mesh's configuration adds
}

// replace takes in the roots of a new certificate; those before that are not among them stay until a moment. It says
// whether a root is new.
func (t *trust) replace(roots []string, until time.Time) bool {
	added := false
	for _, root := range roots {
		_, kept := t.old[root]
		added = added || !kept && !slices.Contains(t.current, root)
		delete(t.old, root)
	}
	for _, root := range t.current {
		if !slices.Contains(roots, root) {
			t.keep(root, until)
		}
	}
	t.current = roots
	return added
}

func (t *trust) keep(root string, until time.Time) {
	if t.old == nil {
		t.old = make(map[string]time.Time)
	}
	t.old[root] = until
}

// expire drops the old roots whose time has come, and says whether there were any.
func (t *trust) expire(now time.Time) bool {
	before := len(t.old)
	maps.DeleteFunc(t.old, func(_ string, until time.Time) bool { return !now.Before(until) })
	return len(t.old) != before
}

// next is when an old root goes, zero if none does.
func (t *trust) next() (next time.Time) {
	for _, until := range t.old {
		if next.IsZero() || until.Before(next) {
			next = until
		}
	}
	return next
}

// roots are all.
func (t *trust) roots() []string { return union(t.current, slices.Collect(maps.Keys(t.old)), t.bundle) }

// union is sorted and without doubles: the same set is the same bytes, which Envoy is not told of twice.
func union(lists ...[]string) []string {
	all := slices.Concat(lists...)
	slices.Sort(all)
	return slices.Compact(all)
}
