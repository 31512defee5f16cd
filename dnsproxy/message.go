package dnsproxy

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/miekg/dns"
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

// rcodeName is the name of an RCODE, with the upper bits of an OPT record.
func rcodeName(rcode int) string {
	if rcode == rcodeBadVers { // which miekg/dns calls by the name that it has in TSIG
		return "BADVERS"
	}
	if name, ok := dns.RcodeToString[rcode]; ok {
		return name
	}
	return fmt.Sprintf("RCODE%d", rcode)
}
