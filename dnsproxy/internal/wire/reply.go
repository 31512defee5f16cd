package wire

import (
	"encoding/binary"

	"github.com/miekg/dns"
)

// AppendReply appends a header and the question of q: the start of every
// message made here. The counts of records are zero.
func AppendReply(dst []byte, q *Query, flags uint16, rcode int) []byte {
	flags |= FlagQR | FlagRA | q.flags&(Opcodes|FlagRD|FlagCD) | uint16(rcode)&Rcodes
	questions := uint16(0)
	if q.questionN > 0 {
		questions = 1
	}
	dst = binary.BigEndian.AppendUint16(dst, q.ID)
	dst = binary.BigEndian.AppendUint16(dst, flags)
	dst = binary.BigEndian.AppendUint16(dst, questions)
	dst = append(dst, 0, 0, 0, 0, 0, 0)
	return append(dst, q.Question()...)
}

// SetCount sets how many records a section of msg has.
func SetCount(msg []byte, s section, n int) {
	binary.BigEndian.PutUint16(msg[6+2*int(s):], uint16(n))
}

// ToQuestion is a compression pointer to the question's name: the owner of
// the records made here, so that it has the client's case and never a `*`.
const (
	ToQuestion = minPointer<<8 | HeaderLen
	PointerLen = 2
)

// AppendRR appends a record of class IN up to its data. owner is a compression
// pointer.
func AppendRR(dst []byte, owner, typ uint16, ttl uint32, dataLen int) []byte {
	dst = binary.BigEndian.AppendUint16(dst, owner)
	dst = binary.BigEndian.AppendUint16(dst, typ)
	dst = binary.BigEndian.AppendUint16(dst, classIN)
	dst = binary.BigEndian.AppendUint32(dst, ttl)
	return binary.BigEndian.AppendUint16(dst, uint16(dataLen))
}

// AppendAlias begins an answer of the table's: header, question and, where that is
// about a name below the pod's domain, the CNAME to base, the name without it (nil:
// none). Callers that go by the canonical name (Kerberos, certificate checks) so get
// the host's. owner is the pointer to the name whose records come next.
func AppendAlias(dst []byte, q *Query, base []byte, ttl uint32) (_ []byte, owner uint16) {
	msg := len(dst)
	dst = AppendReply(dst, q, FlagAA, RcodeSuccess)
	if base == nil {
		return dst, ToQuestion
	}
	dst = AppendRR(dst, ToQuestion, TypeCNAME, ttl, len(base)+1)
	owner = minPointer<<8 | uint16(len(dst)-msg)
	dst = append(dst, base...)
	dst = append(dst, 0)
	SetCount(dst[msg:], SectionAnswer, 1)
	return dst, owner
}

// AppendNodata appends "the name exists, this type does not": NOERROR, no
// answer but the CNAME to base, and a SOA without which nobody may cache it
// (RFC 2308 section 3).
// The SOA has the form that RFC 6303 section 3 gives for local zones.
func AppendNodata(dst []byte, q *Query, base []byte, ttl uint32) []byte {
	msg := len(dst)
	dst, owner := AppendAlias(dst, q, base, ttl)
	const rname = "\x06nobody\x07invalid\x00"
	dst = AppendRR(dst, owner, TypeSOA, ttl, PointerLen+len(rname)+5*4)
	dst = binary.BigEndian.AppendUint16(dst, owner)
	dst = append(dst, rname...)
	for _, v := range [...]uint32{1, 3600, 1200, 604800, ttl} { // serial, refresh, retry, expire, minimum
		dst = binary.BigEndian.AppendUint32(dst, v)
	}
	SetCount(dst[msg:], SectionAuthority, 1)
	return dst
}

// AppendOPT appends our own OPT record; rcode's upper bits go into it.
func AppendOPT(msg []byte, do bool, rcode int) []byte {
	ttl := uint32(rcode>>4) << 24
	if do {
		ttl |= flagDO
	}
	msg = append(msg, 0)
	msg = binary.BigEndian.AppendUint16(msg, typeOPT)
	msg = binary.BigEndian.AppendUint16(msg, OwnUDPSize)
	msg = binary.BigEndian.AppendUint32(msg, ttl)
	msg = append(msg, 0, 0)
	additional := binary.BigEndian.Uint16(msg[10:])
	SetCount(msg, sectionAdditional, int(additional)+1)
	return msg
}

// AppendReject appends the whole reply to a query that Parse refused.
func AppendReject(dst []byte, q *Query) []byte { return appendBare(dst, q, q.Rcode) }

// appendBare appends a whole reply without records.
func appendBare(dst []byte, q *Query, rcode int) []byte {
	dst = AppendReply(dst, q, 0, rcode)
	if q.EDNS {
		dst = AppendOPT(dst, q.DO, rcode)
	}
	return dst
}

// Finish makes a handler's message the reply to q, in place where it can: id,
// the question in the client's case, the flags that are the client's, our OPT,
// and no more bytes than the client takes.
func Finish(q *Query, msg []byte) []byte {
	flags := FlagsOf(msg)&^(FlagRD|FlagCD) | FlagQR | FlagRA | q.flags&(FlagRD|FlagCD)
	if !q.Has(FlagAD) && !q.DO {
		flags &^= FlagAD // RFC 6840 section 5.8: only for those who asked
	}
	binary.BigEndian.PutUint16(msg, q.ID)
	binary.BigEndian.PutUint16(msg[2:], flags)
	copy(msg[HeaderLen:], q.Question())
	size := len(msg)
	if q.EDNS {
		size += OptLen
	}
	if size > q.Limit {
		return truncate(q, msg)
	}
	if q.EDNS {
		msg = AppendOPT(msg, q.DO, 0)
	}
	return msg
}

// truncate drops records until msg fits q's limit, and says so with TC.
func truncate(q *Query, msg []byte) []byte {
	var m dns.Msg
	if m.Unpack(msg) == nil {
		if q.EDNS {
			m.SetEdns0(OwnUDPSize, q.DO)
		}
		m.Truncate(q.Limit)
		if out, err := m.Pack(); err == nil && len(out) <= q.Limit {
			return out
		}
	}
	return appendBare(nil, q, RcodeServFail)
}
