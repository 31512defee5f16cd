package wire

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/miekg/dns"
)

// verdict is what to do with a message that arrived.
type verdict uint8

const (
	AnswerIt verdict = iota // the query is whole: ask the handlers
	RejectIt                // reply with query.rcode and nothing else
	DropIt                  // say nothing: a reply would feed a loop
)

// Query is one parsed question. It is self-contained: it keeps nothing of the
// message it was read from, so the read loop may reuse its buffer.
type Query struct {
	ID         uint16
	flags      uint16 // as the client sent them
	Type       uint16
	Class      uint16
	Rcode      int  // of a rejected query
	Limit      int  // the largest reply the client takes, in bytes
	EDNS, DO   bool // the query had an OPT record; its DO bit
	questionN  uint16
	LowerN     uint16
	questionAt [MaxWireName + 4]byte
	lowerAt    [MaxWireName]byte
	Held       time.Duration // how long it waited for the first table; parse leaves it
}

// Question returns the question section as the client wrote it, in its case.
func (q *Query) Question() []byte { return q.questionAt[:q.questionN] }

// Name returns the question's name in wire form and lower case.
func (q *Query) Name() []byte { return q.lowerAt[:q.LowerN] }

// Has says whether the client set a flag.
func (q *Query) Has(flag uint16) bool { return q.flags&flag != 0 }

// Parse reads msg into q. limit is the transport's largest reply: 0 stands for
// UDP, where the client's OPT record decides.
func (q *Query) Parse(msg []byte, limit int) verdict {
	q.questionN, q.LowerN, q.Type, q.EDNS, q.DO = 0, 0, 0, false, false
	q.Limit = limit
	if limit == 0 {
		q.Limit = MinUDPSize
	}
	if len(msg) < HeaderLen {
		return DropIt
	}
	q.ID = binary.BigEndian.Uint16(msg)
	q.flags = FlagsOf(msg)
	switch {
	case q.Has(FlagQR):
		return DropIt
	case q.flags&Opcodes != 0:
		q.seekOPT(msg)
		return q.reject(RcodeNotImp)
	case binary.BigEndian.Uint16(msg[4:]) != 1: // RFC 9619
		q.seekOPT(msg)
		return q.reject(RcodeFormErr)
	}
	off, ok := q.parseQuestion(msg)
	if !ok {
		q.questionN = 0
		return q.reject(RcodeFormErr)
	}
	return q.parseOPT(msg, off, limit == 0)
}

func (q *Query) reject(rcode int) verdict {
	q.Rcode = rcode
	return RejectIt
}

// seekOPT finds out whether a message that is refused for what it asks has an
// OPT record: then so has the reply (RFC 6891 section 6.1.1): otherwise the client
// would think that EDNS was what is refused.
func (q *Query) seekOPT(msg []byte) {
	off, ok := HeaderLen, true
	for range binary.BigEndian.Uint16(msg[4:]) {
		if off, ok = SkipName(msg, off); !ok || off+4 > len(msg) {
			return
		}
		off += 4
	}
	rest := RecordsOf(msg, off)
	for rec, ok := rest.Next(); ok; rec, ok = rest.Next() {
		if rec.Type == typeOPT && rec.root && rec.Section == sectionAdditional {
			q.EDNS, q.DO = true, rec.TTL&flagDO != 0
			return
		}
	}
}

// parseQuestion copies the question and returns the offset behind it. A
// compressed name is refused: nothing stands before it that it could point to.
func (q *Query) parseQuestion(msg []byte) (int, bool) {
	off := HeaderLen
	for {
		if off >= len(msg) {
			return 0, false
		}
		n := int(msg[off])
		if n == 0 {
			break
		}
		end := off + 1 + n
		if n > 63 || end >= len(msg) || end-HeaderLen >= MaxWireName {
			return 0, false
		}
		q.lowerAt[off-HeaderLen] = byte(n)
		for i := off + 1; i < end; i++ {
			q.lowerAt[i-HeaderLen] = lower(msg[i])
		}
		off = end
	}
	q.lowerAt[off-HeaderLen] = 0
	off++
	if off+4 > len(msg) {
		return 0, false
	}
	q.LowerN = uint16(off - HeaderLen)
	q.Type = binary.BigEndian.Uint16(msg[off:])
	q.Class = binary.BigEndian.Uint16(msg[off+2:])
	off += 4
	q.questionN = uint16(copy(q.questionAt[:], msg[HeaderLen:off]))
	return off, true
}

// parseOPT looks for EDNS0 in the additional section, RFC 6891 section 6.1.
// Options are ignored: none of those in use changes what a forwarder answers.
func (q *Query) parseOPT(msg []byte, off int, udp bool) verdict {
	version := uint8(0)
	rest := RecordsOf(msg, off)
	for rec, ok := rest.Next(); ok; rec, ok = rest.Next() {
		if rec.Type != typeOPT {
			continue
		}
		if q.EDNS || !rec.root || rec.Section != sectionAdditional {
			return q.reject(RcodeFormErr)
		}
		q.EDNS = true
		q.DO = rec.TTL&flagDO != 0
		version = uint8(rec.TTL >> 16)
		if udp {
			q.Limit = min(max(int(rec.class), MinUDPSize), maxUDPSize)
		}
	}
	switch {
	case rest.Err != nil:
		return q.reject(RcodeFormErr)
	case version != 0:
		return q.reject(rcodeBadVers)
	case q.Class != classIN:
		// CHAOS, HESIOD, ANY: nobody has names of the mesh or of a cluster in
		// them, and servers that drop such questions made the client wait.
		return q.reject(rcodeRefused)
	case isMeta(q.Type):
		return q.reject(RcodeNotImp)
	}
	return AnswerIt
}

// isMeta says whether no record is of that type, RFC 6895 section 3.1, but for ANY.
// Such questions are about the server or the message (OPT, TSIG, TKEY), are answered by
// what a forwarder of single answers does not have (a transfer is many), or obsolete
// (MAILA).
func isMeta(qtype uint16) bool {
	const first, last = 128, 255
	return qtype == typeOPT || first <= qtype && qtype <= last && qtype != TypeANY
}

// WithType returns the same question about another type.
func (q *Query) WithType(qtype uint16) Query {
	own := *q
	own.Type = qtype
	binary.BigEndian.PutUint16(own.questionAt[own.LowerN:], qtype)
	return own
}

// Below returns the same question about the name below domain, which must fit.
func (q *Query) Below(domain []byte) Query {
	own := *q
	n := copy(own.lowerAt[q.LowerN-1:], domain) + int(q.LowerN) - 1
	own.lowerAt[n] = 0
	own.LowerN = uint16(n + 1)
	copy(own.questionAt[:], own.Name())
	binary.BigEndian.PutUint16(own.questionAt[own.LowerN:], q.Type)
	binary.BigEndian.PutUint16(own.questionAt[own.LowerN+2:], q.Class)
	own.questionN = own.LowerN + 4
	return own
}

// NewQuery returns the query for a name in presentation form.
func NewQuery(name string, qtype uint16) (*Query, error) {
	var m dns.Msg
	m.SetQuestion(dns.Fqdn(name), qtype)
	msg, err := m.Pack()
	if err != nil {
		return nil, fmt.Errorf("look up %q: not a DNS name: %w", name, err)
	}
	q := new(Query)
	if q.Parse(msg, MaxMessage) != AnswerIt {
		return nil, fmt.Errorf("look up %q: type %s is not answered by a forwarder", name, dns.Type(qtype))
	}
	return q, nil
}
