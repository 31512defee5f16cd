package table

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"understudy.mesh/dnsproxy/internal/wire"
)

// maxAddrs bounds the addresses of a host and family: that many AAAA records
// fit the largest message (65,535 bytes, 28 a record).
const maxAddrs = 2000

// addrs are the addresses of one host as the table keeps them: one byte for
// Host.VIP, the number of IPv4 addresses in two, those, and then IPv6's. Without
// any, the host is forwarded.
type addrs []byte

const addrsHead = 1 + 2

func (e addrs) vip() bool       { return e[0] != 0 }
func (e addrs) forwarded() bool { return len(e) == addrsHead }
func (e addrs) v4() []byte      { return e[addrsHead:][:4*int(binary.BigEndian.Uint16(e[1:]))] }
func (e addrs) v6() []byte      { return e[addrsHead+len(e.v4()):] }

func (e addrs) list() []netip.Addr {
	list := make([]netip.Addr, 0, len(e.v4())/4+len(e.v6())/16)
	for b := range slices.Chunk(e.v4(), 4) {
		list = append(list, netip.AddrFrom4([4]byte(b)))
	}
	for b := range slices.Chunk(e.v6(), 16) {
		list = append(list, netip.AddrFrom16([16]byte(b)))
	}
	return list
}

// appendAddrs appends the addresses in list as addrs, each once; nothing when
// there is none.
func appendAddrs(dst []byte, list []netip.Addr, vip bool) []byte {
	start := len(dst)
	dst = append(dst, 0, 0, 0)
	if vip {
		dst[start] = 1
	}
	family := func(v4 bool) (n int) {
		for i, a := range list {
			if a.IsValid() && a.Unmap().Is4() == v4 && n < maxAddrs && !slices.Contains(list[:i], a) {
				dst = appendAddr(dst, a.Unmap())
				n++
			}
		}
		return n
	}
	n4 := family(true)
	binary.BigEndian.PutUint16(dst[start+1:], uint16(n4))
	if n4+family(false) == 0 {
		return dst[:start]
	}
	return dst
}

// appendAddr appends the 4 or 16 bytes of a.
func appendAddr(dst []byte, a netip.Addr) []byte {
	if a.Is4() {
		b := a.As4()
		return append(dst, b[:]...)
	}
	b := a.As16()
	return append(dst, b[:]...)
}

// With returns the table in which each host of set has replaced the one of its
// name, and gone, but for those of set, have left. A name twice in set has the
// addresses of both; one without a usable address leaves, unless it is Forwarded.
// It costs what changes, however large the table is: a host that stays as it was costs
// a look-up.
func (t *Table) With(set []Host, gone []string) *Table {
	byName := func(a, b Host) int { return strings.Compare(wire.Normal(a.Name), wire.Normal(b.Name)) }
	if !slices.IsSortedFunc(set, byName) {
		set = slices.Clone(set)
		slices.SortStableFunc(set, byName)
	}
	e := newEdit(t, set, gone)
	for _, name := range gone {
		_, stays := slices.BinarySearchFunc(set, Host{Name: name}, byName)
		if key, wild, ok := e.nameKey(name); ok && !stays {
			e.put(key, wild, nil)
		}
	}
	for len(set) > 0 {
		n := 1
		for n < len(set) && byName(set[0], set[n]) == 0 {
			n++
		}
		if key, wild, ok := e.nameKey(set[0].Name); ok {
			e.put(key, wild, e.merged(set[:n]))
		}
		set = set[n:]
	}
	return e.apply()
}

// edit gathers what becomes different in a table.
type edit struct {
	table            *Table
	exact, wildcards []change
	pointers         []pointer
	bytes            []byte // of keys and values: thousands of small objects are garbage for longer than they live
}

// newEdit returns an edit with room for that many changes: what grows leaves
// several times its size as garbage, of 100,000 names tens of megabytes.
func newEdit(t *Table, set []Host, gone []string) *edit {
	size, vips := 0, 0
	for _, name := range gone {
		size += len(name) + 2
	}
	for _, h := range set {
		size += len(h.Name) + 2 + addrsHead
		for _, a := range h.Addrs {
			size += a.BitLen() / 8
		}
		if h.VIP {
			vips += len(h.Addrs)
		}
	}
	return &edit{
		table: t, bytes: make([]byte, 0, size),
		exact: make([]change, 0, len(set)+len(gone)), pointers: make([]pointer, 0, vips),
	}
}

// pointer is one VIP's becoming a host's, or ceasing to be one's.
type pointer struct {
	addr []byte
	host []byte // in wire form, with the root
	add  bool
}

// nameKey returns what a host is kept by: its name in wire form without the
// root, of a wildcard what is behind the star. The root stands behind the key.
func (e *edit) nameKey(name string) (key []byte, wild, ok bool) {
	name = wire.Normal(name)
	suffix, wild := strings.CutPrefix(name, "*.")
	start := len(e.bytes)
	if e.bytes, ok = wire.AppendName(e.bytes, suffix); !ok || suffix == "*" {
		return nil, false, false
	}
	return e.bytes[start : len(e.bytes)-1], wild, true
}

// merged returns the addresses of hosts, which have one name. They are virtual
// when all of them are. Without any, it is forwarded when one of the hosts is.
func (e *edit) merged(hosts []Host) addrs {
	list, vip, forwarded := hosts[0].Addrs, hosts[0].VIP, hosts[0].Forwarded
	for _, h := range hosts[1:] {
		list, vip, forwarded = slices.Concat(list, h.Addrs), vip && h.VIP, forwarded || h.Forwarded
	}
	start := len(e.bytes)
	e.bytes = appendAddrs(e.bytes, list, vip)
	if len(e.bytes) == start {
		if !forwarded {
			return nil
		}
		e.bytes = append(e.bytes, make([]byte, addrsHead)...)
	}
	return addrs(e.bytes[start:len(e.bytes):len(e.bytes)])
}

// put makes value that of a name, nil: none. Each name is put once.
func (e *edit) put(key []byte, wild bool, value addrs) {
	in, changes := e.table.exact, &e.exact
	if wild {
		in, changes = e.table.wildcards, &e.wildcards
	}
	old := addrs(in.get(key))
	if bytes.Equal(old, value) {
		return
	}
	*changes = append(*changes, change{key: key, value: value})
	if !wild { // a wildcard is no host that an address could be of
		host := key[:len(key)+1]
		e.point(host, old, false)
		e.point(host, value, true)
	}
}

func (e *edit) point(host []byte, list addrs, add bool) {
	if list == nil || !list.vip() {
		return
	}
	for a := range slices.Chunk(list.v4(), 4) {
		e.pointers = append(e.pointers, pointer{addr: a, host: host, add: add})
	}
	for a := range slices.Chunk(list.v6(), 16) {
		e.pointers = append(e.pointers, pointer{addr: a, host: host, add: add})
	}
}

func (e *edit) apply() *Table {
	out := *e.table
	out.exact = out.exact.with(e.exact)
	out.wildcards = out.wildcards.with(e.wildcards)
	out.reverse = out.reverse.with(e.reverse())
	return &out
}

// reverse returns the changes to the table of VIPs.
func (e *edit) reverse() []change {
	slices.SortFunc(e.pointers, func(a, b pointer) int { // what ceases goes first: a host may get the address again
		order := bytes.Compare(a.addr, b.addr)
		switch {
		case order != 0 || a.add == b.add:
			return order
		case a.add:
			return 1
		}
		return -1
	})
	changes := e.exact[:0] // done with
	for p := e.pointers; len(p) > 0; {
		n := 1
		for n < len(p) && bytes.Equal(p[n].addr, p[0].addr) {
			n++
		}
		changes = append(changes, change{key: p[0].addr, value: repoint(e.table.reverse.get(p[0].addr), p[:n])})
		p = p[n:]
	}
	return changes
}

// repoint returns a VIP's hosts after changes to them, nil when none is left.
// They are sorted by name, so that the order in which hosts came says nothing.
func repoint(hosts []byte, changes []pointer) []byte {
	if len(hosts) == 0 && len(changes) == 1 && changes[0].add { // nearly always
		return changes[0].host
	}
	var list [][]byte
	for len(hosts) > 0 {
		n, _ := wire.SkipName(hosts, 0)
		list = append(list, hosts[:n])
		hosts = hosts[n:]
	}
	for _, c := range changes {
		at, found := slices.BinarySearchFunc(list, c.host, func(a, b []byte) int {
			return strings.Compare(wire.Dotted(a[:len(a)-1]), wire.Dotted(b[:len(b)-1]))
		})
		switch {
		case c.add && !found:
			list = slices.Insert(list, at, c.host)
		case !c.add && found:
			list = slices.Delete(list, at, at+1)
		}
	}
	return slices.Concat(list...)
}

// New returns the table of hosts, as With puts them in.
func New(hosts []Host) *Table {
	t := &Table{exact: newShards(), wildcards: newShards(), reverse: newShards()}
	return t.With(hosts, nil)
}
