package dnsproxy

import (
	"encoding/binary"

	"github.com/miekg/dns"
)

// appendReply appends a header and the question of q: the start of every
// message made here. The counts of records are zero.
func appendReply(dst []byte, q *query, flags uint16, rcode int) []byte {
	flags |= flagQR | flagRA | q.flags&(opcodes|flagRD|flagCD) | uint16(rcode)&rcodes
	questions := uint16(0)
	if q.questionN > 0 {
		questions = 1
	}
	dst = binary.BigEndian.AppendUint16(dst, q.id)
	dst = binary.BigEndian.AppendUint16(dst, flags)
	dst = binary.BigEndian.AppendUint16(dst, questions)
	dst = append(dst, 0, 0, 0, 0, 0, 0)
	return append(dst, q.question()...)
}

// setCount sets how many records a section of msg has.
func setCount(msg []byte, s section, n int) {
	binary.BigEndian.PutUint16(msg[6+2*int(s):], uint16(n))
}

// toQuestion is a compression pointer to the question's name: the owner of
// the records made here, so that it has the client's case and never a `*`.
const (
	toQuestion = minPointer<<8 | headerLen
	pointerLen = 2
)

// appendRR appends a record of class IN up to its data. owner is a compression
// pointer.
func appendRR(dst []byte, owner, typ uint16, ttl uint32, dataLen int) []byte {
	dst = binary.BigEndian.AppendUint16(dst, owner)
	dst = binary.BigEndian.AppendUint16(dst, typ)
	dst = binary.BigEndian.AppendUint16(dst, classIN)
	dst = binary.BigEndian.AppendUint32(dst, ttl)
	return binary.BigEndian.AppendUint16(dst, uint16(dataLen))
}

// appendAlias begins an answer of the table's: header, question and, where that is
// about a name below the pod's domain, the CNAME to base, the name without it (nil:
// none). Callers that go by the canonical name (Kerberos, certificate checks) so get
// the host's. owner is the pointer to the name whose records come next.
func appendAlias(dst []byte, q *query, base []byte, ttl uint32) (_ []byte, owner uint16) {
	msg := len(dst)
	dst = appendReply(dst, q, flagAA, rcodeSuccess)
	if base == nil {
		return dst, toQuestion
	}
	dst = appendRR(dst, toQuestion, typeCNAME, ttl, len(base)+1)
	owner = minPointer<<8 | uint16(len(dst)-msg)
	dst = append(dst, base...)
	dst = append(dst, 0)
	setCount(dst[msg:], sectionAnswer, 1)
	return dst, owner
}

// appendNodata appends "the name exists, this type does not": NOERROR, no
// answer but the CNAME to base, and a SOA without which nobody may cache it
// (RFC 2308 section 3).
// The SOA has the form that RFC 6303 section 3 gives for local zones.
func appendNodata(dst []byte, q *query, base []byte, ttl uint32) []byte {
	const (
		serial  = 1
		refresh = 3600
		retry   = 1200
		expire  = 604800
	)
	msg := len(dst)
	dst, owner := appendAlias(dst, q, base, ttl)
	const rname = "\x06nobody\x07invalid\x00"
	dst = appendRR(dst, owner, typeSOA, ttl, pointerLen+len(rname)+5*4)
	dst = binary.BigEndian.AppendUint16(dst, owner)
	dst = append(dst, rname...)
	for _, v := range [...]uint32{serial, refresh, retry, expire, ttl} {
		dst = binary.BigEndian.AppendUint32(dst, v)
	}
	setCount(dst[msg:], sectionAuthority, 1)
	return dst
}

// appendOPT appends our own OPT record; rcode's upper bits go into it.
func appendOPT(msg []byte, do bool, rcode int) []byte {
	ttl := uint32(rcode>>4) << 24
	if do {
		ttl |= flagDO
	}
	msg = append(msg, 0)
	msg = binary.BigEndian.AppendUint16(msg, typeOPT)
	msg = binary.BigEndian.AppendUint16(msg, ownUDPSize)
	msg = binary.BigEndian.AppendUint32(msg, ttl)
	msg = append(msg, 0, 0)
	additional := binary.BigEndian.Uint16(msg[10:])
	setCount(msg, sectionAdditional, int(additional)+1)
	return msg
}

// appendReject appends the reply to a query that parse refused.
func appendReject(dst []byte, q *query) []byte {
	dst = appendReply(dst, q, 0, q.rcode)
	if q.edns {
		dst = appendOPT(dst, q.do, q.rcode)
	}
	return dst
}

// finish makes a handler's message the reply to q, in place where it can: id,
// the question in the client's case, the flags that are the client's, our OPT,
// and no more bytes than the client takes.
func finish(q *query, msg []byte) []byte {
	flags := flagsOf(msg)&^(flagRD|flagCD) | flagQR | flagRA | q.flags&(flagRD|flagCD)
	if !q.has(flagAD) && !q.do {
		flags &^= flagAD // RFC 6840 section 5.8: only for those who asked
	}
	binary.BigEndian.PutUint16(msg, q.id)
	binary.BigEndian.PutUint16(msg[2:], flags)
	copy(msg[headerLen:], q.question())
	size := len(msg)
	if q.edns {
		size += optLen
	}
	if size > q.limit {
		return truncate(q, msg)
	}
	if q.edns {
		msg = appendOPT(msg, q.do, 0)
	}
	return msg
}

// truncate drops records until msg fits q's limit, and says so with TC.
func truncate(q *query, msg []byte) []byte {
	var m dns.Msg
	if err := m.Unpack(msg); err != nil {
		return failure(q, rcodeServFail)
	}
	if q.edns {
		m.SetEdns0(ownUDPSize, q.do)
	}
	m.Truncate(q.limit)
	out, err := m.Pack()
	if err != nil || len(out) > q.limit {
		out = failure(q, rcodeServFail)
	}
	return out
}

// failure is a whole reply without records, for what went wrong here.
func failure(q *query, rcode int) []byte {
	msg := appendReply(make([]byte, 0, headerLen+int(q.questionN)+optLen), q, 0, rcode)
	if q.edns {
		msg = appendOPT(msg, q.do, rcode)
	}
	return msg
}
