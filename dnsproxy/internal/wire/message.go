// Package wire owns DNS messages as bytes: it reads a query, makes the replies and the
// requests, and checks what an upstream has sent. It waits for nothing and keeps nothing.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/miekg/dns"
)

// Sizes and flag bits of the wire format, RFC 1035 section 4.1 and RFC 6891
// section 6.1.2.
const (
	HeaderLen   = 12
	MaxWireName = 255
	OptLen      = 11 // an OPT record without options
	FixedRRLen  = 10 // type, class, TTL, RDLENGTH

	MinUDPSize = 512   // what every client takes, RFC 1035 section 4.2.1
	maxUDPSize = 65507 // what an IPv4 datagram can carry
	MaxMessage = 65535 // what the two length octets of TCP can say

	// OwnUDPSize is what we advertise, to clients and to servers: no
	// fragmentation on any usual path (DNS flag day 2020).
	OwnUDPSize = 1232

	FlagQR    = 1 << 15
	FlagAA    = 1 << 10
	FlagTC    = 1 << 9
	FlagRD    = 1 << 8
	FlagRA    = 1 << 7
	FlagAD    = 1 << 5
	FlagCD    = 1 << 4
	Opcodes   = 0xF << 11
	Rcodes    = 0xF
	flagDO    = 1 << 15 // in the TTL field of OPT
	TypeNS    = 2
	TypeCNAME = 5
	TypeSOA   = 6
	typeOPT   = 41
	TypeA     = 1
	TypeAAAA  = 28
	TypePTR   = 12
	TypeANY   = 255
	classIN   = 1

	RcodeSuccess  = 0
	RcodeFormErr  = 1
	RcodeServFail = 2
	RcodeNXDomain = 3
	RcodeNotImp   = 4
	rcodeRefused  = 5
	rcodeBadVers  = 16
)

var errMalformed = errors.New("malformed message")

// FlagsOf returns the second 16 bits of a message's header.
func FlagsOf(msg []byte) uint16 { return binary.BigEndian.Uint16(msg[2:]) }

// RcodeOf returns the RCODE of a message's header, without the extended bits
// of an OPT record.
func RcodeOf(msg []byte) int { return int(FlagsOf(msg) & Rcodes) }

// section says where in a message a record stands.
type section uint8

const (
	SectionAnswer    section = iota // what answers the question
	SectionAuthority                // who says so
	sectionAdditional
	sections
)

// Record is one resource record, as offsets into the message it stands in.
type Record struct {
	Section     section
	root        bool // the owner is the root: what OPT must have
	Type, class uint16
	TTL         uint32
	TTLAt       int
	start, Data int
	End         int
}

// records walks over the resource records of a message without unpacking them.
type records struct {
	msg  []byte
	off  int
	left [sections]uint16
	cur  section
	Err  error
}

// RecordsOf returns a walk over the records that begin at off, behind the
// question.
func RecordsOf(msg []byte, off int) records {
	r := records{msg: msg, off: off}
	for s := range r.left {
		r.left[s] = binary.BigEndian.Uint16(msg[6+2*s:])
	}
	return r
}

// Most is how many records there are at most.
func (r *records) Most() (n int) {
	for _, left := range r.left {
		n += int(left)
	}
	return min(n, max(len(r.msg)-r.off, 0)/FixedRRLen)
}

// Next returns the next record. False means the end, or r.err.
func (r *records) Next() (Record, bool) {
	for r.cur < sections && r.left[r.cur] == 0 {
		r.cur++
	}
	if r.cur == sections || r.Err != nil {
		return Record{}, false
	}
	r.left[r.cur]--
	start := r.off
	off, ok := SkipName(r.msg, start)
	if !ok || off+FixedRRLen > len(r.msg) {
		r.Err = errMalformed
		return Record{}, false
	}
	fixed := r.msg[off:]
	rec := Record{
		Section: r.cur,
		root:    r.msg[start] == 0,
		Type:    binary.BigEndian.Uint16(fixed),
		class:   binary.BigEndian.Uint16(fixed[2:]),
		TTL:     binary.BigEndian.Uint32(fixed[4:]),
		TTLAt:   off + 4,
		start:   start,
		Data:    off + FixedRRLen,
	}
	rec.End = rec.Data + int(binary.BigEndian.Uint16(fixed[8:]))
	if rec.End > len(r.msg) {
		r.Err = errMalformed
		return Record{}, false
	}
	r.off = rec.End
	return rec, true
}

// RcodeName is the name of an RCODE, with the upper bits of an OPT record.
func RcodeName(rcode int) string {
	if rcode == rcodeBadVers { // which miekg/dns calls by the name that it has in TSIG
		return "BADVERS"
	}
	if name, ok := dns.RcodeToString[rcode]; ok {
		return name
	}
	return fmt.Sprintf("RCODE%d", rcode)
}
