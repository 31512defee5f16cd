package vip

import (
	"fmt"
	"maps"
)

// Export returns the whole allocation with its quarantine for another agent's
// Import; its form is that of the file.
func (v *Pool) Export() []byte {
	v.mu.Lock()
	defer v.mu.Unlock()
	data, err := v.encode()
	if err != nil { // no name, number or time that decode lets in does this
		v.log.Error("cannot encode the VIP allocation", "error", err)
	}
	return data
}

// Import puts the allocation of another agent's Export in the place of the own
// one, and saves it as Assign does. Hosts that the other one does not know keep
// what they have where that is free there; the rest lose it, and get another
// address at the next Assign. changed says whether anything did. Damaged data
// or another range is an error and changes nothing.
func (v *Pool) Import(data []byte) (changed bool, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	a, err := v.decode(data)
	if err != nil {
		return false, fmt.Errorf("import VIP allocation of %d bytes: %w", len(data), err)
	}
	for h, index := range v.assigned {
		if a.admits(h, index) {
			a.assigned[h] = index
			if at, ok := v.since[index]; ok {
				a.since[index] = at
			}
		}
	}
	for h, f := range v.freed {
		if a.admits(h, f.index) {
			a.freed[h] = f
		}
	}
	if v.equal(a) {
		return false, nil
	}
	for _, owners := range []map[uint32]string{v.owner, a.owner} {
		for _, h := range owners {
			v.note(h)
		}
	}
	v.allocation = a
	v.save()
	return true, nil
}

// admits takes the index for h, unless h is known or the index is taken.
func (a allocation) admits(h string, index uint32) bool {
	_, assigned := a.assigned[h]
	_, left := a.freed[h]
	_, taken := a.owner[index]
	if assigned || left || taken {
		return false
	}
	a.owner[index] = h
	return true
}

// equal compares who has what; since when makes no difference to anybody.
func (a allocation) equal(b allocation) bool {
	return maps.Equal(a.assigned, b.assigned) && maps.EqualFunc(a.freed, b.freed, func(f, g freed) bool {
		return f.index == g.index && f.at.Equal(g.at)
	})
}
