package dnsproxy

import (
	"encoding/binary"
	"errors"
)

// Sizes and flag bits of the wire format, RFC 1035 section 4.1 and RFC 6891
// section 6.1.2.
const (
	headerLen   = 12
	maxWireName = 255
	optLen      = 11 // an OPT record without options
	fixedRRLen  = 10 // type, class, TTL, RDLENGTH

	minUDPSize = 512   // what every client takes, RFC 1035 section 4.2.1
	maxUDPSize = 65507 // what an IPv4 datagram can carry
	maxMessage = 65535 // what the two length octets of TCP can say

	// ownUDPSize is what we advertise, to clients and to servers: no
	// fragmentation on any usual path (DNS flag day 2020).
	ownUDPSize = 1232

	flagQR    = 1 << 15
	flagAA    = 1 << 10
	flagTC    = 1 << 9
	flagRD    = 1 << 8
	flagRA    = 1 << 7
	flagAD    = 1 << 5
	flagCD    = 1 << 4
	opcodes   = 0xF << 11
	rcodes    = 0xF
	flagDO    = 1 << 15 // in the TTL field of OPT
	typeNS    = 2
	typeCNAME = 5
	typeSOA   = 6
	typeOPT   = 41
	typeA     = 1
	typeAAAA  = 28
	typePTR   = 12
	typeMX    = 15
	typeTXT   = 16
	typeSRV   = 33
	typeANY   = 255
	classIN   = 1

	rcodeSuccess  = 0
	rcodeFormErr  = 1
	rcodeServFail = 2
	rcodeNXDomain = 3
	rcodeNotImp   = 4
	rcodeRefused  = 5
	rcodeBadVers  = 16
)

var errMalformed = errors.New("malformed message")

// flagsOf returns the second 16 bits of a message's header.
func flagsOf(msg []byte) uint16 { return binary.BigEndian.Uint16(msg[2:]) }

// rcodeOf returns the RCODE of a message's header, without the extended bits
// of an OPT record.
func rcodeOf(msg []byte) int { return int(flagsOf(msg) & rcodes) }

// section says where in a message a record stands.
type section uint8

const (
	sectionAnswer section = iota
	sectionAuthority
	sectionAdditional
	sections
)

// record is one resource record, as offsets into the message it stands in.
type record struct {
	section     section
	root        bool // the owner is the root: what OPT must have
	typ, class  uint16
	ttl         uint32
	ttlAt       int
	start, data int
	end         int
}

// records walks over the resource records of a message without unpacking them.
type records struct {
	msg  []byte
	off  int
	left [sections]uint16
	cur  section
	err  error
}

// recordsOf returns a walk over the records that begin at off, behind the
// question.
func recordsOf(msg []byte, off int) records {
	r := records{msg: msg, off: off}
	for s := range r.left {
		r.left[s] = binary.BigEndian.Uint16(msg[6+2*s:])
	}
	return r
}

// most is how many records there are at most.
func (r *records) most() (n int) {
	for _, left := range r.left {
		n += int(left)
	}
	return min(n, max(len(r.msg)-r.off, 0)/fixedRRLen)
}

// next returns the next record. False means the end, or r.err.
func (r *records) next() (record, bool) {
	for r.cur < sections && r.left[r.cur] == 0 {
		r.cur++
	}
	if r.cur == sections || r.err != nil {
		return record{}, false
	}
	r.left[r.cur]--
	start := r.off
	off, ok := skipName(r.msg, start)
	if !ok || off+fixedRRLen > len(r.msg) {
		r.err = errMalformed
		return record{}, false
	}
	fixed := r.msg[off:]
	rec := record{
		section: r.cur,
		root:    r.msg[start] == 0,
		typ:     binary.BigEndian.Uint16(fixed),
		class:   binary.BigEndian.Uint16(fixed[2:]),
		ttl:     binary.BigEndian.Uint32(fixed[4:]),
		ttlAt:   off + 4,
		start:   start,
		data:    off + fixedRRLen,
	}
	rec.end = rec.data + int(binary.BigEndian.Uint16(fixed[8:]))
	if rec.end > len(r.msg) {
		r.err = errMalformed
		return record{}, false
	}
	r.off = rec.end
	return rec, true
}

// skipName returns the offset behind the name at off. It does not follow
// compression pointers; it only sees that the name stays in the message.
func skipName(msg []byte, off int) (int, bool) {
	for off < len(msg) {
		n := int(msg[off])
		switch {
		case n == 0:
			return off + 1, true
		case n >= 0xC0:
			return off + 2, off+2 <= len(msg)
		case n > 63: // 01 and 10 are reserved, RFC 1035 section 4.1.4
			return 0, false
		}
		off += 1 + n
	}
	return 0, false
}

// appendName appends the wire form of a dotted lower-case name. False when the
// name cannot be one: an empty label, one over 63 octets, over 255 in all.
func appendName(dst []byte, name string) ([]byte, bool) {
	if name == "" || len(name) > maxWireName-2 {
		return dst, false
	}
	start := len(dst)
	dst = append(dst, 0)
	at, label := start, 0
	for i := range len(name) {
		if name[i] != '.' {
			dst = append(dst, name[i])
			label++
			continue
		}
		if label == 0 || label > 63 {
			return dst[:start], false
		}
		dst[at] = byte(label)
		at, label = len(dst), 0
		dst = append(dst, 0)
	}
	if label == 0 || label > 63 {
		return dst[:start], false
	}
	dst[at] = byte(label)
	return append(dst, 0), true
}

// lower returns c in lower case, for ASCII only, as DNS compares (RFC 4343).
func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + ('a' - 'A')
	}
	return c
}
