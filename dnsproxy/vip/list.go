package vip

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// VIP is what one host has of the pool, or had.
type VIP struct {
	Host  string       `json:"host"`
	Addrs []netip.Addr `json:"addresses"` // IPv4 first, then IPv6 if there is

	// Since is when the host got it; zero of one that left, and where an
	// earlier release gave it, which did not note that.
	Since time.Time `json:"since,omitzero"`

	// Freed is when the host left, and Usable when another one may get the
	// address; both are zero while the host is there.
	Freed  time.Time `json:"freed,omitzero"`
	Usable time.Time `json:"usable,omitzero"`
}

// List returns the hosts that have a VIP, sorted by name, and then those that
// left and whose address no other host needed yet, the earliest usable first.
func (v *Pool) List() []VIP {
	v.mu.Lock()
	list := make([]VIP, 0, len(v.assigned)+len(v.freed))
	for h, index := range v.assigned {
		vip := VIP{Host: h, Addrs: v.addrs(index)}
		if at, ok := v.since[index]; ok {
			vip.Since = time.Unix(at, 0).UTC()
		}
		list = append(list, vip)
	}
	for h, f := range v.freed {
		at := f.at.UTC().Round(0)
		list = append(list, VIP{Host: h, Addrs: v.addrs(f.index), Freed: at, Usable: at.Add(v.config.Quarantine)})
	}
	v.mu.Unlock()
	slices.SortFunc(list, func(a, b VIP) int {
		return cmp.Or(a.Usable.Compare(b.Usable), cmp.Compare(a.Host, b.Host))
	})
	return list
}
