package nftables

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Types of set keys, as nft numbers them: TYPE_* of its datatype.h.
const (
	keyIPv4  = 7
	keyIPv6  = 8
	keyPort  = 13
	keyUser  = 24
	keyGroup = 25
)

var keyNames = map[uint32]string{keyIPv4: "ipv4_addr", keyIPv6: "ipv6_addr", keyPort: "inet_service", keyUser: "uid", keyGroup: "gid"}

// nfSet is a set of nf_tables, as wanted or as found.
type nfSet struct {
	name      string
	anonymous bool     // goes with its rule
	attrs     []byte   // what makes it, without its table
	elements  [][]byte // lists of elements, each small enough for one message

	key      uint32         // of keyNames
	prefixes []netip.Prefix // what it holds, in order
	numbers  []uint32       // ports, users or groups
	err      error          // what it holds is none of these
}

// addressSet returns the set of some prefixes of one IP version that do not overlap.
func addressSet(list []netip.Prefix) *nfSet {
	s := &nfSet{key: keyIPv4, prefixes: slices.SortedFunc(slices.Values(list), netip.Prefix.Compare)}
	if list[0].Addr().Is6() {
		s.key = keyIPv6
	}
	var elements []byte
	for _, p := range s.prefixes {
		elements = s.appendElement(elements, p.Addr().AsSlice(), 0)
		if end, ok := addressAfter(p); ok {
			elements = s.appendElement(elements, end.AsSlice(), unix.NFT_SET_ELEM_INTERVAL_END)
		}
	}
	s.finish(elements, unix.NFT_SET_INTERVAL, list[0].Addr().BitLen()/8, bigEndian)
	return s
}

// numberSet returns the set of some ports, users or groups.
func numberSet[N uint16 | uint32](key uint32, list []N) *nfSet {
	s := &nfSet{key: key}
	for _, n := range slices.Sorted(slices.Values(list)) {
		s.numbers = append(s.numbers, uint32(n))
	}
	var elements []byte
	size, order := 4, byte(hostEndian)
	for _, n := range s.numbers {
		data := binary.NativeEndian.AppendUint32(nil, n)
		if key == keyPort {
			size, order = 2, bigEndian
			data = binary.BigEndian.AppendUint16(nil, uint16(n))
		}
		elements = s.appendElement(elements, data, 0)
	}
	s.finish(elements, 0, size, order)
	return s
}

// Byte orders of keys as nft notes them, to print them: its enum byteorder.
const (
	hostEndian = 1
	bigEndian  = 2
)

// appendElement adds an element to the last list of a set, or finishes that list first.
func (s *nfSet) appendElement(list, key []byte, flags uint32) []byte {
	value := appendAttr(nil, unix.NFTA_DATA_VALUE, key)
	element := appendNested(nil, unix.NFTA_SET_ELEM_KEY, value)
	if flags != 0 {
		element = appendUint32(element, unix.NFTA_SET_ELEM_FLAGS, flags)
	}
	if len(list)+len(element) > maxElementBytes {
		s.elements = append(s.elements, list)
		list = nil
	}
	return appendNested(list, unix.NFTA_LIST_ELEM, element)
}

func (s *nfSet) finish(elements []byte, flags uint32, keySize int, order byte) {
	s.elements = append(s.elements, elements)
	// TLV of libnftnl's udata.h: NFTNL_UDATA_SET_KEYBYTEORDER is 0, its value four bytes.
	userdata := binary.NativeEndian.AppendUint32([]byte{0, 4}, uint32(order))
	b := appendUint32(nil, unix.NFTA_SET_FLAGS, flags)
	b = appendUint32(b, unix.NFTA_SET_KEY_TYPE, s.key)
	b = appendUint32(b, unix.NFTA_SET_KEY_LEN, uint32(keySize))
	s.attrs = appendAttr(b, unix.NFTA_SET_USERDATA, userdata)
}

// sameContent reports whether two sets hold the same.
func (s *nfSet) sameContent(o *nfSet) bool {
	return s.key == o.key && slices.Equal(s.prefixes, o.prefixes) && slices.Equal(s.numbers, o.numbers)
}

// addressAfter returns the address that follows the last one of p, if there is any.
func addressAfter(p netip.Prefix) (netip.Addr, bool) {
	a := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(a)*8; bit++ {
		a[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(a)
	next := last.Next()
	return next, next.IsValid()
}

// Of linux/netfilter/nf_tables.h, not in x/sys.
const (
	setExpr        = 17 // NFTA_SET_EXPR
	setExpressions = 18 // NFTA_SET_EXPRESSIONS
)

// setMakers are the attributes of a set that make it, of those that the kernel tells.
var setMakers = []uint16{unix.NFTA_SET_FLAGS, unix.NFTA_SET_KEY_TYPE, unix.NFTA_SET_KEY_LEN, unix.NFTA_SET_DATA_TYPE,
	unix.NFTA_SET_DATA_LEN, unix.NFTA_SET_POLICY, unix.NFTA_SET_DESC, unix.NFTA_SET_TIMEOUT, unix.NFTA_SET_GC_INTERVAL,
	unix.NFTA_SET_USERDATA, unix.NFTA_SET_OBJ_TYPE, setExpr, setExpressions}

// readSet returns a set as the kernel describes it, with its lists of elements.
func readSet(attrs []byte, elements [][]byte) *nfSet {
	flags := attrUint32(attrs, unix.NFTA_SET_FLAGS)
	s := &nfSet{
		name:      attrName(attrs, unix.NFTA_SET_NAME),
		anonymous: flags&unix.NFT_SET_ANONYMOUS != 0,
		key:       attrUint32(attrs, unix.NFTA_SET_KEY_TYPE),
		elements:  elements,
		attrs:     only(attrs, setMakers),
	}
	const plain = unix.NFT_SET_ANONYMOUS | unix.NFT_SET_CONSTANT | unix.NFT_SET_INTERVAL
	if flags&^uint32(plain) != 0 {
		s.err = errors.New("is a map, or its elements come and go")
		return s
	}
	switch s.key {
	case keyIPv4, keyIPv6:
		s.prefixes, s.err = readPrefixes(elements)
	case keyPort, keyUser, keyGroup:
		if flags&unix.NFT_SET_INTERVAL != 0 {
			s.err = errors.New("has ranges of numbers")
			break
		}
		s.numbers, s.err = readNumbers(elements)
	default:
		s.err = fmt.Errorf("has keys of type %d", s.key)
	}
	return s
}

// only returns the attributes of some types.
func only(attrs []byte, kinds []uint16) (out []byte) {
	for kind, data := range attributes(attrs) {
		if slices.Contains(kinds, kind) {
			if kind == unix.NFTA_SET_DESC || kind == setExpr || kind == setExpressions || kind == unix.NFTA_CHAIN_HOOK {
				kind |= unix.NLA_F_NESTED
			}
			out = appendAttr(out, kind, data)
		}
	}
	return out
}

// element is one element of a set: a value, or the first one after an interval.
type element struct {
	key []byte
	end bool
}

func readElements(lists [][]byte) (out []element, err error) {
	for _, list := range lists {
		for _, e := range attributes(list) {
			key := attribute(attribute(e, unix.NFTA_SET_ELEM_KEY), unix.NFTA_DATA_VALUE)
			flags := attrUint32(e, unix.NFTA_SET_ELEM_FLAGS)
			if flags&^uint32(unix.NFT_SET_ELEM_INTERVAL_END) != 0 || key == nil {
				return nil, errors.New("has an element that is no value")
			}
			out = append(out, element{key, flags != 0})
		}
	}
	return out, nil
}

func readNumbers(lists [][]byte) (out []uint32, err error) {
	elements, err := readElements(lists)
	for _, e := range elements {
		switch len(e.key) {
		case 2:
			out = append(out, uint32(binary.BigEndian.Uint16(e.key)))
		case 4:
			out = append(out, binary.NativeEndian.Uint32(e.key))
		default:
			err = errors.New("has a number of odd size")
		}
	}
	slices.Sort(out)
	return out, err
}

// readPrefixes returns what the intervals of a set cover. Their ends come in any order; one
// without an end reaches to the next start, or to the last address.
func readPrefixes(lists [][]byte) (out []netip.Prefix, err error) {
	elements, err := readElements(lists)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(elements, func(a, b element) int {
		n := bytes.Compare(a.key, b.key)
		switch {
		case n != 0 || a.end == b.end:
			return n
		case a.end: // of the interval before
			return -1
		}
		return 1
	})
	for i, e := range elements {
		from, ok := netip.AddrFromSlice(e.key)
		if !ok {
			return nil, errors.New("has an address of odd size")
		}
		if e.end {
			continue
		}
		var after netip.Addr
		if i+1 < len(elements) {
			after, _ = netip.AddrFromSlice(elements[i+1].key)
		}
		out = appendRange(out, from, after)
	}
	return out, nil
}

// appendRange adds the prefixes from one address up to another, which is not part of them;
// an invalid one is the end of all addresses.
func appendRange(list []netip.Prefix, from, after netip.Addr) []netip.Prefix {
	for from.IsValid() && from != after {
		p := netip.PrefixFrom(from, from.BitLen())
		for length := p.Bits() - 1; length >= 0; length-- {
			wider := netip.PrefixFrom(from, length)
			if wider.Masked() != wider || wider.Contains(after) {
				break
			}
			p = wider
		}
		list = append(list, p)
		from, _ = addressAfter(p)
	}
	return list
}

// text returns the set in nft's syntax, as a block inside of its table.
func (s *nfSet) text() string {
	var items []string
	flags := ""
	for _, p := range s.prefixes {
		items = append(items, addressText(p))
		flags = "\t\tflags interval\n"
	}
	for _, n := range s.numbers {
		items = append(items, fmt.Sprint(n))
	}
	return fmt.Sprintf("\tset %s {\n\t\ttype %s\n%s\t\telements = { %s }\n\t}\n", s.name, keyNames[s.key], flags, strings.Join(items, ", "))
}

// addressText leaves out the length of a prefix of one address, as nft does.
func addressText(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}
