package vip

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// declaredOf returns the indexes of the addresses in prefixes. A prefix that is as large
// as a range declares none of it: our addresses are more specific.
func (v *Pool) declaredOf(prefixes []netip.Prefix) declaredAddrs {
	out := declaredAddrs{}
	for _, p := range prefixes {
		first, n, ok := v.indexesOf(p.Masked())
		for i := uint32(0); ok && i < n; i++ {
			out[first+i] = true
		}
	}
	return out
}

// indexesOf returns which indexes have their address in p.
func (v *Pool) indexesOf(p netip.Prefix) (first, n uint32, ok bool) {
	if v.config.V4.Contains(p.Addr()) && p.Bits() > v.config.V4.Bits() {
		b := p.Addr().As4()
		return binary.BigEndian.Uint32(b[:]) - v.base4(), 1 << (32 - p.Bits()), true
	}
	const all = 128
	if !v.config.IPv6 || !v.config.V6.Contains(p.Addr()) || p.Bits() <= v.config.V6.Bits() {
		return 0, 0, false
	}
	base, b := v.config.V6.Addr().As16(), p.Addr().As16()
	offset := binary.BigEndian.Uint64(b[8:]) - binary.BigEndian.Uint64(base[8:])
	if [8]byte(b[:8]) != [8]byte(base[:8]) || offset >= uint64(v.size()) {
		return 0, 0, false // in the range, but where no index is
	}
	return uint32(offset), uint32(min(uint64(v.size())-offset, 1<<min(all-p.Bits(), maxIndexBits))), true
}

// setDeclared takes over what is declared now. An address that no longer is goes into
// quarantine like that of a host that left: clients may still dial it.
func (v *Pool) setDeclared(now declaredAddrs, at time.Time) {
	for index := range v.declared {
		if _, taken := v.owner[index]; now[index] || taken || !v.usable(index) {
			continue
		}
		name := v.addrs(index)[0].String() // no host's name, and what people look for in the file
		v.freed[name] = freed{index, at}
		v.owner[index] = name
		v.note(name)
	}
	v.declared = now
}

// displace takes the index from every host whose addresses are declared, and returns what
// each had. There is no quarantine: the declaration keeps the index from others.
func (v *Pool) displace() map[string][]netip.Addr {
	had := map[string][]netip.Addr{}
	forget := func(h string, index uint32) {
		delete(v.assigned, h)
		delete(v.since, index)
		delete(v.freed, h)
		delete(v.owner, index)
		v.note(h)
	}
	for h, index := range v.assigned {
		if v.declared[index] {
			had[h] = v.addrs(index)
			forget(h, index)
		}
	}
	for h, f := range v.freed {
		if v.declared[f.index] {
			forget(h, f.index)
		}
	}
	return had
}

// tellDisplaced logs who got another address, and which.
func (v *Pool) tellDisplaced(had map[string][]netip.Addr) {
	for _, h := range slices.Sorted(maps.Keys(had)) {
		now := "none, see the error"
		if index, ok := v.assigned[h]; ok {
			now = v.addrs(index)[0].String()
		}
		v.log.Warn("the automatic address of a host is declared by a document now; the host gets another",
			"host", h, "had", had[h][0], "has", now)
	}
}
