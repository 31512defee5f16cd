// Package vip owns the virtual addresses: which host has which, kept in a file over
// restarts, and handed to the next generation.
package vip

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"understudy.mesh/pkg/journal"

	"understudy.mesh/dnsproxy/internal/wire"
)

// defaultQuarantine is how long the address of a host that left is given to
// nobody else: clients keep answers for their TTL and connections for longer.
const defaultQuarantine = 10 * time.Minute

// maxIndexBits bounds a range to what a host's index can be: 65,536 hosts, the
// size of 240.240.0.0/16.
const maxIndexBits = 16

// Config is what Open needs.
type Config struct {
	Path       string           // the file; "": only in memory
	V4         netip.Prefix     // 240.240.0.0/16; /16 to /29
	V6         netip.Prefix     // 2001:2::/48; at least as large as V4
	IPv6       bool             // give an address of V6 too
	Quarantine time.Duration    // 0: ten minutes
	Now        func() time.Time // nil: time.Now
	Log        *slog.Logger     // nil: slog.Default
}

// Pool gives hosts virtual addresses, and keeps which in a file, so that they
// stay over restarts. A host's index in the range is a hash of its name, or
// the next free one: agents that never saw each other's file mostly agree.
//
// A change is a record in a journal beside the file, which costs as much as the
// change. The file is written whole when the journal is full, and by Compact.
type Pool struct {
	config   Config
	log      *slog.Logger
	capacity int            // addresses that can be given
	store    *journal.Store // nil: only in memory

	mu sync.Mutex
	allocation
	declared  declaredAddrs // by the last Assign
	pending   int           // hosts that got none at the last Assign
	exhausted uint64
	changed   map[string]struct{} // hosts of which the file has something else
	compact   bool                // the file alone has all but changed
	readOnly  bool                // the last write failed, and was logged
	failures  uint64
}

// declaredAddrs are the indexes of addresses in the ranges that a document declares as
// its own. They win over ours: Envoy has one listener for an address and a port.
type declaredAddrs map[uint32]bool

// allocation says who has what.
type allocation struct {
	assigned map[string]uint32
	since    map[uint32]int64  // when assigned, in Unix seconds; not of what an earlier release assigned
	freed    map[string]freed  // hosts that left, until another needs the index
	owner    map[uint32]string // of every index in assigned or freed
}

func newAllocation() allocation {
	return allocation{assigned: map[string]uint32{}, since: map[uint32]int64{}, freed: map[string]freed{}, owner: map[uint32]string{}}
}

// freed is the index that a host had, and when it left.
type freed struct {
	index uint32
	at    time.Time
}

// Stats is a snapshot of the pool.
type Stats struct {
	Capacity    int    `json:"capacity"`    // addresses that can be given
	Assigned    int    `json:"assigned"`    // given now
	Quarantined int    `json:"quarantined"` // freed, and not yet for others
	Pending     int    `json:"pending"`     // hosts that got none at the last Assign
	Exhausted   uint64 `json:"exhausted"`   // times a host got none
	WriteErrors uint64 `json:"writeErrors"` // times the file could not be written
}

// free takes the index from every host that is not wanted any more.
func (v *Pool) free(wanted map[string]struct{}) {
	now := v.config.Now()
	for h, index := range v.assigned {
		if _, ok := wanted[h]; !ok {
			delete(v.assigned, h)
			delete(v.since, index)
			v.freed[h] = freed{index, now}
			v.note(h)
		}
	}
}

// arrivals returns the wanted hosts without an index, after giving back to
// those that had one before. They are sorted, so that the order in which files
// are read changes nothing.
func (v *Pool) arrivals(wanted map[string]struct{}) []string {
	now := v.config.Now().Unix()
	var fresh []string
	for h := range wanted {
		if _, ok := v.assigned[h]; ok {
			continue
		}
		if f, ok := v.freed[h]; ok {
			delete(v.freed, h)
			v.assigned[h] = f.index
			v.since[f.index] = now
			v.note(h)
			continue
		}
		fresh = append(fresh, h)
	}
	slices.Sort(fresh)
	return fresh
}

// give finds an index for each host and returns those for which there is none.
// Hosts whose own index is free come first, so that those who search take none of theirs.
func (v *Pool) give(hosts []string) []string {
	now := v.config.Now()
	var displaced, unassigned []string
	for _, h := range hosts {
		if !v.take(h, v.home(h), now) {
			displaced = append(displaced, h)
		}
	}
	full := false // then every further search would end the same
	for _, h := range displaced {
		if full || !v.search(h, now) {
			full = true
			unassigned = append(unassigned, h)
		}
	}
	return unassigned
}

// search gives h the first free index behind its own.
func (v *Pool) search(h string, now time.Time) bool {
	home := v.home(h)
	for i := uint32(1); i < v.size(); i++ {
		if v.take(h, (home+i)%v.size(), now) {
			return true
		}
	}
	return false
}

// take gives index to h if it may have it.
func (v *Pool) take(h string, index uint32, now time.Time) bool {
	if !v.usable(index) || v.declared[index] {
		return false
	}
	if last, ok := v.owner[index]; ok {
		f, left := v.freed[last]
		if !left || now.Sub(f.at) < v.config.Quarantine {
			return false
		}
		delete(v.freed, last)
		v.note(last)
	}
	v.assigned[h] = index
	v.since[index] = now.Unix()
	v.owner[index] = h
	v.note(h)
	return true
}

// home is the index that a host's name says.
func (v *Pool) home(h string) uint32 {
	hash := fnv.New64a()
	hash.Write([]byte(h))
	return uint32(hash.Sum64() % uint64(v.size()))
}

func (v *Pool) size() uint32 { return 1 << (32 - v.config.V4.Bits()) }

// usable leaves out x.x.x.0 and x.x.x.255, and the first and last address of
// the range: some clients and firewalls still take them for a network and its
// broadcast address, and drop or refuse them.
func (v *Pool) usable(index uint32) bool {
	last := byte(v.base4() + index)
	return index != 0 && index < v.size()-1 && last != 0 && last != 255
}

func (v *Pool) base4() uint32 {
	b := v.config.V4.Addr().As4()
	return binary.BigEndian.Uint32(b[:])
}

// addrs returns the addresses at index: the same offset in both ranges.
func (v *Pool) addrs(index uint32) []netip.Addr { return v.appendAddrs(nil, index) }

func (v *Pool) appendAddrs(list []netip.Addr, index uint32) []netip.Addr {
	var b4 [4]byte
	binary.BigEndian.PutUint32(b4[:], v.base4()+index)
	list = append(list, netip.AddrFrom4(b4))
	if v.config.IPv6 {
		b6 := v.config.V6.Addr().As16()
		binary.BigEndian.PutUint32(b6[12:], binary.BigEndian.Uint32(b6[12:])+index)
		list = append(list, netip.AddrFrom16(b6))
	}
	return list
}

// Stats returns the pool's numbers as they are now.
func (v *Pool) Stats() Stats {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.stats()
}

func (v *Pool) stats() Stats {
	s := Stats{
		Capacity: v.capacity, Assigned: len(v.assigned), Pending: v.pending,
		Exhausted: v.exhausted, WriteErrors: v.failures,
	}
	now := v.config.Now()
	for _, f := range v.freed {
		if now.Sub(f.at) < v.config.Quarantine {
			s.Quarantined++
		}
	}
	return s
}

// index records the owner of every index of a, and refuses two of one.
func (v *Pool) index(a allocation) error {
	own := func(h string, index uint32) error {
		_, assigned := a.assigned[h]
		_, left := a.freed[h]
		if h == "" || h != wire.Normal(h) || assigned && left {
			return fmt.Errorf("host %q", h)
		}
		if !v.usable(index) {
			return fmt.Errorf("host %q has index %d, which is not in %s", h, index, v.config.V4)
		}
		if other, taken := a.owner[index]; taken {
			return fmt.Errorf("hosts %q and %q have one index %d", h, other, index)
		}
		a.owner[index] = h
		return nil
	}
	for h, index := range a.assigned {
		if err := own(h, index); err != nil {
			return err
		}
	}
	for h, f := range a.freed {
		if err := own(h, f.index); err != nil {
			return err
		}
	}
	return nil
}
